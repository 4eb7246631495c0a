"""Training without a recipe: a model, a tokenizer and rows in memory; an adapter comes of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError

from openbezoar.dialogue.prompt import Formatter, Prompt, prompt_of
from openbezoar.errors import DataError, ModelError, RecipeError, RowError, UserError
from openbezoar.forest import Scorer
from openbezoar.machine import distributed, extras
from openbezoar.models.fitting import settled
from openbezoar.models.load import DTYPES, adapted
from openbezoar.models.memory import shape_in
from openbezoar.progress import for_terminal
from openbezoar.recipe.file import one_line
from openbezoar.recipe.train_steps import WHOLE, Dpo, Kto, Lora, Sft, Training
from openbezoar.rows.forms import to_answers, to_example, to_pair
from openbezoar.rows.given import plain_rows
from openbezoar.rows.records import Counts, Example, Pair, Unpaired
from openbezoar.stats.seeds import step_seed
from openbezoar.training.data import Renderer, Split, split_trees
from openbezoar.training.encode import Convert, each
from openbezoar.training.fit import ADAPTER, Bench, fit
from openbezoar.training.loop import Objective
from openbezoar.training.objectives import same_pass_reference, sft_objective
from openbezoar.verbs.train import kto as unpaired
from openbezoar.verbs.train.dpo import objective_of

Rows = Iterable[Mapping[str, Any]]
"""Rows in the forms that a recipe's data has: instruction and response, messages, chosen and rejected, …"""

T = TypeVar("T", bound=Training)
LOGS = ("metrics.jsonl", "heldout.jsonl")
# What stands in a step for what is given here as an argument, belongs to the model, or to a run's folder.
NOT_HERE = (
    *("model", "sft", "dpo", "kto", "heldout", "quantize", "nf4", "dtype"),
    *("adapter", "reference", "save_every", "sweep", "sample_every", "sample_prompts", "sample_tokens"),
)


@dataclass(frozen=True)
class Trained:
    """What a training came to.

    model: PEFT's, in evaluation mode; its base is the model that was given, wrapped in place.
    numbers: as in a step's manifest: steps, tokens, losses. counts: rows that were dropped or
    changed, by reason. folder: that was asked for with ``out``, the adapter in it; None without one.
    """

    model: Any
    numbers: Mapping[str, Any]
    counts: Mapping[str, int]
    folder: Path | None


