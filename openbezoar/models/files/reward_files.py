"""What the files of a reward model are held against before anything is loaded. Reads config.json and headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbezoar.errors import ModelError
from openbezoar.models.files.checks import read


def check_reward_folder(folder: Path) -> None:
    """Raises ModelError for a folder that holds no sequence classifier with one output and plain weights."""
    model = read(folder, check_reward_kind)
    if model.packed:
        raise ModelError(f"{folder}: its weights are quantised; reward models are read in 16 or 32 bits, take those")
    if not model.tensors:
        raise ModelError(f"{folder}: no weights; expected *.safetensors")


def check_reward_kind(where: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError for a config that is of no sequence classifier with one output."""
    classes = config.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    if not any(re.search("ForSequenceClassification$", name) for name in names):
        raise ModelError(
            f"{where}: a model of kind '{next(iter(names), config.get('model_type'))}' is no reward model; expected a"
            " sequence classifier with one output"
        )
    if (outputs := _outputs(config)) != 1:
        raise ModelError(f"{where}: a classifier with {outputs} outputs; a reward model has one")


def _outputs(config: Mapping[str, Any]) -> int:
    """Of a config that names none, transformers makes two."""
    labels, stated = config.get("id2label"), config.get("num_labels")
    return len(labels) if isinstance(labels, dict) else stated if isinstance(stated, int) else 2
