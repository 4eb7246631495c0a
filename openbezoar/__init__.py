"""OpenBezoar: from an open base model to a preference-aligned chat model, with numbers that can be believed.

``import openbezoar as ob`` loads nothing else: each name of ``__all__`` is imported when it is
first used, so that plans and scores need no torch. docs/api.md shows them at work.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# What type checkers are told is in __init__.pyi.
_PLACES = {
    "plan": "plan",
    "RunPlan": "plan.listed:RunPlan",
    "PlannedStep": "plan.listed:PlannedStep",
    "run": "face.runs:run",
    "open_run": "face.runs:open_run",
    "Run": "face.runs:Run",
    "ScoreRow": "face.runs:ScoreRow",
    "load": "face.chat_model:load",
    "ChatModel": "face.chat_model:ChatModel",
    "sft": "face.training:sft",
    "dpo": "face.training:dpo",
    "Trained": "face.training:Trained",
    "Scorer": "forest:Scorer",
    "TokenPath": "forest:TokenPath",
    "ForestLM": "harness.forest_lm:ForestLM",
    "losses": "training.losses",
    "stats": "stats",
    "UserError": "errors:UserError",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'openbezoar' has no attribute '{name}'")
    module, _, attribute = _PLACES[name].partition(":")
    value = import_module(f"openbezoar.{module}")
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
