"""Data references → rows: local files, hub data sets, other steps' results."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import DataError, RecipeError, missing_extra
from openbezoar.recipe import DataRef, DataSpec, data_specs
from openbezoar.records import Row, read_jsonl

ROWS = "rows.jsonl"


def resolve_path(text: str, recipe_folder: Path, data_folder: str | None) -> Path:
    """A path of a recipe: relative to the recipe's own file; ``$data/…`` lies in the recipe's data folder."""
    if text.startswith("$data"):
        if data_folder is None:
            raise RecipeError(f"'{text}': the recipe has no 'data' folder; add 'data: FOLDER', or --set data=FOLDER")
        text = data_folder + text.removeprefix("$data")
    path = Path(text).expanduser()
    return path if path.is_absolute() else (recipe_folder / path)


def select(rows: list[Row], spec: DataSpec, seed: int) -> list[Row]:
    """The rows that ``shuffle``, ``where``, ``offset`` and ``limit`` leave, in that order, fields renamed and added first.

    Shuffling first gives two references to one file the same order, whatever each keeps of it.
    """
    if spec.rename or spec.add:
        rows = [{**{spec.rename.get(key, key): value for key, value in row.items()}, **spec.add} for row in rows]
    if spec.shuffle:
        rows = rows.copy()
        random.Random(seed).shuffle(rows)
    for field, wanted in spec.where.items():
        allowed = set(wanted) if isinstance(wanted, list) else {wanted}
        rows = [row for row in rows if row.get(field) in allowed]
    return rows[spec.offset : None if spec.limit is None else spec.offset + spec.limit]


def read(ref: DataRef, recipe_folder: Path, data_folder: str | None, step_folder: dict[str, Path], seed: int) -> Iterator[tuple[str, Row]]:
    """Rows of a reference with where each came from. Raises DataError if nothing is left."""
    for spec in data_specs(ref):
        if spec.data in step_folder:
            name, rows = f"step {spec.data}", list(read_jsonl(step_folder[spec.data] / ROWS))
            if not rows:
                raise DataError(f"step {spec.data}: it kept no row; look at its counts with 'openbezoar show' and loosen its rules")
        elif spec.data.startswith("hub:"):
            name, rows = spec.data, hub_rows(spec.data)
        else:
            path = resolve_path(spec.data, recipe_folder, data_folder)
            name, rows = str(path), list(read_jsonl(path))
        if not rows:
            raise DataError(f"{name}: the file is empty; expected at least one row")
        chosen = select(rows, spec, seed)
        if not chosen:
            raise DataError(f"{name}: none of {len(rows)} rows is left by where={spec.where}, offset={spec.offset}, limit={spec.limit}; loosen them")
        for number, row in enumerate(chosen, 1):
            yield f"{name}: row {row.get('id', number)}", row


_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:\[(?P<split>[\w.-]+)\])?(?:@(?P<revision>[\w./-]+))?$")


def hub_rows(ref: str) -> list[Row]:
    """Rows of ``hub:org/name[split]@revision`` (split: train)."""
    match = _HUB.match(ref)
    if not match:
        raise DataError(f"'{ref}': expected hub:org/name[split]@revision")
    try:
        from datasets import load_dataset
    except ImportError:
        raise missing_extra("datasets", "hub") from None
    try:
        data = load_dataset(match["name"], split=match["split"] or "train", revision=match["revision"])
    except Exception as error:  # the hub client raises many kinds; each means the rows cannot be had
        raise DataError(
            f"{ref}: the hub cannot be reached or has no such data set ({type(error).__name__}); name a local .jsonl file instead, or go online once"
        ) from error
    return [dict(row) for row in data]
