"""Which of the recipe's models a name stands for, and how large that is: as the recipe says, or
from a config.json that is here.

Fetches nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

from openbezoar.engine.graph import Graph
from openbezoar.models.files.towers import text_config
from openbezoar.models.memory import shape_of
from openbezoar.models.references import local_folder
from openbezoar.recipe.blocks import LocalModel, ServerModel, Shape
from openbezoar.recipe.train_steps import Dpo, Merge, Sft
from openbezoar.rows.sources import model_reference


def model_of(graph: Graph, name: str) -> LocalModel | ServerModel | None:
    """The recipe's entry at the bottom of a model's chain of steps."""
    while name in graph.nodes:
        step = graph.nodes[name].step
        name = step.merge if isinstance(step, Merge) else step.model if isinstance(step, (Sft, Dpo)) else ""
    return graph.recipe.models.get(name)


def shape_of_model(graph: Graph, name: str) -> Shape | None:
    """The size of a model or a step's model; None for a server's, and for one that is neither here nor described."""
    spec = model_of(graph, name)
    if not isinstance(spec, LocalModel):
        return None
    folder = graph.recipe_path.parent
    return spec.shape or _shape_on_disk(model_reference(spec.model, folder, graph.recipe.data), folder)


def _shape_on_disk(model: str, folder: Path) -> Shape | None:
    """The shape in a config.json that is already here, nothing fetched."""
    try:
        return shape_of(
            text_config(json.loads((local_folder(model, folder) / "config.json").read_text(encoding="utf-8")))
        )
    except (OSError, KeyError, ValueError):
        return None
