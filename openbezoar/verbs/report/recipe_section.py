"""The report's sections of the recipe: its picture with each step's numbers, and what each step cost.

Reads manifests, and the call cache beside the run for what was paid; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from openbezoar.errors import RunError
from openbezoar.llm.calls import FILE, CallStore, Spent
from openbezoar.recipe.blocks import Price, ServerModel
from openbezoar.recipe.verbs import VERBS
from openbezoar.reporting.document import Block, Chart, Fold, Grid, Paragraph, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.recipe_picture import Box, mermaid, recipe_picture
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING, duration, number, tally


def recipe_section(facts: RunFacts) -> Section:
    """The picture, and beside it what every step does and came to."""
    boxes = [Box(s.name, s.verb, s.result.outcome(), s.inputs) for s in facts.steps.values()]
    rows = tuple(
        (
            s.name,
            f"{s.verb}: {VERBS[s.verb].does if s.verb in VERBS else ''}".rstrip(": "),
            str(s.manifest.get("summary") or NOTHING),
        )
        for s in facts.steps.values()
    )
    about = Paragraph(
        "Each box is a step: its name, what kind it is, and what came of it. Lines lead from a step to those that use"
        " its result."
    )
    table = Grid(Table(("step", "what it does", "what came of it"), rows), "Steps of the recipe", stack=True)
    return Section(
        "The recipe",
        (
            about,
            Chart(
                mermaid(boxes), recipe_picture(boxes, f"The {len(boxes)} steps of the recipe, inputs above"), (table,)
            ),
        ),
    )


# --------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds of work, model calls paid with their tokens, money in the recipe's prices."""

    seconds: float
    asked: Spent | None  # None: not known
    money: float | None  # None: no priced model, or prices not known


def costs(facts: RunFacts) -> dict[str, Cost]:
    """Cost of every step, by name."""
    spent, prices = _accounts(facts), _prices(facts)
    by_step = {}
    for step in facts.steps.values():
        own = {model: s for (name, model), s in (spent or {}).items() if name == step.name}
        tokens = reduce(_add, own.values(), Spent()) if spent is not None else None
        priced = [prices[m].of(s.prompt_tokens, s.tokens) for m, s in own.items() if m in prices]
        by_step[step.name] = Cost(step.seconds, tokens, sum(priced) if priced else None)
    return by_step


def _add(a: Spent, b: Spent) -> Spent:
    return Spent(a.calls + b.calls, a.prompt_tokens + b.prompt_tokens, a.tokens + b.tokens, a.unanswered + b.unanswered)


def _accounts(facts: RunFacts) -> Mapping[tuple[str, str], Spent] | None:
    """{(step, model): tokens paid} of the run; None without a readable call cache that knows of it."""
    folder = facts.run.path.parent
    if not (folder / FILE).is_file():
        return None
    try:
        store = CallStore(folder)
        try:
            return {
                (step, model): s for (run, step, model), s in store.accounts().items() if run == facts.run.name
            } or None
        finally:
            store.close()
    except RunError:
        return None


def _prices(facts: RunFacts) -> dict[str, Price]:
    models = facts.recipe.models if facts.recipe else {}
    return {
        name: m.price for name, m in models.items() if isinstance(m, ServerModel) and (m.price.input or m.price.output)
    }


def cost_section(facts: RunFacts) -> Section:
    """Time, tokens and money of every step, with their sums."""
    by_step = costs(facts)
    rows = []
    for step in facts.steps.values():
        cost, result = by_step[step.name], step.result
        speed = NOTHING if (rate := result.speed()) is None else f"{rate:,.0f}"
        work = (*_paid(cost), number(result.tokens_trained()), speed)
        rows.append((step.name, step.verb, duration(cost.seconds), *work, step.finished or NOTHING))
    spent = [c.asked for c in by_step.values() if c.asked is not None]
    money = [c.money for c in by_step.values() if c.money is not None]
    whole = Cost(
        sum(c.seconds for c in by_step.values()),
        reduce(_add, spent, Spent()) if spent else None,
        sum(money) if money else None,
    )
    rows.append(("all steps", "", duration(whole.seconds), *_paid(whole), "", "", ""))
    headers = (
        "step",
        "verb",
        "time",
        "calls",
        "tokens in",
        "tokens out",
        "money",
        "tokens trained",
        "tokens/s",
        "finished (UTC)",
    )
    note = (
        "Calls and tokens are what models were asked and the call cache did not know, over all tries of this run; money"
        " is theirs at the recipe's prices. "
        + ("" if spent else "No call cache beside this run knows of it, so calls and tokens are not known. ")
        + (
            f"{lost:,} calls were sent and not answered; their tokens are the most that they may have taken. "
            if (lost := sum(a.unanswered for a in spent))
            else ""
        )
        + "Time is work, without waiting between tries."
    )
    blocks: list[Block] = [Grid(Table(headers, tuple(rows), note), "Cost and time of every step")]
    if counted := tuple((s.name, tally(s.counts)) for s in facts.steps.values() if s.counts):
        table = Grid(
            Table(("step", "counted by reason"), counted), "Everything that was counted, by reason", stack=True
        )
        blocks.append(Fold("Everything that was counted, by reason", (table,)))
    return Section("Cost and time", tuple(blocks))


def _paid(cost: Cost) -> tuple[str, str, str, str]:
    if cost.asked is None:
        return (NOTHING,) * 3 + (NOTHING,)
    a = cost.asked
    return (
        *(f"{n:,}" if n else NOTHING for n in (a.calls, a.prompt_tokens, a.tokens)),
        NOTHING if cost.money is None else f"{cost.money:.4g}",
    )  # type: ignore[return-value]
