"""The preference losses that a recipe may name: one row a loss, all that is known of it.

A new loss is a function in ``training/losses.py`` and a row of ``LOSSES``
(docs/how-to/add-a-loss.md). From the rows follow what ``Dpo`` takes and refuses, the recipe's
schema, whether a reference is computed, the check of the first step, what ``plan`` counts, and
the table of docs/preference-losses.md. Reads and writes nothing, and imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Constant:
    """A setting of losses: a key of ``dpo`` steps and a keyword of the losses' functions. gt, ge, lt: its bounds.
    always_in_key: the cache keys of steps whose loss does not use it have it too, as null; those of the first losses
    are so, and a later one is not, so that a new loss leaves every key as it was.
    """

    name: str
    about: str
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    always_in_key: bool = False


class Start(NamedTuple):
    """A loss where policy and reference are the same model: as the page writes it, and from the constants."""

    text: str
    value: Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Loss:
    """A preference loss.

    function: "module:name" of a function of ``PairScores`` and the constants, a keyword each.
    constants: what it uses, with its defaults. formula, source: for docs/preference-losses.md.
    start: its value before the first update, None where it is not known beforehand.
    needs_reference: whether it compares with the model as given. whole_batch: whether a pair's
    loss depends on the other pairs of its batch. scale: the constant that rewards are multiplied by.
    """

    function: str
    constants: Mapping[Constant, float]
    formula: str
    source: str
    start: Start | None = None
    needs_reference: bool = True
    whole_batch: bool = False
    scale: str = "beta"

    @property
    def defaults(self) -> dict[str, float]:
        """The constants by their names."""
        return {constant.name: value for constant, value in self.constants.items()}

    def load(self) -> Callable[..., Any]:
        """The function itself; this imports torch."""
        loaded: Callable[..., Any] = resolve_name(self.function)
        return loaded


BETA = Constant(
    "beta",
    "Strength of the pull to the reference ([DPO] 0.1 to 0.5), or the scale of rewards without one.",
    gt=0,
    always_in_key=True,
)
SMOOTHING = Constant("label_smoothing", "Share of labels taken as flipped.", ge=0, lt=0.5, always_in_key=True)
DPOP_LAMBDA = Constant(
    "dpop_lambda",
    "DPO-positive's weight on a chosen answer that lost likelihood; 50 in its paper.",
    ge=0,
    always_in_key=True,
)
RPO_ALPHA = Constant("rpo_alpha", "RPO's weight of the likelihood of the chosen answer; 1 in its paper.", ge=0)
SIMPO_GAMMA = Constant(
    "simpo_gamma",
    "SimPO's target margin; gamma / beta = 0.5 is the authors' starting point.",
    ge=0,
    always_in_key=True,
)
ORPO_LAMBDA = Constant(
    "orpo_lambda",
    "ORPO's weight of the odds ratio beside the likelihood of the chosen answer.",
    gt=0,
    always_in_key=True,
)

LN_2 = Start("ln 2", lambda _: math.log(2))

# Sources of the defaults: [DPO] for sigmoid, and TRL's default for the losses beside it; sigmoid_norm, dpop
# (section 5), rpo (section 3) and orpo have their papers'; simpo the authors' code (beta 2, gamma / beta 0.5).
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(
        function="openbezoar.training.losses:sigmoid",
        constants={BETA: 0.1, SMOOTHING: 0.0},
        start=LN_2,
        formula="S(β (l_c − l_r))",
        source="DPO, arXiv 2305.18290, eq. 7; ε > 0: conservative DPO (Mitchell's note of 2023 on noisy preferences)",
    ),
    "sigmoid_norm": Loss(
        function="openbezoar.training.losses:sigmoid_norm",
        constants={BETA: 5.0, SMOOTHING: 0.0},
        start=LN_2,
        formula="S(β (l_c / n_c − l_r / n_r))",
        source="length-normalised DPO, Tülu 3, arXiv 2411.15124",
    ),
    "ipo": Loss(
        function="openbezoar.training.losses:ipo",
        constants={BETA: 0.1},
        start=Start("1 / 4β²", lambda constants: 1 / (4 * constants["beta"] ** 2)),
        formula="(l_c / n_c − l_r / n_r − 1 / 2β)²",
        source="IPO, arXiv 2310.12036, eq. 17",
    ),
    "hinge": Loss(
        function="openbezoar.training.losses:hinge",
        constants={BETA: 0.1},
        start=Start("1", lambda _: 1.0),
        formula="max(0, 1 − β (l_c − l_r))",
        source="SLiC, arXiv 2305.10425, normalised as in RSO, arXiv 2309.06657",
    ),
    "dpop": Loss(
        function="openbezoar.training.losses:dpop",
        constants={BETA: 0.3, DPOP_LAMBDA: 50.0},
        start=LN_2,
        formula="−log σ(β (l_c − l_r − λ max(0, −l_c)))",
        source="DPO-positive, arXiv 2402.13228, eq. 3",
    ),
    "rpo": Loss(
        function="openbezoar.training.losses:rpo",
        constants={BETA: 0.1, RPO_ALPHA: 1.0},
        formula="−log σ(β (l_c − l_r)) − α p_c / n_c",
        source="RPO, arXiv 2404.19733, eq. 1",
    ),
    "kto_pair": Loss(
        function="openbezoar.training.losses:kto_pair",
        constants={BETA: 0.1},
        start=Start("½", lambda _: 0.5),
        whole_batch=True,
        formula="½ (1 − σ(β (l_c − z_r))) + ½ (1 − σ(β (z_c − l_r)))",
        source="KTO on pairs, arXiv 2402.01306 (eq. 7 of the earlier report)",
    ),
    "simpo": Loss(
        function="openbezoar.training.losses:simpo",
        constants={BETA: 2.0, SIMPO_GAMMA: 1.0, SMOOTHING: 0.0},
        needs_reference=False,
        formula="S(β (p_c / n_c − p_r / n_r) − γ)",
        source="SimPO, arXiv 2405.14734, eq. 6",
    ),
    "orpo": Loss(
        function="openbezoar.training.losses:orpo",
        constants={ORPO_LAMBDA: 0.1},
        scale="orpo_lambda",
        needs_reference=False,
        formula="−m_c − λ log σ(log odds(m_c) − log odds(m_r))",
        source="ORPO, arXiv 2403.07691, eq. 4, 6, 7",
    ),
}


def constants() -> dict[Constant, dict[str, float]]:
    """Every constant with the losses that use it and their defaults, as they come in the table."""
    used: dict[Constant, dict[str, float]] = {}
    for name, loss in LOSSES.items():
        for constant, default in loss.constants.items():
            used.setdefault(constant, {})[name] = default
    return used


def described(constant: Constant) -> str:
    """A constant's description in the recipe: what it is, and its default in each loss that uses it."""
    return (
        f"{constant.about} Default: {', '.join(f'{name} {value:g}' for name, value in constants()[constant].items())}."
    )


