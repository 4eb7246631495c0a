"""The training loop's decisions: when it measures, stops and keeps; what it goes on from; what it counts."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openbezoar.errors import ModelError, RecipeError
from openbezoar.forest import Scorer, TokenPath, Tree
from openbezoar.models.load import load_for_training
from openbezoar.models.references import Checkpoint
from openbezoar.progress import Silent
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import parse
from openbezoar.recipe.train_steps import Lora, Sft
from openbezoar.training import loop
from openbezoar.training.loop import best_of, out_of_patience, train
from openbezoar.training.objectives import sft_objective
from openbezoar.training.resume import make_optimizer
from openbezoar.training.speed import Throughput, matmul_rate, work, work_of


def settings(**changes: Any) -> Sft:
    return Sft(
        **{
            "sft": "x",
            "model": "base",
            "dtype": "float32",
            "quantize": "none",
            "batch": 3,
            "learning_rate": 1e-2,
            "tokens": 64,
            "warmup": 0.0,
            **changes,
        }
    )


def trees(n: int = 10, seed: int = 0) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        ids = torch.randint(3, 400, (6 + 7 * i % 23,), generator=generator).tolist()
        made.append((TokenPath.of(ids[:3], ids[3:]),))
    return made


class Killed(Exception):
    """Stands for the end of the process."""


Train = Callable[..., tuple[dict[str, Any], dict[str, torch.Tensor]]]


@pytest.fixture
def run(tiny: Path) -> Train:
    """Trains a fresh tiny model in a folder: (the numbers, the adapter)."""

    def trained(
        out: Path, given: Sft, losses: Iterator[float] | None = None, dropout: float = 0.1
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        out.mkdir(exist_ok=True)
        checkpoint = Checkpoint("base", str(tiny), (), "none", "float32", PromptSpec())
        model = load_for_training(
            checkpoint, Lora(r=4, dropout=dropout), given.quantize, dtype=given.dtype, continues=False, seed=0
        )
        scorer = Scorer(model, given.tokens)
        objective = sft_objective(scorer, trees(4, seed=1))
        if losses is not None:
            objective = replace(objective, heldout=lambda: {"loss": next(losses)})
        numbers = train(model, scorer, trees(), objective=objective, settings=given, out=out, progress=Silent(), seed=5)
        return numbers, {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    return trained


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_measurement_is_the_earliest_lowest_after_the_start() -> None:
    def held(*losses: float) -> list[dict[str, Any]]:
        return [{"step": 2 * i, "loss": loss} for i, loss in enumerate(losses)]

    assert best_of(held(1.0)) is None
    assert best_of(held(1.0, 3.0, 2.0, 2.0)) == 4
    assert best_of(held(1.0, math.nan, 5.0)) == 4
    assert not out_of_patience(held(1.0, 3.0, 4.0, 5.0), None)
    assert not out_of_patience(held(1.0, 3.0, 4.0), 2)
    assert out_of_patience(held(1.0, 3.0, 4.0, 5.0), 2)
    assert not out_of_patience(held(1.0, 3.0, 4.0, 2.0), 2)


def test_patience_without_measurements_is_refused_in_one_line() -> None:
    recipe = {
        "name": "t",
        "models": {"base": "x"},
        "steps": {"s": {"sft": "rows.jsonl", "model": "base", "patience": 2}},
    }
    with pytest.raises(RecipeError, match=r"steps.s.*set evaluate_every too"):
        parse(recipe, "r.yaml")


def test_training_stops_when_patience_is_out_and_keeps_the_best_adapter(run: Train, tmp_path: Path) -> None:
    given = settings(epochs=5, evaluate_every=2, patience=2)
    numbers, adapter = run(tmp_path / "a", given, iter((9.0, 8.0, 7.0, 7.5, 7.25)))
    assert numbers["steps"] == 8 and numbers["kept_step"] == 4
    assert numbers["heldout_loss_before"] == 9.0 and numbers["heldout_loss_after"] == 7.0
    assert [line["step"] for line in lines(tmp_path / "a" / "heldout.jsonl")] == [0, 2, 4, 6, 8]
    assert len(lines(tmp_path / "a" / "metrics.jsonl")) == 8
    _, after_four = run(tmp_path / "b", settings(epochs=5, max_steps=4))
    assert equal(adapter, after_four)


def test_without_evaluate_every_the_last_adapter_is_kept_however_bad(run: Train, tmp_path: Path) -> None:
    numbers, _ = run(tmp_path / "a", settings(), iter((1.0, 2.0)))
    assert numbers["steps"] == 4 and numbers["heldout_loss_after"] == 2.0
    assert "kept_step" not in numbers


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_evaluation_and_checkpoints_between_steps_leave_the_next_gradients_bit_identical(
    run: Train, tmp_path: Path, quantize: str
) -> None:
    for name, changes in (("plain", {"save_every": 100}), ("busy", {"save_every": 1, "evaluate_every": 1})):
        run(tmp_path / name, settings(epochs=1.5, quantize=quantize, **changes))
    # Loss and gradient norm of every step, with dropout on.
    assert lines(tmp_path / "plain" / "metrics.jsonl") == lines(tmp_path / "busy" / "metrics.jsonl")
    assert len(lines(tmp_path / "busy" / "heldout.jsonl")) == 7


@pytest.mark.parametrize(
    ("killed_at", "changes", "losses"),
    [
        (4, {"save_every": 2, "evaluate_every": 3}, ()),  # a measurement after the checkpoint is made again
        (3, {"save_every": 3, "evaluate_every": 3}, (9.0, 5.0, 7.0)),  # the best was measured after its checkpoint
        # the best lies before the checkpoint
        (4, {"save_every": 3, "evaluate_every": 1, "patience": 4}, (9.0, 5.0, 7.0, 7.0, 7.0, 7.0, 7.0)),
        (3, {"save_every": 2, "optimizer": "adamw8bit"}, ()),
        pytest.param(3, {"save_every": 2, "dtype": "float16"}, (), marks=pytest.mark.slow),
    ],
    ids=["measured again", "best at checkpoint", "best before checkpoint", "adamw8bit", "float16"],
)
def test_a_training_killed_between_two_steps_ends_as_one_that_was_not(
    run: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    killed_at: int,
    losses: tuple[float, ...],
) -> None:
    scaler = torch.amp.GradScaler  # a scale that grows every step, so that losing it would show
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda device, enabled: scaler(device, init_scale=8.0, growth_interval=1, enabled=enabled),
    )
    given = settings(epochs=1.5, **changes)
    whole, expected = run(tmp_path / "whole", given, iter(losses) if losses else None)
    told = iter(losses) if losses else None
    step = loop._step

    def mortal(job: Any, state: Any, *rest: Any) -> Any:
        if state.step == killed_at:
            raise Killed
        return step(job, state, *rest)

    monkeypatch.setattr(loop, "_step", mortal)
    with pytest.raises(Killed):
        run(tmp_path / "killed", given, told)
    monkeypatch.setattr(loop, "_step", step)
    numbers, adapter = run(tmp_path / "killed", given, told)
    assert equal(adapter, expected)
    for name in ("metrics.jsonl", "heldout.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    untimed = [key for key in whole if key not in ("tokens_per_second", "matmul_fraction")]
    assert {key: numbers[key] for key in untimed} == {key: whole[key] for key in untimed}


def test_a_trainable_tensor_without_a_gradient_stops_the_run_by_name(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever cuts a layer off, as bitsandbytes' repacked weights did: no adapter is trained in
    part without a word.
    """
    loaded = loop.work

    def cut_off(scorer: Scorer) -> tuple[float, float]:
        layer = next(
            module for name, module in scorer.model.named_modules() if name.endswith("layers.0.self_attn.v_proj")
        )
        layer.forward = layer.base_layer.forward  # type: ignore[assignment, union-attr]
        return loaded(scorer)

    monkeypatch.setattr(loop, "work", cut_off)
    with pytest.raises(
        ModelError, match=r"2 of \d+ trainable tensors have no gradient, '.*layers\.0\.self_attn\.v_proj\.lora_A"
    ):
        run(tmp_path / "a", settings())


