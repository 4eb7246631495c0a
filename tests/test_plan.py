"""``openbezoar plan``: the table, its JSON, and what it warns of before any work."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.engine import graph
from openbezoar.errors import UserError
from openbezoar.llm import Completion
from openbezoar.llm.calls import CallStore, Spender
from openbezoar.machine.devices import CARDS, Device, device_named, this_device
from openbezoar.models.fitting import load_memory, training_memory
from openbezoar.plan.concerns import Concern, concerns, written_bytes
from openbezoar.plan.estimates import estimate
from openbezoar.plan.prompts_seen import prompts_seen
from openbezoar.recipe.blocks import LocalModel
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import Sft

ROOT = Path(__file__).parent.parent
LARGE = Device("cpu", "a large machine", 10**12)
SHAPE = {"hidden": 3200, "layers": 26, "heads": 32, "mlp": 8640, "vocabulary": 32000}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def told(recipe: Path, device: Device = LARGE, to: str | None = None) -> list[Concern]:
    built = graph.build(load(recipe), recipe, Path("runs"))
    return concerns(built, estimate(built, device), device, to)


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


# -------------------------------------------------------------------------- devices


def test_devices_are_named_by_card_or_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cuda:16GB").bytes == 16_000_000_000
    assert device_named("CUDA:24gib").bytes == 24 << 30
    assert device_named("cpu:8") == Device("cpu", "cpu with 8 GB", 8_000_000_000)
    two = device_named("2xT4")
    assert (two.name, two.card, two.count, two.bytes) == ("2 × T4", "T4", 2, CARDS["t4"].bytes)
    assert device_named("RTX 3090") is CARDS["rtx3090"] and not device_named("T4").bfloat16
    monkeypatch.setattr("openbezoar.machine.devices.GPU", Path("nowhere"))
    assert device_named("cpu").here and device_named("cpu").bytes == pytest.approx(this_device().bytes, rel=0.2)
    for text in ("tpu", "cuda:", "cuda:0GB", "16GB"):
        with pytest.raises(UserError, match=r"expected cpu, cpu:16GB, cuda:16GB, one of t4, .* as 2xt4"):
            device_named(text)
    with pytest.raises(UserError, match="has no GPU"):
        device_named("cuda")


def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> Path:
    """An nvidia-smi that says one line, on a machine with a GPU of which none is hidden."""
    from openbezoar.machine import devices

    (tmp_path / "bin").mkdir()
    smi = tmp_path / "bin/nvidia-smi"
    smi.write_text(f'#!/bin/sh\necho "{says}"\n')
    smi.chmod(0o755)
    monkeypatch.setattr(devices, "GPU", smi)
    monkeypatch.setenv("PATH", f"{smi.parent}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices._gpu.cache_clear()
    return smi


def test_a_gpu_is_asked_of_the_driver_and_one_that_is_not_told_has_no_known_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbezoar.machine import devices

    smi = driver(tmp_path, monkeypatch, "Tesla T4, 15360, 7.5")
    assert this_device() == Device("cuda", "Tesla T4", 15_360 << 20, here=True, bfloat16=False)
    smi.write_text("#!/bin/sh\nexit 9\n")
    devices._gpu.cache_clear()
    assert this_device().kind == "cuda" and this_device().bytes is None
    devices._gpu.cache_clear()


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "GPU 0"), ("1", "GPU 1"), ("GPU-5e2f,0", "GPU GPU-5e2f"), ("", "CPU"), ("-1", "CPU")],
    ids=["unset", "1", "uuid", "empty", "-1"],
)
def test_the_gpu_is_the_first_one_that_cuda_is_to_see(
    visible: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbezoar.machine import devices

    driver(tmp_path, monkeypatch, "GPU ${1#--id=}, 15360, 8.0")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices._gpu.cache_clear()
    assert this_device().name.startswith(name)
    devices._gpu.cache_clear()


def test_on_a_gpu_weights_stay_packed_and_the_interpreter_does_not_count() -> None:
    base = load(ROOT / "recipes/openbezoar-3b.yaml").models["base"]
    assert isinstance(base, LocalModel) and base.shape is not None
    step, small = Sft(sft="x", model="base", checkpointing=True, tokens=4096), device_named("cuda:8GB")
    card, cpu = training_memory(base.shape, step, small), training_memory(base.shape, step, LARGE)
    assert card.weights < cpu.weights / 2, "much free memory lets a CPU hold NF4's values in 16 bits"
    assert card.activations == cpu.activations and card.adapter == cpu.adapter
    assert load_memory(base.shape, step, small) < card.peak < small.bytes  # type: ignore[operator]


# ------------------------------------------------------------------------- warnings


def test_a_recipe_that_fits_has_no_warnings(write_recipe: Callable[..., Path]) -> None:
    assert told(write_recipe({"a": {"sft": "rows.jsonl", "model": "base"}})) == []


def test_memory_that_does_not_suffice_is_said_with_what_to_change(write_recipe: Callable[..., Path]) -> None:
    base = {"model": "none/none", "shape": SHAPE}
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base", "quantize": "none", "checkpointing": False},
        "A": {"merge": "a"},
    }
    found = {
        c.step: c.text
        for c in told(write_recipe(steps, models={"base": base}), device_named("cuda:8GB"))
        if c.kind == "memory"
    }
    assert found["a"].startswith("does not fit: about 1") and "cuda with 8 GB has 8.0 GB" in found["a"]
    assert "set quantize: nf4 and checkpointing: true and smaller tokens" in found["a"]
    assert found["A"].startswith("may not fit: about 7.8 GB of 8.0 GB")
    assert not [c for c in told(write_recipe(steps, models={"base": base}), CARDS["a100"]) if c.kind == "memory"]


def test_a_card_without_bfloat16_is_told_by_name(write_recipe: Callable[..., Path]) -> None:
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base", "dtype": "bfloat16"},
        "b": {"sft": "rows.jsonl", "model": "base", "dtype": "float16"},
        "c": {"sft": "rows.jsonl", "model": "base"},
    }
    assert [str(c) for c in told(write_recipe(steps), CARDS["t4"])] == [
        "T4 has no bfloat16 arithmetic, it is slow there: set dtype: float16 for a"
    ]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "a": {"sft": "rows.jsonl", "model": "base"},
        "A": {"merge": "a"},
        "b": {"sft": "rows.jsonl", "model": "A"},
        "B": {"merge": "b", "onto": "original"},
    }
    recipe = write_recipe(steps, models={"base": {"model": "none/none", "shape": SHAPE}})
    built = graph.build(load(recipe), recipe, Path("runs"))
    model, adapter = 2 * (3_221_504_000 + 2 * 32000 * 3200), 4 * 7_987_200
    # Two models, a third while both bases are tried, two adapters.
    assert written_bytes(estimate(built).values()) == 3 * model + 2 * adapter
    with_release = write_recipe(
        {**steps, "out": {"release": ["A", "B"], "gguf": ["f16", "q8_0"]}},
        models={"base": {"model": "none/none", "shape": SHAPE}},
    )
    built = graph.build(load(with_release), with_release, Path("runs"))
    assert written_bytes(estimate(built).values()) == 3 * model + 2 * adapter + 2 * (model + model * 17 // 32)
    recipe = write_recipe(steps, models={"base": {"model": "none/none", "shape": SHAPE}})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 20 * 10**9))
    (concern,) = [c for c in told(recipe) if c.kind == "disk"]
    assert "the run's files 20.6 GB and models to fetch 6.9 GB, 20.0 GB are free" in concern.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    assert told(recipe) == []


def test_budgets_that_the_estimate_overshoots_are_told_with_what_is_left(write_recipe: Callable[..., Path]) -> None:
    server = {"server": "http://localhost:1/v1", "model": "m", "price": {"input": 1000, "output": 1000}}
    steps = {
        "made": {
            "generate": "lamini",
            "teacher": "judge",
            "seeds": "rows.jsonl",
            "rows": 100,
            "budget": {"tokens": 2000},
        },
        "kept": {"filter": "made", "judge": "judge", "budget": {"money": 10_000}},
    }
    recipe = write_recipe(steps, models={"judge": server}, budget={"money": 5})
    Path("runs").mkdir()
    CallStore(Path("runs")).keep({"k": [Completion("x", "stop", 400, 100)]}, Spender("t", "made", "judge"))
    found = [c for c in told(recipe) if c.kind == "budget"]
    assert [c.step for c in found] == ["made", None]
    assert "steps.made.budget has 1,500 left: the run will stop there" in found[0].text
    assert "budget has 4.50 left" in found[1].text
    assert [c.step for c in told(recipe, to="made") if c.kind == "budget"] == ["made", None]


def test_a_spent_budget_is_no_concern_where_nothing_is_left_to_ask(write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(
        {"kept": {"filter": "rows.jsonl"}, "a": {"sft": "kept", "model": "base"}}, budget={"tokens": 10}
    )
    Path("runs").mkdir()
    CallStore(Path("runs")).keep({"k": [Completion("x", "stop", 400, 100)]}, Spender("t", "made", "judge"))
    assert [c for c in told(recipe) if c.kind == "budget"] == []


def test_run_warns_first_and_goes_on(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe({"kept": {"filter": "rows.jsonl", "rules": {"drop_repetition": 1.0}}})
    monkeypatch.setattr(
        "openbezoar.plan.carry_out.concerns", lambda *given: [Concern("memory", "kept", "does not fit")]
    )
    assert run_main("run", str(recipe), "--quiet") == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "warning: kept: does not fit" and err[1].startswith("[1/1] kept  done in")
    assert run_main("run", str(recipe), "--quiet") == 0
    assert "does not fit" not in capsys.readouterr().err, "nothing is to be done any more"


# ---------------------------------------------------------------------------- table


@pytest.fixture
def half_done(write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> Path:
    """A recipe of which one step is done, another is stale by several settings, and the rest was never run."""
    rules = {"drop_repetition": 1.0}
    steps: dict[str, Any] = {
        "a-filter-with-a-long-name": {"filter": "rows.jsonl", "rules": rules},
        "other": {"filter": "rows.jsonl", "rules": rules},
    }
    assert run_main("run", str(write_recipe(steps)), "--quiet") == 0
    steps["other"] = {**steps["other"], "min_rating": 7, "retries": 5, "batch": 8}
    steps["sft"] = {"sft": "a-filter-with-a-long-name", "model": "base"}
    capsys.readouterr()
    return write_recipe(steps)


def test_the_table_fits_100_columns_and_says_why_in_whole_words(
    half_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("plan", str(half_done)) == 0
    out = capsys.readouterr().out
    table, words = out.split("\n\n", 1)
    rows = table.splitlines()
    assert all(len(row.rstrip()) <= 100 for row in rows)
    assert rows[0].split() == [
        "step",
        "verb",
        "state",
        "rows",
        "tokens",
        "memory",
        "time",
        "why",
    ], "no column of money where nothing costs any"
    column = rows[0].index("why")
    why = " ".join(row[column:].strip() for row in rows[2:-1])
    assert why == "min_rating: 5.0 → 7.0; retries: 2 → 5; batch: 32 → 8"
    assert re.match(r"a-filter-with-a-long-name +filter +done +24 ", rows[1])
    assert "2 of 3 steps would run" in words and "Times with '~' are assumed" in words


def test_a_narrow_terminal_keeps_room_for_the_reason(
    half_done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_main("plan", str(half_done)) == 0
    out = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in out.split("\n\n")[0].splitlines())
    assert "retries: 2 → 5;" in out, "words are not cut"


def test_json_has_what_the_table_has_and_more(half_done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("plan", str(half_done), "--device", "t4", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    done, stale, missing = made["steps"]
    assert (done["state"], stale["state"], missing["state"]) == ("done", "stale", "missing")
    assert done["took"] is not None and missing["took"] is None
    assert missing["inputs"] == ["a-filter-with-a-long-name"] and stale["seconds"] is None
    fit = missing["fit"]
    assert (fit["device"], fit["dtype"], fit["recomputed"], fit["measured"]) == ("T4", "float16", 0, False)
    assert missing["seconds"] == pytest.approx(missing["tokens_in"] / fit["tokens_per_second"], rel=0.01)
    assert sum(fit["memory"].values()) == fit["peak"] and set(fit["memory"]) >= {"weights", "adapter", "activations"}
    assert made["device"]["name"] == "T4" and made["total"]["steps"] == 2
    assert made["warnings"] == [], "float16 was chosen"


def test_what_a_training_comes_to_on_a_card_is_told_and_marked_as_estimated(
    half_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("plan", str(half_done), "--device", "2xt4") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"sft: up to [\d,]+ tokens a pass, float16, NF4 unpacked, 0 of 2 layers", out), out
    assert re.search(r"layers recomputed; [\d.]+ GB estimated: CUDA 0.60, weights", out), out
    assert "nothing was measured on 2 × T4: NVIDIA T4 data sheet, 65 TFLOP/s of which 42% are assumed" in out
    assert run_main("plan", str(half_done), "--device", "rtx3060") == 0
    assert "No times" in capsys.readouterr().out, "a card of which no speed is known"
    assert run_main("plan", str(half_done)) == 0
    assert "layers recomputed" not in capsys.readouterr().out


def test_plan_on_an_unknown_device_is_a_user_s_mistake_in_one_line(
    half_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main("plan", str(half_done), "--device", "abacus") == 2
    assert capsys.readouterr().err.startswith("openbezoar: --device abacus: no such device; expected cpu")


# ------------------------------------------------------------------- rows measured on


def write_rows(path: Path, name: str, prompts: range, **answers: str) -> None:
    rows = [{"instruction": f"Tell me of {n}", **answers} for n in prompts]
    (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def about_rows(path: Path, recipe: str) -> list[str]:
    (path / "r.yaml").write_text(recipe, encoding="utf-8")
    built = load(path / "r.yaml")
    return [f"{s.step} {s.by} {s.prompts}/{s.of}" for s in prompts_seen(built, path, set(built.steps))]


STEPS = """
name: r
models: {base: {model: x}, other: {model: y}}
steps:
  sft: {sft: train.jsonl, model: base}
  own: {pairs: {data: train.jsonl, offset: 5}, from: base, samples: 4, by: base}
  dpo: {dpo: own, model: base}
