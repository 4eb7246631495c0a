"""A run that is taken elsewhere goes on there to the same bytes; a damaged or hostile archive is one line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST, save_tiny_model
from warm import Commands

from openbezoar.cli.app import main
from openbezoar.errors import RunError
from openbezoar.llm import Completion
from openbezoar.llm.calls import CallStore, Spender
from openbezoar.llm.engines.kept import FOLDER
from openbezoar.store import archives
from openbezoar.store.digests import digest

STEPS: dict[str, Any] = {
    "made": {
        "generate": "orca",
        "teacher": "base",
        "seeds": "../seeds/flan.jsonl",
        "rows": 8,
        "batch": 4,
        "max_new_tokens": 8,
        "submixes": {"cot": 1},
    },
    "sft": {"sft": ["$data/rows.jsonl", "made"], "model": "base", "epochs": 1, "save_every": 2, **FAST},
    "SFT": {"merge": "sft", "drift_rows": 2},
    "tuned": {"sft": "$data/rows.jsonl", "model": "base", "epochs": 2, "save_every": 2, **FAST},
}
HALF = """
import sys
from openbezoar.training import loop
step, made = loop._step, 0
def some(*args):
    global made
    made += 1
    if made == 4:
        raise KeyboardInterrupt
    return step(*args)
loop._step = some
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run begins: a recipe with a model beside it, seeds above it and rows in a data folder elsewhere."""
    home = tmp_path_factory.mktemp("home")
    for folder in ("project/recipes", "project/seeds", "data", "tmp"):
        (home / folder).mkdir(parents=True)
    save_tiny_model(home / "project/recipes/tiny")

    def write(path: str, rows: list[dict[str, Any]]) -> None:
        (home / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    seeds = [
        {"id": f"f{i}", "submix": "cot", "task": f"t{i % 3}", "input": f"What comes after {i}?", "target": f"{i + 1}"}
        for i in range(12)
    ]
    rows = [{"id": f"r{i}", "instruction": f"Say {i}.", "response": f"The number is {i}, as asked."} for i in range(20)]
    write("project/seeds/flan.jsonl", seeds)
    write("data/rows.jsonl", rows)
    recipe = {
        "name": "t",
        "seed": 1,
        "data": str(home / "data"),
        "models": {"base": {"model": "./tiny", "dtype": "float32"}},
        "steps": STEPS,
    }
    (home / "project/recipes/t.yaml").write_text(json.dumps(recipe))
    return home


def results(run: Path) -> dict[str, bytes]:
    """All that steps made, but for what tells times and places of this machine."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for step in STEPS
        for path in (run / step).rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "metrics.jsonl")
    }


