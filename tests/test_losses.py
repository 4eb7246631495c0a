"""Preference losses against numbers worked out by hand, and the dpo step with each of them."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from openbezoar.cli.app import main
from openbezoar.dialogue.prompt import Formatter
from openbezoar.engine import execution, graph
from openbezoar.errors import RecipeError
from openbezoar.forest import TokenPath
from openbezoar.forest.scorer import TreeScores
from openbezoar.models.load import load_tokenizer
from openbezoar.models.references import Checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.losses import LOSSES, constants
from openbezoar.recipe.train_steps import Dpo
from openbezoar.training import reference as reference_module
from openbezoar.training.loop import numbers
from openbezoar.training.losses import PairScores, answer_tokens, kto_pair, reward_metrics
from openbezoar.training.reference import ReferenceCache, reference_key, tree_digest

NAMES = sorted(LOSSES)


def matrix(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Two pairs (chosen, rejected). Log-ratios: (1, -1) and (-1, -3).
POLICY, REFERENCE, TOKENS = matrix((-10, -14), (-12, -16)), matrix((-11, -13), (-11, -13)), matrix((4, 8), (3, 2))
SCORES = PairScores.of(POLICY, TOKENS, REFERENCE)


def minus_log_s(x: float) -> float:
    return math.log(1 + math.exp(-x))


def value(name: str, scores: PairScores = SCORES, **constants: float) -> list[float]:
    missing = {"label_smoothing": 0.0} if "label_smoothing" in LOSSES[name].defaults else {}
    return list(LOSSES[name].load()(scores, **missing | constants).tolist())


# ------------------------------------------------------------------------------ by hand


def test_dpo_by_hand() -> None:
    # x = 0.1 * (1 + 1) = 0.2 and 0.1 * (-1 + 3) = 0.2; log(1 + e^-0.2) = 0.598139
    assert value("sigmoid", beta=0.1) == pytest.approx([0.598139, 0.598139], abs=1e-6)


def test_conservative_dpo_by_hand() -> None:
    # e = 0.2 at x = 0.2: 0.8 * 0.598139 + 0.2 * 0.798139
    assert value("sigmoid", beta=0.1, label_smoothing=0.2) == pytest.approx([0.638139, 0.638139], abs=1e-6)


def test_length_normalised_dpo_by_hand() -> None:
    # x = 5 * (1/4 + 1/8) = 1.875 and 5 * (-1/3 + 3/2) = 35/6
    assert value("sigmoid_norm", beta=5) == pytest.approx([0.142675, minus_log_s(35 / 6)], abs=1e-6)


def test_ipo_by_hand_is_of_means_per_token() -> None:
    # (1/4 + 1/8 - 1/0.2)^2 = 4.625^2 and (-1/3 + 3/2 - 5)^2 = (23/6)^2
    assert value("ipo", beta=0.1) == pytest.approx([21.390625, 529 / 36], abs=1e-9)


def test_hinge_by_hand() -> None:
    assert value("hinge", beta=0.1) == pytest.approx([0.8, 0.8], abs=1e-12)
    assert value("hinge", beta=0.6) == [0.0, 0.0]  # beyond the margin 1/0.6


def test_dpo_positive_by_hand() -> None:
    # The first chosen answer gained, so it is DPO; the second lost 1: x = 0.1 * (2 - 50 * 1) = -4.8
    assert value("dpop", beta=0.1, dpop_lambda=50) == pytest.approx([0.598139, 4.808196], abs=1e-6)


def test_rpo_by_hand_adds_the_likelihood_of_the_chosen_answer_to_dpo() -> None:
    # x = 0.2 in both; the chosen answers' means are -10/4 and -12/3
    assert value("rpo", beta=0.1, rpo_alpha=0) == pytest.approx(value("sigmoid", beta=0.1), abs=1e-12)
    assert value("rpo", beta=0.1, rpo_alpha=0.5) == pytest.approx([0.598139 + 1.25, 0.598139 + 2], abs=1e-6)


def test_kto_of_pairs_by_hand_uses_the_other_half_for_its_divergence() -> None:
    # l_c = 3, 1 (mean 2) and l_r = 1, 0 (mean 0.5):
    # (s(-0.1 * (3 - 0.5)) + s(-0.1 * (2 - 1))) / 2 = (0.437823 + 0.475021) / 2, and (s(-0.05) + s(-0.2)) / 2
    scores = PairScores.of(matrix((-7, -9), (-9, -10)), TOKENS, matrix((-10, -10), (-10, -10)))
    assert value("kto_pair", scores, beta=0.1) == pytest.approx([0.456422, (0.487503 + 0.450166) / 2], abs=1e-6)


def test_simpo_by_hand() -> None:
    # means -2.5, -1.75 and -4, -8: x = 2 * -0.75 - 1 = -2.5 and 2 * 4 - 1 = 7
    scores = PairScores.of(POLICY, TOKENS, None)
    assert value("simpo", scores, beta=2, simpo_gamma=1) == pytest.approx([2.578890, minus_log_s(7)], abs=1e-6)


def test_orpo_by_hand_adds_the_likelihood_of_the_chosen_answer() -> None:
    # odds e^-2.5 / (1 - e^-2.5) = 0.0894255 and e^-1.75 / (1 - e^-1.75) = 0.210322; their ratio's log is -0.855234
    scores = PairScores.of(POLICY, TOKENS, None)
    odds = [math.exp(m) / (1 - math.exp(m)) for m in (-4.0, -8.0)]
    second = 4 + 0.1 * math.log(1 + odds[1] / odds[0])
    assert value("orpo", scores, orpo_lambda=0.1) == pytest.approx([2.5 + 0.1 * 1.209534, second], abs=1e-6)


def test_rewards_and_logps_by_hand() -> None:
    found = numbers(reward_metrics(SCORES, 0.1))
    expected = {
        "rewards/chosen": 0.0,
        "rewards/rejected": -0.4,
        "rewards/margins": 0.4,
        "rewards/accuracies": 2.0,
        "logps/chosen": -22.0,
        "logps/rejected": -30.0,
    }
    assert found == pytest.approx(expected)
    # Without a reference rewards are of means per token: 2 * (-2.5 - 4) and 2 * (-1.75 - 8); chosen
    # is above in the second pair.
    found = numbers(reward_metrics(PairScores.of(POLICY, TOKENS, None), 2))
    expected |= {"rewards/chosen": -13.0, "rewards/rejected": -19.5, "rewards/margins": 6.5, "rewards/accuracies": 1.0}
    assert found == pytest.approx(expected)
    other = numbers(reward_metrics(PairScores.of(POLICY, TOKENS, None), 0.1))
    assert other["rewards/chosen"] == pytest.approx(-0.65)


def test_the_end_of_turn_counts_among_an_answers_tokens() -> None:
    tree = (TokenPath.of([5, 6], [7, 8, 1]), TokenPath.of([5, 6], [9, 1]))
    scores = TreeScores([[torch.zeros(path.n_scored) for path in tree]], torch.tensor([path.n_scored for path in tree]))
    assert answer_tokens(scores).tolist() == [[3.0, 2.0]]


# --------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", NAMES)
def test_a_row_s_constants_are_its_function_s_keywords(name: str) -> None:
    parameters = list(inspect.signature(LOSSES[name].load()).parameters.values())
    assert parameters[0].name == "scores"
    assert {p.name for p in parameters[1:]} == set(LOSSES[name].defaults)
    assert {p.kind for p in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert LOSSES[name].scale in LOSSES[name].defaults


def test_the_recipe_takes_the_losses_of_the_table_and_their_constants() -> None:
    schema = Dpo.model_json_schema()["properties"]
    assert schema["loss"]["enum"] == list(LOSSES)
    for constant, users in constants().items():
        (kind,) = [k for k in schema[constant.name]["anyOf"] if k["type"] == "number"]
        bounds = {"exclusiveMinimum": constant.gt, "minimum": constant.ge, "exclusiveMaximum": constant.lt}
        assert kind == {"type": "number", **{k: v for k, v in bounds.items() if v is not None}}
        assert all(f"{name} {default:g}" in schema[constant.name]["description"] for name, default in users.items())


@pytest.mark.parametrize("name", NAMES)
def test_where_policy_equals_reference_the_loss_is_the_one_of_the_table(name: str) -> None:
    row = LOSSES[name]
    assert (row.start is None) == (not row.needs_reference or name == "rpo")  # RPO's is the answer's likelihood too
    if row.start is not None:
        losses = value(name, PairScores.of(POLICY, TOKENS, POLICY), **row.defaults)
        assert losses == pytest.approx([row.start.value(row.defaults)] * 2, rel=1e-12)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(st.floats(-80, -0.5), min_size=8, max_size=8),
    st.lists(st.integers(1, 30), min_size=4, max_size=4),
)
def test_gradients_equal_finite_differences(name: str, logps: list[float], tokens: list[int]) -> None:
    row = LOSSES[name]
    defaults = row.defaults if name != "dpop" else {"beta": 0.3, "dpop_lambda": 5.0}
    policy, given_ = torch.tensor(logps, dtype=torch.float64).reshape(2, 2, 2)
    ratios = policy - given_
    if name == "hinge":
        assume(float((1 - defaults["beta"] * (ratios[:, 0] - ratios[:, 1])).abs().min()) > 1e-3)  # the kink
    if name == "dpop":
        assume(float(ratios[:, 0].abs().min()) > 1e-3)
    if name == "kto_pair":
        assume(float(ratios.mean(0).max()) < -1e-3)  # then the divergence, which carries no gradient, stays 0
    counts = torch.tensor(tokens, dtype=torch.float64).reshape(2, 2)

    def function(matrix: Tensor) -> Tensor:
        scores = PairScores.of(matrix, counts, given_ if row.needs_reference else None)
        losses: Tensor = row.load()(scores, **defaults)
        return losses

    assert torch.autograd.gradcheck(function, (policy.clone().requires_grad_(True),), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_ktos_divergence_carries_no_gradient() -> None:
    policy = matrix((-7, -9), (-9, -10)).requires_grad_(True)
    losses = kto_pair(PairScores.of(policy, TOKENS, matrix((-10, -10), (-10, -10))), beta=0.1)
    losses[0].backward()
    assert policy.grad is not None and policy.grad[1].tolist() == [0.0, 0.0]
    # d/dl_c of s(-0.1 (l_c - 0.5)) / 2 at l_c = 3: -0.05 s(0.25) s(-0.25)
    assert float(policy.grad[0, 0]) == pytest.approx(-0.05 * 0.437823 * (1 - 0.437823), abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", [(-1000.0, 0.0), (0.0, -1000.0), (-1e4, -1e4), (0.0, 0.0), (-1e-9, -1e-9)])
def test_extreme_values_stay_finite_with_their_gradients(name: str, policy: tuple[float, float]) -> None:
    scores = torch.tensor([policy], dtype=torch.float32, requires_grad=True)
    row = LOSSES[name]
    for tokens in (1.0, 500.0):
        given_ = torch.zeros(1, 2) if row.needs_reference else None
        loss = row.load()(PairScores.of(scores, torch.full((1, 2), tokens), given_), **row.defaults).sum()
        (gradient,) = torch.autograd.grad(loss, scores)
        assert math.isfinite(loss.item()) and bool(gradient.isfinite().all())


@given(st.floats(-50, 50), st.floats(0, 0.499))
def test_flipping_all_labels_swaps_the_two_shares_of_smoothing(margin: float, smoothing: float) -> None:
    def at(x: float, e: float) -> float:
        scores = PairScores.of(matrix((x, 0.0)), matrix((1, 1)), matrix((0, 0)))
        return value("sigmoid", scores, beta=1.0, label_smoothing=e)[0]

    # A share e of flipped labels: (1 - e) of the loss here and e of the loss there, so both ends
    # add up to the plain losses.
    assert at(margin, smoothing) + at(-margin, smoothing) == pytest.approx(at(margin, 0.0) + at(-margin, 0.0), abs=1e-9)
    assert at(margin, smoothing) - at(-margin, smoothing) == pytest.approx(
        (1 - 2 * smoothing) * (at(margin, 0.0) - at(-margin, 0.0)), abs=1e-9
    )
    assert at(0.0, smoothing) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_better_chosen_answer_never_raises_the_loss(name: str) -> None:
    better = PairScores.of(
        POLICY + matrix((0.5, 0), (0.5, 0)), TOKENS, REFERENCE if LOSSES[name].needs_reference else None
    )
    worse = replace(better, chosen=POLICY[:, 0])
    assert all(
        b <= w
        for b, w in zip(
            value(name, better, **LOSSES[name].defaults), value(name, worse, **LOSSES[name].defaults), strict=True
        )
    )


# --------------------------------------------------------------------------- the recipe


def step_of(**settings: Any) -> Dpo:
    """A step as it is once the device has settled what is 'auto'."""
    return Dpo(dpo="pairs.jsonl", model="base", **{"tokens": 1024, "dtype": "bfloat16"} | settings)


def test_each_loss_has_its_own_defaults_and_no_others() -> None:
    assert (step_of().beta, step_of().label_smoothing, step_of().simpo_gamma) == (0.1, 0.0, None)
    assert (step_of(loss="simpo").beta, step_of(loss="simpo").simpo_gamma) == (2.0, 1.0)
    assert step_of(loss="dpop", beta=0.2).dpop_lambda == 50.0 and step_of(loss="dpop", beta=0.2).beta == 0.2
    assert step_of(loss="orpo").beta is None
    for name in NAMES:
        assert step_of(loss=name).constants == LOSSES[name].defaults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"simpo_gamma": 0.5},
            "simpo_gamma: the loss 'sigmoid' does not use it (simpo does); remove it or name another loss",
        ),
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "label_smoothing: the loss 'ipo' does not use it (sigmoid, sigmoid_norm, simpo do)",
        ),
        ({"loss": "orpo", "beta": 0.1}, "beta: the loss 'orpo' does not use it"),
        ({"loss": "simpo", "reference": "cached"}, "reference: the loss 'simpo' has none"),
        ({"loss": "hnige"}, "loss"),
        ({"beta": -1}, "beta"),
    ],
)
def test_a_setting_that_the_loss_does_not_use_is_refused_in_one_line(
    settings: dict[str, Any], message: str, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe({"d": {"dpo": "pairs.jsonl", "model": "base", **settings}})
    with pytest.raises(RecipeError) as error:
        load(path)
    assert message in str(error.value) and "\n" not in str(error.value) and "steps.d" in str(error.value)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# ------------------------------------------------------------------------------ the step


STEP = {"dpo": "pairs.jsonl", "model": "base", "quantize": "none", "heldout_every": 5, **FAST}


def run(path: Path, runs: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    recipe = load(path, overrides)
    execution.execute(graph.build(recipe, path, runs), PlainProgress(quiet=True))
    manifest = json.loads((runs / "t" / "d" / "manifest.json").read_text())
    return dict(manifest["numbers"])


def lines(runs: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (runs / "t/d/metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def reference_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass with the adapter off."""
    from peft import PeftModel

    original, passes = PeftModel.disable_adapter, []

    def counted(self: Any) -> Any:
        passes.append(1)
        return original(self)

    monkeypatch.setattr(PeftModel, "disable_adapter", counted)
    return passes


