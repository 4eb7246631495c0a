"""The local rows that a recipe evaluates on, as ``decontaminate`` looks for them in training rows.

They are the rows whose field says so (role 'benchmark'), and those of tasks, which the verb's own room knows.
"""

from __future__ import annotations

from pathlib import Path

from openbezoar.cleaning.contamination import EvaluationRows, Overlap
from openbezoar.errors import DataError
from openbezoar.recipe.refs import Reference, references
from openbezoar.recipe.schema import Recipe
from openbezoar.recipe.verbs import row_of
from openbezoar.rows.sources import read, row_files
from openbezoar.store.digests import digest, file_digest


def benchmarks(recipe: Recipe, folder: Path) -> list[EvaluationRows]:
    """What the recipe's steps ask checkpoints, in its order.

    folder: the recipe's. Raises RecipeError or DataError as those steps would.
    """
    rows: list[EvaluationRows] = []
    for name, step in recipe.steps.items():
        if own := row_of(step).part("benchmarks"):
            rows += own(step, name, recipe, folder)
        rows += [_of(name, ref, recipe) for ref in references(step) if ref.ref.role == "benchmark"]
    return rows


def _of(step: str, reference: Reference, recipe: Recipe) -> EvaluationRows:
    here = not reference.name.startswith("hub:") and reference.name not in recipe.steps
    return EvaluationRows(
        f"{step}: {reference.key.partition('.')[2] or reference.key}", reference.rows if here else None
    )


def benchmark_digests(recipe: Recipe, folder: Path) -> dict[str, str]:
    """What makes each benchmark's rows the same ones: the bytes of its file and which of them are
    taken. Raises DataError for a missing file.
    """
    digests = {}
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            digests[benchmark.name] = "elsewhere"
            continue
        try:
            files = row_files(benchmark.spec.data, folder, recipe.data).files
        except DataError as error:
            raise DataError(
                f"{benchmark.name}: {error}, which 'decontaminate' needs; paths are relative to the recipe's own file"
            ) from None
        # of one file as it was before there could be several
        of_files = file_digest(files[0]) if len(files) == 1 else [file_digest(file) for file in files]
        digests[benchmark.name] = digest([of_files, benchmark.spec.model_dump(mode="json", exclude={"data"})])
    return digests


def read_benchmarks(recipe: Recipe, folder: Path, words: int, seed: int) -> tuple[Overlap, list[str]]:
    """The overlap index of all local benchmark rows, and the names of the benchmarks whose rows are not here."""
    overlap, elsewhere = Overlap(words), []
    for benchmark in benchmarks(recipe, folder):
        if benchmark.spec is None:
            elsewhere.append(benchmark.name)
        else:
            rows = read(benchmark.spec, folder, recipe.data, {}, seed)
            overlap.add(benchmark.name, (row for _, row in rows))
    return overlap, elsewhere