@pytest.mark.slow
def test_a_run_that_is_packed_half_way_ends_elsewhere_with_the_bytes_of_one_that_stayed(
    home: Path, tmp_path: Path, commands: Commands
) -> None:
    recipe = home / "project/recipes/t.yaml"
    whole = commands("run", str(recipe), "--runs", str(home / "whole"), "--quiet")
    assert whole.code == 0, whole.err
    begun = tmp_path / "begun"
    shutil.copytree(home, begun)
    shutil.rmtree(begun / "whole")
    text = (begun / "project/recipes/t.yaml").read_text().replace(str(home / "data"), str(begun / "data"))
    (begun / "project/recipes/t.yaml").write_text(text)
    here = ["run", str(begun / "project/recipes/t.yaml"), "--runs", str(begun / "runs"), "--quiet"]
    assert commands(*here, "--to", "SFT").code == 0
    cut = commands(*here, first=HALF)
    assert cut.code == 130, cut.err
    assert (begun / "runs/t/.work/tuned/.resume.safetensors").is_file()
    archive = tmp_path / "t.zip"
    packed = commands("pack", str(begun / "runs/t"), "-o", str(archive))
    assert packed.code == 0 and packed.out.strip() == str(archive), packed.err
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600, "it holds prompts and answers"
    begun.rename(tmp_path / "gone")  # nothing is read from there any more
    unpacked = commands(
        "unpack", str(archive), str(tmp_path / "away"), env={"OPENBEZOAR_CACHE": str(tmp_path / "other cache")}
    )
    assert unpacked.code == 0, unpacked.err
    command = shlex.split(unpacked.out)
    assert command[:2] == ["openbezoar", "run"]
    watched = (
        "from openbezoar.llm import local\ndef never(*a, **k): raise AssertionError\nlocal.LocalLLM.generate = never"
    )
    done = commands(*command[1:], first=watched, cwd=tmp_path, env={"OPENBEZOAR_CACHE": str(tmp_path / "other cache")})
    assert done.code == 0, done.err
    assert done.err.count("done in") == 2, f"only the half-made step runs: {done.err}"
    assert "training: 3/" not in done.err
    found, expected = results(tmp_path / "away/runs/t"), results(home / "whole/t")
    models = {name: json.loads(found.pop(name)) for name in list(found) if name.endswith("model.json")}
    assert {n: t for n, t in expected.items() if not n.endswith("model.json")} == found
    for name, model in models.items():
        model["base"] = model["base"].replace(str(begun), str(home))
        assert model == json.loads(expected[name]), "a finished step and a later one say the same of the base"
    again = tmp_path / "again.zip"
    assert commands("pack", str(tmp_path / "away/runs/t"), "-o", str(again)).code == 0
    (tmp_path / "away").rename(tmp_path / "gone too")
    moved = commands("unpack", str(again), str(tmp_path / "third"))
    assert commands("chat", str(tmp_path / "third/runs/t/sft"), "--prompt", "Say 1.").code == 0, "and once more"
    assert "Nothing to do" in commands(*shlex.split(moved.out)[1:]).err


@pytest.fixture(scope="module")
def begun(home: Path, commands: Commands) -> Path:
    """A run folder of which one step is done."""
    recipe = home / "project/recipes/t.yaml"
    done = commands("run", str(recipe), "--runs", str(home / "some"), "--quiet", "--to", "made")
    assert done.code == 0, done.err
    return home / "some/t"


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said.startswith("openbezoar: "), said
    return said


def packed(run: Path, target: Path, *options: str) -> Path:
    with pytest.raises(SystemExit) as end:
        main(["pack", str(run), "-o", str(target), *options])
    assert end.value.code == 0
    return target