def sft(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    *,
    heldout: Rows | None = None,
    prompt: Prompt | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Trained:
    """Fine-tune a new adapter on rows, with loss on the answers only.

    model: a causal language model of transformers, as it is held (NF4 or not); rows: with a prompt
    and an answer. heldout: rows for the held-out loss; default, each ``heldout_every``-th row.
    prompt: ``own``, ``openbezoar``, a template's file, or a recipe's ``prompt`` as a mapping;
    default, the tokenizer's own chat template, or the project's where it has none. out: a new folder
    for the adapter in PEFT's format and the logs. quiet: no progress on stderr. settings: keys of a
    recipe's ``sft`` step, such as ``epochs``, ``batch``, ``learning_rate``, ``lora={"r": 8}``.
    Raises a UserError for a setting, a row or a model that cannot be used.
    """
    step = _settings(Sft, {"sft": "rows"}, settings, model)
    task = _Task(step, to_example, "row", lambda bench, split: sft_objective(bench.scorer, split.heldout), step.loss_on)
    inputs = _Given(model, tokenizer, rows, heldout, prompt, None if out is None else Path(out), seed, quiet)
    return _train(task, inputs)


def dpo(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    *,
    heldout: Rows | None = None,
    prompt: Prompt | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Trained:
    """Train a new adapter on preference pairs; the reference is the model as given, the adapter off.

    rows: with chosen and rejected. settings: keys of a recipe's ``dpo`` step, such as ``loss``,
    ``beta``, ``learning_rate``. Everything else as in ``sft``.
    """
    step = _settings(Dpo, {"dpo": "rows"}, settings, model)

    def objective(bench: Bench[Scorer], split: Split) -> Objective:
        return objective_of(step, bench, split, lambda: same_pass_reference(bench.scorer))

    inputs = _Given(model, tokenizer, rows, heldout, prompt, None if out is None else Path(out), seed, quiet)
    return _train(_Task(step, to_pair, "pair", objective), inputs)


def kto(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    *,
    heldout: Rows | None = None,
    prompt: Prompt | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> Trained:
    """Train a new adapter on answers that were liked or not; the reference is the model as given, the adapter off.

    rows: with prompt, completion and label, or pairs, each of which is a liked answer and one that
    was not. settings: keys of a recipe's ``kto`` step, such as ``beta``, ``desirable_weight``.
    Everything else as in ``sft``.
    """
    step = _settings(Kto, {"kto": "rows"}, settings, model)

    def objective(bench: Bench[Scorer], split: Split) -> Objective:
        return unpaired.objective_of(step, bench, split, lambda: same_pass_reference(bench.scorer))

    inputs = _Given(model, tokenizer, rows, heldout, prompt, None if out is None else Path(out), seed, quiet)
    task = _Task(step, to_answers, "answer", objective)
    return _train(task, inputs)


def _settings(kind: type[T], fixed: Mapping[str, Any], given: Mapping[str, Any], model: Any) -> T:
    """A step's settings from keywords. Raises RecipeError for one that is none, or has no place here."""
    where = kind.__name__.lower()
    for name in given:
        if name in NOT_HERE:
            raise RecipeError(f"{where}: {name}: a setting of a recipe's steps, which has no place here; remove it")
    if given.get("lora") == WHOLE:
        raise RecipeError(f"{where}: lora: 'none' trains all weights, which a recipe's steps do; give an adapter here")
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    if getattr(model, "dtype", None) not in dtypes:
        raise ModelError(f"{where}: expected a model of transformers in {', '.join(DTYPES)}")
    nf4 = "packed" if getattr(model, "is_loaded_in_4bit", False) else "unpacked"  # which is as much as 16 bits
    own = {"model": "model", "dtype": dtypes[model.dtype], "nf4": nf4, "save_every": 2**31}
    try:
        return settled(kind.model_validate({**given, **fixed, **own}), shape_in(model))
    except ValidationError as error:
        raise RecipeError(one_line(error, where, kind)) from None


@dataclass(frozen=True)
class _Task:
    """What is trained for."""

    step: Training
    convert: Convert
    what: str  # a row of it, for messages
    objective: Callable[[Bench[Scorer], Split], Objective]
    loss_on: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class _Given:
    """What a caller brought, as in ``sft``."""

    model: Any
    tokenizer: Any
    rows: Rows
    heldout: Rows | None
    prompt: Prompt | None
    out: Path | None
    seed: int
    quiet: bool


def _train(task: _Task, given: _Given) -> Trained:
    """Rows to trees, an adapter on the model, the loop; torch's random state stays as it was."""
    extras.require("torch", "transformers", "peft")
    if distributed.world() > 1:
        raise UserError("several processes train together on a recipe only (torchrun -m openbezoar run RECIPE)")
    if hasattr(given.model, "peft_config"):
        raise ModelError("the model has an adapter already; merge it first: model = model.merge_and_unload()")
    if given.out is not None:
        _check_empty(given.out)
    step, counts = task.step, Counts()
    formatter = Formatter(given.tokenizer, prompt_of(given.tokenizer, given.prompt))
    renderer = Renderer(formatter, step.max_length, step.too_long, counts, task.loss_on)
    with tempfile.TemporaryDirectory() as scratch, _own_draws():
        work = Path(scratch)
        split = _split(task, given, renderer, work)
        assert isinstance(step.lora, Lora)
        model = adapted(given.model, step.lora, step_seed(given.seed, "adapter"), "the model")
        bench = Bench.of(model, step, renderer)
        numbers = fit(
            step,
            bench,
            split.trained,
            objective=task.objective(bench, split),
            out=work,
            seed=given.seed,
            progress=for_terminal(given.quiet),
        )
        if given.out is not None:
            shutil.copytree(work / ADAPTER, given.out / ADAPTER)
            for name in LOGS:
                shutil.copy(work / name, given.out / name)
    bench.model.eval()
    return Trained(bench.model, {**numbers, "heldout_rows": len(split.heldout)}, dict(counts.by_reason), given.out)


def _own_draws() -> AbstractContextManager[None]:
    """Torch's random state is put back at the end."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    return torch.random.fork_rng(devices)


def _split(task: _Task, given: _Given, renderer: Renderer, folder: Path) -> Split:
    """The rows as trees, some held out."""
    heldout = given.heldout
    return split_trees(
        task.step,
        plain_rows(given.rows, task.what, renderer.counts.add),
        task.convert,
        renderer,
        what=task.what,
        folder=folder,
        heldout=None if heldout is None else lambda: _converted(heldout, task, renderer.counts),
    )


def _check_empty(folder: Path) -> None:
    """Make a folder. Raises UserError for one that holds something."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder}: holds files already; name another folder as 'out'")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name another folder as 'out'") from None


def _converted(rows: Rows, task: _Task, counts: Counts) -> list[Example | Pair | Unpaired]:
    """Held-out rows; one whose dialogue is none is counted. Raises DataError if none is left."""
    converted: list[Example | Pair | Unpaired] = []
    for where, row in plain_rows(rows, f"held-out {task.what}", counts.add):
        try:
            converted += each(task.convert(row, where))
        except RowError as error:
            counts.add(error.reason)
    if not converted:
        raise DataError(f"heldout: no {task.what} can be used ({counts}); bring others")
    return converted
