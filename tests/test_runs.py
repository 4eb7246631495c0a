"""Publishing and locks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openbezoar.errors import RunError
from openbezoar.stats.seeds import step_seed
from openbezoar.store.digests import digest, file_digest
from openbezoar.store.runs import RunFolder


def test_publish_replaces_an_old_result_and_drops_what_was_for_resuming(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    for version in ("old", "new"):
        work = run.begin("s", version)
        (work / "value").write_text(version)
        (work / ".resume-x.jsonl").write_text("x")
        run.publish("s", {"key": version})
    assert (run.step("s") / "value").read_text() == "new"
    assert sorted(p.name for p in run.step("s").iterdir()) == ["manifest.json", "value"]
    assert not any((run.path / ".work").iterdir())


@pytest.mark.parametrize("moment", ["before the renames", "between the renames", "before the old one is gone"])
def test_a_kill_inside_publish_leaves_a_whole_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = RunFolder(tmp_path / "r")
    (run.begin("s", "old") / "value").write_text("old")
    run.publish("s", {"key": "old"})
    (run.begin("s", "new") / "value").write_text("new")
    rename, done = Path.rename, []

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    def renaming(path: Path, target: Path) -> Path:
        if moment == "before the renames" or (moment == "between the renames" and done):
            killed()
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", renaming)
        if moment == "before the old one is gone":
            patched.setattr("shutil.rmtree", killed)
        run.publish("s", {"key": "new"})
    assert len(done) == ["before the renames", "between the renames", "before the old one is gone"].index(moment)
    run.recover()
    assert (run.step("s") / "value").read_text() == "new"
    assert (run.manifest("s") or {})["key"] == "new" and not run.step("s.old").exists()
    assert not any((run.path / ".work").iterdir())


@pytest.mark.parametrize("other", [None, "half", "done"])
def test_a_step_whose_name_ends_like_an_old_result_keeps_its_work(tmp_path: Path, other: str | None) -> None:
    run = RunFolder(tmp_path / "r")
    if other:
        (run.begin("s", "k") / "value").write_text("other")
    if other == "done":
        run.publish("s", {"key": "k"})
    (run.begin("s.old", "k") / "half").write_text("x")
    run.recover()
    assert run.step("s").exists() == (other == "done")
    assert (run.begin("s.old", "k") / "half").is_file()


def test_begin_keeps_work_of_the_same_key_only(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    (run.begin("s", "k1") / "half").write_text("x")
    assert (run.begin("s", "k1") / "half").is_file()
    assert not (run.begin("s", "k2") / "half").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "r")
    with run.lock(), pytest.raises(RunError, match="another run is at work"), RunFolder(tmp_path / "r").lock():
        pass


def test_digests_and_seeds_are_stable_and_tell_things_apart(tmp_path: Path) -> None:
    assert digest({"b": 1, "a": [1, 2]}) == digest({"a": [1, 2], "b": 1}) != digest({"a": [2, 1], "b": 1})
    assert step_seed(7, "x", 1) == step_seed(7, "x", 1) != step_seed(7, "x", 2)
    assert 0 <= step_seed(7, "x") < 2**63
    (tmp_path / "f").write_bytes(b"")
    assert file_digest(tmp_path / "f") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
