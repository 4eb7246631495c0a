"""A model in transformers' format: its weights with config, generation settings and tokenizer beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from openbezoar.models.files.generation import generation_settings
from openbezoar.models.load import load_tokenizer
from openbezoar.models.shards import SHARD_BYTES, skeleton


def save_model(model: Any, source: Path, folder: Path, dtype: torch.dtype | None = None) -> list[str]:
    """Write a model in memory, made from the one in ``source``, into a folder, which is made anew; what was
    changed in the source's generation settings. dtype: of the files, which the model is cast to; none: its own.
    """
    if dtype is not None:
        model.to(dtype)
    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config, _ = generation_settings(source)
    model.save_pretrained(str(folder), max_shard_size=SHARD_BYTES)  # under the names that the kind is stored with
    load_tokenizer(source).save_pretrained(str(folder))
    return save_settings(skeleton(source).config, source, folder, model.dtype)


def save_settings(config: Any, source: Path, folder: Path, dtype: torch.dtype) -> list[str]:
    """Write config and generation settings beside weights; what was changed in the source's generation settings."""
    config.dtype = dtype
    config.save_pretrained(str(folder))
    generation, changed = generation_settings(source)
    generation.save_pretrained(str(folder))
    return changed
