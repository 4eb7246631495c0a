"""What torch and bitsandbytes can do here: ``python -m openbezoar.plan.probe`` prints it as one JSON document.

A program of its own, because a library that does not suit the processor or the driver may end the
process that tries it.
"""

from __future__ import annotations

import json
from typing import Any

from openbezoar.errors import brief


def probe() -> dict[str, Any]:
    """torch's build; each GPU with memory, capability and what fails on it; whether FlexAttention takes it;
    whether NF4 works where models will be held.
    """
    import torch

    from openbezoar.forest import flex

    devices = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": about.name,
                "bytes": about.total_memory,
                "capability": [about.major, about.minor],
                "flex": (about.major, about.minor) >= flex.CAPABILITY,
                "fault": _fault(torch, f"cuda:{number}"),
            }
        )
    built_for_gpus = torch.version.cuda is not None or torch.version.hip is not None
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "no_gpu": _fault(torch, "cuda") if built_for_gpus and not devices else None,
        "devices": devices,
        "nf4": _nf4(torch, "cuda" if devices and devices[0]["fault"] is None else "cpu"),
    }


def _fault(torch: Any, device: str) -> str | None:
    """What goes wrong with a product on a device; None if nothing does."""
    try:
        ones = torch.ones(8, 8, device=device)
        return None if float((ones @ ones)[0, 0]) == 8 else "a product of ones is wrong"
    except Exception as error:  # drivers and kernels have errors of many kinds
        return brief(error)


def _nf4(torch: Any, device: str) -> str | None:
    """What goes wrong with packing and unpacking values in NF4; None if nothing does."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        values = torch.linspace(-1, 1, 4096, device=device).view(64, 64)
        packed, state = quantize_4bit(values, quant_type="nf4")
        off = (dequantize_4bit(packed, state) - values).abs().max().item()
        return None if off < 0.2 else f"values come back wrong by up to {off:.2f}"
    except Exception as error:
        return brief(error)


if __name__ == "__main__":
    print(json.dumps(probe()))
