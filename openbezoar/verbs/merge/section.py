"""The report's section of merges: how far each merged model is from the unmerged one. Writes nothing."""

from __future__ import annotations

from openbezoar.reporting.document import Grid, Paragraph, Section
from openbezoar.reporting.facts import RunFacts
from openbezoar.reporting.table import Table
from openbezoar.reporting.wording import NOTHING
from openbezoar.verbs.merge.result import MergeNumbers


def sections(facts: RunFacts) -> list[Section]:
    """How far each merged model is from the unmerged one; nothing without a merge."""
    merges = facts.results(MergeNumbers)
    if not merges:
        return []
    rows = []
    for n in merges:
        measured = NOTHING if n.rows is None or n.tokens is None else f"{n.rows} rows, {n.tokens} tokens"
        drift = (n.kl, n.mean_logprob_difference, n.max_logprob_difference)
        texts = (NOTHING if value is None else f"{value:.3g}" for value in drift)
        merged = str(n.step.settings.get(n.step.verb, NOTHING))
        rows.append((n.step.name, merged, NOTHING if n.onto is None else n.onto, *texts, measured))
    table = Table(
        ("merge", "of", "onto", "KL per token, nats", "mean |Δ log p|", "greatest |Δ log p|", "measured on"),
        tuple(rows),
        "Unmerged against merged model on the same held-out answers.",
    )
    about = Paragraph(
        "Merging adds an adapter to 16-bit weights, which rounds. The drift is what the rounding and the choice of base"
        " changed in the model's predictions."
    )
    return [Section("Merge drift", (about, Grid(table, "Drift of every merge", stack=True)))]
