"""Data references → rows: local files, hub data sets, other steps' results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from openbezoar.errors import DataError, RecipeError, named
from openbezoar.recipe.blocks import DataRef, DataSpec, data_specs
from openbezoar.rows.files import ROWS, RowFiles, divided, locate
from openbezoar.rows.forms import check_usable
from openbezoar.rows.hub import Commits
from openbezoar.rows.known import OneKind
from openbezoar.rows.records import JsonLines, Row
from openbezoar.rows.tables import FileRows, HubRows, RowTable, table_of


def resolve_path(text: str, recipe_folder: Path, data_folder: str | None) -> Path:
    """A path of a recipe: relative to the recipe's own file; ``$data/…`` lies in the recipe's data folder."""
    if text.startswith("$data"):
        if data_folder is None:
            raise RecipeError(f"'{text}': the recipe has no 'data' folder; add 'data: FOLDER', or --set data=FOLDER")
        text = data_folder + text.removeprefix("$data")
    path = Path(text).expanduser()
    return path if path.is_absolute() else (recipe_folder / path)


def model_reference(text: str, recipe_folder: Path, data_folder: str | None) -> str:
    """A recipe's model reference, with ``$data/…`` as the path that it stands for."""
    return str(resolve_path(text, recipe_folder, data_folder).resolve()) if text.startswith("$data") else text


def row_files(text: str, recipe_folder: Path, data_folder: str | None) -> RowFiles:
    """The files of rows that a recipe's reference to data names. Raises DataError where there are none."""
    named_path, split, part = divided(text)
    return locate(resolve_path(named_path, recipe_folder, data_folder), split, part)


def select(table: RowTable, spec: DataSpec, seed: int) -> Iterator[Row]:
    """The rows that ``shuffle``, ``where``, ``offset`` and ``limit`` leave, in that order, fields
    renamed and added first.

    Shuffling first gives two references to one file the same order, whatever each keeps of it.
    Rows are read one by one, and none after the limit unless they are shuffled.
    """
    rows = table.shuffled(seed) if spec.shuffle else iter(table)
    if spec.rename or spec.add:
        rows = (_fitted(row, spec) for row in rows)
    if spec.where:
        allowed = {field: value if isinstance(value, list) else [value] for field, value in spec.where.items()}
        rows = (row for row in rows if all(row.get(field) in values for field, values in allowed.items()))
    return islice(
        rows,
        *(
            None if place is None else min(place, sys.maxsize)
            for place in (spec.offset, spec.limit and spec.offset + spec.limit)
        ),
    )


def _fitted(row: Row, spec: DataSpec) -> Row:
    """The row with fields renamed and added. A field that is renamed takes the place of one that
    has the name already.
    """
    rest = {key: value for key, value in row.items() if key not in spec.rename}
    return {**rest, **{ours: row[theirs] for theirs, ours in spec.rename.items() if theirs in row}, **spec.add}


def read(
    ref: DataRef,
    recipe_folder: Path,
    data_folder: str | None,
    step_folder: dict[str, Path],
    seed: int,
    scratch: Path | None = None,
    mended: Callable[[str], None] | None = None,
    commits: Commits | None = None,
) -> Iterator[tuple[str, Row]]:
    """Rows of a reference with where each came from, one held at a time. Raises DataError if nothing is left,
    and where rows of one file are of several kinds.

    scratch, mended: as for ``JsonLines``; commits: of the run that reads, for rows of the hub.
    """
    for spec in data_specs(ref):
        table: RowTable
        if spec.data in step_folder:
            name, table = f"step {spec.data}", JsonLines(step_folder[spec.data] / ROWS, scratch, mended)
        elif spec.data.startswith("hub:"):
            name, table = spec.data, HubRows(spec.data, commits)
        else:
            files = row_files(spec.data, recipe_folder, data_folder)
            name, table = str(files.root), table_of(files, scratch, mended)
        number, kind = 0, OneKind()
        for number, row in enumerate(select(table, spec, seed), 1):
            where = _where(name, table, spec, row, number)
            kind.check(row, where)
            if spec.unusable == "refuse":
                check_usable(row, where)
            yield where, row
        if number:
            continue
        rows = sum(1 for _ in table)
        if rows:
            raise DataError(
                f"{name}: none of {rows} rows is left by where={spec.where}, offset={spec.offset}, limit={spec.limit};"
                " loosen them"
            )
        if spec.data in step_folder:
            raise DataError(
                f"step {spec.data}: it kept no row; look at its counts with 'openbezoar show' and loosen its rules"
            )
        raise DataError(f"{name}: the file is empty; expected at least one row")


def _where(name: str, table: RowTable, spec: DataSpec, row: Row, number: int) -> str:
    """Where a row is from: its id, else its number, in its own file where the rows are read in their order."""
    if "id" not in row and isinstance(table, FileRows) and not spec.shuffle:
        return table.at
    return f"{name}: row {named(row.get('id', number))}"
