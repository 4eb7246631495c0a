"""A model on the bench: what every training does with it, whoever asks for it. Takes a model with an
adapter and trees, writes ``adapter/`` in PEFT's format beside the loop's own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import Scorer, Tree
from openbezoar.forest.trunk import Trunk
from openbezoar.machine import distributed
from openbezoar.machine.shares import dealt
from openbezoar.models.fitting import settled
from openbezoar.models.load import free
from openbezoar.models.memory import shape_in
from openbezoar.progress import Progress
from openbezoar.recipe.train_steps import Training
from openbezoar.training import checkpointing
from openbezoar.training.data import Renderer
from openbezoar.training.loop import Objective, Sampler, Tell, tell_nobody, train

ADAPTER = "adapter"
S = TypeVar("S", bound=Trunk)


@dataclass
class Bench(Generic[S]):
    """A model with a trainable adapter, or trainable itself, with what is needed to train it."""

    model: Any
    scorer: S
    renderer: Renderer

    def __post_init__(self) -> None:
        """Of several processes, which all train, each measures a share."""
        if distributed.world() > 1:
            self.scorer.deal = dealt

    @staticmethod
    def of(model: Any, settings: Training, renderer: Renderer) -> Bench[Scorer]:
        """Switch checkpointing on where the settings want it. Raises ModelError where the model has none."""
        settings = settled(settings, shape_in(model))
        checkpointing.apply(model, settings)
        return Bench(model, Scorer(model, settings.tokens), renderer)

    @property
    def formatter(self) -> Formatter:
        """Of the prompt that is trained."""
        return self.renderer.formatter


def fit(
    settings: Training,
    bench: Bench[Any],
    trees: Sequence[Tree],
    *,
    objective: Objective,
    out: Path,
    seed: int,
    progress: Progress,
    sampler: Sampler | None = None,
    tell: Tell = tell_nobody,
) -> dict[str, Any]:
    """Train and write ``out/adapter`` where there is one; gives the manifest's numbers."""
    numbers = train(
        bench.model,
        bench.scorer,
        trees,
        objective=objective,
        settings=settings,
        out=out,
        progress=progress,
        seed=seed,
        sampler=sampler,
        tell=tell,
    )
    if distributed.rank() == 0 and hasattr(bench.model, "peft_config"):
        _save_adapter(bench.model, out / ADAPTER)
    if bench.formatter.boundary_shifts:
        bench.renderer.counts.add("token would span prompt and answer", bench.formatter.boundary_shifts)
    if bench.formatter.notes:
        numbers["prompt_notes"] = list(bench.formatter.notes)
    if torch.cuda.is_available():
        numbers["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    free()
    return numbers


def _save_adapter(model: Any, folder: Path) -> None:
    for config in model.peft_config.values():
        for name, value in vars(config).items():
            if isinstance(value, set):  # which PEFT writes in the order of this process's hashes
                setattr(config, name, sorted(value))
    model.save_pretrained(str(folder), save_embedding_layers=False)
