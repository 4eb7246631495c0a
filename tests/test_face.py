"""The library's face: its names and signatures, what it loads, and that it gives what recipes give."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST

import openbezoar as ob
from openbezoar.stats.seeds import step_seed
from scripts.api_page import signature

ROOT = Path(__file__).parent.parent

# What others' programs call. A change here is one of the library's, and CHANGELOG.md says so.
SIGNATURES = {
    "plan": "(recipe: str | Path, set: Changes = (), *, runs: str | Path = 'runs', device: str | None = None)"
    " -> RunPlan",
    "run": "(recipe: str | Path, set: Changes = (), *, runs: str | Path = 'runs', to: str | None = None,"
    " quiet: bool = False) -> Run",
    "open_run": "(folder: str | Path) -> Run",
    "Run.scores": "(self) -> list[ScoreRow]",
    "Run.manifest": "(self, step: str) -> Mapping[str, Any]",
    "Run.load": "(self, step: str) -> ChatModel",
    "ScoreRow": "(step: str, checkpoint: str, kind: str, name: str, value: float, low: float | None,"
    " high: float | None, n: int, lower_is_better: bool)",
    "load": "(reference: str | Path) -> ChatModel",
    "ChatModel": "(model: Any, tokenizer: Any, prompt: Prompt | None = None)",
    "ChatModel.chat": "(self, messages: Messages, *, max_new_tokens: int = 256, temperature: float = 0.7,"
    " top_p: float = 0.95, seed: int = 0) -> str",
    "ChatModel.logprobs": "(self, prompt: Messages, answers: Sequence[str]) -> list[float]",
    "sft": "(model: Any, tokenizer: Any, rows: Rows, *, heldout: Rows | None = None, prompt: Prompt | None = None,"
    " out: str | Path | None = None, seed: int = 0, quiet: bool = False, **settings: Any) -> Trained",
    "dpo": "(model: Any, tokenizer: Any, rows: Rows, *, heldout: Rows | None = None, prompt: Prompt | None = None,"
    " out: str | Path | None = None, seed: int = 0, quiet: bool = False, **settings: Any) -> Trained",
    "kto": "(model: Any, tokenizer: Any, rows: Rows, *, heldout: Rows | None = None, prompt: Prompt | None = None,"
    " out: str | Path | None = None, seed: int = 0, quiet: bool = False, **settings: Any) -> Trained",
    "Trained": "(model: Any, numbers: Mapping[str, Any], counts: Mapping[str, int], folder: Path | None)",
    "Scorer": "(model: nn.Module, tokens: int = 2048, head_bytes: int | None = None, plain: bool = False)",
    "Scorer.score": "(self, trees: Sequence[Tree], greedy: list[Tensor] | None = None) -> TreeScores",
    "TokenPath": "(ids: Sequence[int], scored: Sequence[bool])",
    "TokenPath.of": "(prompt: Sequence[int], completion: Sequence[int]) -> TokenPath",
    "ForestLM": "(model: Any, tokenizer: Any, tokens: int = 2048, progress: Progress | None = None, label: str = '')",
    "stats.paired_difference": "(a: Sequence[float], b: Sequence[float], seed: int, *, draws: int = 2000,"
    " level: float = 0.95) -> Interval",
    "losses.simpo": "(scores: PairScores, *, beta: float, simpo_gamma: float, label_smoothing: float) -> Tensor",
}
NAMES = (
    "plan losses stats RunPlan PlannedStep run open_run Run ScoreRow load ChatModel sft dpo kto Trained Scorer"
    " TokenPath ForestLM UserError"
)


# ------------------------------------------------------------------- names and signatures


def test_the_names_are_these() -> None:
    assert ob.__all__ == NAMES.split()
    assert set(ob.__all__) <= set(dir(ob))
    with pytest.raises(AttributeError, match="has no attribute 'plann'"):
        ob.plann  # noqa: B018


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_this(name: str) -> None:
    value: Any = ob
    for part in name.split("."):
        value = getattr(value, part)
    assert signature(value) == SIGNATURES[name]


def test_type_checkers_are_told_of_the_same_names() -> None:
    tree = ast.parse((ROOT / "openbezoar/__init__.pyi").read_text(encoding="utf-8"))
    stated = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name
                stated[alias.name] = node.module
    assert set(stated) == set(ob.__all__)
    for name, module in stated.items():
        value = getattr(ob, name)
        home = value.__name__.rpartition(".")[0] if name in ("losses", "stats") else module
        assert module == home and (name == "plan" or getattr(sys.modules[str(module)], name) is value)


def test_a_name_costs_what_it_is_made_of_and_plans_need_no_torch(tmp_path: Path) -> None:
    code = """
