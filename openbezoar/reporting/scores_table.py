"""The table of checkpoints: every score of a run with n and 95 % interval.

Asks the steps' results; writes nothing. The command line prints the table, the report
opens with it, the cards quote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from openbezoar.errors import RunError
from openbezoar.recipe.schema import Recipe
from openbezoar.reporting.facts import RunFacts, read_facts
from openbezoar.reporting.measured import ORDER, Score
from openbezoar.reporting.scores import checkpoints, scored, told_apart
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, estimate
from openbezoar.store.runs import RunFolder


@dataclass(frozen=True)
class Column:
    """One measured quantity, by checkpoint."""

    title: str
    digits: int
    kind: str
    scores: dict[str, Score] = field(default_factory=dict)
    name: str = ""  # as of Measured
    source: str = ""  # the step that measured it

    @property
    def same_n(self) -> int | None:
        """n if it is the same for all checkpoints; it then stands in the header."""
        numbers = {s.n for s in self.scores.values()}
        return numbers.pop() if len(numbers) == 1 else None

    def header(self) -> str:
        return self.title if self.same_n is None else f"{self.title} (n={self.same_n})"

    def cell(self, checkpoint: str) -> str:
        score = self.scores.get(checkpoint)
        if score is None:
            return NOTHING
        return (
            score.text(self.digits)
            if self.same_n is None
            else estimate(score.value, score.low, score.high, self.digits)
        )


def columns(facts: RunFacts) -> list[Column]:
    """All measured quantities: tasks, losses, accuracies on pairs, ratings, answers that stop."""
    by_place: dict[tuple[int, str, str], Column] = {}
    for result in scored(facts):
        apart = told_apart(facts, result.step)
        for m in result.scores():
            title = f"{m.title}, {apart}" if apart else m.title
            column = Column(title, m.digits, m.kind, name=m.name, source=result.step.name)
            by_place.setdefault((ORDER[m.kind], result.step.name, m.name), column).scores[m.checkpoint] = m.score
    return [by_place[place] for place in sorted(by_place, key=lambda place: place[0])]


def scores_table(facts: RunFacts, only: Sequence[str] | None = None) -> Table:
    """Rows are checkpoints (all, or those in ``only``), columns what was measured; no rows if nothing was."""
    listed = columns(facts)
    names = [n for n in checkpoints(facts) if only is None or n in only]
    if not listed or not names:
        return Table((), ())
    rows = tuple((name, *(c.cell(name) for c in listed)) for name in names)
    otherwise = " that does not say otherwise" if any("lower is better" in c.title for c in listed) else ""
    note = f"In brackets: 95 % interval. Lower is better for losses, higher for everything else{otherwise}."
    for sentence in (_seen_from(facts), *(words for result in scored(facts) for words in result.beside())):
        note += f" {sentence}" if sentence else ""
    return Table(("checkpoint", *(c.header() for c in listed)), rows, note)


def _seen_from(facts: RunFacts) -> str:
    """What a reward accuracy is, and from which checkpoint it is seen; "" where none is measured."""
    seen = [result.seen_from() for result in scored(facts) if any(m.kind == "rewards" for m in result.scores())]
    if not seen:
        return ""
    return (
        "Reward accuracy: share of pairs whose chosen answer has gained more log-probability over the reference"
        f" ({', '.join(map(str, dict.fromkeys(seen)))}) than the rejected one; chance is 0.5, and the reference itself"
        " has none. Likelihood accuracy takes the log-probability alone, which longer answers lower."
    )


def checkpoint_table(run: RunFolder, recipe: Recipe | None = None) -> Table | None:
    """The table of a run's checkpoints (of the recipe's steps only, if one is given); None if nothing is scored yet."""
    try:
        table = scores_table(read_facts(run, None if recipe is None else recipe.steps))
    except RunError:  # no step has finished
        return None
    return table if table.rows else None