@pytest.mark.parametrize("name", NAMES)
def test_a_dpo_step_learns_with_each_loss(
    name: str, write_recipe: Callable[..., Path], tmp_path: Path, reference_passes: list[int]
) -> None:
    path = write_recipe(
        {
            "d": {
                **STEP,
                "loss": name,
                "max_steps": 3,
                "tokens": 4096,
                "warmup": 0.0,
                "learning_rate": 5e-3,
                "lora": {"r": 4, "alpha": 4, "dropout": 0.0},
            }
        }
    )
    numbers = run(path, tmp_path / "runs")
    row, log = LOSSES[name], lines(tmp_path / "runs")
    if not row.needs_reference:
        assert not reference_passes and numbers["reference"] == "none"
    else:
        assert reference_passes and numbers["reference"] == "same pass"
        assert log[0]["rewards/margins"] == 0.0
    if row.start is not None:
        assert log[0]["loss"] == pytest.approx(row.start.value(row.defaults), rel=1e-5)
        assert numbers["heldout_loss_before"] == pytest.approx(row.start.value(row.defaults), rel=1e-5)
    metrics = {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    }
    assert metrics <= set(log[0]) and all(math.isfinite(line[m]) for line in log for m in metrics)
    assert numbers["heldout_loss_after"] < numbers["heldout_loss_before"]
    assert numbers["loss"] == name and {k: numbers[k] for k in row.defaults} == row.defaults


