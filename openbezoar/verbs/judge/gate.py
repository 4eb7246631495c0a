"""What a judge must have shown before it grades: ``min_agreement``. Reads the step's scores; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openbezoar.errors import RunError
from openbezoar.recipe.measure_steps import Agreement
from openbezoar.store.manifests import read_object
from openbezoar.verbs.judge.human_pairs import agreement_with_majority


def gate(name: str, step: Agreement, folder: Path, seed: int) -> Iterator[str]:
    """Raises RunError for a judge that agrees with people on too few pairs, or of which no verdict could be read."""
    if step.min_agreement is None:
        return
    scores = read_object(folder / "scores.json", "a step's scores", "delete the folder and run again")
    share = agreement_with_majority(dict(scores))
    if not share["n"]:
        raise RunError(
            f"step {name}: no verdict of judge '{step.agreement}' could be read on {scores['unscored']} pairs; use"
            " mode: probability or another judge"
        )
    if share["agreement"] < step.min_agreement:
        raise RunError(
            f"step {name}: judge '{step.agreement}' agrees with people on {100 * share['agreement']:.1f} % of"
            f" {share['n']} pairs (95 %: {100 * share['low']:.1f} to {100 * share['high']:.1f}), expected"
            f" {100 * step.min_agreement:.1f} % or more; name another judge, or lower min_agreement"
        )
    yield from ()
