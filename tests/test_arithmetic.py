"""What 16-bit weights are multiplied in: bfloat16, and fp32 on a CPU that has no such products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openbezoar.machine.devices import Device, cpu_has_bfloat16
from openbezoar.models import load
from openbezoar.models.fitting import training_memory
from openbezoar.models.load import arithmetic, load_base, load_for_inference, load_for_training, load_whole
from openbezoar.models.memory import unpacks
from openbezoar.models.references import Checkpoint
from openbezoar.models.reward_models import load_reward_model
from openbezoar.models.save import save_model
from openbezoar.plan.table import _about_memory
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.train_steps import Lora, Sft

ZEN3 = "processor\t: 0\nflags\t\t: fpu avx2 fma vaes vpclmulqdq\n"
OLD = Device("cpu", "an older CPU", 10**12, bfloat16=False)


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "cpu_has_bfloat16", lambda: False)


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint("m", str(folder), (), "none", "bfloat16", None)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (ZEN3, False),
        ("flags\t\t: avx512f avx512bw avx512vl\n", False),
        ("flags\t\t: avx2 avx512f avx512dq avx512bw avx512vl\n", True),
        ("flags\t\t: avx2 avx_vnni avx_ne_convert\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_the_cpu_s_flags_say_whether_it_multiplies_bfloat16(tmp_path: Path, told: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(told)

    assert cpu_has_bfloat16(tmp_path / "cpuinfo") is expected


def test_without_proc_fp32_serves(tmp_path: Path) -> None:
    assert cpu_has_bfloat16(tmp_path / "none") is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="reads Linux's /proc")
def test_torch_says_the_same_of_this_cpu() -> None:
    assert cpu_has_bfloat16() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.usefixtures("older")
def test_an_older_cpu_holds_bfloat16_s_values_in_fp32(tiny: Path, tiny_reward: Path) -> None:
    stored = load_file(tiny / "model.safetensors")

    model = load_base(checkpoint(tiny), (), "none", dtype="bfloat16")
    answering, _ = load_for_inference(checkpoint(tiny))
    judge, _ = load_reward_model(checkpoint(tiny_reward))

    assert arithmetic(torch.bfloat16) == torch.float32 and arithmetic(torch.float16) == torch.float16
    for held in (model, answering, judge):
        assert {p.dtype for p in held.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        if name in stored:
            assert torch.equal(value, stored[name].bfloat16().float()), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("nf4", ["packed", "unpacked"])
def test_on_an_older_cpu_an_nf4_base_computes_in_fp32_and_has_gradients(tiny: Path, nf4: str) -> None:
    lora = Lora(r=2, alpha=4, dropout=0, targets=["q_proj", "v_proj"])

    model = load_for_training(checkpoint(tiny), lora, "nf4", dtype="bfloat16", continues=False, seed=1, nf4=nf4)
    out = model(torch.tensor([[1, 2, 3]])).logits
    out.sum().backward()

    assert out.dtype == torch.float32
    assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
    assert sum(p.grad.abs().sum() for n, p in model.named_parameters() if "lora_B" in n) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
@pytest.mark.usefixtures("older")
def test_a_model_trained_whole_on_an_older_cpu_is_saved_in_its_own_type(tiny: Path, tmp_path: Path) -> None:
    model = load_whole(checkpoint(tiny), dtype="bfloat16", trained=True)

    save_model(model, tiny, tmp_path / "saved", torch.bfloat16)

    assert {value.dtype for value in load_file(tmp_path / "saved" / "model.safetensors").values()} == {torch.bfloat16}
    assert '"dtype": "bfloat16"' in (tmp_path / "saved" / "config.json").read_text()


def test_memory_and_plan_know_of_it() -> None:
    shape = Shape(hidden=64, layers=2, heads=2, mlp=128, vocabulary=256)
    step = Sft(sft="rows", model="base", quantize="none", lora=Lora())
    newer = replace(OLD, bfloat16=True)

    assert training_memory(shape, step, OLD).weights == 2 * training_memory(shape, step, newer).weights
    assert unpacks(10**11, "auto", "bfloat16", newer) and not unpacks(2 * 10**11, "auto", "bfloat16", OLD)
    assert "held and multiplied in fp32" in _about_memory(OLD) and "fp32" not in _about_memory(newer)
    assert Device("cuda", "T4", 1, bfloat16=False).arithmetic("bfloat16") == "bfloat16"