def filled(loss: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a step with its loss's own defaults.

    Raises ValueError for a constant that the loss does not use, or a reference for one that has none.
    """
    row = LOSSES[loss]
    for constant, users in constants().items():
        if constant.name not in row.defaults and given.get(constant.name) is not None:
            raise ValueError(
                f"{constant.name}: the loss '{loss}' does not use it ({', '.join(users)}"
                f" {'do' if len(users) > 1 else 'does'}); remove it or name another loss"
            )
    if not row.needs_reference and given.get("reference") is not None:
        raise ValueError(f"reference: the loss '{loss}' has none; remove it or name another loss")
    return {**given, **{name: default for name, default in row.defaults.items() if given.get(name) is None}}


def page_table() -> list[str]:
    """The lines of docs/preference-losses.md's table."""
    lines = ["| `loss` | a pair's loss | settings and defaults | reference | start | source |", "| --- " * 6 + "|"]
    for name, loss in LOSSES.items():
        settings = ", ".join(f"`{constant.name}` {value:g}" for constant, value in loss.constants.items())
        start = loss.start.text if loss.start else "not known"
        reference = "yes" if loss.needs_reference else "no"
        lines.append(f"| `{name}` | {loss.formula} | {settings} | {reference} | {start} | {loss.source} |")
    return lines
