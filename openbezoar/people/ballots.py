"""What is compared: two models' answers to one turn of a question, in an order and on sides that a seed draws.

Reads ``answers.jsonl`` of a mt_bench step, or answer files with their questions (MT-Bench's
schema). Writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from openbezoar.errors import DataError, RunError
from openbezoar.judging.questions import read_answers, read_questions
from openbezoar.rows.records import Counts, Row, read_jsonl
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import MANIFEST, digest
from openbezoar.store.runs import RunFolder

ANSWERS = "answers.jsonl"
TURNS = (1, 2)


@dataclass(frozen=True)
class Side:
    """A model's answers up to the turn that is voted on. cut: the last one ended at the limit of tokens."""

    model: str
    turns: tuple[str, ...]
    cut: bool = False


@dataclass(frozen=True)
class Ballot:
    """Two answers to one turn. ``a`` is shown on the left; ``questions`` go up to the turn."""

    question_id: int | str
    category: str
    turn: int
    questions: tuple[str, ...]
    a: Side
    b: Side

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits of questions, models and answers; sides do not matter, other texts do."""
        return digest([self.turn, self.questions, sorted((side.model, side.turns) for side in (self.a, self.b))])[:16]

    def vote_id(self, judge: str) -> str:
        """What a person's vote on it is called in the file."""
        return f"{self.id}-{judge}"


# ------------------------------------------------------------------------------- answers


def answers_of_run(run: RunFolder, step: str | None) -> tuple[str, list[Row]]:
    """(name of the mt_bench step, its answers). Raises RunError if it is not clear which step is
    meant, or there is none.
    """
    steps = sorted(
        p.parent.name
        for p in run.path.glob(f"*/{MANIFEST}")
        if (run.manifest(p.parent.name) or {}).get("verb") == "mt_bench"
    )
    if step is None and len(steps) == 1:
        step = steps[0]
    if step is None or step not in steps:
        what = (
            f"no finished mt_bench step{f' {step!r}' if step else ''}"
            if step or not steps
            else "several mt_bench steps; choose one with --step"
        )
        raise RunError(
            f"{run.path}: {what}; it has {', '.join(steps) or 'none, and only their answers can be compared'}"
        )
    run.checked(step)
    return step, list(read_jsonl(run.step(step) / ANSWERS))


def answers_of_files(files: Sequence[Path], questions: Path, counts: Counts) -> list[Row]:
    """Rows as in ``answers.jsonl`` from files in MT-Bench's schema. Raises DataError for rows without their fields."""
    return read_answers(
        [row for file in files for row in read_jsonl(file)], read_questions(list(read_jsonl(questions))), counts
    )


def chosen_models(rows: Iterable[Row], named: Sequence[str]) -> list[str]:
    """The models to compare: those named, or the first and the last that answered. Raises DataError
    if they are not two or more.
    """
    known = list(dict.fromkeys(str(row["model"]) for row in rows))
    if unknown := [name for name in named if name not in known]:
        raise DataError(f"--models {unknown[0]}: it has given no answer here; choose of {', '.join(known) or 'no one'}")
    models = list(dict.fromkeys(named)) or list(dict.fromkeys((*known[:1], *known[-1:])))
    if len(models) < 2:
        raise DataError(
            f"two models are needed to compare, and there is {models[0] if models else 'none'}; answers were given by"
            f" {', '.join(known) or 'no one'}"
        )
    return models


# ------------------------------------------------------------------------------- ballots


def make_ballots(
    rows: Sequence[Row], models: Sequence[str], seed: int, *, turns: Collection[int], counts: Counts
) -> list[Ballot]:
    """A ballot for every question, two of the models and turn; counted: those with nothing to choose between.

    Questions come in random order, the turns of one after another and on the same sides, so
    that the second turn goes on from what was just read. The order of some does not depend on the others.
    """
    by_id = {(row["question_id"], row["model"]): row for row in rows}
    talks = [
        (q, *sorted(pair))
        for q in dict.fromkeys(row["question_id"] for row in rows)
        for pair in combinations(models, 2)
    ]
    talks.sort(key=lambda talk: step_seed(seed, "order", *talk))
    ballots = []
    for question, *pair in talks:
        if step_seed(seed, "side", question, *pair) % 2:
            pair.reverse()
        two = [by_id.get((question, model)) for model in pair]
        if two[0] is None or two[1] is None:
            counts.add("questions that one of the two has no answer to")
            continue
        for turn in sorted(turns):
            ballot = _ballot(two[0], two[1], turn, counts)
            if ballot is not None:
                ballots.append(ballot)
    return ballots


def _ballot(a: Row, b: Row, turn: int, counts: Counts) -> Ballot | None:
    texts = [row["turns"][:turn] for row in (a, b)]
    if any(len(t) < turn or _finish(row, turn) == "error" for t, row in zip(texts, (a, b), strict=True)):
        counts.add("turns that one of the two has no answer to")
        return None
    if texts[0][-1].strip() == texts[1][-1].strip():
        counts.add("turns with the same answer by both")
        return None
    sides = [
        Side(str(row["model"]), tuple(t), _finish(row, turn) == "length") for row, t in zip((a, b), texts, strict=True)
    ]
    return Ballot(a["question_id"], str(a.get("category", "other")), turn, tuple(a["questions"][:turn]), *sides)


def _finish(row: Row, turn: int) -> Any:
    return (row.get("finish") or [None] * turn)[turn - 1]
