"""One module a verb. A stage reads other steps' folders and writes its own.

``run(step, context)`` does the work and returns the numbers for the manifest. The version
belongs to a step's key: raise it when the same settings would give other results.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Where a verb's code is, and which results it makes."""

    module: str
    version: int


STAGES: dict[str, Stage] = {
    "generate": Stage("openbezoar.stages.generate", 4),
    "filter": Stage("openbezoar.stages.filter", 4),
    "sft": Stage("openbezoar.stages.sft", 2),
    "merge": Stage("openbezoar.stages.merge", 2),
    "dpo": Stage("openbezoar.stages.dpo", 2),
    "evaluate": Stage("openbezoar.stages.evaluate", 5),
    "agreement": Stage("openbezoar.stages.agreement", 3),
    "mt_bench": Stage("openbezoar.stages.mt_bench", 4),
    "failures": Stage("openbezoar.stages.failures", 4),
    "report": Stage("openbezoar.stages.report", 2),
    "release": Stage("openbezoar.stages.release", 3),
}
