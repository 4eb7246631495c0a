"""Parts of ``benchmarks.gpu`` that time the package against plain loops: training, scoring, generation.

Each side has its model to itself and gives it back. Both do the same work, and their results are compared.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.common import linear_parameters
from benchmarks.gpu_models import (
    SHARE,
    Found,
    Place,
    base_model,
    drawn_pairs,
    drawn_rows,
    free,
    our_model,
    plain_model,
    plain_scores,
    product_rate,
    recompute,
    row,
    tokens_of,
)
from openbezoar.forest import Scorer, TokenPath, Tree

if TYPE_CHECKING:
    from openbezoar.training.losses import PairScores

OURS, PLAIN = "ours", "plain loop"


def _timed(
    place: Place, found: Found, setting: dict[str, Any], step: Callable[[], object], tokens: int, work: float
) -> float:
    """Time a training step and add its row; tokens a second, 0 where it runs out of memory."""
    try:
        peak = place.peak(step)
        line = row(setting, place.times(step, n=2, warm=1), tokens, work, found.numbers["rate"])
    except torch.OutOfMemoryError:
        found.rows.append({"setting": setting, "why": "out of memory"})
        free()
        return 0.0
    found.rows.append({**line, "peak_bytes": peak})
    return float(line["tokens_per_second"])


def sft(place: Place) -> Found:
    """An optimiser step's passes, by their tokens and recomputation, against a padded loop."""
    found = Found()
    trees = drawn_rows(12 if place.tiny else 128 if place.on_gpu else 16, place, longest=60 if place.tiny else 512)
    found.numbers |= {"tokens": tokens_of(trees), "rate": product_rate(place)}
    ours, losses = _sft_ours(place, trees, found)
    free()
    theirs, loss = _sft_plain(place, [tree[0] for tree in trees], found)
    gap = max(abs(value - loss) for value in losses)
    found.at_most("loss: off the plain loop's", gap, 1e-2 if place.on_gpu else 1e-4)
    found.numbers |= {"loss": loss, "ratio": ours / theirs}
    if not place.tiny:
        share = max(line.get("share", 0.0) for line in found.rows if line["setting"]["side"] == OURS)
        found.target("share of the matmul rate", share, share >= SHARE, f"at least {SHARE}")
        found.target("ratio to the plain loop", ours / theirs, ours >= theirs, "at least 1")
    return found


def _sft_ours(place: Place, trees: Sequence[Tree], found: Found) -> tuple[float, list[float]]:
    """(tokens a second at best, the loss of each setting)."""
    from openbezoar.training.objectives import sft_objective

    model = our_model(place.timed, place, place.dtype).train()
    whole = sum(path.n_scored for tree in trees for path in tree)
    trunk, head = linear_parameters(model)
    work = 4.0 * (trunk * found.numbers["tokens"] + head * whole)
    best, losses, total = 0.0, [], [0.0]
    for budget in (64, 256) if place.tiny else (1024, 4096, 16_384):
        for recomputed in (0, place.timed["layers"]):
            recompute(model, recomputed)
            scorer = Scorer(model, budget)
            objective = sft_objective(scorer, trees)

            def step(scorer: Scorer = scorer, objective: Any = objective) -> None:
                total[0] = 0.0
                for group in scorer.batches(trees):
                    loss, _ = objective.loss([trees[i] for i in group], whole)
                    loss.backward()
                    total[0] += float(loss.detach())
                model.zero_grad(set_to_none=True)

            setting = {"side": OURS, "tokens": budget, "recomputed": recomputed}
            speed = _timed(place, found, setting, step, found.numbers["tokens"], work)
            if speed:
                losses.append(total[0])
            best = max(best, speed)
    return best, losses


def _sft_plain(place: Place, paths: list[TokenPath], found: Found) -> tuple[float, float]:
    """(tokens a second of the fastest micro-batch, the loss) of padded rows sorted by length."""
    peer = plain_model(place.timed, place, place.dtype).train()
    whole = sum(path.n_scored for path in paths)
    trunk, head = linear_parameters(peer)
    work = 4.0 * (trunk * found.numbers["tokens"] + head * whole)
    paths = sorted(paths, key=lambda path: len(path.ids))
    best, last, total = 0.0, math.nan, [0.0]
    for micro in (4,) if place.tiny else (1, 4, 16):

        def step(micro: int = micro) -> None:
            total[0] = 0.0
            for i in range(0, len(paths), micro):
                loss = -torch.cat(plain_scores(peer, paths[i : i + micro], place.device)).sum() / whole
                loss.backward()  # type: ignore[no-untyped-call]
                total[0] += float(loss.detach())
            peer.zero_grad(set_to_none=True)

        setting = {"side": PLAIN, "micro": micro}
        if speed := _timed(place, found, setting, step, found.numbers["tokens"], work):
            best, last = max(best, speed), total[0]
    return best, last


