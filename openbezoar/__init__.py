"""OpenBezoar: from an open base model to a preference-aligned chat model, with numbers that can be believed.

``import openbezoar as ob`` loads nothing else: each name of ``__all__`` is imported when it is
first used, so that plans and scores need no torch. docs/api.md shows them at work.
"""

from importlib import import_module
from typing import Any

__version__ = "0.3.0"

# Names by the module that has them. Type checkers read __init__.pyi.
_NAMES = {
    "plan.listed": "RunPlan PlannedStep",
    "face.runs": "run open_run Run ScoreRow",
    "face.chat_model": "load ChatModel",
    "verbs.train.in_memory": "sft dpo kto Trained",
    "forest": "Scorer TokenPath",
    "harness.forest_lm": "ForestLM",
    "errors": "UserError",
}
# modules, and the package plan, which can be called
_MODULES = {"plan": "plan", "losses": "training.losses", "stats": "stats"}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_MODULES, *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"openbezoar.{_MODULES[name]}")
    if name in _HOME:
        return getattr(import_module(f"openbezoar.{_HOME[name]}"), name)
    raise AttributeError(f"module 'openbezoar' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
