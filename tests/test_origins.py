"""Which settings are the paper's and which later evidence supports, as plan and show say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openbezoar.cli.app import main
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.origins import ORIGINS, origins, told
from openbezoar.recipe.train_steps import Dpo, Kto, Lora, Sft
from openbezoar.recipe.verbs import VERBS


def settings(step: Sft | Dpo | Kto) -> dict[str, object]:
    return step.model_dump(mode="json")


def test_the_defaults_of_the_paper_and_those_of_the_evidence_are_told_apart() -> None:
    paper = told("sft", settings(Sft(sft="x", model="m")))
    assert paper == (
        "the paper's: lora.r 16, lora.alpha 16, lora.dropout 0.05, lora.targets q_proj k_proj v_proj, quantize nf4"
    )
    chosen = Sft(sft="x", model="m", lora=Lora(r=32, alpha=64, targets="all-linear"), quantize="auto")
    assert told("sft", settings(chosen)) == (
        "the paper's: lora.dropout 0.05; the evidence's: lora.targets all-linear, quantize auto"
    )
    assert told("dpo", settings(Dpo(dpo="x", model="m", loss="sigmoid_norm", epochs=2))) == (
        "the evidence's: loss sigmoid_norm"
    )
    assert told("kto", settings(Kto(kto="x", model="m", lora="none", quantize="none"))) == ""


def test_each_value_of_the_table_is_one_that_a_step_can_have() -> None:
    for one in ORIGINS:
        kind = VERBS[one.verb].settings
        field = kind.model_fields[one.key.partition(".")[0]]
        if one.whose == "paper":  # and is the default
            default = field.get_default(call_default_factory=True)
            assert (getattr(default, one.key.partition(".")[2]) if "." in one.key else default) == one.value
        if one.key == "loss":
            assert one.value in LOSSES
        assert origins(one.verb, {one.key.partition(".")[0]: _nested(one.key, one.value)}) == [one]
    assert len({(one.verb, one.key, str(one.value)) for one in ORIGINS}) == len(ORIGINS)


def _nested(key: str, value: object) -> object:
    _, _, inner = key.partition(".")
    return {inner: value} if inner else value


def test_plan_says_it_once_for_the_steps_that_are_alike(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"sft": "rows.jsonl", "model": "base"}
    path = write_recipe({"a": step, "b": {**step, "quantize": "auto"}, "c": step, "m": {"merge": "a"}})
    with pytest.raises(SystemExit) as end:
        main(["plan", str(path), "--runs", str(path.parent)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.split("Settings of ")[1:]]
    assert end.value.code == 0 and len(lines) == 2
    assert lines[0].startswith("a, c: the paper's: lora.r 16,") and lines[0].endswith("quantize nf4.")
    assert lines[1].startswith("b: the paper's: lora.r 16,") and lines[1].endswith("the evidence's: quantize auto.")


def test_show_has_each_with_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openbezoar.store.runs import RunFolder

    run = RunFolder(tmp_path / "t")
    work = run.begin("a", "key")
    assert work.is_dir()
    run.publish("a", {"step": "a", "verb": "dpo", "parts": {"settings": {"loss": "sigmoid_norm", "epochs": 3}}})
    with pytest.raises(SystemExit):
        main(["show", str(run.path), "a"])
    (one,) = json.loads(capsys.readouterr().out)["origins"]
    assert one["setting"] == "loss sigmoid_norm" and one["whose"] == "evidence" and "2411.15124" in one["source"]
