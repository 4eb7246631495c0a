"""Reward models on disk and in memory: transformers' sequence classifiers with one output.

What is written here is read by ``AutoModelForSequenceClassification`` alone, tokenizer and chat
template beside it. Weights are safetensors, and plain.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openbezoar.errors import ModelError
from openbezoar.machine.foreign import foreign_file
from openbezoar.models import shards
from openbezoar.models.driving import in_all_processes
from openbezoar.models.files.reward_files import check_reward_folder, check_reward_kind
from openbezoar.models.load import DTYPES, arithmetic, check_loaded, device, hold, load_tokenizer, without_bars
from openbezoar.models.references import Checkpoint, fetched


def new_head(model: Any, seed: int) -> nn.Linear:
    """A trainable float32 head [1, hidden] for a model's trunk, put on the model as ``score`` so that it
    trains with it.

    Drawn from N(0, 1 / (hidden + 1)), as in the code of arXiv 2009.01325.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.config.get_text_config().hidden_size
    head = nn.Linear(hidden, 1, bias=False, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, hidden, generator=generator) / (hidden + 1) ** 0.5)
    base.score = head.to(next(model.parameters()).device)
    return head


@dataclass(frozen=True, eq=False)
class _InMemory:
    """A tensor in memory, as ``shards.write`` asks for one."""

    value: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def __getitem__(self, everything: Any) -> Tensor:
        return self.value


def write_reward_model(
    folder: Path, source: Path, weights: Mapping[str, shards.Weight], head: Tensor, tokenizer: Any, dtype: str
) -> None:
    """A classifier of ``source``'s kind: its trunk's ``weights``, and a head [1, hidden].

    tokenizer: with the chat template that conversations are read by. Raises ModelError for a kind of
    which transformers has no classifier.
    """
    blank = _classifier_of(source)
    names = set(blank.state_dict())
    trunk = {name: weight for name, weight in weights.items() if name in names}
    rest = names - set(trunk)
    if len(rest) != 1:
        raise ModelError(
            f"{source}: its weights have other names than transformers' {type(blank).__name__} ({min(rest)}); take a"
            " model of another kind"
        )
    shards.write({**trunk, rest.pop(): _InMemory(head.detach().to(DTYPES[dtype]))}, folder)
    config = blank.config
    config.architectures = [type(blank).__name__]
    config.dtype = DTYPES[dtype]
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _classifier_of(source: Path) -> Any:
    """A classifier with one output of a model's kind, without weights."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(str(source), num_labels=1)
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise ModelError(
            f"{source}: transformers has no sequence classifier of kind '{config.model_type}', so no reward model can"
            " be made of it; take a model of another kind"
        ) from None


def reward_folder(checkpoint: Checkpoint) -> Path:
    """A reward model's files, fetched where need be. Raises ModelError for what is no reward model."""
    folder = fetched(checkpoint.base)
    check_reward_folder(folder)
    return folder


@in_all_processes(reward_folder)
def load_reward_model(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """(classifier, tokenizer), in evaluation mode and without gradients."""
    from transformers import AutoModelForSequenceClassification

    folder = reward_folder(checkpoint)
    tokenizer = load_tokenizer(folder, check_reward_kind)
    with (
        foreign_file(folder, "a classifier that transformers loads", "fetch its files again, or take another model"),
        warnings.catch_warnings(),
        without_bars(),
    ):
        warnings.simplefilter("ignore")
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            dtype=DTYPES[checkpoint.dtype],
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_loaded(folder, info, model.state_dict().keys())
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    hold(model, arithmetic(DTYPES[checkpoint.dtype]))
    return model.to(device()).eval(), tokenizer


def scalar_head(model: Any) -> nn.Linear | None:
    """The head that reads a decoder's last hidden state; None of a model whose head reads something else."""
    head = getattr(model, "score", None)
    return head if isinstance(head, nn.Linear) and head.out_features == 1 else None