def test_the_live_line_and_the_log_tell_each_step(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, float]] = []

    class Line:
        def advance(self, n: float = 1, **numbers: float) -> None:
            told.append(numbers)

    monkeypatch.setattr(Silent, "bar", lambda self, label, total, unit, done=0.0: nullcontext(Line()))
    run(tmp_path / "a", settings())
    logged = lines(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    assert [numbers["loss"] for numbers in told] == [line["loss"] for line in logged]
    assert all(numbers["tokens/s"] > 0 and 0 < numbers["of matmul rate"] < 10 for numbers in told)


def test_a_float16_step_that_overflows_is_skipped_counted_and_halves_the_scale(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0**40, enabled=enabled)
    )
    run(tmp_path / "a", settings(dtype="float16"))
    first, second, *_ = lines(tmp_path / "a" / "metrics.jsonl")
    assert first["skipped"] == 1.0 and "gradient_norm" not in first
    assert (first["loss_scale"], second["loss_scale"]) == (2.0**40, 2.0**39)


def test_a_gradient_that_is_never_finite_stops_a_float16_run(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=2.0**-9, enabled=enabled)
    )
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda parameters, most: [p.grad.fill_(math.inf) for p in parameters] and torch.tensor(math.inf),
    )
    monkeypatch.setattr(scaler, "unscale_", lambda self, optimizer: None)
    monkeypatch.setattr(scaler, "step", lambda self, optimizer: None)
    monkeypatch.setattr(scaler, "update", lambda self: self._scale.mul_(0.5) if self._scale is not None else None)
    with pytest.raises(ModelError, match="not finite"):
        run(tmp_path / "a", settings(dtype="float16"))


