"""Forests of real pairs and real questions against plain passes, a row a path: log-probabilities
and the adapter's gradients in fp32.

Every token of a question is asked for. Of an answer's one letter alone the gradient says little in fp32: with
SmolLM2-135M and two MMLU questions plain passes were 5.2e-4 from fp64's, the forest 4.3e-4.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from real import adapted, gradients, model, pairs, questions, relative

from benchmarks import score, training
from openbezoar.forest import Scorer, TokenPath, Tree

pytestmark = pytest.mark.parity


def assert_equal(made: Any, trees: list[Tree]) -> None:
    """Each asked-for token to 1e-4, each tensor's gradient to 1e-4 of its norm."""
    forest, plain = Scorer(made.eval()), Scorer(made, plain=True)
    found = []
    for scorer in (forest, plain):
        scores = []
        # The plain oracle runs each path alone, so padding cannot help it.
        for group in [trees] if scorer is forest else [[(path,)] for tree in trees for path in tree]:
            paths = [path for tree in scorer.score(group) for path in tree]
            torch.stack(
                [(path * torch.linspace(0.5, 1.5, len(path), device=path.device)).sum() for path in paths]
            ).sum().backward()
            scores += [path.detach() for path in paths]
        found.append((torch.cat(scores), gradients(made)))
    (ours, our_gradients), (theirs, their_gradients) = found
    gap = float((ours - theirs).abs().max())
    whole, worst = relative(our_gradients, their_gradients)
    print(
        f"\n{len(trees)} trees, {len(ours)} log-probabilities: differ by {gap:.1e} at most, the gradient by"
        f" {whole:.1e}, in a tensor by {worst:.1e}"
    )
    assert gap <= 1e-4
    assert max(whole, worst) <= 1e-4


def test_pairs_score_and_learn_as_their_paths_do_one_by_one() -> None:
    assert_equal(adapted(), pairs()[:4])


@pytest.mark.parametrize(("task", "n"), [("hellaswag 0", 3), ("winogrande 5", 3), ("openbookqa 0", 3), ("mmlu 5", 2)])
def test_questions_score_and_learn_as_their_paths_do_one_by_one(task: str, n: int) -> None:
    job, made = score.Job("work", "ours", model(), questions(), n, "float32", [task], {}), adapted()
    tokenizer = training.load_tokenizer(training.checkpoint(model()).folder())
    asked = score.asked(job, made, tokenizer)[task][:n]
    assert_equal(
        made, [tuple(TokenPath(path.ids, (False,) + (True,) * (len(path.ids) - 1)) for path in tree) for tree in asked]
    )
