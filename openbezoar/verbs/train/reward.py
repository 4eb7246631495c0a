"""``reward``: a reward model learnt from preferred against rejected answers.

An adapter and a head are trained on the base (``training.bradley_terry``), then merged: ``model/`` is
a sequence classifier with one output that transformers reads by itself. What it is worth is measured
on the held-out pairs with the classifier as it was written. Writes ``model/``, ``model.json``,
``metrics.jsonl`` and ``heldout.jsonl``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from openbezoar.context import StepContext
from openbezoar.errors import RecipeError
from openbezoar.forest import RewardScorer, Tree
from openbezoar.forest.layout import common
from openbezoar.machine import distributed
from openbezoar.machine.shares import dealt
from openbezoar.models import shards
from openbezoar.models.dropout import without_base_dropout
from openbezoar.models.load import DTYPES, device, free
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.models.reward_models import load_reward_model, new_head, scalar_head, write_reward_model
from openbezoar.recipe.train_steps import Reward
from openbezoar.rows.forms import to_pair
from openbezoar.stats.pair_accuracy import pair_accuracy
from openbezoar.stats.seeds import step_seed
from openbezoar.training import checkpointing
from openbezoar.training.bradley_terry import reward_objective
from openbezoar.training.fit import ADAPTER, Bench
from openbezoar.verbs.train.data import training_trees
from openbezoar.verbs.train.fit import MODEL, fitted, held_in, loaded, renderer_of, resolved, suited
from openbezoar.verbs.train.result import RewardNumbers


def run(step: Reward, context: StepContext) -> dict[str, Any]:
    """Train a reward model on the step's pairs."""
    renderer = renderer_of(step, context, "none")
    step = suited(step, context)
    trees, heldout = training_trees(step, step.reward, to_pair, context, renderer, "pair")
    model = loaded(step, context, continues=False)
    without_base_dropout(model)
    head = new_head(model, step_seed(context.seed, "head"))
    checkpointing.apply(model, step)
    pad = renderer.formatter.tokenizer.pad_token_id
    bench = Bench(model, RewardScorer(model, head, step.tokens, pad), renderer)
    objective = reward_objective(bench.scorer, heldout, margin=step.margin, center=step.center)
    numbers = fitted(step, context, bench, trees, objective)
    trained = bench.scorer.scores(heldout)
    about = {"heldout_rows": len(heldout), **resolved(step, context, model)}
    checkpoint = distributed.from_first(partial(_written, step, context, bench))
    del model, bench, objective
    free()
    saved = _scored(checkpoint, heldout, step.tokens)
    if distributed.rank() == 0:
        lengths = [answer_tokens(tree) for tree in heldout]
        check = pair_accuracy(saved, lengths, step_seed(context.seed, "accuracy"), groups=by_prompt(heldout))
        about |= {"saved": check, "drift": _mean_difference(trained, saved)}
    result = RewardNumbers.model_validate({**numbers, **about})
    return {**result.written(), "summary": result.line()}


def _written(step: Reward, context: StepContext, bench: Bench[RewardScorer]) -> Checkpoint:
    """The merged classifier on disk; the adapter that ``fit`` wrote is part of it and goes."""
    base, formatter = context.checkpoint(step.model), bench.formatter
    source, folder = base.folder(), context.out / MODEL
    shutil.rmtree(folder, ignore_errors=True)
    weights = shards.weights_of(
        source,
        DTYPES[base.dtype],
        device(),
        older=base.adapters,
        last=context.out / ADAPTER,
        dtype=DTYPES[step.dtype],
        nf4=held_in(step, context) == "nf4",
    )
    formatter.tokenizer.chat_template = formatter.jinja  # which conversations are read by, also without the project
    write_reward_model(folder, source, weights, bench.scorer.head.weight, formatter.tokenizer, step.dtype)
    shutil.rmtree(context.out / ADAPTER)
    checkpoint = Checkpoint(
        context.name, str(folder.resolve()), (), "none", step.dtype, base.prompt, base.licence, base.thoughts
    )
    write_checkpoint(context.out, checkpoint, context.run.path, published=context.folder(context.name))
    return checkpoint


def _scored(checkpoint: Checkpoint, trees: Sequence[Tree], tokens: int) -> list[list[float]]:
    """Rewards by the classifier as it was written."""
    model, _ = load_reward_model(checkpoint)
    head = scalar_head(model)
    if head is None:
        raise RecipeError(f"a {type(model).__name__} keeps its head under another name; train a model of another kind")
    scorer = RewardScorer(model, head, tokens, model.config.pad_token_id)
    if distributed.world() > 1:  # all of them ask
        scorer.deal = dealt
    rewards = scorer.scores(trees)
    del model, scorer
    free()
    return rewards


def answer_tokens(tree: Tree) -> tuple[int, int]:
    """Tokens of a pair's answers from where they differ, which their difference in length is not changed by."""
    chosen, rejected = (path.ids for path in tree)
    shared = common(chosen, rejected, min(len(chosen), len(rejected)))
    return len(chosen) - shared, len(rejected) - shared


def by_prompt(trees: Sequence[Tree]) -> list[int]:
    """For each pair a number that those with the same prompt share, as far as ids tell.

    What a pair's answers have in common begins with the prompt. Where that of one pair begins with that of another,
    both have its prompt, or the one's conversation goes on from the other's. Pairs of a prompt whose answers
    begin alike, and otherwise than another pair's do, are not found.
    """
    ends = [len(tree[0].ids) - answer_tokens(tree)[0] for tree in trees]
    shared = [tuple(tree[0].ids[:end]) for tree, end in zip(trees, ends, strict=True)]
    found = list(range(len(shared)))
    for before, place in pairwise(sorted(found, key=shared.__getitem__)):
        first = shared[found[before]]  # sorted, what begins alike stands together, the shortest in front
        if shared[place][: len(first)] == first:
            found[place] = found[before]
    return found


def _mean_difference(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    differences = [abs(x - y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    return sum(differences) / len(differences)
