"""What of a model's answers is taken for its answer: thoughts are left out, or kept where a recipe
wants them. Reads and writes nothing.

Applied behind the call cache, which keeps answers as they came: a recipe that changes its
mind asks nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from openbezoar.dialogue import thoughts
from openbezoar.llm import Completion
from openbezoar.rows.records import Counts

LEFT_OUT = "thoughts left out"
CUT_OFF = "cut off in a thought"


@dataclass
class Spoken:
    """A model's answers as they are used. name: the model's, under which is counted."""

    name: str
    keep: Literal["drop", "keep"] = "drop"
    counts: Counts = field(default_factory=Counts)

    def of(self, answers: Sequence[Completion], opened: Sequence[str] = ()) -> list[Completion]:
        """Answers without thoughts. opened: for each, the mark of a thought that its prompt ended
        in and that its text does not have.
        """
        return [self._one(answer, mark) for answer, mark in zip(answers, opened or [""] * len(answers), strict=True)]

    def _one(self, answer: Completion, opened: str) -> Completion:
        if answer.finish == "error":
            return answer
        if self.keep == "keep":
            return (
                replace(answer, text=thoughts.shown(answer.thoughts, answer.text), thoughts="")
                if answer.thoughts
                else answer
            )
        reply = thoughts.split(opened + answer.text)
        if not reply.thoughts and reply.whole and not answer.thoughts:
            return answer if reply.answer == opened + answer.text else replace(answer, text=reply.answer)
        # A server that tells thoughts apart gives no answer beside one that was cut off.
        whole = reply.whole and not (answer.thoughts and not reply.answer and answer.finish == "length")
        self.counts.add(f"{self.name}: {LEFT_OUT if whole else CUT_OFF}")
        thought = "\n\n".join(filter(None, (answer.thoughts, reply.thoughts)))
        return replace(answer, text=reply.answer, thoughts=thought, finish=answer.finish if whole else "length")


def spoken(text: str, counts: Counts) -> str:
    """An answer from a file without its thoughts, which are counted."""
    reply = thoughts.split(text)
    if reply.thoughts or not reply.whole:
        counts.add(f"answers: {LEFT_OUT if reply.whole else CUT_OFF}")
    return reply.answer