def dpo(place: Place) -> Found:
    """Pairs a second, the reference in the same pass, against a loop that reads each prompt twice."""
    from openbezoar.training.losses import PairScores, answer_sums, answer_tokens
    from openbezoar.training.objectives import same_pass_reference

    found = Found()
    pairs = drawn_pairs(4 if place.tiny else 32, place)
    found.numbers |= {"tokens": tokens_of(pairs), "rate": product_rate(place)}

    def ours() -> tuple[float, float]:
        model = our_model(place.timed, place, place.dtype).train()
        scorer = Scorer(model, 256 if place.tiny else 4096)
        reference = same_pass_reference(scorer)

        def scores(group: list[Tree]) -> PairScores:
            policy = scorer.score(group)
            return PairScores.of(answer_sums(policy), answer_tokens(policy), reference(group))

        return _dpo(place, OURS, model, pairs, scorer.batches(pairs), scores, found)

    def plain() -> tuple[float, float]:
        model = plain_model(place.timed, place, place.dtype).train()

        def once(group: list[Tree]) -> Tensor:
            scores = plain_scores(model, [path for tree in group for path in tree], place.device)
            return torch.stack([score.sum() for score in scores]).view(-1, 2)

        def scores(group: list[Tree]) -> PairScores:
            with torch.no_grad(), model.disable_adapter():
                base = once(group)
            tokens = torch.tensor([[path.n_scored for path in tree] for tree in group], device=place.device)
            return PairScores.of(once(group), tokens, base)

        groups = [list(range(i, min(i + 4, len(pairs)))) for i in range(0, len(pairs), 4)]
        return _dpo(place, PLAIN, model, pairs, groups, scores, found)

    speed, loss = ours()
    free()
    other, wanted = plain()
    found.at_most("loss: off the plain loop's", abs(loss - wanted), 1e-2 if place.on_gpu else 1e-4)
    found.numbers |= {"loss": wanted, "ratio": speed / other}
    if not place.tiny:
        found.target("ratio to the plain loop", speed / other, speed >= other, "at least 1")
    return found


