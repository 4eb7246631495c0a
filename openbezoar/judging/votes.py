"""Files of votes, of people and of judges. Reads them; writes nothing."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from openbezoar.errors import DataError
from openbezoar.rows.records import read_jsonl
from openbezoar.stats.agreement import Vote, judge_of, vote


def read_votes(path: Path, judges: str = "*") -> tuple[list[Vote], int]:
    """The votes of those judges whose name fits a pattern, and how many of their rows hold no verdict.

    Raises DataError for a row without its fields, or if there is no vote of such a judge.
    """
    rows = [
        (number, row)
        for number, row in enumerate(read_jsonl(path), 1)
        if fnmatchcase(judge_of(row, f"{path}: row {number}"), judges)
    ]
    votes = [vote(row, f"{path}: row {number}") for number, row in rows]
    given_votes = [v for v in votes if v is not None]
    if not given_votes:
        raise DataError(
            f"{path}: no vote of a judge named {judges}; expected rows with question_id, turn, model_a, model_b, winner"
            " and judge"
        )
    return given_votes, len(votes) - len(given_votes)
