"""What a step will cost, as its verb's room reckons it: the estimate, and the book it is reckoned with.

The book knows the recipe, the rows on disk, the models' sizes, this machine and its rates. Rows and
lengths come from the data where it is on disk, from the recipe's limits where it is not. Times come
from the rates of steps that ran on this machine; without one, from an assumed share of a CPU's
arithmetic, and are marked so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from openbezoar import prompts
from openbezoar.llm.engines.opened import engine_of
from openbezoar.llm.engines.programs import PROGRAMS
from openbezoar.machine.devices import Device
from openbezoar.models.memory import cache_bytes, engine_bytes, parameters, process_bytes
from openbezoar.models.pace import Fit
from openbezoar.models.shapes import model_of, shape_of_model
from openbezoar.recipe.blocks import DataRef, DataSpec, LocalModel, Price, ServerModel, Shape, Step, data_specs
from openbezoar.recipe.data_steps import Generate
from openbezoar.recipe.pair_steps import Pairs
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import row_of
from openbezoar.rows.files import ROWS
from openbezoar.rows.lengths import CHARACTERS_A_TOKEN, TextLengths, texts_of
from openbezoar.rows.records import JsonLines, Row
from openbezoar.rows.sources import resolve_path, row_files, select
from openbezoar.rows.tables import RowTable, table_of
from openbezoar.store.runs import RunFolder

ASSUMED_FLOPS = 1.0e11  # of a two-core CPU on such work, when nothing was measured yet
CHARACTERS = 900.0  # of a row of which nothing is known
VERDICT = 40  # tokens of a judge's reply on one answer, of a 135M model


@dataclass
class Estimate:
    """Of one step; None where it cannot be known yet."""

    rows: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    money: float | None = None
    memory_bytes: int | None = None
    seconds: float | None = None
    assumed: bool = True  # the time is from no measurement
    flops: float | None = None  # of the work on a model in this process
    written_bytes: int = 0  # weights that it leaves; rows are small beside them
    passing_bytes: int = 0  # what it has beside them until it is done
    dtype: str = ""  # of its arithmetic, where the recipe says it
    remedy: str = "take a smaller model or a larger machine"  # where its memory does not fit
    engine: str = ""  # that answers, in a process of its own
    beside: tuple[tuple[str, int], ...] = ()  # models that are held at once, with their bytes
    fit: Fit | None = None  # of a training: what it comes to on the device
    ratio: str = ""  # under which its tokens against those estimated are learnt


class HandedOn(NamedTuple):
    """Rows that a step which has not run will hand on. finished: the share whose answers are whole;
    characters: of a finished row's texts; system: whether they bring system messages.
    """

    rows: float
    finished: float
    characters: float
    system: bool


class JudgeCalls(NamedTuple):
    """Calls to a judge: how many, the tokens they read, the most that a reply may have."""

    calls: int
    tokens_in: float
    most: int


def one_after_another(rows: int, parts: Sequence[Estimate]) -> Estimate:
    """Parts of a step's work that follow one another, each model alone in memory, as one estimate."""

    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Estimate(
        rows,
        sum(part.tokens_in or 0 for part in parts),
        sum(part.tokens_out or 0 for part in parts),
        total(part.money for part in parts),
        max((part.memory_bytes or 0 for part in parts), default=0) or None,
        total(part.seconds for part in parts),
        any(part.assumed for part in parts),
        total(part.flops for part in parts),
    )


def rate_name(device: Device, verb: str) -> str:
    """Under what a verb's FLOP/s on a device are kept."""
    return f"{device.kind}.{verb}"