def test_kto_refuses_a_token_budget_that_would_cut_its_batch(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe({"d": {**STEP, "loss": "kto_pair", "tokens": 64}})
    with pytest.raises(RecipeError, match=r"one pass, and tokens is 64; set tokens to \d+ or more"):
        run(path, tmp_path / "runs")


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_cached_reference_equals_the_same_pass_bit_for_bit(
    quantize: str, write_recipe: Callable[..., Path], tmp_path: Path, reference_passes: list[int]
) -> None:
    path = write_recipe(
        {
            "d": {
                **STEP,
                "quantize": quantize,
                "dtype": "bfloat16",
                "tokens": 256,
                "lora": {"r": 4, "alpha": 4, "dropout": 0.1},
            }
        }
    )
    run(path, tmp_path / "same")
    passes = len(reference_passes)
    numbers = run(path, tmp_path / "kept", ("steps.d.reference=cached",))
    assert numbers["reference"] == "cached"
    assert len(reference_passes) - passes < passes  # the held-out pairs once instead of twice
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "heldout.jsonl"):
        assert (tmp_path / "same/t/d" / name).read_bytes() == (tmp_path / "kept/t/d" / name).read_bytes(), name


def test_later_epochs_take_the_reference_from_the_cache(
    write_recipe: Callable[..., Path], tmp_path: Path, reference_passes: list[int]
) -> None:
    path = write_recipe({"d": {**STEP, "tokens": 256}})
    run(path, tmp_path / "one", ("steps.d.reference=cached",))
    once = len(reference_passes)
    run(path, tmp_path / "three", ("steps.d.reference=cached", "steps.d.epochs=3"))
    assert len(reference_passes) == 2 * once
    run(path, tmp_path / "one", ("steps.d.reference=cached", "steps.d.epochs=2"))  # the finished step's file serves
    assert len(reference_passes) == 2 * once
    run(path, tmp_path / "same", ("steps.d.epochs=3",))
    for kept, same in zip(lines(tmp_path / "three"), lines(tmp_path / "same"), strict=True):
        assert kept["loss"] == pytest.approx(same["loss"], abs=1e-5)


