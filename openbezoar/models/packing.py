"""Linear layers for inference whose weights lie in the layout that the CPU's matrix kernels read.

oneDNN re-orders a bfloat16 weight at each product; for the few rows of a decoding step that
costs as much as a quarter of the product and more. Here it is done once. The sums are the same
kernel's, bit for bit; the plain weight is let go, so that nothing is held twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openbezoar.machine.devices import cpu_has_bfloat16

ROWS = 64
"""Rows that the layout is chosen for; any number is answered."""


class PackedLinear(nn.Module):
    """A frozen linear layer: x [..., in] → [..., out], without gradients."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._bias = layer.bias
        # Not a parameter: only the kernel that made this layout can read it.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """Raises RuntimeError where a gradient is asked for: the kernel has none, and would drop it in silence."""
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("a model with packed weights computes no gradients")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return out


def pack(model: nn.Module) -> int:
    """Pack a frozen model's bfloat16 linear layers on a CPU, but not its head; the number packed, 0
    where torch or the CPU has no such kernel.
    """
    operators = torch.ops.mkldnn
    if not cpu_has_bfloat16() or not all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    ):
        return 0
    head = model.get_output_embeddings()  # type: ignore[operator]  # the scorer works with its weight
    head = getattr(head, "base_layer", head)
    packed = 0
    # A list with the layers themselves would keep each plain weight until the last is packed: the model twice.
    parents = [module for module in model.modules() if type(module) is not nn.Linear]
    for parent in parents:
        if isinstance(parent, nn.ModuleDict):
            continue  # PEFT's place for adapters, whose weights the LoRA layer multiplies itself
        for name, child in list(parent.named_children()):
            # Its exact class: PEFT's and bitsandbytes' layers derive from it, and hold other things.
            if (
                type(child) is nn.Linear
                and child is not head
                and child.weight.dtype == torch.bfloat16
                and child.weight.device.type == "cpu"
            ):
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed
