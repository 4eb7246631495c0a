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
    "generate": Stage("openbezoar.verbs.generate.work", 4),
    "filter": Stage("openbezoar.verbs.filter.work", 4),
    "sft": Stage("openbezoar.verbs.train.sft", 2),
    "merge": Stage("openbezoar.verbs.merge.work", 2),
    "dpo": Stage("openbezoar.verbs.train.dpo", 2),
    "evaluate": Stage("openbezoar.verbs.evaluate.work", 5),
    "agreement": Stage("openbezoar.verbs.judge.agreement", 3),
    "mt_bench": Stage("openbezoar.verbs.judge.mt_bench", 4),
    "failures": Stage("openbezoar.verbs.failures.work", 4),
    "report": Stage("openbezoar.verbs.report.work", 2),
    "release": Stage("openbezoar.verbs.release.work", 3),
}
