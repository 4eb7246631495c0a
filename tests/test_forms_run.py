"""Published forms from a file's name in a recipe to a trained adapter and a report, with every row accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST

import openbezoar as ob
from openbezoar.rows.records import Row, write_jsonl

ROWS = 24


def said(role: str, content: str | None, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def shared(number: int) -> Row:
    """A row of a ShareGPT dump, of two exchanges."""
    turns = [("human", f"Say {number}."), ("gpt", f"It is {number}."), ("human", "More."), ("gpt", f"{number}, again.")]
    return {"id": f"s{number}", "conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def rated(number: int) -> Row:
    """A row like UltraFeedback's."""
    asked = said("user", f"Say {number}.")
    chosen, rejected = said("assistant", f"It is {number}."), said("assistant", "No way.")
    return {
        "prompt": asked["content"],
        "chosen": [asked, chosen],
        "rejected": [asked, rejected],
        "messages": [asked, chosen],
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    }


@pytest.mark.slow
def test_a_sharegpt_dump_and_ultrafeedback_s_pairs_in_parquet_are_trained_on_by_their_names_alone(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    trained = {**FAST, "epochs": 1, "heldout_every": 6, "max_length": 512}
    path = write_recipe(
        {
            "chat": {"sft": "dump.jsonl", "model": "base", **trained},
            "whole": {"merge": "chat"},
            "preferred": {"dpo": "feedback.parquet", "model": "whole", **trained},
            "report": {"report": "all"},
        }
    )
    tool = {"id": "t", "conversations": [*shared(0)["conversations"], {"from": "observation", "value": "1"}]}
    rest = {"id": "r", "conversations": [*shared(1)["conversations"], {"from": "human", "value": "And?"}]}
    write_jsonl(path.parent / "dump.jsonl", [*map(shared, range(ROWS)), tool, rest])
    equal = {**rated(0), "rejected": rated(0)["chosen"]}
    other = {**rated(1), "rejected": [said("user", "Say 2."), said("assistant", "No.")]}
    parquet.write_table(
        arrow.Table.from_pylist([*map(rated, range(ROWS)), equal, other]), path.parent / "feedback.parquet"
    )
    run = ob.run(path, runs=tmp_path / "runs", quiet=True)
    counts = {step: run.manifest(step)["counts"] for step in ("chat", "preferred")}
    assert counts["chat"] == {"tool calls": 1, "turns after the last answer left out": 1}
    assert counts["preferred"] == {"chosen equals rejected": 1, "chosen and rejected have different prompts": 1}
    for step, rows in (("chat", ROWS + 1), ("preferred", ROWS)):
        numbers = run.manifest(step)["numbers"]
        assert numbers["rows"] + numbers["heldout_rows"] == rows
    assert "tool calls" in json.dumps((tmp_path / "runs/t/report/report.md").read_text())
