"""What a training pass makes cross between host and device. A GPU waits there, unless the memory is pinned.

The device is torch's 'meta': shapes alone, so whatever asks for a value raises, and each copy to it is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from openbezoar.forest import RewardScorer, Scorer, TokenPath, Tree, flex
from openbezoar.forest.layout import lay_out
from openbezoar.models.lora import fast_lora
from openbezoar.recipe.losses import LOSSES
from openbezoar.training.bradley_terry import reward_objective
from openbezoar.training.loop import Objective
from openbezoar.training.objectives import preference_objective, same_pass_reference, sft_objective

DEVICE = torch.device("meta")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gemma3_text": SIZES | {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "qwen3": SIZES,
}


class _Made(TorchFunctionMode):
    """Notes tensors that are made of Python's numbers, a copy that torch's operators do not show."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor", "new_tensor") and out.device == DEVICE:
            self.seen[f"torch.{name}"] += 1
        places = args[1] if name in ("__getitem__", "__setitem__") else ()
        if args and isinstance(args[0], Tensor) and args[0].device == DEVICE:
            lists = sum(isinstance(place, list) for place in (places if isinstance(places, tuple) else (places,)))
            self.seen.update({"indexed by a list": lists} if lists else {})
        return out


class Crossings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators of which some tensors are on the device and some are not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()
        self.made = _Made(self.seen)

    def __enter__(self) -> Any:
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if len({x.device for x in tensors}) > 1:
            self.seen[str(func)] += 1
        return out


def model_of(family: str) -> nn.Module:
    """A model of which there are shapes alone, with an adapter on q and v."""
    settings = FAMILIES[family]
    with DEVICE:
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1))
    assert fast_lora(model) == 2 * SIZES["num_hidden_layers"]
    return model.train()


def pairs() -> list[Tree]:
    """Two pairs with a prompt of their own, whose answers share a beginning: segments with and without siblings."""

    def pair(prompt: Sequence[int]) -> Tree:
        return TokenPath.of(prompt, (7, 8, 9, 10, 11)), TokenPath.of(prompt, (7, 8, 12))

    return [pair(range(1, 12)), pair(range(3, 20))]


def of_kind(kind: str, model: nn.Module) -> tuple[Objective, list[Tree]]:
    trees = pairs()
    if kind == "reward":
        rewards = RewardScorer(model, nn.Linear(32, 1, device=DEVICE))
        rewards.checked = True
        return reward_objective(rewards, trees, margin=0.0, center=0.01), trees
    scorer = Scorer(model)
    scorer.checked = True  # the self-check reads values
    if kind == "sft":
        return sft_objective(scorer, trees), trees
    row = LOSSES[kind]
    reference = same_pass_reference(scorer) if row.needs_reference else None
    return preference_objective(row, row.defaults, scorer=scorer, heldout=trees, reference=reference), trees


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "forwards"), [("sft", 1), ("sigmoid", 2), ("orpo", 1), ("reward", 1)])
def test_a_pass_crosses_once_to_the_device_and_never_back(kind: str, forwards: int, family: str) -> None:
    model = model_of(family)
    objective, trees = of_kind(kind, model)
    with Crossings() as crossings:
        loss, metrics = objective.loss(trees, float(len(trees)))
        loss.backward()  # type: ignore[no-untyped-call]
    assert all(value.device == DEVICE for value in metrics.values() if isinstance(value, Tensor))
    assert all(p.grad is not None and p.grad.device == DEVICE for p in model.parameters() if p.requires_grad)
    assert crossings.seen == {"aten._to_copy.default": forwards}, "one for each run of the layers: the layout"


@pytest.mark.parametrize("window", [None, 4])
def test_the_block_mask_is_made_on_the_device(window: int | None) -> None:
    layout = lay_out(pairs(), DEVICE)
    with Crossings() as crossings:
        flex._blocks(layout, window)
    assert crossings.seen == {}


def test_a_crossing_is_seen() -> None:
    with Crossings() as crossings:
        torch.tensor([1, 2], device=DEVICE)
        torch.arange(3).to(DEVICE)
        torch.zeros(3, device=DEVICE)[[0, 1]]
        with pytest.raises(RuntimeError):
            torch.zeros(3, device=DEVICE).sum().item()
    assert crossings.seen["torch.tensor"] == crossings.seen["aten._to_copy.default"] == 1
    assert crossings.seen["indexed by a list"] == 1


@pytest.mark.slow
def test_a_hundred_lengths_of_rows_are_compiled_at_most_eight_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's part of it, which decides whether a kernel is made: its graphs are counted, and run as they are."""
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex, "_kernel", lambda: compiled)
    for window in (None, 40):
        for length in range(flex.BLOCK, flex.BLOCK + 500, 10):
            layout = lay_out([(TokenPath.of(range(length // 2), range(length // 2)),)], torch.device("cpu"))
            n = len(layout.ids)
            query, key = torch.randn(1, 4, n, 16), torch.randn(1, 2, n, 16)
            flex.attend(layout, query, key, key, None, window, None)
    assert 1 <= counter.frame_count <= 8
