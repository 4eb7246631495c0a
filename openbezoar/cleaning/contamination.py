"""Training rows that hold text of the benchmarks which the same recipe evaluates on.

Reads the local rows of a recipe's ``evaluate`` and ``mt_bench`` steps; writes nothing. The
rule is that of GPT-3's appendix C (arXiv 2005.14165): a run of 13 words in common, case and
punctuation aside; of a benchmark text with fewer words, but 8 at least, all of it. Scripts
without spaces count by ``units``. Rows that
only few-shot prompts show are no questions and are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbezoar.cleaning import units
from openbezoar.errors import DataError
from openbezoar.harness.tasks import find_local, task_file
from openbezoar.recipe import DataSpec, Evaluate, MtBench, Recipe, TaskSpec, data_specs
from openbezoar.records import Row
from openbezoar.runs import digest, file_digest
from openbezoar.sources import read, resolve_path

FEWEST = 8  # words of a benchmark text that is looked for; GPT-3's least n


@dataclass(frozen=True)
class Benchmark:
    """Rows that a recipe evaluates on. ``name``: the step and what it calls them; ``spec``: None if they are not on this machine."""

    name: str
    spec: DataSpec | None


def benchmarks(recipe: Recipe, folder: Path) -> list[Benchmark]:
    """What the recipe's evaluate and mt_bench steps ask, in its order.

    folder: the recipe's. Raises RecipeError or DataError as those steps would.
    """
    found = []
    for step_name, step in recipe.steps.items():
        if isinstance(step, Evaluate):
            found += [Benchmark(f"{step_name}: {_task_name(task)}", _task_rows(task, step, recipe, folder)) for task in step.tasks]
        if isinstance(step, (Evaluate, MtBench)):
            refs = {**step.losses, **step.pairs} if isinstance(step, Evaluate) else {"questions": step.questions}
            found += [
                Benchmark(f"{step_name}: {name}", None if spec.data.startswith("hub:") or spec.data in recipe.steps else spec)
                for name, ref in refs.items()
                for spec in data_specs(ref)
            ]
    return found


def _task_name(task: str | TaskSpec) -> str:
    return task if isinstance(task, str) else task.name or task.task


def _task_rows(task: str | TaskSpec, step: Evaluate, recipe: Recipe, folder: Path) -> DataSpec | None:
    spec = TaskSpec(task=task) if isinstance(task, str) else task
    if spec.file is None and step.data is None:
        return None
    data = None if step.data is None else resolve_path(step.data, folder, recipe.data)
    return DataSpec(data=str(task_file(spec, find_local(spec.task), data, lambda text: resolve_path(text, folder, recipe.data)).absolute()))


def digests(recipe: Recipe, folder: Path) -> dict[str, str]:
    """What makes each benchmark's rows the same ones: the bytes of its file and which of them are taken. Raises DataError for a missing file."""
    found = {}
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            found[benchmark.name] = "elsewhere"
            continue
        file = resolve_path(benchmark.spec.data, folder, recipe.data)
        if not file.is_file():
            raise DataError(f"{benchmark.name}: no file {file}, which 'decontaminate' needs; paths are relative to the recipe's own file")
        found[benchmark.name] = digest([file_digest(file), benchmark.spec.model_dump(mode="json", exclude={"data"})])
    return found


@dataclass(frozen=True)
class Hit:
    """A run of words that stands in a benchmark too."""

    benchmark: str
    row: str
    words: str


class Overlap:
    """The word runs of benchmark texts, to be looked for in training rows.

    words: n of the n-grams. ``rows`` counts the rows of each benchmark.
    """

    def __init__(self, words: int) -> None:
        self.words = words
        self.rows: dict[str, int] = {}
        self._grams: dict[int, dict[str, tuple[str, str]]] = {}

    def add(self, benchmark: str, rows: Iterable[Row]) -> None:
        """Remember all texts of a benchmark's questions."""
        for number, row in enumerate(rows, 1):
            if row.get("split") == "fewshot":
                continue
            self.rows[benchmark] = self.rows.get(benchmark, 0) + 1
            place = (benchmark, str(row.get("id", row.get("question_id", f"row {number}"))))
            for text in _texts(row):
                words = units.bare(text)
                size = min(self.words * units.WORD, units.size(words))
                if size >= min(FEWEST, self.words) * units.WORD:
                    known = self._grams.setdefault(size, {})
                    for gram in _grams(words, size):
                        known.setdefault(gram, place)

    def find(self, *texts: str) -> Hit | None:
        """The first run of words in these texts that a benchmark holds."""
        for text in texts:
            words = units.bare(text)
            for size in sorted(self._grams, reverse=True):
                for gram in _grams(words, size):
                    if gram in self._grams[size]:
                        return Hit(*self._grams[size][gram], units.joined(gram))
        return None


def _grams(words: list[str], size: int) -> Iterator[str]:
    return (" ".join(words[begin:end]) for begin, end in units.grams(words, size))


def _texts(row: Row) -> Iterator[str]:
    """Every text in a row, at any depth; a sentence with a blank also with each choice in it."""
    choices = row.get("choices")
    for text in _strings(row):
        yield text
        if "_" in text and isinstance(choices, list):
            yield from (text.replace("_", str(choice)) for choice in choices)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def read_benchmarks(recipe: Recipe, folder: Path, words: int, seed: int) -> tuple[Overlap, list[str]]:
    """The overlap index of all local benchmark rows, and the names of the benchmarks whose rows are not on this machine."""
    overlap, elsewhere = Overlap(words), []
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            elsewhere.append(benchmark.name)
        else:
            overlap.add(benchmark.name, (row for _, row in read(benchmark.spec, folder, recipe.data, {}, seed)))
    return overlap, elsewhere
