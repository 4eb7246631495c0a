"""References to the hub's data sets, and what its clients' own exceptions become: one line with the
cause and the remedy.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub

from openbezoar.engine import graph
from openbezoar.errors import DataError
from openbezoar.publishing.licences import of_reference
from openbezoar.recipe.file import parse
from openbezoar.rows.hub import DataSetRef, cause, load_rows, raise_if_of_the_machine

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("hub:org/name", ("org/name", None, "train", None)),
        ("hub:org/name[test]", ("org/name", None, "test", None)),
        ("hub:org/name@v1.0", ("org/name", None, "train", "v1.0")),
        ("hub:openai/gsm8k/main[test]", ("openai/gsm8k", "main", "test", None)),
        ("hub:openai/gsm8k:main[test]", ("openai/gsm8k", "main", "test", None)),
        ("hub:org/name[train[:5]]", ("org/name", None, "train[:5]", None)),
        ("hub:org/name:en[train[10%:-5]]@v2", ("org/name", "en", "train[10%:-5]", "v2")),
        (
            "hub:org/na-me.x/de-DE 2[train_sft]@refs/convert/parquet",
            ("org/na-me.x", "de-DE 2", "train_sft", "refs/convert/parquet"),
        ),
    ],
)
def test_a_reference_has_a_place_for_the_configuration(ref: str, parts: tuple[Any, ...]) -> None:
    assert DataSetRef.of(ref) == parts


@pytest.mark.parametrize(
    "ref",
    [
        "hub:name",
        "hub:",
        "hub:org/name[",
        "hub:org/name[]",
        "hub:org/name[train[5]]",
        "hub:org/name:",
        "hub:a/b:c:d",
        "hub:a/b/c/d",
        "hub:org/name@",
        "hub:org/name\n",
    ],
)
def test_a_reference_that_is_none_is_told_before_anything_runs(ref: str, tmp_path: Path) -> None:
    recipe = parse({"name": "t", "models": {}, "steps": {"a": {"filter": ref}}}, "recipe")
    with pytest.raises(DataError, match=r"(?s)steps\.a\.filter: 'hub:.*expected hub:org/name:config\[split\]@revision"):
        graph.build(recipe, tmp_path / "recipe.yaml", tmp_path / "runs")


ASK = """
import json, sys, time
time.sleep = lambda seconds: None  # the clients wait between their tries
from openbezoar.errors import UserError
from openbezoar.rows.hub import load_rows
from openbezoar.models.references import fetch
said = {}
for ref in json.loads(sys.argv[1]):
    try:
        rows = ref.startswith("hub:")
        said[ref] = "rows: " + load_rows(ref)[0]["instruction"] if rows else f"folder: {fetch(ref).name}"
    except UserError as error:
        said[ref] = str(error)
print(json.dumps(said))
"""


def ask(refs: list[str], home: Path, **environment: str) -> dict[str, str]:
    """What becomes of references in a process of its own: the clients read their settings when they are imported."""
    given = {
        "HF_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(refs)],
        cwd=home,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en.jsonl}, {split: test, path: en.jsonl}]
- config_name: de-DE
  data_files: de.jsonl
---
"""
ROW = b'{"instruction": "Name a sea.", "response": "The Baltic."}\n'
MODEL = {"config.json": b"{}", "model.safetensors": b"\x02" + bytes(7) + b"{}", "tokenizer.json": b"{}"}
TOKEN = "hf_" + "Ab3" * 11


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    made = Hub()
    for kind, one in (("models", MODEL), ("datasets", {"train.jsonl": ROW})):
        made.add("org/one", one, kind)
        made.add("org/gated", one, kind, gated=True)
        made.add("org/private", one, kind, private=True)
        for name, status in (("org/busy", 429), ("org/broken", 503)):
            made.add(name, one, kind)
            made.fail("GET", name, "refuse", status=status)
    made.add("org/many", {"README.md": CARD, "en.jsonl": ROW, "de.jsonl": ROW.replace(b"sea", b"Meer")}, "datasets")
    made.add("org/script", {"script.py": b"", "rows.txt": b""}, "datasets")
    made.add("org/empty", {"README.md": b"Nothing."}, "datasets")
    made.tokens[TOKEN] = "read"
    yield made
    made.close()


SAID = {
    "hub:org/one": "rows: Name a sea.",
    "hub:org/many/en[test]": "rows: Name a sea.",
    "hub:org/many:en[test[:1]]": "rows: Name a sea.",
    "hub:org/many/de-DE": "rows: Name a Meer.",
    "hub:org/many": "the data set has several configurations: en, de-DE; name one: hub:org/many:CONFIG[train]",
    "hub:org/many/fr": "the data set has no configuration 'fr'; it has en, de-DE",
    "hub:org/one[dev]": "the data set has no split 'dev'; it has train: name one in brackets",
    "hub:org/many/en[dev]": "the data set has no split 'dev'; it has train, test",
    "hub:org/one@v9": "the data set has no such revision",
    "hub:org/gated": "the data set is gated: ask for access",
    "hub:org/private": "the hub has no such data set, or it is private",
    "hub:org/none": "the hub has no such data set, or it is private",
    "hub:org/script": (
        "the data set is a script, and no code from the hub is run; try its converted files:"
        " hub:org/script[train]@refs/convert/parquet"
    ),
    "hub:org/empty": "the data set has no files of rows",
    "org/one": "folder: ",
    "org/one@v9": "the model has no such revision",
    "org/gated": "the model is gated: ask for access",
    "org/private": "the hub has no such model, or it is private",
    "org/none": "the hub has no such model, or it is private",
    "org/busy": "the hub answered 429 Too Many Requests; it asks for a pause",
    "org/broken": "the hub answered 503 Service Unavailable; try again later",
}


