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
import json, sys
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


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fake_hub.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


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
    "hub:org/denied": "the data set is gated: ask for access",
    "hub:org/private": "the hub has no such data set, or it is private",
    "hub:org/none": "the hub has no such data set, or it is private",
    "hub:org/script": (
        "the data set is a script, and no code from the hub is run; try its converted files:"
        " hub:org/script[train]@refs/convert/parquet"
    ),
    "hub:org/empty": "the data set has no files of rows",
    "org/one": "folder: aaaa",
    "org/one@v9": "the model has no such revision",
    "org/gated": "the model is gated: ask for access",
    "org/private": "the hub has no such model, or it is private",
    "org/none": "the hub has no such model, or it is private",
    "org/busy": "the hub answered 429 Too Many Requests; it asks for a pause",
    "org/broken": "the hub answered 503 Service Unavailable; try again later",
}


def test_what_the_hub_says_is_told_with_its_cause_and_remedy(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    said = ask(list(SAID), tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    for ref, expected in SAID.items():
        assert expected in said[ref], (ref, said[ref])
        assert "\n" not in said[ref] and len(said[ref]) < 400
        assert said[ref].startswith(("rows: ", "folder: ", f"{ref}: "))
    offline = ask(
        ["hub:org/other", "org/other", "hub:org/one", "org/one"], tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1"
    )
    assert all(
        "the client is offline (HF_HUB_OFFLINE); go online once" in offline[ref]
        for ref in ("hub:org/other", "org/other")
    )
    # what was fetched once stays
    assert offline["hub:org/one"] == SAID["hub:org/one"] and offline["org/one"].startswith("folder: ")
    gone = ask(["org/other"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "the hub cannot be reached (" in gone["org/other"] and "check the network" in gone["org/other"]


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
