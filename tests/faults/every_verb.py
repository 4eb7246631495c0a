"""A run of every verb on a tiny model, seconds long, for tests that damage, fill or interrupt it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import FAST

DEMO = Path(__file__).resolve().parents[2] / "recipes/demo"
LOOSE = {
    "min_response_words": 0,
    "drop_unfinished": False,
    "drop_repetition": 1.0,
    "drop_echoes": False,
    "language": "any",
    "near_duplicates": None,
}
STEPS: dict[str, Any] = {
    "made": {
        "generate": "orca",
        "teacher": "base",
        "seeds": {"data": "flan.jsonl", "where": {"submix": "cot"}},
        "rows": 8,
        "batch": 4,
        "max_new_tokens": 12,
        "submixes": {"cot": 1},
    },
    "kept": {"filter": "made", "judge": "base", "mode": "probability", "min_rating": 1, "rules": LOOSE},
    "sft": {
        "sft": "kept",
        "model": "base",
        "max_steps": 2,
        "heldout": {"data": "heldout.jsonl", "limit": 4},
        "save_every": 1,
        **FAST,
    },
    "SFT": {"merge": "sft", "drift_rows": 2},
    "dpo": {"dpo": {"data": "pairs.jsonl", "limit": 12}, "model": "SFT", "max_steps": 2, "save_every": 1, **FAST},
    "DPO": {"merge": "dpo", "drift_rows": 2},
    "scores": {
        "evaluate": ["SFT", "DPO"],
        "tasks": [{"task": "boolq", "name": "passages", "file": "yes_no.jsonl", "limit": 6}],
        "pairs": {"pairs": {"data": "heldout_pairs.jsonl", "limit": 6}},
    },
    "talks": {
        "mt_bench": ["SFT", "DPO"],
        "questions": {"data": "two_turns.jsonl", "limit": 2},
        "judge": "base",
        "mode": "probability",
        "max_new_tokens": 8,
    },
    "report": {"report": "all"},
    "release": {"release": ["DPO"]},
}


def write(folder: Path, tiny: Path) -> Path:
    """The recipe, beside its data."""
    models = {"base": {"model": str(tiny), "dtype": "float32", "licence": "apache-2.0"}}
    for file in ("flan", "heldout", "pairs", "yes_no", "heldout_pairs", "two_turns"):
        (folder / f"{file}.jsonl").write_bytes((DEMO / f"{file}.jsonl").read_bytes())
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "t", "seed": 1, "models": models, "steps": STEPS}))  # JSON is YAML
    return path
