"""A base's own dropout, taken out where it would make a model another one than itself.

DPO asks one model for log-probabilities with and without its adapter, in one pass: a base that
drops values at random (OPT, GPT-Neo) would be its own reference with noise. The adapter's
dropout is a setting of the recipe and stays.
"""

from __future__ import annotations

from torch import nn

ADAPTERS = "lora_dropout"


def without_base_dropout(model: nn.Module) -> None:
    """Set every probability of dropout outside of adapters to 0: modules, and the numbers that
    transformers' layers keep for dropout as a function.
    """
    for name, module in model.named_modules():
        if ADAPTERS in name.split("."):
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute, value in vars(module).items():
            if "drop" in attribute and isinstance(value, float):
                setattr(module, attribute, 0.0)
