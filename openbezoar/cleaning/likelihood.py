"""Rules that drop rows by how likely a model finds their answers.

Takes a row's perplexities (from ``verbs/filter/likelihood.py``), writes nothing. Instruction-following
difficulty (IFD; "Superfiltering", arXiv 2402.00530) is the perplexity of an answer given its
instruction over that of the answer alone: near 0 the instruction says it all, from 1 on it does
not help, and the two may not belong together. The paper drops rows from 1 on and keeps the highest
of the others. Both perplexities are exp of the mean negative log-probability a token; the ratio is
of perplexities, not of their logarithms, as in the paper's code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openbezoar.cleaning.rules import Drop
from openbezoar.recipe.data_steps import Ifd, Likelihood, PerplexityBand
from openbezoar.rows.records import Row

COLUMNS = ("perplexity", "perplexity_alone", "ifd")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
EDGES = tuple(n / 10 for n in range(16))  # of the bins of IFD; the last is open
MOST = 700.0  # of an exponent that is still a float


class Scored(NamedTuple):
    """How likely a row's learnt answers are.

    given, alone: mean negative log-probability of their tokens in nats, after what stands before
    each and by itself; None where no token can be scored so. tokens: of the answers. cut: whether
    they were scored in part.
    """

    given: float | None
    alone: float | None
    tokens: int
    cut: bool = False

    @property
    def perplexity(self) -> float | None:
        return None if self.given is None else math.exp(min(self.given, MOST))

    @property
    def perplexity_alone(self) -> float | None:
        return None if self.alone is None else math.exp(min(self.alone, MOST))

    @property
    def ifd(self) -> float | None:
        """exp(given - alone), the ratio of the two perplexities."""
        return None if self.given is None or self.alone is None else math.exp(min(self.given - self.alone, MOST))

    def as_row(self) -> Row:
        """The columns that say it in a row, to six digits."""
        values = (self.perplexity, self.perplexity_alone, self.ifd)
        shown = [None if value is None else float(f"{value:.6g}") for value in values]
        return dict(zip(COLUMNS, shown, strict=True))


class Screened(NamedTuple):
    """drops: one a row, None for a row that stays. thresholds: what was applied, by name."""

    drops: list[Drop | None]
    thresholds: dict[str, float | None]


def screen(scores: Sequence[Scored], settings: Likelihood) -> Screened:
    """The rows that a model's likelihood drops: outside of the band of perplexities, then by IFD.

    Equal rows at the border of ``keep`` stay in their order, the first ones first.
    """
    drops: list[Drop | None] = [None] * len(scores)
    thresholds: dict[str, float | None] = {}
    for i, score in enumerate(scores):
        if (settings.perplexity and score.given is None) or (settings.ifd and score.ifd is None):
            drops[i] = Drop("no_likelihood", _why_none(score))
    if settings.perplexity is not None:
        thresholds |= _outside(scores, drops, settings.perplexity)
    if settings.ifd is not None:
        thresholds |= _difficulty(scores, drops, settings.ifd)
    return Screened(drops, thresholds)


def _why_none(score: Scored) -> str:
    if score.given is None:
        return "the prompt leaves the answer no room" if score.cut else "the answer has no token"
    return "the answer is one token, and nothing stands before it by itself"


def _outside(scores: Sequence[Scored], drops: list[Drop | None], band: PerplexityBand) -> dict[str, float | None]:
    """Drops the rows outside of a band; returns its bounds."""
    values = {i: value for i, s in enumerate(scores) if drops[i] is None and (value := s.perplexity) is not None}
    low, high = band.bounds or (None, None)
    if band.between is not None and values:
        # each bound is one of the perplexities that are there, so that the ends are kept exactly
        ordered, last = sorted(values.values()), len(values) - 1
        low, high = ordered[math.floor(band.between[0] * last)], ordered[math.ceil(band.between[1] * last)]
    for i, value in values.items():
        if low is not None and value < low:
            drops[i] = Drop("perplexity_too_low", f"perplexity {value:.4g}, kept from {low:.4g} on")
        elif high is not None and value > high:
            drops[i] = Drop("perplexity_too_high", f"perplexity {value:.4g}, kept up to {high:.4g}")
    return {"perplexity_from": low, "perplexity_to": high}


def _difficulty(scores: Sequence[Scored], drops: list[Drop | None], rule: Ifd) -> dict[str, float | None]:
    """Drops the rows from ``below`` on, then all but the highest; returns the two thresholds."""
    values = {i: value for i, s in enumerate(scores) if drops[i] is None and (value := s.ifd) is not None}
    below = {i: value for i, value in values.items() if value < rule.below}
    for i, value in values.items():
        if i not in below:
            drops[i] = Drop("ifd_too_high", f"IFD {value:.4g}, kept below {rule.below:g}")
    if rule.keep is None:
        return {"ifd_below": rule.below}
    most = rule.keep if isinstance(rule.keep, int) else max(1, int(rule.keep * len(scores)))
    kept = sorted(below, key=lambda i: (-below[i], i))[:most]
    lowest = min((below[i] for i in kept), default=None)
    for i in below.keys() - set(kept):
        drops[i] = Drop("ifd_too_low", f"IFD {below[i]:.4g}, the {len(kept)} highest are from {lowest:.4g} on")
    return {"ifd_below": rule.below, "ifd_from": lowest}


def numbers(scores: Sequence[Scored], thresholds: dict[str, float | None]) -> dict[str, Any]:
    """What is told of all scored rows: {rows, tokens, cut, without_ifd, thresholds, perplexity and ifd
    (quantiles), ifd_histogram (rows by the lower edge of their bin)}.
    """
    ratios = [value for s in scores if (value := s.ifd) is not None]
    bins = Counter(min(int(value * 10), len(EDGES) - 1) for value in ratios)
    return {
        "rows": len(scores),
        "tokens": sum(s.tokens for s in scores),
        "cut": sum(s.cut for s in scores),
        "without_ifd": len(scores) - len(ratios),
        "thresholds": thresholds,
        "perplexity": quantiles([value for s in scores if (value := s.perplexity) is not None]),
        "ifd": quantiles(ratios),
        "ifd_histogram": {f"{edge:.1f}": bins[place] for place, edge in enumerate(EDGES)} if ratios else {},
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Some quantiles by their names; none of no values."""
    return {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES} if values else {}
