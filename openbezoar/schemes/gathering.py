"""New instructions gathered from numbered prompts until there are enough; LaMini and Magpie share this.

Which rows come out depends on the numbers of the prompts alone: neither the batch size nor
how many are asked at once changes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from openbezoar.errors import ModelError
from openbezoar.rows.instructions import instruction_text
from openbezoar.rows.records import Row
from openbezoar.schemes.work import Work, normal, row_id

ROUND = 64  # prompts at most before it is looked again how many are needed
LONGEST = 4000  # characters; what is longer is no instruction but a reply that ran away


class NewInstructions:
    """New instructions with their sources, none of them a seed's and none twice; what is dropped is
    counted by reason.
    """

    def __init__(self, work: Work, unusable: Callable[[str], str | None] = lambda text: None) -> None:
        """unusable: a scheme's further reasons why a text is no instruction."""
        self.work, self.unusable = work, unusable
        self.seen = {normal(text) for seed in work.seeds for text in _texts(seed)}
        self.texts: list[tuple[str, str]] = []

    def add(self, text: str, source: str) -> None:
        """Take a text in, or count why not."""
        if (
            reason := _no_instruction(text)
            or self.unusable(text)
            or ("repeats a seed or an earlier one" if normal(text) in self.seen else None)
        ):
            self.work.counts.add(f"instruction dropped: {reason}")
            return
        self.seen.add(normal(text))
        self.texts.append((text, source))

    def rows(self) -> list[Row]:
        """The wanted number of rows, or as many as there are, still without answers."""
        scheme = self.work.scheme
        return [
            {
                "id": row_id(scheme, n),
                "scheme": scheme,
                "system": None,
                "instruction": text,
                "response": "",
                "finish": "",
                "source": source,
            }
            for n, (text, source) in enumerate(self.texts[: self.work.rows], 1)
        ]


def gather(
    instructions: NewInstructions, limit: int, a_prompt: float, ask: Callable[[range], None], remedy: str
) -> None:
    """Have ``ask`` send the prompts of the numbers it is given, until enough is found or ``limit`` prompts were asked.

    a_prompt: instructions that a prompt is likely to give, until it is known. A shortfall
    is counted. Raises ModelError, which ends with ``remedy``, if no reply held an instruction.
    """
    work, prompts = instructions.work, 0
    with work.context.progress.bar("instructions", work.rows, "instructions") as bar:
        while (missing := work.rows - len(instructions.texts)) > 0 and prompts < limit:
            yielded = len(instructions.texts) / prompts if prompts else a_prompt
            numbers = range(prompts, min(limit, prompts + min(ROUND, math.ceil(missing / max(yielded, 0.25)))))
            before = len(instructions.texts)
            ask(numbers)
            prompts = numbers.stop
            bar.advance(min(len(instructions.texts), work.rows) - before)
    if not instructions.texts:
        dropped = "; ".join(f"{reason}: {n}" for reason, n in work.counts.by_reason.items())
        raise ModelError(
            f"teacher '{work.teacher}': none of {prompts} replies held a new instruction ({dropped}); {remedy}"
        )
    if missing > 0:
        work.counts.add("short of the rows wanted", missing)
        work.say(
            f"{len(instructions.texts)} instructions after {prompts} prompts, {missing} fewer than wanted; raise"
            " max_prompts or use a stronger teacher"
        )
    work.counts.add("prompts for instructions", prompts)


def _texts(seed: Row) -> Iterator[str]:
    if isinstance(seed.get("instruction"), str):
        yield seed["instruction"]
        yield instruction_text(seed)


def _no_instruction(text: str) -> str | None:
    if not any(c.isalpha() for c in text):
        return "no word in it"
    return f"longer than {LONGEST} characters" if len(text) > LONGEST else None
