"""What a model in training answered to fixed prompts, step by step: the lines of ``samples.jsonl``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from openbezoar.reporting.results import Record

SAMPLES = "samples.jsonl"


class SampledAnswer(Record):
    """One answer. finish: 'stop' if the model ended it, 'length' at the limit, 'error' if there was no room for one."""

    prompt: str
    answer: str
    finish: str = ""

    def text(self) -> str:
        """As it is shown: with a word where the answer did not end by itself."""
        return self.answer + {"length": " […]", "error": "(the prompt fills the window)"}.get(self.finish, "")


class SampledAnswers(Record):
    """A line: the answers to all prompts after ``step`` optimiser steps."""

    step: int = 0
    answers: list[SampledAnswer]


def sampled_answers(folder: Path) -> list[SampledAnswers]:
    """The lines in a step's folder in the order of optimiser steps, those that are whole; none without the file."""
    try:
        lines = (folder / SAMPLES).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    whole: dict[int, SampledAnswers] = {}
    for line in lines:
        try:
            one = SampledAnswers.model_validate_json(line)
        except ValidationError:
            continue
        whole[one.step] = one
    return [whole[step] for step in sorted(whole)]
