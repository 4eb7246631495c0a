"""The commands about judges: ``agreement`` and ``judge``. Arguments in, one call, words out; no torch at import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def agreement(
    judge: Annotated[Path, typer.Option("--judge", metavar="FILE", help="The judge's votes, .jsonl or .jsonl.gz.")],
    human: Annotated[Path, typer.Option("--human", metavar="FILE", help="People's votes.")],
    persons: Annotated[str | None, typer.Option("--persons", metavar="PATTERN", help="Whose votes in the second file count; default: expert_*.")] = None,
    as_json: AsJson = False,
) -> None:
    """How often a judge agrees with people, beside how often people agree with one another.

    Votes are rows with question_id, turn, model_a, model_b, winner and judge. S1 counts ties, and verdicts that changed
    on swapped order are ties; S2 leaves ties out.

    Example: openbezoar agreement --judge gpt4_pair_votes.jsonl.gz --human human_votes.jsonl.gz
    """
    from openbezoar.judging.agreement import PERSONS, agreement_table, read_votes, without_majority

    verdicts, unread = read_votes(judge)
    votes, unread_human = read_votes(human, persons or PERSONS)
    rows = agreement_table(verdicts, votes)
    judges = sorted({v.judge for v in verdicts})
    if len(judges) > 1:
        print(f"{judge}: the votes of {len(judges)} judges are counted together: {', '.join(judges[:8])}", file=sys.stderr)
    for file, lost in ((judge, unread), (human, unread_human)):
        if lost:
            print(f"{file}: {lost} rows without a verdict are left out", file=sys.stderr)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'setup':5} {'turn':>4}  {'compared':15} {'n':>6}  {'agreement':24} kappa")
    for row in rows:
        share = _estimate(row["agreement"], row["low"], row["high"], 100, " %")
        print(f"{row['setup']:5} {row['turn']:>4}  {row['pair']:15} {row['n']:>6}  {share:24} {_estimate(row['kappa'], row['kappa_low'], row['kappa_high'])}")
    print("In brackets: 95 % interval, bootstrap over questions. S1: ties count (three labels). S2: without ties (two).")
    if tied := without_majority(votes):
        print(f"judge-majority leaves out {tied} keys on which no label has most votes.")


def _estimate(value: float | None, low: Any, high: Any, scale: int = 1, unit: str = "") -> str:
    digits = 1 if scale == 100 else 3
    return "-" if value is None else f"{scale * value:.{digits}f}{unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
