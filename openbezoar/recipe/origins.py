"""Values of settings that are the paper's, and values that later evidence supports: which, and where that is told.

A table for ``plan``, ``show`` and docs/papers.md. What stands in neither part is of other work (docs/papers.md), or
this project's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

Whose = Literal["paper", "evidence"]
CARD = "the paper's card"


class Origin(NamedTuple):
    """A value of a setting, of the steps of a verb, as a recipe writes it. key: with a dot inside of a block."""

    verb: str
    key: str
    value: Any
    whose: Whose
    source: str

    def text(self) -> str:
        """The setting as a recipe's reader would say it."""
        value = " ".join(map(str, self.value)) if isinstance(self.value, list) else self.value
        return f"{self.key} {value}"


def _of(verbs: Iterable[str], key: str, value: Any, source: str) -> Iterator[Origin]:
    """A value that evidence supports for several verbs."""
    yield from (Origin(verb, key, value, "evidence", source) for verb in verbs)


TRAIN = ("sft", "dpo", "kto", "reward")
ORIGINS: tuple[Origin, ...] = (
    Origin("sft", "lora.r", 16, "paper", CARD),
    Origin("sft", "lora.alpha", 16, "paper", CARD),
    Origin("sft", "lora.dropout", 0.05, "paper", CARD),
    Origin("sft", "lora.targets", ["q_proj", "k_proj", "v_proj"], "paper", CARD),
    Origin("sft", "quantize", "nf4", "paper", "the paper's abstract: QLoRA"),
    Origin("dpo", "loss", "sigmoid", "paper", "the paper's abstract: DPO"),
    Origin("dpo", "epochs", 1.0, "paper", CARD),
    *_of(
        TRAIN,
        "lora.targets",
        "all-linear",
        "QLoRA, arXiv 2305.14314, section 4; TRL's page on 'LoRA Without Regret': adapters on attention alone are worse"
        " at equal parameters",
    ),
    *_of(
        TRAIN,
        "quantize",
        "auto",
        "NF4 costs Gemma-3-270M 0.24 nats a token, more than its fine-tuning gains (results.md)",
    ),
    *_of(
        ("dpo",), "loss", "sigmoid_norm", "Tülu 3, arXiv 2411.15124; arXiv 2407.15229: shorter answers of equal quality"
    ),
    *_of(("pairs",), "pick", "best_2sigma", "arXiv 2502.16825: better than the worst answer as the rejected one"),
)


def origins(verb: str, settings: Mapping[str, Any]) -> list[Origin]:
    """What is known of a step's settings, which are plain values."""
    return [one for one in ORIGINS if one.verb == verb and _value(settings, one.key) == one.value]


def _value(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def told(verb: str, settings: Mapping[str, Any]) -> str:
    """The same in one line; "" where nothing is known."""
    found = origins(verb, settings)
    parts = []
    for whose in ("paper", "evidence"):
        if texts := [one.text() for one in found if one.whose == whose]:
            parts.append(f"the {whose}'s: {', '.join(texts)}")
    return "; ".join(parts)


def page_table() -> list[str]:
    """The lines of docs/papers.md's table."""
    lines = ["| setting | value | whose | source |", "| --- " * 4 + "|"]
    for key, value, whose, source in dict.fromkeys((o.key, str(o.text()), o.whose, o.source) for o in ORIGINS):
        verbs = ", ".join(f"`{o.verb}`" for o in ORIGINS if (o.key, o.text(), o.whose) == (key, value, whose))
        lines.append(f"| `{key}` of {verbs} | {value.removeprefix(f'{key} ')} | the {whose}'s | {source} |")
    return lines
