"""The table of checkpoints: every score of a run with n and 95 % interval.

Reads what ``scores`` reads; writes nothing. The command line prints the table, the report
opens with it, the cards quote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from openbezoar.errors import RunError
from openbezoar.recipe.schema import Recipe
from openbezoar.reporting.facts import RunFacts, read_facts
from openbezoar.reporting.scores import SCORES, Score, checkpoints_of, measured, told_apart
from openbezoar.reporting.wording import NOTHING, estimate, markdown_text
from openbezoar.store.runs import RunFolder

ORDER = {"task": 0, "loss": 1, "rewards": 2, "pairs": 3, "rating": 4, "ended": 5}


@dataclass(frozen=True)
class Table:
    """Headers and rows of text; ``note`` is a sentence below."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def text(self, width: int | None = None) -> str:
        """Aligned columns for a terminal; headers wrap onto lines of their own. Columns beyond
        ``width`` go into further tables below.
        """
        table = self._aligned() if width is None or len(self.headers) < 2 else "\n\n".join(self._within(width))
        return f"{table}\n{self.note}" if self.note else table

    def _within(self, width: int) -> list[str]:
        """Tables of as many columns as fit, each with the first one before them."""
        parts, first = [], 1
        while first < len(self.headers):
            upto = len(self.headers)
            while True:
                part = Table(
                    (self.headers[0], *self.headers[first:upto]), tuple((row[0], *row[first:upto]) for row in self.rows)
                )._aligned()
                if upto == first + 1 or max(map(len, part.splitlines())) <= width:
                    break
                upto -= 1
            parts.append(part)
            first = upto
        return parts

    def _aligned(self) -> str:
        heads = [_wrap(h, max([len(row[i]) for row in self.rows] or [0])) for i, h in enumerate(self.headers)]
        depth = max((len(h) for h in heads), default=0)
        lines = [[h[level] if level < len(h) else "" for h in heads] for level in range(depth)]
        widths = [max(len(line[i]) for line in [*lines, *self.rows]) for i in range(len(self.headers))]
        body = [*lines, ["-" * w for w in widths], *self.rows]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in body
        )

    def markdown(self) -> str:
        """A Markdown table; cells are escaped."""
        lines = [_row(map(markdown_text, self.headers)), _row(["---"] * len(self.headers))]
        lines += [_row(map(markdown_text, row)) for row in self.rows]
        table = "\n".join(lines)
        return f"{table}\n\n{markdown_text(self.note)}" if self.note else table


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _wrap(header: str, width: int) -> list[str]:
    lines: list[str] = []
    for word in header.split():
        if lines and len(lines[-1]) + 1 + len(word) <= max(width, 12):
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class Column:
    """One measured quantity, by checkpoint."""

    title: str
    digits: int
    kind: str
    scores: dict[str, Score] = field(default_factory=dict)
    step: str = ""  # where several steps of the run measure the same

    @property
    def same_n(self) -> int | None:
        """n if it is the same for all checkpoints; it then stands in the header."""
        found = {s.n for s in self.scores.values()}
        return found.pop() if len(found) == 1 else None

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
    found: dict[tuple[int, str, str], Column] = {}
    for step in facts.of("evaluate", "mt_bench"):
        apart = told_apart(facts, step)
        for m in measured(step):
            title = f"{m.title}, {apart}" if apart else m.title
            found.setdefault((ORDER[m.kind], step.name, m.name), Column(title, m.digits, m.kind, step=apart)).scores[
                m.checkpoint
            ] = m.score
    return [found[place] for place in sorted(found, key=lambda place: place[0])]


def checkpoints(facts: RunFacts) -> list[str]:
    """All scored checkpoints, in evaluate's order, then mt_bench's."""
    names: dict[str, None] = {}
    for verb in ("evaluate", "mt_bench"):
        for step in facts.of(verb):
            names.update(dict.fromkeys(checkpoints_of(step)))
    return list(names)


def scores_table(facts: RunFacts, only: Sequence[str] | None = None) -> Table:
    """Rows are checkpoints (all, or those in ``only``), columns what was measured; no rows if nothing was."""
    found = columns(facts)
    names = [n for n in checkpoints(facts) if only is None or n in only]
    if not found or not names:
        return Table((), ())
    rows = tuple((name, *(c.cell(name) for c in found)) for name in names)
    otherwise = " that does not say otherwise" if any("lower is better" in c.title for c in found) else ""
    note = f"In brackets: 95 % interval. Lower is better for losses, higher for everything else{otherwise}."
    if sentence := _seen_from(facts):
        note += f" {sentence}"
    return Table(("checkpoint", *(c.header() for c in found)), rows, note)


def _seen_from(facts: RunFacts) -> str:
    """What a reward accuracy is, and from which checkpoint it is seen; "" where none is measured."""
    steps = [step for step in facts.of("evaluate") if any(m.kind == "rewards" for m in measured(step))]
    references = ", ".join(dict.fromkeys(str(step.read_json(SCORES).get("reference")) for step in steps))
    if not steps:
        return ""
    return (
        "Reward accuracy: share of pairs whose chosen answer has gained more log-probability over the reference"
        f" ({references}) than the rejected one; chance is 0.5, and the reference itself has none. Likelihood accuracy"
        " takes the log-probability alone, which longer answers lower."
    )


def checkpoint_table(run: RunFolder, recipe: Recipe | None = None) -> Table | None:
    """The table of a run's checkpoints (of the recipe's steps only, if one is given); None if nothing is scored yet."""
    try:
        table = scores_table(read_facts(run, None if recipe is None else recipe.steps))
    except RunError:  # no step has finished
        return None
    return table if table.rows else None