def test_other_settings_of_the_loss_reuse_the_cache_and_other_lengths_do_not(
    write_recipe: Callable[..., Path], tmp_path: Path, reference_passes: list[int]
) -> None:
    path = write_recipe({"d": {**STEP, "reference": "cached", "max_steps": 1}})
    run(path, tmp_path / "runs")
    made = len(reference_passes)
    assert made > 0
    for change in ("steps.d.beta=0.3", "steps.d.loss=ipo"):
        run(path, tmp_path / "runs", (change,))
        assert len(reference_passes) == made, change
    for change in ("steps.d.max_length=512", "steps.d.dtype=bfloat16", "steps.d.batch=3"):
        before = len(reference_passes)
        run(path, tmp_path / "runs", (change,))
        assert len(reference_passes) > before, change


def test_a_killed_step_goes_on_without_computing_its_reference_again(
    write_recipe: Callable[..., Path], tmp_path: Path, reference_passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    path = write_recipe({"d": {**STEP, "reference": "cached", "tokens": 64, "save_every": 1}})
    original = ReferenceCache.save
    saves: list[int] = []

    def third(self: ReferenceCache) -> None:
        original(self)
        saves.append(1)
        if len(saves) == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):  # while the reference is computed
        patch.setattr(ReferenceCache, "save", third)
        run(path, tmp_path / "runs")
    assert len(reference_passes) == 3
    with monkeypatch.context() as patch, pytest.raises(Killed):  # while training
        patch.setattr("openbezoar.training.resume.State.save", killed)
        run(path, tmp_path / "runs")
    whole = len(reference_passes)
    run(path, tmp_path / "runs")
    assert len(reference_passes) == whole > 3
    run(path, tmp_path / "never killed")
    assert len(reference_passes) == 2 * whole
    name = "t/d/adapter/adapter_model.safetensors"
    assert (tmp_path / "runs" / name).read_bytes() == (tmp_path / "never killed" / name).read_bytes()