import sys
import openbezoar as ob
assert not {name for name in sys.modules if name.startswith("openbezoar.")}
plans = [ob.plan("demo", set={"steps.dpo.beta": 0.2}), ob.plan("demo")]  # twice: the package of that name is there now
assert len(plans[0].steps) == 18 and plans[0].tokens > 0
ob.run, ob.open_run, ob.stats.paired_difference([1.0], [0.0], 0)
assert not {"torch", "transformers", "peft", "typer"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------ plans and runs


def test_a_plan_has_the_numbers_that_the_command_tells(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from openbezoar.cli.app import main

    recipe = write_recipe({"sft": {"sft": "rows.jsonl", "model": "base", **FAST}})
    made = ob.plan(recipe, set={"steps.sft.epochs": 2, "steps.sft.lora": {"r": 8}}, runs=tmp_path, device="cpu:16GB")
    changes = ["--set", "steps.sft.epochs=2", "--set", 'steps.sft.lora={"r": 8}']
    with pytest.raises(SystemExit):
        main(["plan", str(recipe), *changes, "--runs", str(tmp_path), "--device", "cpu:16GB", "--json"])
    told = json.loads(capsys.readouterr().out)
    for step, row in zip(made.steps, told["steps"], strict=True):
        assert json.loads(json.dumps(asdict(step))).items() <= row.items()
    assert (made.tokens, made.memory_bytes) == (told["total"]["tokens"], told["total"]["memory_bytes"])
    assert made.todo == made.steps and made.folder == tmp_path / "t"


def test_a_run_gives_its_scores_as_rows_and_its_models(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(
        {
            "sft": {"sft": "rows.jsonl", "model": "base", "quantize": "none", "max_steps": 1, **FAST},
            "scores": {"evaluate": ["base", "sft"], "tasks": [], "losses": {"own": "rows.jsonl"}},
        }
    )
    made = ob.run(recipe, set={"steps.sft.batch": 2}, runs=tmp_path / "runs", quiet=True)
    assert made == ob.open_run(tmp_path / "runs/t") and made.steps == ("sft", "scores")
    assert made.manifest("sft")["parts"]["settings"]["batch"] == 2
    told = json.loads((made.folder / "scores/scores.json").read_text())["checkpoints"]
    for row in made.scores():
        assert (row.step, row.kind, row.name, row.n, row.lower_is_better) == ("scores", "loss", "own", 24, True)
        assert row.value == told[row.checkpoint]["losses"]["own"]["value"]
        assert row.low is not None and row.high is not None and row.low < row.value < row.high
    assert [row.checkpoint for row in made.scores()] == ["base", "sft"]
    assert made.load("sft").logprobs("Say 1.", ["The number is 1."])[0] < 0
    with pytest.raises(ob.UserError, match="no finished step 'nothing'; it has sft, scores"):
        made.load("nothing")


def test_scores_are_rows_that_a_data_frame_takes(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = [ob.ScoreRow("s", "base", "loss", "own", 1.5, 1.0, 2.0, 24, True)]
    frame = pandas.DataFrame(rows)
    assert list(frame.columns) == list(asdict(rows[0])) and frame["n"].sum() == 24


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: ob.plan("nothing"), "nothing: no such recipe; give a recipe's file, or the name of a shipped one"),
        (lambda: ob.plan("demo", set="steps.dpo.beta=1"), "set: expected a mapping such as"),
        (lambda: ob.plan("demo", set={"steps.dpq.beta": 1}), "no step 'dpq'"),
        (lambda: ob.open_run("nowhere"), "no finished step in this folder"),
        (lambda: ob.load("./nowhere"), "no such folder"),
    ],
)
def test_a_mistake_is_a_user_error_with_one_line(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(ob.UserError) as caught:
        call()
    assert line in str(caught.value) and "\n" not in str(caught.value)


# -------------------------------------------------------------------------------- models


@pytest.fixture
def given(tiny: Path) -> tuple[Any, Any]:
    """transformers' own model and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)


def test_log_probabilities_of_answers_are_the_models(tiny: Path, given: tuple[Any, Any]) -> None:
    model, tokenizer = given
    prompt, answers = "What is the capital of France?", ["Paris, a city.", "The sea", "Paris"]
    told = ob.ChatModel(model, tokenizer).logprobs(prompt, answers)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    head = tokenizer(text, add_special_tokens=False).input_ids
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny)
    for answer, number in zip(answers, told, strict=True):
        ids = [*head, *tokenizer(answer + "</s>", add_special_tokens=False).input_ids]
        logits = plain(torch.tensor([ids])).logits[0, len(head) - 1 : -1].log_softmax(-1)
        own = logits.gather(-1, torch.tensor(ids[len(head) :])[:, None]).sum().item()
        assert number == pytest.approx(own, abs=1e-3), answer


def test_a_reference_and_a_model_in_memory_answer_alike(tiny: Path, given: tuple[Any, Any]) -> None:
    loaded, wrapped = ob.load(tiny), ob.ChatModel(*given)
    talk = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    first = loaded.logprobs(talk, ["Yes", "No"])
    assert first == pytest.approx(wrapped.logprobs(talk, ["Yes", "No"]), abs=0.2)  # bfloat16 beside float32
    drawn = [wrapped.chat("Hello", max_new_tokens=12, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda m: m.chat("Hello", max_new_tokens=5000), "the answer may take 5000, of 1024 in all"),
        (lambda m: m.logprobs("Hello", ["word " * 2000]), "of 1024 that the model reads"),
        (lambda m: m.chat([{"role": "assistant", "content": "Hi"}]), "whose last message is the user's"),
        (lambda m: m.chat([{"role": "human", "content": "Hi"}]), "expected a role"),
        (lambda m: m.chat([]), "whose last message is the user's"),
    ],
)
def test_a_conversation_that_is_none_is_one_line(ask: Callable[[Any], Any], line: str, given: tuple[Any, Any]) -> None:
    with pytest.raises(ob.UserError, match=re.escape(line)):
        ask(ob.ChatModel(*given))


# ------------------------------------------------------------------------------ training

ROWS = [{"instruction": f"Say the number {n}.", "response": f"The number is {n}, as you asked."} for n in range(24)]
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"It is {n}, gladly.", "rejected": "No way."} for n in range(20)]
QUICK = {"max_steps": 2, "batch": 4, "learning_rate": 1e-3, "lora": {"r": 4, "alpha": 4, "dropout": 0.1}}


def adapter(folder: Path) -> bytes:
    return (folder / "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("verb", "rows", "own"),
    [("sft", ROWS, {}), ("dpo", PAIRS, {"beta": 0.2}), ("dpo", PAIRS, {"loss": "simpo"}), ("kto", PAIRS, {})],
    ids=["sft", "dpo", "simpo", "kto"],
)
def test_training_without_a_recipe_gives_the_adapter_that_a_recipe_gives(
    verb: str,
    rows: list[dict[str, str]],
    own: dict[str, Any],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    tiny: Path,
) -> None:
    from openbezoar.models.load import load_base, load_tokenizer
    from openbezoar.models.references import open_checkpoint

    (tmp_path / "these.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {
        verb: str(tmp_path / "these.jsonl"),
        "model": "base",
        "quantize": "none",
        "dtype": "float32",
        **QUICK,
        **own,
    }
    made = ob.run(write_recipe({"step": step}, prompt={"template": "own"}), runs=tmp_path / "runs", quiet=True)
    model, tokenizer = load_base(open_checkpoint(str(tiny)), (), "none", dtype="float32"), load_tokenizer(tiny)
    state = torch.random.get_rng_state()
    trained = getattr(ob, verb)(
        model, tokenizer, rows, out=tmp_path / "out", seed=step_seed(1, "step"), quiet=True, **QUICK, **own
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert adapter(tmp_path / "out") == adapter(made.folder / "step")
    numbers = made.manifest("step")["numbers"]
    for name in ("steps", "tokens", "first_loss", "heldout_rows", "heldout_loss_before", "heldout_loss_after"):
        assert trained.numbers[name] == numbers[name], name
    assert trained.counts == made.manifest("step")["counts"] and trained.folder == tmp_path / "out"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter", "heldout.jsonl", "metrics.jsonl"]


def test_a_plain_model_learns_and_its_adapter_opens_with_peft(
    given: tuple[Any, Any], tiny: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, tokenizer = given
    heldout = [{"instruction": "Say 99.", "response": "The number is 99."}, {"chosen": "x", "rejected": "y"}]
    trained = ob.sft(
        model,
        tokenizer,
        iter([*ROWS, {**ROWS[0], "response": ""}]),
        heldout=heldout[:1],
        out=tmp_path / "out",
        quiet=True,
        **{**QUICK, "max_steps": 8, "learning_rate": 1e-2},
    )
    assert trained.numbers["heldout_loss_after"] < trained.numbers["heldout_loss_before"]
    assert (trained.numbers["rows"], trained.numbers["heldout_rows"]) == (24, 1)
    assert trained.counts == {"empty answer": 1}
    assert not trained.model.training and trained.model.get_base_model() is model
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(tmp_path / "out/adapter"))
    ids = tokenizer("Say the number 3.", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, trained.model(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"betta": 1}, "dpo: betta: unknown key (did you mean 'beta' for 'betta'?)"),
        ({"batch": 0}, "dpo: batch: "),
        ({"reference": "cached"}, "dpo: reference: a setting of a recipe's steps, which has no place here; remove it"),
        ({"quantize": "nf4"}, "dpo: quantize: a setting of a recipe's steps"),
        ({"loss": "simpo", "dpop_lambda": 1}, "dpop_lambda"),
        ({"heldout_every": 100}, "no pair is held out"),
        ({"lora": {"targets": ["nothing"]}}, "the model: the model has no module 'nothing' for lora.targets"),
        ({"prompt": {"templat": "own"}}, "prompt: templat: unknown key"),
        ({"heldout": [{"chosen": "a", "rejected": "b"}]}, "heldout: no pair can be used"),
    ],
)
def test_what_cannot_be_trained_is_one_line(settings: dict[str, Any], line: str, given: tuple[Any, Any]) -> None:
    with pytest.raises(ob.UserError) as caught:
        ob.dpo(*given, PAIRS, quiet=True, **settings)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_rows_as_data_frames_hold_them_are_read_as_those_of_a_file(given: tuple[Any, Any]) -> None:
    talk = [
        {"role": "user", "content": "Say 1."},
        {"role": "assistant", "content": "1 \ud83d."},
        {"role": "user", "content": "Say 2."},
        {"role": "assistant", "content": np.array([{"type": "text", "text": "2."}])},
    ]
    with pytest.raises(ob.UserError, match=r"^row 2: it is of the form 'pair' .*, and row 1 of the form 'messages'"):
        ob.sft(*given, [{"messages": talk}, PAIRS[0]], quiet=True)
    with pytest.raises(ob.UserError, match=r"^row 1 is 'a'; expected a mapping"):
        ob.sft(*given, ["a"], quiet=True)  # type: ignore[list-item]
    rows = [{"messages": np.array(talk), "system": system} for system in ("Be brief.", None, float("nan"), None, None)]
    trained = ob.sft(*given, rows, quiet=True, **{**QUICK, "max_steps": 1, "heldout_every": 5})
    assert (trained.numbers["rows"], trained.numbers["heldout_rows"]) == (4, 1)
    assert trained.counts == {"rows with half a character taken out": 5}


def test_a_row_that_is_none_says_which(given: tuple[Any, Any]) -> None:
    with pytest.raises(ob.UserError, match=r"^row 3: no field 'instruction'"):
        ob.sft(*given, [*ROWS[:2], {"words": "?"}], quiet=True)


def test_a_folder_with_files_and_a_model_with_an_adapter_are_refused(given: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ob.UserError, match="holds files already; name another folder as 'out'"):
        ob.sft(*given, ROWS, out=tmp_path, quiet=True)
    trained = ob.sft(*given, ROWS, quiet=True, **{**QUICK, "max_steps": 1})
    with pytest.raises(ob.UserError, match="merge it first"):
        ob.dpo(trained.model, given[1], PAIRS, quiet=True)


# ------------------------------------------------------------------------------ the page


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8").partition("## `ob.plan`")[0]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["tuned"].numbers["heldout_loss_after"] < names["tuned"].numbers["heldout_loss_before"]
    assert len(names["answers"]) == 2 and isinstance(names["text"], str)
    assert [row.checkpoint for row in names["run"].scores()] == ["base", "tuned"]
    assert names["loss"].requires_grad is False and names["low"] <= names["difference"] <= names["high"]
    assert (tmp_path / "adapter/adapter/adapter_model.safetensors").is_file()
