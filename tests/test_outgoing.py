"""Rows in other trainers' forms: read back as the same records, by our own forms and by ``datasets``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbezoar.cli.app import main
from openbezoar.errors import DataError, RowError
from openbezoar.rows.forms import to_example, to_pair, to_unpaired, unpaired_of
from openbezoar.rows.known import FORMS, Form
from openbezoar.rows.outgoing import MESSAGES, as_messages, as_preference, as_unpaired, rewritten
from openbezoar.rows.records import Example, Pair, Row, Turn, Unpaired, read_jsonl, write_jsonl

WORDS = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def prompts(draw: Callable[..., Any]) -> tuple[Turn, ...]:
    """Turns that alternate and end with the user's, with or without a system message."""
    turns = [Turn("system", draw(WORDS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        turns += [Turn("user", draw(WORDS)), Turn("assistant", draw(WORDS))]
    return (*turns, Turn("user", draw(WORDS)))


def said_before(prompt: tuple[Turn, ...]) -> list[int]:
    return [place for place, turn in enumerate(prompt) if turn.role == "assistant"]


@settings(max_examples=80, deadline=None)
@given(prompts(), WORDS, st.data())
def test_an_example_as_messages_is_read_as_the_same_example(
    prompt: tuple[Turn, ...], answer: str, data: st.DataObject
) -> None:
    places = said_before(prompt)
    earlier = tuple(place for place in places if data.draw(st.booleans()))
    example = Example("e", prompt, answer, earlier)
    assert to_example({"id": "e", **as_messages(example)}, "here") == example


@settings(max_examples=80, deadline=None)
@given(prompts(), WORDS, WORDS, st.booleans())
def test_a_pair_and_an_unpaired_answer_are_read_as_the_same_ones(
    prompt: tuple[Turn, ...], chosen: str, rejected: str, liked: bool
) -> None:
    pair = Pair("p", prompt, chosen, rejected)
    assert to_pair({"id": "p", **as_preference(pair)}, "here") == pair
    one = Unpaired("u", prompt, chosen, liked)
    assert to_unpaired({"id": "u", **as_unpaired(one)}, "here") == one


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_row_of_every_form_keeps_what_it_means_and_its_other_columns(form: Form) -> None:
    row = {"id": "r", "licence": "mit", "source": {"name": "s"}, "rating": 7.5, **form.example}
    (messages,) = rewritten(row, "messages", "here").rows
    assert to_example(messages, "there") == replace(to_example(row, "here"), notes=())
    for name in ("id", "licence", "source", "rating"):
        assert messages[name] == row[name]
    assert set(messages) - {"label"} == {"id", "licence", "source", "rating", "messages"}
    if form.kind == "pair":
        (pair,) = rewritten(row, "preference", "here").rows
        assert to_pair(pair, "there") == replace(to_pair(row, "here"), notes=())
        two = rewritten(row, "unpaired", "here").rows
        assert tuple(to_unpaired(one, "there") for one in two) == unpaired_of(replace(to_pair(row, "here"), notes=()))
        assert [one["label"] for one in two] == [True, False]
    elif form.kind == "unpaired":
        (one,) = rewritten(row, "unpaired", "here").rows
        assert to_unpaired(one, "there") == to_unpaired(row, "here")
    else:
        with pytest.raises(DataError):
            rewritten(row, "preference", "here")


def test_only_the_last_answer_of_an_hh_dialogue_is_to_be_learnt() -> None:
    row = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Bye.\n\nAssistant: So long."}
    row["rejected"] = row["chosen"][:-9] + "No."
    assert as_messages(to_example(row, "here"))["messages"] == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello.", "weight": 0},
        {"role": "user", "content": "Bye."},
        {"role": "assistant", "content": "So long."},
    ]


def test_system_messages_and_thoughts_stay() -> None:
    row = {"system": "Be brief.", "instruction": "Name a sea.", "response": "<think>\nSeas…\n</think>\n\nThe Baltic."}
    (made,) = rewritten(row, "messages", "here").rows
    assert [turn["role"] for turn in made["messages"]] == ["system", "user", "assistant"]
    assert made["messages"][0]["content"] == "Be brief." and made["messages"][2]["content"] == row["response"]


def test_what_cannot_be_learnt_is_raised_under_its_reason() -> None:
    with pytest.raises(RowError):
        rewritten({"prompt": "a", "completion": "b", "label": False}, "messages", "here")


# ------------------------------------------------------------------------------ the command

CHAT: list[Row] = [
    {"id": "a", "licence": "mit", "system": "Be brief.", "instruction": "Name a sea.", "response": "The Baltic."},
    {"id": "b", "licence": "mit", "instruction": "Name a \u2028 river.", "response": "The Oder.", "rating": 8},
]
PAIRS: list[Row] = [
    {"id": f"p{n}", "subset": "sea", "prompt": f"Name sea {n}.", "chosen": "The Baltic.", "rejected": "No."}
    for n in range(3)
]


def converted(folder: Path, rows: list[Row], *arguments: str) -> int:
    write_jsonl(folder / "rows.jsonl", rows)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(folder / "rows.jsonl"), *arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("form", "rows"), [("messages", CHAT), ("preference", PAIRS), ("unpaired", PAIRS)])
def test_datasets_and_our_own_forms_read_what_is_written(
    tmp_path: Path, form: str, rows: list[Row], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / f"out.{suffix}"
    assert converted(tmp_path, rows, "--to", form, "--out", str(out)) == 0
    count = len(rows) * (2 if form == "unpaired" else 1)
    assert f"out.{suffix}: {count} rows" in capsys.readouterr().err
    kind = "json" if suffix == "jsonl" else "parquet"
    read = list(datasets.load_dataset(kind, data_files=str(out), split="train", cache_dir=str(tmp_path / "cache")))
    assert len(read) == count and all(isinstance(row[name], list) for row in read for name in MESSAGES[form])
    back: dict[str, Callable[[Row, str], Any]] = {
        "messages": to_example,
        "preference": to_pair,
        "unpaired": to_unpaired,
    }
    expected = [one for row in rows for one in rewritten(row, form, "here").rows]
    assert [back[form](row, "there") for row in read] == [back[form](row, "here") for row in expected]
    assert [row["id"] for row in read] == [row["id"] for row in expected]
    assert [row.get("licence") for row in read] == [row.get("licence") for row in expected]
    assert not list(tmp_path.glob(".out*"))


def test_a_step_goes_by_its_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", CHAT)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path), "--to", "messages", "--out", str(tmp_path / "out.jsonl")])
    assert not ended.value.code and len(list(read_jsonl(tmp_path / "out.jsonl"))) == len(CHAT)


def test_weights_are_in_the_parquet_file_where_a_conversation_has_them(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    talk = [{"role": r, "content": c} for r, c in (("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."))]
    last = {"role": "assistant", "content": "So long."}
    rows = [{"messages": [talk[0], {**talk[1], "weight": 0}, talk[2], last]}, {"messages": [*talk, last]}]
    assert converted(tmp_path, rows, "--to", "messages", "--out", str(tmp_path / "out.parquet")) == 0
    first, second = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [one["weight"] for one in first["messages"]] == [None, 0, None, None]
    assert to_example(first, "here").earlier == () and to_example(second, "here").earlier == (1,)


def test_what_is_changed_or_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "Bye."},
            ]
        },
        {"messages": []},
    ]
    assert converted(tmp_path, rows, "--to", "messages", "--out", str(tmp_path / "out.jsonl")) == 0
    assert "1 rows; 1 turns after the last answer left out, 1 an empty list of messages" in capsys.readouterr().err
    assert len(list(read_jsonl(tmp_path / "out.jsonl"))) == 1


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (CHAT, ("--to", "mesages", "--out", "out.jsonl"), "no form 'mesages'"),
        (CHAT, ("--to", "messages", "--out", "out.csv"), "expected a file that ends in .jsonl or .parquet"),
        (CHAT, ("--to", "preference", "--out", "out.jsonl"), "row a"),
        (
            [{"messages": []}],
            ("--to", "messages", "--out", "out.jsonl"),
            "no row can be written as messages (1 an empty",
        ),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[Row],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert converted(tmp_path, rows, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
