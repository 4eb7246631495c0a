"""The command ``convert``: rows in the forms that other trainers read. No torch at import."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openbezoar.errors import DataError, UserError, did_you_mean

if TYPE_CHECKING:
    from openbezoar.rows.records import Counts, Row

SUFFIXES = (".jsonl", ".parquet")


def convert(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="Rows in any form that is read: a file, a step's folder, or hub:…."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="FORM", help="messages, preference (prompt, chosen, rejected) or unpaired (with a label)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="What to write: .jsonl or .parquet.")],
) -> None:
    """Write rows as other trainers read them.

    Every text becomes a list of messages, in the names of TRL's data set formats; other columns, such as id and
    licence, are kept. What had to be changed or cannot be used is counted.

    Example: openbezoar convert runs/my/lamini-kept --to messages --out kept.parquet
    """
    from openbezoar.recipe.blocks import DataSpec
    from openbezoar.rows.outgoing import MESSAGES
    from openbezoar.rows.records import Counts
    from openbezoar.rows.sources import read

    if to not in MESSAGES:
        hint = f" ({question})" if (question := did_you_mean(to, MESSAGES)) else ""
        raise UserError(f"convert: no form '{to}'{hint}; expected one of {', '.join(MESSAGES)}")
    if out.suffix not in SUFFIXES:
        raise UserError(f"convert: --out {out}: expected a file that ends in {' or '.join(SUFFIXES)}")
    counts = Counts()
    rows = read(DataSpec(data=file), Path.cwd(), None, {}, 0, mended=counts.add)
    written = _write(_converted(rows, to, counts), out, MESSAGES[to])
    if not written:
        raise DataError(f"{file}: no row can be written as {to} ({counts}); bring other rows")
    print(f"{out}: {written} rows" + (f"; {counts}" if counts.by_reason else ""), file=sys.stderr)


def _converted(rows: Iterator[tuple[str, Row]], form: str, counts: Counts) -> Iterator[Row]:
    """The rows in a form; what was changed and what cannot be used is counted."""
    from openbezoar.errors import RowError
    from openbezoar.rows.outgoing import rewritten

    for where, row in rows:
        try:
            made = rewritten(row, form, where)
        except RowError as error:
            counts.add(error.reason)
            continue
        for note in made.notes:
            counts.add(note)
        yield from made.rows


def _write(rows: Iterator[Row], out: Path, messages: tuple[str, ...]) -> int:
    """Write rows, whole or not at all; returns how many. Nothing is left of none."""
    from openbezoar.publishing.data_sets import write_parquet
    from openbezoar.rows.records import write_jsonl

    part = out.with_name(f".{out.name}.part")
    try:
        if out.suffix == ".jsonl":
            written = write_jsonl(part, rows)
        else:
            held: list[dict[str, Any]] = list(rows)
            written = len(held)
            write_parquet(held, part.parent, file=part.name, messages=messages, columns={})
        if written:
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return written