KNOWN = {
    "hub:org/private": "rows: Name a sea.",
    "org/private": "folder: ",
    "hub:org/gated": "the data set is gated: ask for access",
    "org/gated": "the model is gated: ask for access",
    "org/none": "the hub has no such model, or it is private",
}
"""With a token that may read what is private, and was not let into what is gated."""
REFUSED = {
    "hub:org/private": "the hub knows no such token",
    "org/private": "the hub knows no such token",
}


def test_what_the_hub_says_is_told_with_its_cause_and_remedy(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    said = ask(list(SAID), tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    for ref, expected in SAID.items():
        assert expected in said[ref], (ref, said[ref])
        assert "\n" not in said[ref] and len(said[ref]) < 400
        assert said[ref].startswith(("rows: ", "folder: ", f"{ref}: "))
    offline = ask(
        ["hub:org/other", "org/other", "hub:org/one", "org/one"], tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"
    )
    assert all(
        "the client is offline (HF_HUB_OFFLINE); go online once" in offline[ref]
        for ref in ("hub:org/other", "org/other")
    )
    # what was fetched once stays
    assert offline["hub:org/one"] == SAID["hub:org/one"] and offline["org/one"].startswith("folder: ")
    gone = ask(["org/other"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "the hub cannot be reached (" in gone["org/other"] and "check the network" in gone["org/other"]


@pytest.mark.slow
def test_a_token_opens_what_it_may_and_is_never_shown(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    known = ask(list(KNOWN), tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN)
    (fresh := tmp_path / "fresh").mkdir()
    wrong = ask(list(REFUSED), fresh, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN + "x")
    for answers, lines in ((known, KNOWN), (wrong, REFUSED)):
        for ref, expected in lines.items():
            assert expected in answers[ref] and TOKEN not in answers[ref], (ref, answers[ref])


@pytest.mark.slow
def test_a_branch_a_tag_and_a_commit_give_each_their_own_and_no_other(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    commits: dict[str, list[str]] = {}
    for kind in ("models", "datasets"):
        first = hub.add("org/moved", {**MODEL, "train.jsonl": ROW}, kind)
        repository = hub.repositories[kind, "org/moved"]
        repository.refs |= {"v1": first}
        later = repository.commit({"config.json": b'{"a": 1}', "train.jsonl": ROW.replace(b"sea", b"lake")})
        repository.commit({"train.jsonl": ROW.replace(b"sea", b"bay")}, "some/branch")
        commits[kind] = [first, later, repository.refs["some/branch"]]
    words, refs = ("sea", "lake", "bay"), ("v1", "main", "some/branch")
    expected = {f"org/moved@{ref}": f"folder: {commit}" for ref, commit in zip(refs, commits["models"], strict=True)}
    expected |= {f"org/moved@{commit}": f"folder: {commit}" for commit in commits["models"]}
    expected |= {f"hub:org/moved@{ref}": f"rows: Name a {word}." for ref, word in zip(refs, words, strict=True)}
    expected |= {f"hub:org/moved@{c}": f"rows: Name a {w}." for c, w in zip(commits["datasets"], words, strict=True)}
    assert ask(list(expected), tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0") == expected
    # Of a data set its client gives whatever it has where it does not reach the hub: that would be other rows.
    (fresh := tmp_path / "fresh").mkdir()
    one = ["hub:org/moved@v1", "org/moved@v1"]
    ask(one, fresh, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0")
    for way in ({"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        said = ask([*expected, "hub:org/moved"], fresh, **way)
        known = {*one, f"org/moved@{commits['models'][0]}", f"hub:org/moved@{commits['datasets'][0]}", "hub:org/moved"}
        for ref, line in said.items():
            if ref in known:
                assert line == expected.get(ref, "rows: Name a sea."), (ref, line)
            elif ref.startswith("hub:"):
                assert f"the cache on this machine has the commit {commits['datasets'][0][:12]} of it only" in line
            if ref not in known:
                assert "the client is offline" in line or "the hub cannot be reached" in line, (ref, line)


def test_a_full_disk_is_the_machine_s_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def full(*_: Any, **__: Any) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        load_rows("hub:org/name")
    raise_if_of_the_machine(ValueError("a"))


def test_any_other_exception_is_quoted_and_cut() -> None:
    line = cause(RuntimeError("odd\n" * 10_000), "model")
    assert (line.startswith("the ") and "RuntimeError" in line and len(line) < 500) or "offline" in line


def test_a_licence_is_known_whatever_part_of_a_data_set_is_read() -> None:
    assert of_reference("hub:openai/gsm8k/main[test]") == of_reference("openai/gsm8k")