# ------------------------------------------------------------------------ the cache's key


def key_of(
    folder: Path, rows: int = 2, prompt: PromptSpec | None = None, seed: int = 1, **settings: Any
) -> dict[str, str]:
    checkpoint = Checkpoint("base", str(folder), (), "none", "float32", prompt or PromptSpec())
    trees = [(TokenPath.of([1, 2], [3, i]), TokenPath.of([1, 2], [4])) for i in range(rows)]
    formatter = Formatter(load_tokenizer(folder), checkpoint.prompt)
    return reference_key(
        checkpoint,
        formatter,
        step_of(**settings),
        device=torch.device("cpu"),
        seed=seed,
        trees=trees,
        heldout=trees[:1],
    )


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_the_key_changes_with_each_thing_that_the_numbers_depend_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    first = key_of(folder)
    assert key_of(folder) == first == key_of(folder, beta=0.4, learning_rate=1e-3)
    assert changed(first, key_of(folder, quantize="none")) == {"weights"}
    assert changed(first, key_of(folder, dtype="float32")) == {"dtype"}
    assert changed(first, key_of(folder, max_length=99)) == {"max_length"}
    assert changed(first, key_of(folder, rows=3)) == {"pairs"}
    assert changed(first, key_of(folder, seed=2)) == {"passes"} == changed(first, key_of(folder, tokens=100))
    assert changed(first, key_of(folder, prompt=PromptSpec(system="Be brief."))) == {"template"}
    monkeypatch.setattr(reference_module, "environment", lambda: {"packages": {"torch": "0"}})
    assert changed(first, key_of(folder)) == {"packages"}
    monkeypatch.undo()
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 77}))
    assert changed(first, key_of(folder)) == {"tokenizer"}
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert changed(first, key_of(folder)) == {"tokenizer", "weights"}


