"""A look at the rows of a step that trains: drawn as they pass, written as ``data.json`` beside the step's logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from openbezoar.inspection.looking import Item, Looking
from openbezoar.inspection.numbers import Look, concerns
from openbezoar.inspection.sample import Sample
from openbezoar.rows.records import Row, Unpaired
from openbezoar.store.files import write_text
from openbezoar.training.encode import Encoder

FILE = "data.json"
DRAWN = 500  # rows; a second or two


class Drawn:
    """Rows that pass, of which some are held."""

    def __init__(self, most: int | None = None) -> None:
        self.sample: Sample[tuple[str, Row]] = Sample(DRAWN if most is None else most)

    def through(self, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
        """The rows as they come."""
        for row in rows:
            self.sample.offer(row)
            yield row


def write_look(
    folder: Path, drawn: Drawn, encoder: Encoder, convert: Callable[[Row, str], Item | tuple[Unpaired, ...]]
) -> None:
    """Look at the rows that were drawn, and write what was seen. convert: as the step reads its rows."""
    looking = Looking(encoder, convert=convert)
    for where, row in drawn.sample.items:
        looking.add(where, row)
    write_text(folder / FILE, json.dumps({"passed": drawn.sample.passed, **looking.look().written()}, indent=1) + "\n")


class Seen(Look):
    """A look at the rows that were drawn, of ``passed`` that there were."""

    passed: int = 0


def read_look(folder: Path) -> Seen | None:
    """What a step wrote; None for one that wrote nothing that can be read."""
    try:
        return Seen.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def worth_a_look(looks: Sequence[tuple[str, Seen]]) -> list[str]:
    """What deserves a look, a line each with its step."""
    return [f"{name}: {concern}" for name, look in looks for concern in concerns(look)]
