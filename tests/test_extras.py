"""Optional packages: each taken away from every command that could want it; broken ones; the table
against pyproject.toml and the code.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import make_run

from openbezoar.engine.graph import build
from openbezoar.engine.needs import packages_of
from openbezoar.machine import extras
from openbezoar.machine.extras import EXTRAS
from openbezoar.models import needs
from openbezoar.recipe.file import load, parse

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROUGHT = {
    "tokenizers": "transformers",
    "nltk": "lm-eval",
    "langdetect": "lm-eval",
    "immutabledict": "lm-eval",
}
"""Packages that come with another one of the same extra."""
RECIPE = """
name: all
models: {{base: {model}, far: {{server: 'http://localhost:9/v1', model: m}}, hub: org/name, file: small.gguf}}
steps:
  made: {{generate: lamini, teacher: far, seeds: 'hub:org/rows', rows: 4, topics: topics.jsonl}}
  kept: {{filter: made, judge: file}}
  tuned: {{sft: kept, model: hub, quantize: nf4}}
  better: {{dpo: pairs.jsonl, model: base, quantize: none, optimizer: adamw8bit}}
  Merged: {{merge: better}}
  scores: {{evaluate: [base, Merged], tasks: [arc_easy], data: tasks}}
  out: {{release: [Merged], gguf: [q8_0]}}
"""
IFEVAL = "name: ifeval\nmodels: {base: model}\nsteps: {scores: {evaluate: [base], tasks: [ifeval], data: tasks}}\n"
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
ELSEWHERE = ("sentencepiece", "google.protobuf", "tokenizers", "fastapi", "uvicorn", *TRACKERS)
"""What no step wants by its settings: only some models do, the page of vote, or a recipe's 'track'."""


def distribution(requirement: str) -> str:
    return re.split(r"[\[>=<!~; ]", requirement)[0].lower().replace("_", "-")


def test_the_table_is_that_of_pyproject() -> None:
    declared = {
        extra: {distribution(r) for r in PROJECT["optional-dependencies"][extra]}
        for extra in PROJECT["optional-dependencies"]
    }
    for package, (name, extra) in EXTRAS.items():
        assert BROUGHT.get(package, name).lower().replace("_", "-") in declared[extra], package
    listed = {name.lower().replace("_", "-") for name, _ in EXTRAS.values()}
    wanted = set.union(*(declared[extra] for extra in declared if extra not in ("all", "bench", "dev", "site")))
    assert wanted <= listed