def test_with_several_processes_the_cached_passes_are_those_of_each_one_s_share(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbezoar.forest import Scorer
    from openbezoar.forest.layout import weight
    from openbezoar.machine import shares
    from openbezoar.models.load import load_base
    from openbezoar.training.loop import batch_of

    scorer = Scorer(
        load_base(Checkpoint("base", str(tiny), (), "none", "float32", PromptSpec()), (), "none", dtype="float32"), 64
    )
    trees = [
        (TokenPath.of(range(3, 9 + i), range(4, 9)), TokenPath.of(range(3, 9 + i), range(5, 12 - i % 3)))
        for i in range(12)
    ]
    step = step_of(batch=8, epochs=1)
    alone = key_of(tiny)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    trained = []
    for number in (0, 1):
        chosen = [trees[i] for i in batch_of(number, len(trees), step, seed=1)]
        for rank in (0, 1):
            share = [chosen[i] for i in shares.share(chosen, weight, rank, 2)]
            trained += [[share[i] for i in group] for group in scorer.batches(share)]
    assert list(reference_module.passes_of(trees, [], scorer, step=step, seed=1)) == trained
    assert changed(alone, key_of(tiny)) == {"passes"}


def test_a_file_under_another_key_or_a_broken_one_is_never_used(tmp_path: Path) -> None:
    tree = (TokenPath.of([1], [2]), TokenPath.of([1], [3]))
    file = tmp_path / "reference.safetensors"
    kept = ReferenceCache(file, {"weights": "a", "dtype": "b"})
    calls: list[int] = []

    def compute(trees: Any) -> Tensor:
        calls.append(len(trees))
        return torch.tensor([[-1.1, -2.7]] * len(trees))

    assert kept.fill([[tree, tree]], compute, 1, progress=PlainProgress(quiet=True)) == 1  # the pair occurs twice
    again = ReferenceCache(file, {"weights": "a", "dtype": "b"})
    assert again.fill([[tree]], compute, 1, progress=PlainProgress(quiet=True)) == 0 and calls == [2]
    assert torch.equal(again([tree], torch.device("cpu")), torch.tensor([[-1.1, -2.7]]))
    other = ReferenceCache(file, {"weights": "z", "dtype": "b"})
    assert other.stale == ["weights"] and not other.values
    file.write_bytes(file.read_bytes()[:40])
    assert not ReferenceCache(file, {"weights": "a", "dtype": "b"}).values


def test_trees_with_other_ids_or_other_scored_tokens_have_other_digests() -> None:
    paths = [TokenPath.of([1], [2, 3]), TokenPath.of([1, 2], [3]), TokenPath.of([1], [2, 4])]
    trees = [(a, b) for a in paths for b in paths]
    assert len({tree_digest(tree) for tree in trees}) == len(trees)