def test_weights_that_are_no_numbers_at_the_end_are_no_result(run: Train, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="held-out loss after step 1 is not finite; lower learning_rate or weight_decay"
    ):
        run(tmp_path / "a", settings(max_steps=1, weight_decay=1e30, learning_rate=1e30))


def test_the_paged_optimiser_is_refused_on_a_cpu_in_one_line() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match="choose adamw or adamw8bit"):
        make_optimizer(settings(optimizer="paged_adamw8bit"), [parameter])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw8bit", "paged_adamw8bit"])
def test_optimisers_of_bitsandbytes_go_on_from_a_checkpoint_on_a_gpu(
    run: Train, tmp_path: Path, optimizer: str
) -> None:
    given = settings(epochs=1, save_every=2, optimizer=optimizer)
    _, expected = run(tmp_path / "whole", given)
    run(tmp_path / "parts", settings(max_steps=2, save_every=2, optimizer=optimizer))
    (tmp_path / "parts" / "heldout.jsonl").write_text("")
    _, adapter = run(tmp_path / "parts", given)
    for name, value in adapter.items():
        assert torch.allclose(value, expected[name], atol=1e-5)


def test_the_work_of_a_pass_is_counted_from_the_model_s_own_matrices(tiny: Path) -> None:
    checkpoint = Checkpoint("base", str(tiny), (), "none", "float32", PromptSpec())
    for quantize in ("none", "nf4"):  # packed weights count as what they stand for
        model = load_for_training(checkpoint, Lora(r=4), quantize, dtype="float32", continues=False, seed=0)  # type: ignore[arg-type]
        scorer = Scorer(model)
        frozen = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
        adapter = 2 * 4 * ((64 + 64) + 2 * (64 + 32))
        each = work(scorer)
        assert each == (4 * frozen + 6 * adapter, 4 * 64 * scorer.head.out_features)
        # A shared prompt of three tokens once, last tokens not at all.
        tree = (TokenPath.of([3, 4, 5], [6, 7]), TokenPath.of([3, 4, 5], [8, 9, 10]))
        assert work_of([tree], scorer, each) == each[0] * (3 + 1 + 2) + each[1] * 5


def test_a_log_that_cannot_be_shortened_for_want_of_room_is_not_lost(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    text = "".join(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(1, 200))
    log.write_text(text)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError):
            loop._truncated(log, 150)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.read_text() == text
    assert len(loop._truncated(log, 150)) == 150 == len(log.read_text().splitlines())


def test_the_pace_is_a_fraction_of_the_measured_rate() -> None:
    assert matmul_rate("cpu", torch.float32) > 0
    pace = Throughput(rate=100.0)
    assert pace.fraction is None and pace.tokens_per_second is None
    pace.count(30, 20.0, 2.0)
    pace.count(10, 20.0, 2.0)
    assert pace.fraction == pytest.approx(0.1) and pace.tokens_per_second == pytest.approx(10)


def test_one_pass_of_many_rows_and_many_passes_of_one_give_the_same_gradients_to_a_millionth(tiny: Path) -> None:
    model = load_for_training(
        Checkpoint("base", str(tiny), (), "none", "float32", PromptSpec()),
        Lora(r=4, dropout=0.0),
        "none",
        dtype="float32",
        continues=False,
        seed=0,
    )
    rows, found = trees(8), []
    whole = float(sum(path.n_scored for tree in rows for path in tree))
    for tokens in (1, 10_000):
        scorer = Scorer(model, tokens)
        groups = scorer.batches(rows)
        assert len(groups) == (8 if tokens == 1 else 1)
        for group in groups:
            sft_objective(scorer, rows).loss([rows[i] for i in group], whole)[0].backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-3
    for name, gradient in found[0].items():
        assert float((gradient - found[1][name]).abs().max()) <= 1e-6, name
