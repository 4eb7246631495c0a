"""Activation checkpointing: a layer keeps its input only, and is run again in the backward pass.

Less memory for more arithmetic. A token's forward pass costs 2N operations (N: weights in linear layers), its
backward pass 2N for the gradients of activations and 2N for those of the weights, which a frozen base has none of.
Another forward pass is therefore 2N on top of 4N, one half; a third only where all weights are trained (6N). The random
state is restored for the second run, so gradients are the same bits, dropout included, however many layers do it.
"""

from __future__ import annotations

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from openbezoar.errors import ModelError
from openbezoar.machine.heap import give_back_large_blocks
from openbezoar.models.fitting import recomputed_layers
from openbezoar.models.memory import shape_in
from openbezoar.recipe.train_steps import Training

FLAG = "gradient_checkpointing"  # transformers' own, of a layer


def apply(model: Any, step: Training) -> int:
    """Switch checkpointing on in as many layers as the step wants, the first ones; how many those are.

    Raises ModelError where the step asks for it and the model has none.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    shape = shape_in(base)
    if step.checkpointing != "auto":
        wanted = None if step.checkpointing else 0  # None: in all
    else:  # without a shape memory cannot be counted
        wanted = 0 if shape is None else recomputed_layers(shape, step)
    if wanted == 0:
        return 0
    if not base.supports_gradient_checkpointing:
        if step.checkpointing == "auto":
            return 0
        raise ModelError(
            f"{type(base).__name__} has no activation checkpointing; set checkpointing to off and lower tokens"
        )
    # Not the reentrant kind: it needs an input that requires gradients, and a frozen embedding's does not.
    # its older name
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    base.disable_input_require_grads()  # switched on for the reentrant kind; it would carry gradients to the embeddings
    layers = [layer for layer in base.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for layer in layers[wanted:] if wanted is not None else ():
        setattr(layer, FLAG, False)
    give_back_large_blocks()
    return len(layers[:wanted])