def test_every_package_that_the_code_imports_is_in_the_table_or_in_the_base_install() -> None:
    base = {distribution(r) for r in PROJECT["dependencies"]} | {"yaml", "click", "openbezoar"}
    elsewhere = {"xllamacpp"}  # in llm/engines/llama_server.py, which an engine's own environment runs
    unknown = set()
    for file in (ROOT / "openbezoar").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.module
                else []
            )
            unknown |= {
                name
                for name in names
                if name.partition(".")[0] not in base | elsewhere | set(sys.stdlib_module_names)
                and extras._known(name) is None
            }
    assert unknown == set()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe that wants every package, and its files."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "model").mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "gpt2",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 16, "tie_word_embeddings": True}
    (folder / "model/config.json").write_text(json.dumps(config))
    (folder / "model/tokenizer.json").write_text("{}")
    (folder / "model/model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "small.gguf").write_bytes(b"GGUF")
    (folder / "topics.jsonl").write_text('{"topic": "Bees"}\n')
    (folder / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    (folder / "tasks").mkdir()
    (folder / "tasks/ifeval.jsonl").write_text("{}\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(model="model"))
    (folder / "ifeval.yaml").write_text(IFEVAL)
    votes = {"question_id": 1, "turn": 1, "model_a": "x", "model_b": "y", "winner": "model_a", "judge": "expert_1"}
    (folder / "votes.jsonl").write_text(json.dumps(votes) + "\n")
    for file in ("a", "b"):
        row = {"question_id": 1, "model_id": file, "choices": [{"turns": [f"Yes, {file}.", file]}]}
        (folder / f"{file}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "questions.jsonl").write_text(
        json.dumps({"question_id": 1, "category": "writing", "turns": ["Hello?", "And?"]}) + "\n"
    )
    return folder


def jobs() -> dict[tuple[str, str], tuple[list[str], list[str]]]:
    """{(package, command): (hidden, arguments)}: each package for each command that could want it."""
    found = {
        (package, "run"): ([package], ["run", "recipe.yaml"])
        for package in EXTRAS
        if package not in (*ELSEWHERE, *needs.IFEVAL)
    }
    for package in needs.IFEVAL:
        # all three: a development install has not all of them
        found[package, "run"] = list(needs.IFEVAL), ["run", "ifeval.yaml"]
    local = [
        "judge",
        "--judge",
        "model",
        "--questions",
        "questions.jsonl",
        "--answers",
        "a.jsonl",
        "--out",
        "runs/judge",
    ]
    for package in needs.MODEL:
        found[package, "chat"] = [package], ["chat", "model", "--prompt", "hi"]
        found[package, "judge"] = [package], local
        found[package, "judge check"] = [package], ["judge", "check", "--judge", "model", "--rows", "labelled.jsonl"]
    for package in (*needs.MODEL, *needs.TASKS):
        found[package, "score"] = [package], ["score", "model", "--tasks", "arc_easy", "--data", "tasks"]
    found["httpx2", "judge check"] = (
        ["httpx2"],
        ["judge", "check", "--judge", "m", "--server", "http://localhost:9/v1", "--rows", "labelled.jsonl"],
    )
    found["httpx2", "judge"] = ["httpx2"], [*local, "--server", "http://localhost:9/v1"]
    for package in ("fastapi", "uvicorn"):
        found[package, "vote"] = (
            [package],
            ["vote", "a.jsonl", "b.jsonl", "--questions", "questions.jsonl", "--votes", "v.jsonl"],
        )
    for package in EXTRAS:
        found[package, "import"] = [package], ["import", package]
    every = list(EXTRAS)
    for arguments in (
        ["plan", "recipe.yaml"],
        ["agreement", "--judge", "votes.jsonl", "--human", "votes.jsonl"],
        ["schema"],
        ["show", "runs/shown"],
        ["report", "runs/shown"],
        ["--help"],
    ):
        found["all", arguments[0]] = every, arguments
    return found


@pytest.fixture(scope="module")
def results(place: Path) -> dict[tuple[str, str], dict[str, Any]]:
    todo = jobs()
    make_run(place / "runs/shown")
    (place / "labelled.jsonl").write_text(json.dumps({"instruction": "a", "response": "b", "acceptable": True}) + "\n")
    env = {**os.environ, "OPENBEZOAR_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests/without.py"
    done = subprocess.run(
        [sys.executable, script],
        input=json.dumps(list(todo.values())),
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(todo, json.loads(done.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("package", EXTRAS)
def test_without_a_package_every_command_that_wants_it_says_so_in_one_line(
    package: str, results: dict[tuple[str, str], dict[str, Any]]
) -> None:
    name, extra = EXTRAS[package]
    own = {command: found for (hidden, command), found in results.items() if hidden == package}
    assert len(own) > 1 or package in ELSEWHERE
    for command, found in own.items():
        lines = found["err"].strip().splitlines()
        assert found["code"] == 2, (command, found)
        assert len(lines) == 1, (command, found)
        assert (
            re.search(rf"\b{name}\b.* (is|are) not installed", lines[0])
            and f"pip install 'openbezoar[{extra}]'" in lines[0]
        ), (command, lines)
        assert command == "import" or found["loaded"] == [], f"{command}: the packages that are there were loaded first"


@pytest.mark.slow
def test_a_run_says_which_steps_want_what_is_missing_and_begins_none(
    results: dict[tuple[str, str], dict[str, Any]], place: Path
) -> None:
    assert "step better: peft" not in results["gguf", "run"]["err"]
    assert "step kept: datasketch is not installed" in results["datasketch", "run"]["err"]
    assert "steps kept, out: gguf is not installed" in results["gguf", "run"]["err"]
    assert "steps tuned, better, Merged: peft" not in results["peft", "run"]["err"]
    assert "steps tuned, better: peft is not installed" in results["peft", "run"]["err"]
    assert not list((place / "runs/all").glob("*/manifest.json")) and not list((place / "runs/all").glob(".work/*"))


@pytest.mark.slow
def test_with_none_of_them_plan_and_what_reads_files_still_work(results: dict[tuple[str, str], dict[str, Any]]) -> None:
    for command in ("plan", "agreement", "schema", "show", "report", "--help"):
        assert results["all", command]["code"] == 0, results["all", command]
    warning = (
        " ".join(results["all", "plan"]["out"].partition("warning: ")[1:])
        .replace("\n", " ")
        .replace("warning:  ", "warning: ")
    )
    assert warning.startswith("warning: steps made, kept, tuned, better and 3 more: ") and "'openbezoar[" in warning
    assert " not installed; this needs them: pip install " in warning
    named = set(re.search(r"openbezoar\[(.*)\]", warning)[1].split(","))  # type: ignore[index]
    assert named == {"train", "evaluate", "hub", "data", "server", "clean"}


def test_what_the_demo_wants_is_what_its_steps_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENBEZOAR_CACHE", str(tmp_path))
    path = ROOT / "recipes/demo.yaml"
    recipe = load(path, [])
    nodes = build(recipe, path, tmp_path).nodes
    wanted = {name: set(packages_of(node, recipe, path.parent)) for name, node in nodes.items()}
    assert wanted["lamini"] == {*needs.MODEL, "gguf"} and wanted["lamini-kept"] == wanted["lamini"] | {"datasketch"}
    assert wanted["sft-lamini"] == {*needs.MODEL, "gguf", "peft", *needs.NF4}
    assert wanted["OpenBezoar-SFT"] == {*needs.MODEL, *needs.NF4}
    assert wanted["scores"] == {*needs.MODEL, *needs.TASKS, "gguf"}
    assert wanted["report"] == set() and wanted["release"] == {*needs.MODEL, "gguf", "pyarrow"}


def test_a_merged_reward_model_is_opened_without_what_held_its_base_while_it_was_trained(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    reward = {"reward": "pairs.jsonl", "model": "base", "quantize": "nf4"}
    steps = {
        "rm": reward,
        "swept": {**reward, "sweep": {"epochs": [1, 2]}},
        "picked": {"pairs": "pairs.jsonl", "from": "base", "samples": 2, "by": "swept"},
        "seen": {"agreement": "rm", "pairs": "pairs.jsonl"},
    }
    recipe = parse({"name": "t", "models": {"base": {"model": "org/base"}}, "steps": steps}, "here")
    nodes = build(recipe, tmp_path / "recipe.yaml", tmp_path).nodes
    wanted = {name: set(packages_of(node, recipe, tmp_path)) for name, node in nodes.items()}
    assert wanted["rm"] >= {*needs.MODEL, *needs.NF4, "peft"}
    for name in ("swept", "picked", "seen"):
        assert wanted[name] >= set(needs.MODEL) and not wanted[name] & set(needs.NF4), name


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "from httpx2 import NoSuchName",
            (
                r"httpx2 \S+ cannot be used \(ImportError: cannot import name 'NoSuchName'.*\); pip install --upgrade"
                r" 'openbezoar\[server\]'"
            ),
        ),
        (
            (
                "raise ImportError('Using `bitsandbytes` 4-bit quantization requires bitsandbytes: pip install -U"
                " bitsandbytes')"
            ),
            "bitsandbytes .* cannot be used .*train",
        ),
        (
            "import datasketch_broken",
            r"datasketch \S+ cannot be used \(ModuleNotFoundError: No module named 'no_such_part'\); .*clean",
        ),
        (
            "import gguf_broken",
            r"gguf \S+ cannot be used \(OSError: libcudart.so.12: cannot open shared object file\); .*train",
        ),
        (
            "raise __import__('importlib.metadata').metadata.PackageNotFoundError('lm-eval')",
            r"lm-eval is not installed.*evaluate",
        ),
    ],
)
def test_a_package_that_is_there_and_cannot_be_used_is_one_line_too(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "datasketch_broken.py").write_text("__name__ = 'datasketch.broken'\nimport no_such_part\n")
    (tmp_path / "gguf_broken.py").write_text(
        "__name__ = 'gguf.broken'\nraise OSError('libcudart.so.12: cannot open shared object file')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((ImportError, OSError)) as caught:
        exec(code, {"__name__": "openbezoar.x"})
    assert re.fullmatch(f"{said}.*", str(extras.failed_import(caught.value)))
    wrapped = RuntimeError("Failed to import")
    wrapped.__cause__ = caught.value
    assert str(extras.failed_import(wrapped)) == str(extras.failed_import(caught.value))


def test_a_model_with_a_sentencepiece_tokenizer_wants_what_reads_it(tmp_path: Path) -> None:
    assert needs.of_tokenizer(tmp_path) == ()
    (tmp_path / "tokenizer.model").touch()
    assert needs.of_tokenizer(tmp_path) == needs.SENTENCEPIECE
    (tmp_path / "tokenizer.json").touch()
    assert needs.of_tokenizer(tmp_path) == ("sentencepiece",)


def test_a_module_of_ours_that_is_missing_is_a_bug_and_stays_one() -> None:
    with pytest.raises(ImportError) as caught:
        exec("import openbezoar.no_such_module", {"__name__": "openbezoar.x"})
    assert extras.failed_import(caught.value) is None and extras.failed_import(ValueError("no")) is None
