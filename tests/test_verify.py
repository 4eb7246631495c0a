"""Results are held against the digests that were noted when they were made: by the next step, by a
release, and all of them by ``verify``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cli.app import main
from openbezoar.engine import execution, graph
from openbezoar.errors import ModelError, RunError
from openbezoar.llm import Completion
from openbezoar.llm.calls import CallStore, Spender
from openbezoar.models.references import open_checkpoint
from openbezoar.progress import Silent
from openbezoar.recipe.file import load
from openbezoar.store.digests import digest, file_digest, marks_of
from openbezoar.store.files import write_json
from openbezoar.store.manifests import SCHEMA, sealed
from openbezoar.store.runs import RunFolder

RULES: dict[str, Any] = {"min_response_words": 0, "drop_repetition": 1.0, "drop_echoes": False, "near_duplicates": None}
STEPS: dict[str, Any] = {
    "kept": {"filter": "rows.jsonl", "rules": RULES},
    "again": {"filter": "kept", "rules": RULES},
    "report": {"report": "all"},
}


class Place:
    """A run of two filters and a report, which takes no model."""

    def __init__(self, recipe: Path) -> None:
        self.recipe, self.folder = recipe, recipe.parent / "runs/t"

    def graph(self) -> graph.Graph:
        return graph.build(load(self.recipe), self.recipe, self.folder.parent)

    def run(self) -> list[str]:
        return execution.execute(self.graph(), Silent())

    def states(self) -> dict[str, str]:
        return {node.name: node.why or node.state for node in self.graph().nodes.values()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    rows = [
        {"id": f"r{i}", "instruction": f"Say the number {i}.", "response": f"The number is {i}, as you asked."}
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(json.dumps({"name": "t", "models": {"base": "pypi:x"}, "steps": STEPS}))
    assert Place(folder / "recipe.yaml").run() == list(STEPS)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Place:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path / "recipe.yaml")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def test_rows_that_were_cut_are_not_trained_on_but_made_again(place: Place) -> None:
    rows = place.folder / "kept/rows.jsonl"
    whole, later = rows.read_bytes(), (place.folder / "again/manifest.json").read_bytes()
    rows.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert place.states() == {"kept": "rows.jsonl changed since it was made", "again": "done", "report": "done"}
    assert place.run() == ["kept"]  # what came out is what the later ones used
    assert rows.read_bytes() == whole and (place.folder / "again/manifest.json").read_bytes() == later


def test_a_file_that_is_gone_is_missed(place: Place) -> None:
    (place.folder / "again/rejected.jsonl").unlink()
    assert place.states()["again"] == "rejected.jsonl is gone"
    assert place.run() == ["again"]


def test_each_file_of_each_step_is_in_its_manifest_with_its_digest(place: Place) -> None:
    for step in STEPS:
        manifest = RunFolder(place.folder).manifest(step)
        assert (
            manifest is not None and manifest["schema"] == SCHEMA and manifest["files"] == marks_of(place.folder / step)
        )
        assert {"kept": "rows.jsonl", "again": "rows.jsonl", "report": "report.html"}[step] in manifest["files"]


def test_what_used_another_result_runs_again(place: Place) -> None:
    rows = place.folder / "kept/rows.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:5]))
    RunFolder(place.folder).vouch("kept")  # as if it had been made so
    assert place.states()["again"] == "the files of kept are not those it used"
    assert place.run()[0] == "again"


def test_commands_that_read_results_refuse_damaged_ones(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    rows = place.folder / "kept/rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-1])
    for arguments in (["report", str(place.folder)], ["review", str(place.folder), "kept", "--list"]):
        code, _, err = command(capsys, *arguments)
        assert (
            code == 2
            and "kept: rows.jsonl changed since it was made; put the file back" in err
            and err.count("\n") == 1
        )


def test_a_report_that_is_written_again_is_the_step_s_result(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.folder / "report/report.html").read_bytes()
    write_json(place.folder / "run.json", {"recipe": "nowhere.yaml", "overrides": []})
    assert command(capsys, "report", str(place.folder))[0] == 0
    assert place.states()["report"] == "done" and before
    assert command(capsys, "verify", str(place.folder))[0] == 0


def test_verify_reads_everything_and_tells_what_size_and_time_do_not(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, "verify", str(place.folder))
    assert code == 0 and "no differences" in out
    rows = place.folder / "kept/rows.jsonl"
    stat = rows.stat()
    rows.write_bytes(flipped(rows.read_bytes(), random.Random(1)))
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert place.states()["kept"] == "done"  # nothing to see from outside
    code, out, err = command(capsys, "verify", str(place.folder))
    assert code == 2 and "kept: rows.jsonl changed since it was made" in out and err.count("\n") == 1
    (place.folder / "again/more.jsonl").write_text("")
    found = json.loads(command(capsys, "verify", str(place.folder), "--json")[1])
    assert found["wrong"] == [
        "again: more.jsonl was not made by the step",
        "kept: rows.jsonl changed since it was made",
    ]


def test_verify_reads_the_cached_answers_too(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    store = CallStore(place.folder.parent)
    store.keep({key: [Completion(f"answer {key}", "stop", 1, 1)] for key in "ab"}, Spender("t", "kept", "m"))
    store.close()
    assert "2 cached answers read; no differences" in command(capsys, "verify", str(place.folder))[1]
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE calls SET answers = replace(answers, 'answer a', 'answer c')")
    code, out, err = command(capsys, "verify", str(place.folder))
    assert code == 2 and "1 of 2 answers are not what was kept" in out and err.count("\n") == 1
    store.path.write_bytes(b"no data base" * 100)
    code, _, err = command(capsys, "verify", str(place.folder))
    assert code == 2 and "file is not a database" in err and err.count("\n") == 1


def test_a_copied_run_is_read_once_and_then_known(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder, tmp_path / "runs/u", copy_function=shutil.copyfile)
    shutil.rmtree(place.folder)
    (tmp_path / "runs/u").rename(place.folder)
    assert set(place.states().values()) == {"done"} and place.run() == []
    for step in STEPS:
        manifest = RunFolder(place.folder).manifest(step)
        assert manifest is not None and manifest["files"] == marks_of(place.folder / step)


def test_a_manifest_of_before_is_still_good_and_verify_says_what_it_lacks(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    new_mark = ""
    for step in STEPS:
        file = place.folder / step / "manifest.json"
        new = json.loads(file.read_text())
        old = {key: value for key, value in new.items() if key not in ("schema", "digest", "files", "used")}
        weights = {name: mark for name, mark in new["files"].items() if step == "kept" and name == "rows.jsonl"}
        used = {"kept": digest([{"rows.jsonl": new_mark}, {}])} if step == "again" else {}
        new_mark = weights["rows.jsonl"][-1] if weights else ""
        write_json(file, {**old, "weights": weights, "used_weights": used})
    os.utime(place.folder / "kept/rows.jsonl", (1, 1))  # a copied run
    for _ in range(2):
        assert set(place.states().values()) == {"done"} and place.run() == []
    code, out, _ = command(capsys, "verify", str(place.folder))
    assert code == 0 and "again: made before digests of all files were kept; nothing to compare" in out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 100_000, "a manifest expected, but it cannot be read"),
        ('{"key": 1}', "'key' has another type"),
        ('{"parts": []}', "'parts' has another type"),
        ('{"parts": {"settings": 3}}', "'parts.settings' has another type"),
        ('{"seconds": "long"}', "'seconds' has another type"),
        ('{"files": {"a": [1, 2]}}', "'files' has another type"),
        ('{"counts": {"a": null}}', "'counts' has another type"),
        ('{"schema": 99, "whatever": []}', "written by a newer openbezoar (schema 99"),
        ('{"schema": true}', "'schema' has another type"),
        (json.dumps({**sealed({"key": "a"}), "key": "b"}), "changed since it was written"),
    ],
)
def test_a_manifest_that_says_other_things_is_one_line(
    content: str, said: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.folder / "kept/manifest.json").write_text(content)
    for arguments in (
        ["run", str(place.recipe), "--runs", str(place.folder.parent)],
        ["show", str(place.folder)],
        ["report", str(place.folder)],
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 2 and said in err and err.count("\n") == 1
    code, out, err = command(capsys, "verify", str(place.folder))
    assert code == 2 and said in out


def test_a_bit_of_a_manifest_that_flips_is_seen_by_the_next_command(place: Place) -> None:
    rng, file = random.Random(11), place.folder / "kept/manifest.json"
    whole = file.read_bytes()
    said = json.loads(whole)
    for n in range(300):
        changed = flipped(whole, rng)
        if n < 60:  # names, which make it a manifest of another schema
            name = rng.choice(("digest", "schema", "files", "used", "key", "parts")).encode()
            at = whole.index(b'"%s"' % name) + 1 + rng.randrange(len(name))
            changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        file.write_bytes(changed)
        try:
            assert RunFolder(place.folder).manifest("kept") == said  # white space between two words
        except RunError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{",
        "[]",
        "{}",
        '{"recipe": 5, "overrides": []}',
        '{"recipe": "a.yaml", "overrides": [5]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_note_of_the_recipe_is_one_line_or_passed_over(
    content: str | bytes, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.folder / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = command(capsys, "release", str(place.folder))
    assert code == 2 and "run.json" in err and err.count("\n") == 1
    assert command(capsys, "report", str(place.folder))[0] == 0


def test_any_bit_of_any_file_that_flips_is_seen(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(7)
    files = [f for step in STEPS for f in sorted((place.folder / step).rglob("*")) if f.is_file()]
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(flipped(whole, rng) if whole else b"x")
        code, _, err = command(capsys, "verify", str(place.folder))
        assert code == 2 and err.count("\n") == 1, file
        file.write_bytes(whole)
    assert command(capsys, "verify", str(place.folder))[0] == 0


def test_what_is_published_is_read_whole_before(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(
        {"sft": {"sft": "rows.jsonl", "model": "base"}, "chat": {"merge": "sft"}, "release": {"release": ["chat"]}}
    )
    run = RunFolder(tmp_path / "runs/t")
    for name, node in list(graph.build(load(path), path, tmp_path / "runs").nodes.items())[:2]:
        (run.begin(name, node.key) / "weights").write_bytes(b"of " + name.encode())
        run.publish(name, {"verb": node.verb, "key": node.key, "parts": node.parts})
    weights = run.step("sft") / "weights"
    stat = weights.stat()
    weights.write_bytes(b"of sfT")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made = graph.build(load(path), path, tmp_path / "runs")
    assert [node.state for node in made.nodes.values()] == ["done", "done", "missing"]
    with pytest.raises(RunError, match="sft: weights changed since it was made; put the file back"):
        execution.execute(made, Silent())


def test_a_model_is_read_from_steps_as_they_were_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    about = {
        "base": "pypi:x",
        "adapters": ["run:a/adapter"],
        "quantize": "none",
        "dtype": "float32",
        "prompt": {"template": "own"},
        "licence": None,
    }
    for name in ("a", "b"):
        work = run.begin(name, name)
        (work / "adapter").mkdir()
        (work / "adapter/adapter_config.json").write_text('{"lora_alpha": 16}')
        write_json(work / "model.json", {**about, "adapters": ["run:a/adapter", f"run:{name}/adapter"]})
        run.publish(name, {"key": name})
    assert len(open_checkpoint(str(run.step("b"))).adapters) == 2
    (run.step("a") / "adapter/adapter_config.json").write_text('{"lora_alpha": 17}')
    with pytest.raises(RunError, match=r"a: adapter/adapter_config.json changed since it was made"):
        open_checkpoint(str(run.step("b")))
    (run.step("b") / "model.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="the description of a model expected"):
        open_checkpoint(str(run.step("b")))


def test_a_hard_link_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    known = file_digest(tmp_path / "a")
    os.link(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert file_digest(tmp_path / "b") == known