def test_what_is_packed(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CallStore(begun.parent)
    store.keep({"theirs": [Completion("x", "stop", 1, 1)]}, Spender("other", "made", "stranger"))
    store.keep({"ours": [Completion("x", "stop", 3, 1)]}, Spender("t", "tuned", "base"))
    store.close()
    archive = packed(begun, tmp_path / "t.zip")
    with zipfile.ZipFile(archive) as inside:
        names, contents = set(inside.namelist()), json.loads(inside.read(archives.CONTENTS))
        calls = [json.loads(line) for line in inside.read("calls.jsonl").decode().splitlines()]
    assert {"recipe/recipes/t.yaml", "recipe/seeds/flan.jsonl", "recipe/recipes/tiny/model.safetensors"} <= names
    assert {"data/rows.jsonl", "run/made/rows.jsonl", "run/made/manifest.json", "spent.json"} <= names
    assert not any(".lock" in name or "run.json" in name for name in names)
    assert set(contents["files"]) == names - {archives.CONTENTS}
    assert {call[1] for call in calls} == {"base"}, "answers of models that its unfinished steps ask"
    without = packed(begun, tmp_path / "small.zip", "--no-data")
    with zipfile.ZipFile(without) as inside:
        assert not any(name.startswith("data/") or "tiny/" in name for name in inside.namelist())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["unpack", str(without), str(tmp_path / "small")])
    said = capsys.readouterr()
    assert "must lie there: " + str(tmp_path / "small/data/rows.jsonl") in said.err
    shutil.copytree(begun.parents[1] / "data", tmp_path / "small/data")
    shutil.copytree(begun.parents[1] / "project", tmp_path / "small/recipe", dirs_exist_ok=True)
    with pytest.raises(SystemExit) as end:
        main(["plan", *shlex.split(said.out)[2:], "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and {s["name"]: s["state"] for s in plan["steps"]}["made"] == "done"
    known = CallStore(tmp_path / "small/runs")
    assert known.find(["ours"]) and not known.find(["theirs"])
    assert known.accounts()["t", "tuned", "base"].prompt_tokens == 3
    known.close()


def test_equal_runs_are_equal_archives_and_hard_links_stay_links(begun: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/t"
    shutil.copytree(begun, run)
    os.link(run / "made/rows.jsonl", run / "another.jsonl")
    first, second = packed(run, tmp_path / "1.zip"), packed(run, tmp_path / "2.zip")
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(SystemExit):
        main(["unpack", str(first), str(tmp_path / "there")])
    there = tmp_path / "there/runs/t"
    assert (there / "another.jsonl").samefile(there / "made/rows.jsonl")


def test_what_engines_left_in_a_run_does_not_travel(begun: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/t"
    shutil.copytree(begun, run)
    without = packed(run, tmp_path / "without.zip").read_bytes()
    for name in ("base-0.log", "base-0.json", "models/tuned-1/model.safetensors"):
        (run / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (run / FOLDER / name).write_text("an address and a process of this machine")
    assert packed(run, tmp_path / "with.zip").read_bytes() == without


def test_a_secret_is_never_packed(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs/t"
    shutil.copytree(begun, run)
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_token")
    (run / "notes.txt").write_text("x" * (archives.CHUNK - 7) + "hf_very_secret_token")
    said = failed(capsys, "pack", str(run), "-o", str(tmp_path / "t.zip"))
    assert "notes.txt" in said and "HF_TOKEN" in said and "very_secret" not in said
    assert list(tmp_path.glob("*.zip*")) == list(tmp_path.glob(".*")) == []


def test_what_cannot_be_packed_is_one_line(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in failed(capsys, "pack", str(tmp_path / "nowhere"))
    run = tmp_path / "runs/t"
    shutil.copytree(begun, run)
    out = ("-o", str(tmp_path / "t.zip"))
    (run / "run.json").unlink()
    assert "run.json" in failed(capsys, "pack", str(run), *out)
    assert not (tmp_path / "t.zip").exists()


# ---------------------------------------------------------------------------- damaged and hostile


def again(archive: Path, target: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """The archive with other contents, whose digest is right, and other members."""
    with zipfile.ZipFile(archive) as inside:
        members = {name: inside.read(name) for name in inside.namelist()}
    contents = json.loads(members.pop(archives.CONTENTS))
    change(contents, members)
    contents["digest"] = digest({key: value for key, value in contents.items() if key != "digest"})
    with zipfile.ZipFile(target, "w") as out:
        for name, content in members.items():
            out.writestr(name, content)
        out.writestr(archives.CONTENTS, json.dumps(contents))
    return target


def renamed(path: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(contents: dict[str, Any], members: dict[str, bytes]) -> None:
        members[path] = members.pop("run/made/rows.jsonl")
        contents["files"][path] = contents["files"].pop("run/made/rows.jsonl")

    return change


def set_in(*keys: str, to: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(contents: dict[str, Any], members: dict[str, bytes]) -> None:
        at: Any = contents
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = to

    return change


ROWS = "run/made/rows.jsonl"
CHANGED = '["k", "base", 1.0, "[]", "x"]'
HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, bytes]], Any]] = {
    **{f"path {path!r}": renamed(path) for path in (
        "/etc/evil", "../evil", "run/../../evil", "run/./x", "run//x", "run\\..\\evil", "C:/evil", "run/\x1b[2J",
        "x" * 2000, "elsewhere/evil", "run", "run/made/manifest.json/x",
    )},
    "other bytes": lambda contents, members: members.update({ROWS: members[ROWS][::-1]}),
    "longer": lambda contents, members: members.update({ROWS: members[ROWS] + b"x"}),
    "one is missing": lambda contents, members: members.pop(ROWS),
    "one is not named": lambda contents, members: members.update({"run/more": b"x"}),
    "a hash that is none": set_in("files", ROWS, "sha256", to="0"),
    "a size that is none": set_in("files", ROWS, "bytes", to=-1),
    "a time that is none": set_in("files", ROWS, "time", to=1 << 200),
    "a link to nothing": set_in("files", "run/more", to={"same": "run/none", "time": 0}),
    "a link to itself": set_in("files", "run/more", to={"same": "run/more", "time": 0}),
    "a link to /etc": set_in("files", "run/more", to={"same": "/etc/passwd", "time": 0}),
    "marks of another type": set_in("files", to=[1, 2]),
    "a newer version": set_in("format", to=99),
    "a run above": set_in("about", "run", to=".."),
    "a run with folders": set_in("about", "run", to="a/b"),
    "a recipe elsewhere": set_in("about", "recipe", to="../../etc/recipe.yaml"),
    "overrides that are none": set_in("about", "overrides", to=[1]),
    "places elsewhere": set_in("about", "places", to={"/x": "../../etc"}),
    "nothing about it": set_in("about", to={}),
    "an answer that was changed": lambda contents, members: put_calls(contents, members, CHANGED),
    "answers that are none": lambda contents, members: put_calls(contents, members, "{"),
}  # fmt: skip


def put_calls(contents: dict[str, Any], members: dict[str, bytes], line: str) -> None:
    import hashlib

    members["calls.jsonl"] = text = (line + "\n").encode()
    contents["files"]["calls.jsonl"] = {"bytes": len(text), "time": 0, "sha256": hashlib.sha256(text).hexdigest()}


@pytest.fixture(scope="module")
def archive(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(begun, tmp_path_factory.mktemp("packed") / "t.zip", "--no-data")


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_one_line_and_nothing_unpacked(
    what: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = again(archive, tmp_path / "made.zip", HOSTILE[what])
    (tmp_path / "inner").mkdir()
    said = failed(capsys, "unpack", str(made), str(tmp_path / "inner/target"))
    assert "made.zip" in said and "\x1b" not in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inner", "made.zip"]


def test_links_folders_and_doubles_in_an_archive_are_refused(archive: Path, tmp_path: Path) -> None:
    def refused(tell: Callable[[zipfile.ZipFile], None]) -> str:
        shutil.copy(archive, tmp_path / "made.zip")
        with zipfile.ZipFile(tmp_path / "made.zip", "a") as out:
            tell(out)
        with pytest.raises(RunError) as error:
            archives.extract(tmp_path / "made.zip", lambda contents: tmp_path / "target")
        assert not (tmp_path / "target").exists()
        return str(error.value)

    link = zipfile.ZipInfo("run/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "a link" in refused(lambda out: out.writestr(link, "/etc/passwd"))
    assert "a folder" in refused(lambda out: out.mkdir("run/folder"))
    with pytest.warns(UserWarning, match="Duplicate"):
        assert "twice" in refused(lambda out: out.writestr(ROWS, "x"))


def test_an_archive_damaged_anywhere_is_one_line_or_the_same_files(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = archive.read_bytes()
    damaged = [whole[: len(whole) * n // 7] for n in range(7)] + [b"no zip at all"]
    for n in range(24):
        at = len(whole) * n // 24
        damaged.append(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    for number, content in enumerate(damaged):
        (tmp_path / "made.zip").write_bytes(content)
        target = tmp_path / f"target{number}"
        try:
            main(["unpack", str(tmp_path / "made.zip"), str(target)])
        except SystemExit as end:
            said = capsys.readouterr().err
            if end.code:
                assert end.code == 2 and said.count("\n") == 1 and not target.exists(), said
            else:
                assert (target / "runs/t/made/rows.jsonl").is_file()
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_unpacked_over_what_is_there(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").touch()
    assert "not empty" in failed(capsys, "unpack", str(archive), str(tmp_path / "there"))
    assert "no such file" in failed(capsys, "unpack", str(tmp_path / "none.zip"))
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["mine"]