class Book:
    """done: the steps that have run; rates: FLOP/s and ratios, by name."""

    def __init__(
        self,
        recipe: Recipe,
        recipe_path: Path,
        run: RunFolder,
        *,
        done: Collection[str],
        device: Device,
        rates: Mapping[str, float],
    ) -> None:
        self.recipe, self.folder, self.run, self.done = recipe, recipe_path.parent, run, done
        self.device, self.rates = device, rates
        self.estimates: dict[str, Estimate] = {}

    def path(self, text: str) -> Path:
        """A path of the recipe on disk."""
        return resolve_path(text, self.folder, self.recipe.data)

    # ---- data

    def texts(self, ref: DataRef, rejected: bool = True) -> Iterator[TextLengths]:
        """Rows by length: each of a file; those of a step that has not run as so many of one
        length. ``rejected``: of a pair's both dialogues.
        """
        for spec in data_specs(ref):
            if spec.data.startswith("hub:"):
                yield TextLengths(spec.limit or 10_000, (1000.0,))
            elif not self._is_here(spec):
                handed = self.handed_on(spec.data)
                rows = max(handed.rows - spec.offset, 0)
                yield TextLengths(min(rows, spec.limit or rows), (handed.characters,), handed.system)
            else:
                yield from (texts_of(row, rejected) for row in self.rows_of(spec))

    def rows_of(self, spec: DataSpec) -> Iterator[Row]:
        """Rows on disk, one at a time."""
        return select(self._table(spec), spec, self.recipe.seed)

    def _table(self, spec: DataSpec) -> RowTable:
        if spec.data in self.recipe.steps:
            return JsonLines(self._rows_file(spec.data))
        return table_of(row_files(spec.data, self.folder, self.recipe.data))

    def _rows_file(self, step: str) -> Path:
        """Where a step's rows lie or will lie."""
        return self.run.step(step) / ROWS

    def _is_here(self, spec: DataSpec) -> bool:
        """Whether rows can be read: those of a file, or of a step that is done."""
        if spec.data in self.recipe.steps:
            return spec.data in self.done and self._rows_file(spec.data).is_file()
        return not spec.data.startswith("hub:")

    def rows(self, ref: DataRef) -> tuple[int, float]:
        """(number of rows, mean characters of a row's texts)."""
        total = characters = 0.0
        for some in self.texts(ref):
            total, characters = total + some.rows, characters + some.rows * some.characters
        return round(total), characters / max(1, total)

    def rows_here(self, ref: DataRef) -> list[Row]:
        """Rows that are on disk; none of a step that has not run, or of the hub."""
        rows: list[Row] = []
        for spec in data_specs(ref):
            if self._is_here(spec):
                rows += self.rows_of(spec)
        return rows

    def handed_on(self, name: str) -> HandedOn:
        """What a step hands on: lengths as they are if it is done, else as its room estimates them."""
        step = self.recipe.steps[name]
        room = row_of(step).part("hands_on")
        estimated = room(step, self, name) if room else HandedOn(self.estimates[name].rows or 0, 1.0, CHARACTERS, False)
        if name in self.done and (rows := self.rows_here(name)):
            whole = [row for row in rows if row.get("finish") != "length"] or rows
            characters = fmean(texts_of(row, False).characters for row in whole)
            return estimated._replace(finished=len(whole) / len(rows), characters=characters)
        assert isinstance(estimated, HandedOn)
        return estimated

    def from_steps(self, ref: DataRef) -> list[HandedOn]:
        """What each step among the sources of rows hands on."""
        return [self.handed_on(spec.data) for spec in data_specs(ref) if spec.data in self.recipe.steps]

    # ---- models

    def spec(self, name: str) -> LocalModel | ServerModel | None:
        """The model at the bottom of a name's chain of steps."""
        return model_of(self.recipe, name)

    def shape(self, name: str) -> Shape | None:
        """Its size; None where that is not known."""
        return shape_of_model(self.recipe, self.folder, name)

    def system(self, name: str) -> str | None:
        """The system message that a model, or a step's model, is prompted with; None for the project's own."""
        spec = self.spec(name)
        prompt = spec.prompt if isinstance(spec, LocalModel) else None
        return (prompt or self.recipe.prompt).system

    def money(self, name: str, tokens_in: float, tokens_out: float) -> float | None:
        """What a model's tokens cost; None where they cost nothing."""
        spec = self.spec(name)
        price = spec.price if isinstance(spec, ServerModel) else Price()
        return price.of(tokens_in, tokens_out) or None

    def resident(self, name: str) -> int | None:
        """Bytes of a model that only answers."""
        shape, spec = self.shape(name), self.spec(name)
        width = self.device.width(spec.dtype if isinstance(spec, LocalModel) else "bfloat16")
        return process_bytes(self.device) + width * sum(parameters(shape)) if shape else None

    def engine(self, name: str) -> tuple[str, LocalModel] | None:
        """(the engine that answers for a model, the recipe's entry); None for the forest and for servers."""
        return engine_of(self.recipe, name, self.device.kind == "cuda")

    def answering(self, name: str) -> Estimate:
        """A model that is asked for texts, as an estimate with memory alone: in this process, or its engine's."""
        shape, by = self.shape(name), self.engine(name)
        if by is None:
            return Estimate(memory_bytes=self.resident(name))
        engine, spec = by
        width = 4 if spec.dtype == "float32" else 2
        need = engine_bytes(shape, width, PROGRAMS[engine].cached, self.device) if shape else None
        remedy = "give its engine less room by its args, or take a smaller model or a larger machine"
        return Estimate(memory_bytes=need, engine=engine, remedy=remedy)

    def text(self, step: Step) -> Callable[[str], str]:
        """The texts that a step sends, by name: the project's, or the recipe's own."""
        own = {name: self.path(file) for name, file in getattr(step, "prompts", {}).items()}
        return lambda name: prompts.load(name, own)

    # ---- work

    def timed(self, cost: Estimate, verb: str, name: str, work: float) -> Estimate:
        """The estimate with FLOPs and time for ``work`` tokens (forward passes' worth) on a model in this process."""
        shape = self.shape(name)
        if shape is not None and not cost.engine:  # whose speed is not this process's
            cost.flops = 2 * (parameters(shape)[0] + shape.vocabulary * shape.hidden * 0.5) * work
            cost.assumed = rate_name(self.device, verb) not in self.rates
            # of another machine nothing is known
            if self.device.here and not (cost.assumed and self.device.kind == "cuda"):
                cost.seconds = cost.flops / self.rates.get(rate_name(self.device, verb), ASSUMED_FLOPS)
        return cost

    def answered(
        self, verb: str, model: str, rows: int, tokens_in: float, tokens_out: float, texts: bool = True
    ) -> Estimate:
        """Tokens of one model's calls as an estimate with money and memory, and no time. texts: it is asked for."""
        money = self.money(model, tokens_in, tokens_out)
        held = self.answering(model) if texts else Estimate(memory_bytes=self.resident(model))
        return replace(held, rows=rows, tokens_in=int(tokens_in), tokens_out=int(tokens_out), money=money)

    def with_cache(self, cost: Estimate, model: str, batch: int) -> Estimate:
        """The estimate with the memory of the keys and values of a batch of its rows."""
        shape = self.shape(model)
        if shape is not None and cost.memory_bytes is not None and not cost.engine:
            length = ((cost.tokens_in or 0) + (cost.tokens_out or 0)) / max(1, cost.rows or 0)
            cost.memory_bytes += cache_bytes(shape, batch * length)
        return cost

    def scored(
        self, verb: str, step: Generate | Pairs, by: str, *, answers: float, shown: float, reward: bool
    ) -> Estimate:
        """What it costs to score so many answers, each shown with its prompt in so many tokens. reward: by a
        reward model, which writes nothing.
        """
        if reward:
            return self.timed(self.answered(verb, by, 0, answers * shown, 0, texts=False), verb, by, answers * shown)
        by_text = step.rating.mode == "text"
        template = len(self.text(step)("judge_filter" if by_text else "judge_filter_probability"))
        tokens_in = answers * (shown + template / CHARACTERS_A_TOKEN)
        tokens_out = answers * min(VERDICT, step.rating.max_new_tokens) if by_text else 0.0
        held = self.answered(verb, by, 0, tokens_in, tokens_out, by_text)
        return self.timed(held, verb, by, tokens_in + 4 * tokens_out)

    def judged(
        self,
        verb: str,
        judge: str,
        asked: JudgeCalls,
        *,
        rows: int,
        mode: str,
        answering: str = "",
        answers: Any = (0.0, 0.0),
    ) -> Estimate:
        """What questions to a judge cost, beside the answers that they are about.

        answering: of the contestants the first, which stands for all; answers: tokens that they read and write.
        """
        judged_out = asked.calls * asked.most * 0.5 if mode == "text" else 0.0
        timed, (answers_in, answers_out) = answering or judge, answers
        money = self.money(judge, asked.tokens_in, judged_out)
        tokens = int(answers_in + asked.tokens_in), int(answers_out + judged_out)
        held = self.answering(timed) if answering or mode == "text" else Estimate(memory_bytes=self.resident(timed))
        estimate = replace(held, rows=rows, tokens_in=tokens[0], tokens_out=tokens[1], money=money)
        return self.timed(estimate, verb, timed, answers_out + asked.tokens_in)