"""


def test_training_on_prompts_that_are_measured_on_is_told(tmp_path: Path) -> None:
    """Of wins, pairs and agreement, as many rows as they take, also where a step's rows come through another step."""
    write_rows(tmp_path, "train.jsonl", range(10), response="Well.")
    write_rows(tmp_path, "asked.jsonl", range(8, 40))
    write_rows(tmp_path, "people.jsonl", range(2), output_1="a", output_2="b", human_majority="1")
    write_rows(tmp_path, "late.jsonl", range(30, 110), chosen="a", rejected="b")
    more = """
  scores:
    evaluate: [base, dpo]
    pairs: {late: late.jsonl}
    wins: {chat: {prompts: asked.jsonl, by: other, against: base, limit: 20}}
  check: {agreement: other, pairs: people.jsonl}
"""
    assert about_rows(tmp_path, STEPS + more) == [
        "sft scores: chat.prompts 2/20",
        "sft check: pairs 2/2",
        "dpo scores: chat.prompts 2/20",
    ]
    (concern, *_) = (c for c in told(tmp_path / "r.yaml") if c.kind == "rows")
    assert concern.step == "sft" and "2 of the 20 prompts of scores: chat.prompts" in concern.text
    write_rows(tmp_path, "late.jsonl", range(100, 170), chosen="a", rejected="b")
    write_rows(tmp_path, "train.jsonl", range(164, 170), response="Well.")  # beyond the first 64 rows, which are taken
    write_rows(tmp_path, "people.jsonl", range(200, 202), output_1="a", output_2="b", human_majority="1")
    assert about_rows(tmp_path, STEPS + more) == []


def test_rows_that_a_filter_compares_with_benchmarks_are_told_of_for_others_only(tmp_path: Path) -> None:
    write_rows(tmp_path, "train.jsonl", range(10), response="Well.")
    write_rows(tmp_path, "people.jsonl", range(2), output_1="a", output_2="b", human_majority="1")
    recipe = """
name: r
models: {base: {model: x}, other: {model: y}}
steps:
  kept: {filter: train.jsonl, rules: {decontaminate: CLEAN}}
  sft: {sft: kept, model: base}
  scores: {evaluate: [base, sft], losses: {human: {data: train.jsonl, limit: 3}}}
  check: {agreement: other, pairs: people.jsonl}
"""
    assert about_rows(tmp_path, recipe.replace("CLEAN", "true")) == ["sft check: pairs 2/2"]
    assert about_rows(tmp_path, recipe.replace("CLEAN", "false")) == ["sft scores: human 3/3", "sft check: pairs 2/2"]
