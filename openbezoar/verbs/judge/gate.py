"""What a judge must have shown before it grades: ``min_agreement``. Reads the step's scores; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.recipe.measure_steps import Agreement
from openbezoar.verbs.judge.result import AgreementScores


def gate(name: str, step: Agreement, folder: Path, seed: int) -> Iterator[str]:
    """Raises RunError for a judge that agrees with people on too few pairs, or of which no verdict could be read."""
    if step.min_agreement is None:
        return
    scores = AgreementScores.left_by(name, folder)
    share = scores.with_majority()
    if share is None:
        raise RunError(
            f"step {name}: no verdict of judge '{step.agreement}' could be read on {scores.unscored} pairs; use mode:"
            " probability or another judge"
        )
    if share.value < step.min_agreement:
        interval = "" if share.low is None or share.high is None else f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        raise RunError(
            f"step {name}: judge '{step.agreement}' agrees with people on {100 * share.value:.1f} % of {share.n} pairs"
            f" (95 %: {interval}), expected {100 * step.min_agreement:.1f} % or more; name another judge, or lower"
            " min_agreement"
        )
    yield from ()
