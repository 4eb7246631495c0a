"""How many tokens the rows of a recipe's data will have, before any tokenizer is loaded. Reads
rows, computes plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from openbezoar.recipe.train_steps import Training
from openbezoar.rows.known import SYSTEM
from openbezoar.rows.messages import texts_in, unpacked
from openbezoar.rows.records import Row

# Characters a token, by what the number is for.
CHARACTERS_A_TOKEN = 4.2  # to estimate: English text under vocabularies of 32k to 262k
RESERVED_CHARACTERS = 3  # to reserve a budget: rather too many tokens than too few
CUT_CHARACTERS = 4  # to cut a text whose tokenizer cannot be had: the rule of thumb for English
MOST_CHARACTERS = 32  # to believe a count: more, on the average of a text, and tokens were left out of it
MARKERS = 14  # tokens of a prompt's headings
SYSTEM_TOKENS = 36  # of the project's system message, under vocabularies of 49k and 262k
PROMPTS = ("prompt", "instruction", "question", "input")
TALKS = ("messages", "conversations", "conversation")
FIELDS = (
    *("instruction", "context", "response", "input", "target", "system", "system_prompt", "output_1", "output_2"),
    *("output", "prompt", "completion", "question", "answer", "inputs", "targets"),
    *TALKS,
)


class TextLengths(NamedTuple):
    """``rows`` rows of like length. paths: characters of each text that is trained or shown: one, or those of a pair's
    chosen and rejected; own_system: the system message is among them."""

    rows: float
    paths: tuple[float, ...]
    own_system: bool = False

    @property
    def characters(self) -> float:
        return sum(self.paths)


def texts_of(row: Row, rejected: bool = True) -> TextLengths:
    """Of one row; ``rejected``: of a pair's both dialogues."""
    if "chosen" in row and "rejected" in row:
        # A prompt beside whole lists of messages stands in them already.
        shared = 0 if _is_whole(row["chosen"]) else _characters(next(filter(None, map(row.get, PROMPTS)), ""))
        answers = ("chosen", "rejected") if rejected else ("chosen",)
        return TextLengths(1, tuple(shared + _characters(row[name]) for name in answers), _own_system(row["chosen"]))
    if "response1" in row and "response2" in row:
        answers = ("response1", "response2") if rejected else ("response1",)
        shared = _characters(row.get("context"))
        return TextLengths(
            1, tuple(shared + _characters(row[name]) for name in answers), _own_system(row.get("context"))
        )
    texts = {name: unpacked(value) if name in TALKS else value for name, value in row.items() if name in FIELDS}
    if any(texts.get(name) for name in TALKS):
        # Texts beside a conversation repeat it.
        texts = {name: value for name, value in texts.items() if name in SYSTEM or not isinstance(value, str)}
    return TextLengths(
        1,
        (sum(map(_characters, texts.values())),),
        any(isinstance(row.get(name), str) for name in SYSTEM) or any(map(_own_system, texts.values())),
    )


def _characters(value: Any) -> int:
    """Of a text, or of all texts of a list of messages."""
    return sum(map(len, texts_in(value)))


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1


def _own_system(value: Any) -> bool:
    """Whether a list of messages begins with a system message."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and (first.get("role") or first.get("from")) in ("system", "developer")


def path_tokens(texts: TextLengths, system: str | None) -> list[float]:
    """Tokens of each path, with its prompt's headings and ``system``, or the project's own message,
    where the rows bring none.
    """
    added: float = SYSTEM_TOKENS if system is None else len(system) / CHARACTERS_A_TOKEN
    if texts.own_system:
        added = 0
    return [characters / CHARACTERS_A_TOKEN + MARKERS + added for characters in texts.paths]


def trained(step: Training, texts: Iterable[TextLengths], system: str | None) -> tuple[float, float]:
    """(rows that a training step sees, their tokens on average, of all paths): without those held out or too long."""
    rows = tokens = 0.0
    for some in texts:
        paths = path_tokens(some, system)
        if step.too_long == "drop" and max(paths) > step.max_length:
            continue
        rows += some.rows
        tokens += some.rows * sum(min(length, step.max_length) for length in paths)
    mean = tokens / rows if rows else 0.0
    return rows - (min(rows // step.heldout_every, step.heldout_rows) if step.heldout is None else 0), mean
