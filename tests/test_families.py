"""The table of model families: what docs/families.json says is what becomes of tiny random models now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from family_table import FAMILIES, FOUND, YES, found

SAID = json.loads(FOUND.read_text(encoding="utf-8"))
FEW = ("Llama 3", "LFM 2")  # the others are slow


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_does_what_the_table_says(name: str, tmp_path: Path) -> None:
    assert {"type": FAMILIES[name].type, **found(FAMILIES[name], tmp_path / "x")} == SAID[name]


def test_every_family_is_in_the_table_and_what_is_refused_is_said_in_one_line() -> None:
    assert list(SAID) == list(FAMILIES)
    for family in SAID.values():
        said = [text for column, text in family.items() if column != "learnt"]
        assert all(text and "\n" not in text and "Traceback" not in text for text in said)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "trains" in SAID[name]])
def test_only_the_answer_and_the_end_of_its_turn_are_learnt(name: str) -> None:
    assert SAID[name]["learnt"].strip().startswith("Yes.") or "</think>" in SAID[name]["learnt"]
    assert SAID[name]["learnt"].rstrip("\n").endswith(FAMILIES[name].end)
    assert SAID[name]["trains"] == SAID[name]["merges"] == YES
