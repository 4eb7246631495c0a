"""What an optimiser moves: the trainable values of a model in fp32, whatever the model calculates in.

A weight in 16 bits is too coarse for small updates: bf16 keeps eight bits, so a change of less than a
256th of it is lost. So each such weight has a master copy in fp32 (arXiv 1710.03740, section 3.1); the
weight's gradients are added up there, pass by pass, and its value is the copy's, rounded.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn


class Masters:
    """values: by name, fp32; a trainable value that is fp32 itself (an adapter's) stands for itself."""

    def __init__(self, model: nn.Module) -> None:
        self.held = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values: dict[str, nn.Parameter] = {}
        for name, parameter in self.held.items():
            self.values[name] = parameter
            if parameter.dtype != torch.float32:
                self.values[name] = master = nn.Parameter(parameter.detach().float())
                parameter.register_post_accumulate_grad_hook(partial(_hand_over, master))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def push(self) -> None:
        """Give the model the copies' values, rounded to its own precision."""
        for name, parameter in self.held.items():
            if self.values[name] is not parameter:
                parameter.copy_(self.values[name])


def _hand_over(master: nn.Parameter, parameter: Tensor) -> None:
    """A pass's gradient of a weight, added to its copy's and let go."""
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad.add_(parameter.grad)
    parameter.grad = None
