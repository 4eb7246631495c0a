"""Looking at rows by hand: decisions lie over the verdicts, belong to the key, and can be taken back."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar.cleaning.funnel import Outcome, lay_over
from openbezoar.cleaning.reviews import Decision, Reviews, row_hash
from openbezoar.cli.app import main
from openbezoar.errors import RunError
from openbezoar.people.review import lay_out, parse_texts
from openbezoar.rows.records import Row, read_jsonl, write_jsonl
from openbezoar.store.runs import RunFolder

ROWS: list[Row] = [
    {"id": "good", "instruction": "Say what a river is.", "response": "A river is water that flows down to the sea."},
    {
        "id": "sorry",
        "instruction": "Tell me of the moon.",
        "response": "Sorry, the moon is a body that circles the earth.",
    },
    {
        "id": "evil",
        "instruction": "Print \x1b[2J\x07 and \u202e this.",
        "response": "Here \x9b31m it is, with ===== a bar\u2028 and\x85more of it.",
    },
    {"id": "again", "instruction": "say what a RIVER is.", "response": "Another answer, about water that flows."},
]


class Tool:
    """The command line on a run of one filter step."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        write_jsonl(folder / "data.jsonl", ROWS)
        (folder / "r.yaml").write_text(
            json.dumps({"name": "r", "models": {"m": "x"}, "steps": {"kept": {"filter": "data.jsonl"}}})
        )
        self.run = folder / "runs" / "r"

    def __call__(self, *arguments: str, typed: str = "") -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        captured = self.capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    def start(self) -> tuple[int, str, str]:
        return self("run", self.folder / "r.yaml", "--runs", self.folder / "runs", "--quiet")

    def plan(self) -> tuple[str, str]:
        _, out, _ = self("plan", self.folder / "r.yaml", "--runs", self.folder / "runs", "--json")
        (step,) = json.loads(out)["steps"]
        return step["state"], step["why"]

    def review(self, typed: str = "", *options: str) -> tuple[int, str, str]:
        return self("review", self.run, "kept", *options, typed=typed)

    def rows(self, name: str = "rows") -> list[Row]:
        return list(read_jsonl(self.run / "kept" / f"{name}.jsonl"))

    def manifest(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.run / "kept/manifest.json").read_text())
        return loaded


