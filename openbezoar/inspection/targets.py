"""What is looked at: a file's rows, or those of a step that trains, with the model that will read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openbezoar.cleaning.contamination import Overlap
from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter, prompt_of
from openbezoar.errors import DataError, RecipeError
from openbezoar.inspection.looking import Kept, Looking
from openbezoar.inspection.numbers import Contradiction, Portion
from openbezoar.judging.rewards import LocalRewards
from openbezoar.models.references import Checkpoint, open_checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import DataRef, DataSpec, PromptSpec, data_specs
from openbezoar.recipe.file import load
from openbezoar.recipe.refs import references
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.records import Counts, Pair, Row
from openbezoar.rows.sources import read
from openbezoar.stats.pair_accuracy import PairAccuracy, pair_accuracy
from openbezoar.store.runs import RunFolder
from openbezoar.training.encode import Encoder

MAX_LENGTH = 1024  # as the steps that train have it
WORDS = 13  # of a run in common with a benchmark, as a filter has it


@dataclass
class Target:
    """Rows and how they will be read. checkpoint: None where no model is named."""

    name: str
    rows: Iterator[tuple[str, Row]]
    counts: Counts
    checkpoint: Checkpoint | None
    max_length: int = MAX_LENGTH
    too_long: Literal["drop", "truncate"] = "drop"
    loss_on: Literal["all", "last"] = "all"

    def encoder(self) -> Encoder | None:
        """Of the model's tokenizer and prompt; None without a model."""
        if self.checkpoint is None:
            return None
        from openbezoar.models.load import load_tokenizer

        formatter = Formatter(load_tokenizer(self.checkpoint.folder()), self.checkpoint.prompt)
        return Encoder(formatter, self.max_length, self.too_long, Counts(), self.loss_on)


def of_file(text: str, model: str | None, template: str | None, max_length: int | None, limit: int | None) -> Target:
    """A file's rows, as a model with its own chat template reads them, or with another one."""
    counts = Counts()
    rows = read(DataSpec(data=text, limit=limit), Path.cwd(), None, {}, 0, mended=counts.add)
    checkpoint = None
    if model is not None:
        checkpoint = open_checkpoint(model, None if template is None else PromptSpec(template=template))
        if template is None:
            checkpoint = _with_a_prompt(checkpoint)
    return Target(text, rows, counts, checkpoint, max_length or MAX_LENGTH)


def _with_a_prompt(checkpoint: Checkpoint) -> Checkpoint:
    """A model that has no chat template of its own is read under the project's."""
    from dataclasses import replace

    from openbezoar.models.load import load_tokenizer

    if checkpoint.prompt.template != "own":
        return checkpoint
    return replace(checkpoint, prompt=prompt_of(load_tokenizer(checkpoint.folder()), None))


def of_step(file: Path, name: str, runs: Path, limit: int | None) -> Target:
    """The rows of a recipe's step that trains. Raises RecipeError for any other step."""
    recipe = load(file, [])
    step = recipe.steps.get(name)
    if step is None:
        raise RecipeError(f"{file}: no step '{name}'; it has {', '.join(recipe.steps)}")
    rows = next((r for r in references(step) if r.ref.kind == "data" and r.ref.role == "rows"), None)
    model = _base(recipe, name)
    if rows is None or model is None or not hasattr(step, "max_length"):
        raise RecipeError(f"{file}: steps.{name} trains no model on rows; name one that does")
    run = RunFolder(runs / recipe.name)
    context = StepContext(name, recipe, file.parent, run, file.parent, recipe.seed, PlainProgress(quiet=True))
    context.steps = tuple(recipe.steps)
    ref: DataRef = getattr(step, rows.key)
    if limit is not None:
        ref = _limited(ref, limit)
    return Target(
        f"{recipe.name}, step {name}",
        context.stream(ref),
        context.counts,
        context.checkpoint(model),
        step.max_length,
        getattr(step, "too_long", "drop"),
        getattr(step, "loss_on", "all"),
    )


def _base(recipe: Recipe, name: str) -> str | None:
    """The model that a step's model was made from, at the beginning of all; None of a step without one."""
    while name in recipe.steps:
        made_from = next((r.name for r in references(recipe.steps[name]) if r.ref.role == "base"), None)
        if made_from is None:
            return None
        name = made_from
    return name


def _limited(ref: DataRef, limit: int) -> DataRef:
    """A reference with each of its parts cut to so many rows."""
    return [spec.model_copy(update={"limit": min(limit, spec.limit or limit)}) for spec in data_specs(ref)]


def benchmarks_in(folder: Path) -> Overlap:
    """The texts of a folder's benchmarks, a file each. Raises DataError if there is none."""
    overlap = Overlap(WORDS)
    for file in sorted(folder.glob("*.jsonl*")):
        overlap.add(file.name.partition(".")[0], (row for _, row in read(str(file.resolve()), folder, None, {}, 0)))
    if not overlap.rows:
        raise DataError(f"{folder}: no benchmark there; expected TASK.jsonl or TASK.jsonl.gz files")
    return overlap


def looked_at(target: Target, benchmarks: Path | None) -> Looking:
    """All of a target's rows."""
    looking = Looking(target.encoder(), None if benchmarks is None else benchmarks_in(benchmarks))
    for where, row in target.rows:
        looking.add(where, row)
    looking.counts.merge(target.counts.by_reason)
    return looking


def contradicted(target: Target, drawn: list[Kept], most: int) -> Contradiction | None:
    """Of how many drawn pairs the model finds the rejected answer likelier; None where there are none.

    most: pairs that are scored.
    """
    from openbezoar.forest import Scorer
    from openbezoar.models.load import free, load_for_inference
    from openbezoar.training.trees import tree_of

    trees = [tree_of(kept.tree) for kept in drawn if kept.tree is not None and isinstance(kept.item, Pair)][:most]
    if target.checkpoint is None or not trees:
        return None
    model, _ = load_for_inference(target.checkpoint)
    scores = [[path.double() for path in tree] for tree in Scorer(model).logprobs(trees)]
    by_sum = sum(float(rejected.sum()) > float(chosen.sum()) for chosen, rejected in scores)
    by_mean = sum(float(rejected.mean()) > float(chosen.mean()) for chosen, rejected in scores)
    del model
    free()
    return Contradiction(by_sum=Portion.of(by_sum, len(scores)), by_mean=Portion.of(by_mean, len(scores)))


def rewarded(reference: str, drawn: list[Kept], most: int) -> PairAccuracy | None:
    """How often a reward model puts the chosen answers of drawn pairs first; None where there are none.

    reference: a folder, a step's folder, or a name on the hub. most: pairs that are scored.
    """
    pairs = [kept.item for kept in drawn if isinstance(kept.item, Pair) and kept.item.chosen != kept.item.rejected]
    if not (pairs := pairs[:most]):
        return None
    with closing(LocalRewards(reference, open_checkpoint(reference))) as rewarder:
        scores = rewarder.scores([(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    return pair_accuracy(scores, lengths, 0, [pair.subset for pair in pairs], [pair.prompt for pair in pairs])