def _dpo(
    place: Place,
    side: str,
    model: Any,
    pairs: Sequence[Tree],
    groups: Sequence[Sequence[int]],
    scores: Callable[[list[Tree]], PairScores],
    found: Found,
) -> tuple[float, float]:
    """(pairs a second, the loss). scores: of some pairs."""
    from openbezoar.training.losses import sigmoid

    trunk, head = linear_parameters(model)
    # forward and backward of the policy, and the reference's forward
    work = 6.0 * (trunk * found.numbers["tokens"] + head * sum(path.n_scored for tree in pairs for path in tree))
    total = [0.0]

    def step() -> None:
        total[0] = 0.0
        for chosen in groups:
            loss = sigmoid(scores([pairs[i] for i in chosen]), beta=0.1, label_smoothing=0.0).sum() / len(pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            total[0] += float(loss.detach())
        model.zero_grad(set_to_none=True)

    speed = _timed(place, found, {"side": side}, step, found.numbers["tokens"], work)
    return speed * len(pairs) / found.numbers["tokens"], total[0]


def score(place: Place) -> Found:
    """Few-shot questions with four answers each: shared prefixes against padded batches."""
    found, draw = Found(), random.Random(4)
    shots, questions, question = (40, 3, 8) if place.tiny else (600, 64, 60)
    top = place.timed["vocabulary"]

    def words(n: int) -> list[int]:
        return [draw.randrange(3, top) for _ in range(n)]

    stem = words(shots)
    trees: list[Tree] = []
    for _ in range(questions):
        asked = [*stem, *words(question)]
        trees.append(tuple(TokenPath.of(asked, [3 + i, *words(draw.randint(1, 6))]) for i in range(4)))

    def ours() -> tuple[float, list[Tensor]]:
        model, best, values = base_model(place.timed, place, place.dtype).eval(), 0.0, []
        for budget in (256,) if place.tiny else (2048, 8192, 32_768):
            scorer = Scorer(model, budget)
            values = [path for tree in scorer.logprobs(trees) for path in tree]
            seconds = statistics.median(place.times(partial(scorer.logprobs, trees), n=2, warm=1))
            found.rows.append(_answers({"side": OURS, "tokens": budget}, 4 * questions, seconds))
            best = max(best, 4 * questions / seconds)
        return best, values

    paths = [path for tree in trees for path in tree]  # by length already, all but a few tokens

    def padded() -> tuple[float, list[Tensor]]:
        model, best, values = base_model(place.timed, place, place.dtype, ours=False).eval(), 0.0, [torch.empty(0)]
        for micro in (4,) if place.tiny else (4, 16):

            @torch.no_grad()
            def run(micro: int = micro) -> None:
                parts = [plain_scores(model, paths[i : i + micro], place.device) for i in range(0, len(paths), micro)]
                values[:] = [value.cpu() for part in parts for value in part]

            seconds = statistics.median(place.times(run, n=2, warm=1))
            found.rows.append(_answers({"side": "padded", "micro": micro}, len(paths), seconds))
            best = max(best, len(paths) / seconds)
        return best, values

    speed, mine = ours()
    free()
    other, theirs = padded()
    gap = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    found.at_most("log-probabilities: off padded batches'", gap, 0.3 if place.on_gpu else 1e-4)
    found.numbers["ratio"] = speed / other
    if not place.tiny:
        found.target("ratio to padded batches", speed / other, speed >= 3 * other, "at least 3")
    return found


def _answers(setting: dict[str, Any], n: int, seconds: float) -> dict[str, Any]:
    return {"setting": setting, "ms": {"median": 1e3 * seconds}, "answers_per_second": n / seconds}


def generate(place: Place) -> Found:
    """Greedy answers of a batch against transformers' own loop."""
    found, draw, new = Found(), random.Random(5), 6 if place.tiny else 64
    for batch in (3,) if place.tiny else (32, 128):
        top = place.timed["vocabulary"]
        prompts = [[draw.randrange(3, top) for _ in range(draw.randint(6, 24))] for _ in range(batch)]
        speed, mine = _drawn(place, prompts, new, found)
        free()
        other, theirs = _generated(place, prompts, new, found)
        free()
        same = sum(a == b for a, b in zip(mine, theirs, strict=True))
        firsts = sum(a[0] == b[0] for a, b in zip(mine, theirs, strict=True))
        found.numbers |= {f"same_answers_of_{batch}": same, f"ratio_of_{batch}": speed / other}
        # In 16 bits near ties fall either way, and from there on a random model's answers part.
        found.holds(f"the same tokens of {batch}", firsts >= 0.8 * batch if place.on_gpu else same == batch)
        found.holds(f"{new} tokens each of {batch}", {len(ids) for ids in (*mine, *theirs)} == {new})
        if not place.tiny:
            found.target(f"ratio of {batch} rows", speed / other, speed >= other, "at least 1")
    return found


def _drawn(place: Place, prompts: list[list[int]], new: int, found: Found) -> tuple[float, list[list[int]]]:
    """(tokens a second, the answers) of the package's decoder."""
    from openbezoar.llm import Sampling
    from openbezoar.llm.decoding import Decoder, Sampled

    decoder = Decoder(Scorer(base_model(place.timed, place, place.dtype).eval()), 0)
    answers: list[list[int]] = []

    def draw() -> None:
        rows = [Sampled.of(i, Sampling(new), (), i) for i in range(len(prompts))]
        decoder.draw(prompts, rows, lambda row: False)
        answers[:] = [row.ids for row in rows]

    seconds = statistics.median(place.times(draw, n=2, warm=1))
    speed = len(prompts) * new / seconds
    found.rows.append({"setting": {"side": OURS, "rows": len(prompts)}, "tokens_per_second": speed})
    return speed, answers


def _generated(place: Place, prompts: list[list[int]], new: int, found: Found) -> tuple[float, list[list[int]]]:
    """The same of transformers' ``generate`` with padding on the left."""
    model = base_model(place.timed, place, place.dtype, ours=False).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=place.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=place.device)
    answers: list[list[int]] = []

    def draw() -> None:
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
        )
        answers[:] = out[:, width:].tolist()

    model.generation_config.eos_token_id = None  # so that no answer ends early
    seconds = statistics.median(place.times(draw, n=2, warm=1))
    speed = len(prompts) * new / seconds
    found.rows.append({"setting": {"side": "transformers", "rows": len(prompts)}, "tokens_per_second": speed})
    return speed, answers