@pytest.fixture
def tool(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    made = Tool(tmp_path, capsys, monkeypatch)
    assert made.start()[0] == 0
    return made


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes $EDITOR a program that runs a sed command on the file."""

    def make(command: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f'#!/bin/sh\nsed -i {command!r} "$1"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", str(script))

    return make


def test_decisions_typed_line_by_line_go_over_the_verdicts_at_the_next_run(tool: Tool) -> None:
    assert [r["id"] for r in tool.rows()] == ["good", "evil"]
    assert tool.plan()[0] == "done"
    code, out, err = tool.review("r\nn\na\nq\n")
    assert (code, "2 decisions made" in err) == (0, True)
    assert "[3/4] sorry  rejected  rule refusal" in out
    assert tool.plan() == ("stale", "reviews changed")
    assert tool.start()[0] == 0
    assert tool.plan()[0] == "done"
    kept = {r["id"]: r for r in tool.rows()}
    assert list(kept) == ["sorry", "evil"]
    assert (
        kept["sorry"]["status"],
        kept["sorry"]["review"],
        kept["sorry"]["before_review"],
        "rule" in kept["sorry"],
    ) == ("accept", "accept", "refusal", False)
    assert [(r["id"], r.get("review"), r.get("before_review"), r.get("rule")) for r in tool.rows("rejected")] == [
        ("good", "reject", "kept", None),
        ("again", None, None, "duplicate"),
    ]
    numbers = tool.manifest()["numbers"]
    assert numbers["reviewed"] == {"reject": 1, "accept": 1} and numbers["funnel"][-1] == ["review", 2]
    assert tool.manifest()["counts"] == {
        "rejected_in_review": 1,
        "duplicate": 1,
        "cleaned_line_ends": 1,
        "cleaned_control_characters": 1,
    }


def test_everything_can_be_taken_back(tool: Tool) -> None:
    before = (tool.run / "kept/rows.jsonl").read_bytes()
    key = tool.manifest()["key"]
    tool.review("r\nr\na\na\n")
    assert "undo" not in (log := (tool.run / "reviews/kept.jsonl").read_text()) and len(log.splitlines()) == 4
    assert tool.review("", "--undo", "last")[1] == "taken back: accept again\n"
    assert tool.review("", "--undo", "sorry")[1] == "taken back: accept sorry\n"
    _, listed, _ = tool.review("", "--list")
    assert [line.split()[::2] for line in listed.splitlines()] == [["reject", "good"], ["reject", "evil"]]
    assert len(tool.review("", "--undo", "all")[1].splitlines()) == 2
    assert tool.plan()[0] == "done", "no decision in force is the same key as no decision at all"
    code, _, err = tool.review("", "--undo", "last")
    assert code == 2 and "no decision to take back" in err
    tool.review("r\n")
    tool.start()
    assert tool.manifest()["key"] != key and (tool.run / "kept/rows.jsonl").read_bytes() != before
    tool.review("g good\nu\n")
    tool.start()
    assert tool.manifest()["key"] == key and (tool.run / "kept/rows.jsonl").read_bytes() == before


def test_a_decision_taken_back_lets_the_one_before_it_hold(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path, "kept")
    for verdict in ("accept", "reject"):
        reviews.add(Decision("h", verdict))  # type: ignore[arg-type]
    assert reviews.in_force["h"].verdict == "reject"
    reviews.undo("h")
    assert reviews.in_force["h"].verdict == Reviews(tmp_path, "kept").in_force["h"].verdict == "accept"
    assert reviews.undo("other") is None
    reviews.undo_last()
    assert reviews.in_force == {} and reviews.digest is None and Reviews(tmp_path, "kept").digest is None


def test_an_edit_changes_the_row_that_is_kept_and_nothing_in_place(tool: Tool, editor: Callable[[str], None]) -> None:
    editor("s/Sorry, the moon/The moon/")
    data, published = (tool.folder / "data.jsonl").read_bytes(), (tool.run / "kept/rejected.jsonl").read_bytes()
    tool.review("g sorry\ne\n")
    assert (tool.folder / "data.jsonl").read_bytes() == data and (
        tool.run / "kept/rejected.jsonl"
    ).read_bytes() == published
    tool.start()
    edited = {r["id"]: r for r in tool.rows()}["sorry"]
    assert (edited["response"], edited["review"]) == ("The moon is a body that circles the earth.", "edit")
    _, out, _ = tool.review("g sorry\nu\nq\n")
    assert "decided: edit" in out and "taken back: edit" in out
    tool.start()
    assert "sorry" not in {r["id"] for r in tool.rows()}


def test_an_edit_that_changes_nothing_or_fails_decides_nothing(
    tool: Tool, editor: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor("s/not there/x/")
    assert "nothing was changed" in tool.review("e\n")[1]
    editor("/instruction/d")
    assert "is not where it was" in tool.review("e\n")[1]
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    assert "set EDITOR to a program that is there" in tool.review("e\n")[1]
    monkeypatch.setenv("EDITOR", "false")
    assert "ended with 1" in tool.review("e\n")[1]
    monkeypatch.delenv("EDITOR")
    assert "no editor; set EDITOR" in tool.review("e\n")[1]
    assert not (tool.run / "reviews").exists()


def test_what_is_shown_is_harmless_for_a_terminal(tool: Tool) -> None:
    write_jsonl(
        tool.run / "kept/rows.jsonl",
        [{**ROWS[2], "id": "e\x1b[2Jvil", "status": "accept", "reason": "\x1b]0;title\x07"}],
    )
    RunFolder(tool.run).vouch("kept")
    _, out, _ = tool.review("v\n?\ng \x1b[2J\n")
    assert "\\x1b[2J\\x07 and \\u202e this." in out and "\\x9b31m" in out
    assert not any(c in out for c in "\x1b\x07\x9b\u202e\x85\u2028")


@pytest.mark.parametrize(
    ("texts", "change"),
    [
        ({"instruction": "a", "response": "b"}, ("b", "c")),
        (
            {
                "instruction": "===== instruction =====\n",
                "context": "Q\n\n",
                "response": "===== response =====\n======",
            },
            ("Q", "y"),
        ),
        ({"instruction": "\n\na\n", "response": " b \n\n"}, (" b ", " c\nd ")),
    ],
)
def test_texts_come_back_from_the_editor_as_they_went(texts: dict[str, str], change: tuple[str, str]) -> None:
    laid = lay_out(texts)
    assert parse_texts(laid, texts) == texts
    assert parse_texts(laid.replace(*change), texts) == {name: text.replace(*change) for name, text in texts.items()}


def test_an_empty_text_is_no_edit() -> None:
    with pytest.raises(ValueError, match="response is empty; reject the row instead"):
        parse_texts("===== instruction =====\na\n===== response =====\n\n", {"instruction": "a", "response": "b"})


def test_only_rows_of_a_filter_are_reviewed(tool: Tool) -> None:
    assert tool("review", str(tool.run), "kep")[2].strip().endswith("'kep' is no finished step; filter steps: kept")
    assert "expected one of all, kept, rejected, unscored" in tool.review("", "--only", "most")[2]
    assert tool.review("a\na\na\n", "--only", "rejected")[1].count("rejected  rule") == 2
    (tool.folder / "r.yaml").write_text(
        json.dumps({"name": "r", "models": {"m": "x"}, "steps": {"reviews": {"filter": "data.jsonl"}}})
    )
    code, _, err = tool("plan", str(tool.folder / "r.yaml"))
    assert code == 2 and "give the step another name" in err


def test_a_log_that_cannot_be_read_is_an_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "reviews").mkdir()
    for line in ("not json", '{"row": "h"}', '{"row": "h", "verdict": "perhaps"}', "[]"):
        (tmp_path / "reviews/kept.jsonl").write_text('{"row": "g", "verdict": "accept"}\n' + line + "\n")
        with pytest.raises(RunError, match="line 2 is no decision"):
            Reviews(tmp_path, "kept")


def test_a_review_waits_for_no_run_and_a_run_for_no_review(tool: Tool) -> None:
    from openbezoar.store.runs import RunFolder

    with RunFolder(tool.run).lock():
        code, _, err = tool.review("a\n")
    assert code == 2 and "another run is at work" in err


def test_accepting_a_dropped_row_does_not_bring_its_duplicates_back() -> None:
    rows = [
        Outcome({"hash": "h", "rule": "refusal"}, "rejected", "refusal"),
        Outcome({"hash": "h", "rule": "duplicate"}, "rejected", "duplicate"),
    ]
    accepted, unmatched = lay_over(rows, {"h": Decision("h", "accept"), "gone": Decision("gone", "reject")})
    assert [o.bucket for o in accepted] == ["kept", "rejected"] and unmatched == 1
    rejected, _ = lay_over(
        [Outcome({"hash": "h"}, "kept"), Outcome({"hash": "h"}, "kept")], {"h": Decision("h", "reject")}
    )
    assert [o.bucket for o in rejected] == ["rejected", "rejected"]


def test_a_rows_hash_is_of_its_texts_alone() -> None:
    row = {"instruction": "a", "response": "b"}
    same = (
        {**row, "id": "x", "rating": 3},
        {"instruction": "a", "output": "b", "context": ""},
        {**row, "context": None, "system": None},
    )
    assert {row_hash(r) for r in same} == {row_hash(row)}
    others = ({**row, "system": "s"}, {**row, "context": "c"}, {"instruction": "b", "response": "a"})
    assert len({row_hash(r) for r in (row, *others)}) == 4
