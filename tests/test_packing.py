"""Linear layers packed for inference: the same sums, bit for bit, and no gradient lost in silence."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from openbezoar.forest import Scorer, TokenPath
from openbezoar.machine.devices import cpu_has_bfloat16
from openbezoar.models.packing import PackedLinear, pack
from tests.test_forest import model_of

needs_kernel = pytest.mark.skipif(
    not (hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and cpu_has_bfloat16()),
    reason="this build of torch, or this CPU, has no packed products",
)


@needs_kernel
@pytest.mark.parametrize("rows", [(1,), (3,), (64,), (2, 1, 5), (200,)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_same_bits_at_any_number_of_rows(rows: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(sum(rows))
    layer = nn.Linear(96, 160, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(*rows, 96, generator=generator).bfloat16()
    assert torch.equal(PackedLinear(layer)(x), layer(x))


@needs_kernel
def test_a_packed_model_scores_as_it_did_and_keeps_its_head() -> None:
    model = copy.deepcopy(model_of("llama")).bfloat16().eval().requires_grad_(False)
    trees = [(TokenPath.of([5, 6, 7], [8, 9]), TokenPath.of([5, 6, 7], [10])), (TokenPath.of([3, 4], [11, 12, 13]),)]
    before = Scorer(copy.deepcopy(model)).logprobs(trees)
    linear = sum(type(m) is nn.Linear for m in model.modules())
    assert pack(model) == linear - 1
    assert type(model.get_output_embeddings()) is nn.Linear
    after = Scorer(model).logprobs(trees)
    assert all(torch.equal(a, b) for one, two in zip(before, after, strict=True) for a, b in zip(one, two, strict=True))
    assert not any("proj" in name for name, _ in model.named_parameters()), "the plain weights are still held"


@needs_kernel
def test_a_packed_layer_refuses_a_gradient_rather_than_drop_it() -> None:
    layer = PackedLinear(nn.Linear(8, 8).bfloat16().requires_grad_(False))
    with pytest.raises(RuntimeError, match="no gradients"):
        layer(torch.ones(2, 8, dtype=torch.bfloat16, requires_grad=True))


def test_layers_of_other_kinds_and_precisions_stay_as_they_are() -> None:
    class Other(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact, self.derived, self.head = nn.Linear(4, 4), Other(4, 4).bfloat16(), nn.Linear(4, 4).bfloat16()

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Model()
    assert pack(model) == 0
    assert type(model.exact) is nn.Linear and type(model.derived) is Other and type(model.head) is nn.Linear


@needs_kernel
def test_packing_holds_no_more_than_one_weight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = (
        nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(5))).bfloat16().requires_grad_(False)
    )
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    plain = [weakref.ref(m.weight) for m in model.modules() if type(m) is nn.Linear]
    alive: list[int] = []
    original = PackedLinear.__init__

    def counted(self: PackedLinear, layer: nn.Linear) -> None:
        alive.append(sum(weight() is not None for weight in plain))
        original(self, layer)

    monkeypatch.setattr(PackedLinear, "__init__", counted)
    assert pack(model) == 5
    assert alive == [5, 4, 3, 2, 1], "a plain weight goes once its layer is packed"
