"""Forms of rows: every field that speaks to a model is used or refused by name, whoever reads the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openbezoar.context import StepContext
from openbezoar.errors import DataError, RowError
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import DataSpec
from openbezoar.recipe.data_steps import Filter
from openbezoar.recipe.schema import Recipe
from openbezoar.rows.forms import BESIDE, to_example, to_pair, to_prompt
from openbezoar.rows.records import Counts, JsonLines, Row, Turn, write_jsonl
from openbezoar.rows.sources import select
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.filter import work as filtering
from openbezoar.verbs.filter.check import read_labelled
from openbezoar.verbs.generate.work import seed_rows
from openbezoar.verbs.judge.human_pairs import read_pairs

INSTRUCTION: Row = {"instruction": "Name a sea.", "response": "The Baltic."}
TASK: Row = {"input": "Name a sea.", "target": "The Baltic."}
PAIR: Row = {"prompt": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."}
ASKED: Row = {"instruction": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."}
BEFORE = "\n\nHuman: Name a sea.\n\nAssistant: The Baltic.\n\nHuman: Another."
WHOLE: Row = {"chosen": f"{BEFORE}\n\nAssistant: The Aral.", "rejected": f"{BEFORE}\n\nAssistant: No."}
APART: Row = {
    "prompt": f"{BEFORE} \n\nAssistant:",
    "response": " The Aral.",
    "chosen": " The Aral.",
    "rejected": " No.",
}
JUDGED: Row = {"instruction": "Name a sea.", "output_1": "The Baltic.", "output_2": "No.", "human_majority": 1}
LABELLED: Row = {"prompt": "Name a sea.", "completion": "The Baltic.", "label": True}


def context(folder: Path, rows: list[Row]) -> StepContext:
    write_jsonl(folder / "rows.jsonl", rows)
    recipe = Recipe.model_validate(
        {"name": "t", "models": {"base": {"model": "m"}}, "steps": {"s": {"filter": "rows.jsonl"}}}
    )
    return StepContext("s", recipe, folder, RunFolder(folder / "run"), folder, 1, PlainProgress(quiet=True))


def filtered(row: Row, folder: Path) -> Row:
    """What a filter's judge is shown."""
    filtering.run(Filter(filter="rows.jsonl"), context(folder, [row]))
    return next(iter(JsonLines(folder / "rows.jsonl")))


def seeds_of(*fields: str) -> Callable[[Row, Path], Any]:
    return lambda row, folder: seed_rows("rows.jsonl", fields, context(folder, [row]))


READERS: dict[str, tuple[Row, Callable[[Row, Path], Any], set[str]]] = {
    "instruction": (INSTRUCTION, lambda row, _: to_example(row, "row"), {"system", "context"}),
    "task": (TASK, lambda row, _: to_example(row, "row"), {"system", "input"}),
    "pair": (PAIR, lambda row, _: to_pair(row, "row"), {"system", "context"}),
    "pair of an instruction": (ASKED, lambda row, _: to_pair(row, "row"), {"system", "context"}),
    "dialogues": (WHOLE, lambda row, _: to_pair(row, "row"), {"system"}),
    "a dialogue and answers": (APART, lambda row, _: to_pair(row, "row"), {"system"}),
    "example of a pair": (PAIR, lambda row, _: to_example(row, "row"), {"system", "context"}),
    "example of dialogues": (WHOLE, lambda row, _: to_example(row, "row"), {"system"}),
    "prompt": (INSTRUCTION, lambda row, _: to_prompt(row, "row"), {"system", "context"}),
    "filter": (INSTRUCTION, filtered, {"system", "context"}),
    "seed": (INSTRUCTION, seeds_of("instruction"), {"context"}),
    "seed of orca": ({**TASK, "task": "t", "submix": "cot"}, seeds_of("submix", "task", "input"), {"input"}),
    "human pair": (
        JUDGED,
        lambda row, _: read_pairs([row], Counts())[0].question.turns,
        {"system", "context", "input"},
    ),
    "labelled": (
        LABELLED,
        lambda row, _: read_labelled([row], "label", Counts())[0].asked,
        {"system", "context", "input"},
    ),
}


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize("field", list(BESIDE))
def test_a_field_that_speaks_to_the_model_is_used_or_refused_by_name(name: str, field: str, tmp_path: Path) -> None:
    row, read, uses = READERS[name]
    if field in row:
        assert "Name a sea." in str(read(row, tmp_path))
        return
    said = {**row, field: "Speak of the north."}
    if field in uses:
        assert "Speak of the north." in str(read(said, tmp_path))
    else:
        with pytest.raises(
            DataError, match=f"'{field}' belongs to the prompt and would be left out; .*rename: {{{field}: "
        ):
            read(said, tmp_path)
    for nothing in (None, "", [], {}):
        empty = {**row, field: nothing}
        if field not in uses or isinstance(nothing, str | None):
            read(empty, tmp_path)
    if field in uses:
        with pytest.raises(DataError, match=f"'{field}' is a list; expected a text"):
            read({**row, field: ["Speak of the north."]}, tmp_path)


@pytest.mark.parametrize("name", list(READERS))
def test_notes_are_ignored_and_so_is_what_stands_in_the_prompt_already(name: str, tmp_path: Path) -> None:
    row, read, _ = READERS[name]
    plain = str(read(row, tmp_path))
    assert "north" not in str(read({**row, "unused": "north", "score_chosen": 0.5, "tags": [1]}, tmp_path)) or name in (
        "filter",
        "seed",
        "seed of orca",
    )
    assert plain == str(read(row, tmp_path))
    assert read({**row, "system_prompt": "Name a sea."}, tmp_path)


def test_dialogues_with_answers_apart_are_the_pairs_that_whole_dialogues_are() -> None:
    whole = to_pair(WHOLE, "row")
    assert whole.prompt == (Turn("user", "Name a sea."), Turn("assistant", "The Baltic."), Turn("user", "Another."))
    assert to_pair(APART, "row") == whole
    assert to_pair({**WHOLE, "prompt": APART["prompt"]}, "row") == whole  # with the prompt beside whole dialogues
    assert to_pair({**APART, "prompt": APART["prompt"].removesuffix("\n\nAssistant:")}, "row") == whole
    assert to_pair({**APART, "prompt": APART["prompt"].lstrip("\n")}, "row") == whole
    assert to_example({"instruction": APART["prompt"], "response": "The Aral."}, "row").prompt == whole.prompt
    assert to_pair({**APART, "system": "Be brief."}, "row").prompt == (Turn("system", "Be brief."), *whole.prompt)


@pytest.mark.parametrize(
    "prompt", ["Human: a noun. Define it.", "What does 'Assistant:' mean?", "Tell me.\n\nHuman: is that a word?"]
)
def test_a_prompt_that_only_speaks_of_markers_stays_one_turn(prompt: str) -> None:
    pair = to_pair({**PAIR, "prompt": prompt, "chosen": " a "}, "row")
    assert pair.prompt == (Turn("user", prompt),) and pair.chosen == " a "


@pytest.mark.parametrize(
    "prompt",
    [
        "\n\nHuman: a\n\nAssistant: Sure,",
        "A chat.\n\nHuman: a\n\nAssistant:",
        "\n\nAssistant: hello\n\nHuman: a\n\nAssistant:",
    ],
)
def test_a_dialogue_that_does_not_end_where_an_answer_begins_is_dropped_by_name(prompt: str) -> None:
    with pytest.raises(RowError) as caught:
        to_pair({**PAIR, "prompt": prompt}, "row")
    assert caught.value.reason == "not a dialogue that ends where an answer begins"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "rows of messages (messages) are not read"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ShareGPT's conversations (conversations) are not read"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "unpaired preferences (prompt, completion, label) are not read",
        ),
        ({"prompt": "a", "completion": "b"}, "add rename: {prompt: instruction, completion: response}"),
        ({"question": "a", "answer": "b"}, "add rename: {question: instruction, answer: response}"),
        ({"question": "a", "response": "b"}, "add rename: {question: instruction}"),
        ({"text": "a"}, "plain texts (text) are not read"),
        ({"id": 1}, "no field 'instruction' (with 'response'), 'input' (with 'target') or 'chosen'; it has id"),
    ],
)
def test_a_form_that_is_not_read_is_told_by_its_name(row: Row, said: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, "file: row 1")
    assert str(caught.value).startswith("file: row 1: ") and said in str(caught.value)


@pytest.mark.parametrize("name", ["pair", "filter", "seed"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_every_reader_tells_a_form_by_its_name(name: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"row 1: .* \(" + field + r"\) are not read; write each as instruction and response|row: .* are not read",
    ):
        READERS[name][1]({field: []}, tmp_path)


def test_rows_of_which_none_can_be_used_stop_a_step_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"rows.jsonl: no row can be used \(1 not a dialogue that ends where an answer begins\); bring other rows",
    ):
        context(tmp_path, [{"instruction": "\n\nHuman: a\n\nAssistant: b"}]).converted("rows.jsonl", to_prompt)


def test_pairs_are_not_told_to_be_renamed_into_instructions() -> None:
    with pytest.raises(DataError, match="unpaired preferences"):
        to_pair({"prompt": "a", "completion": "b", "label": True}, "row")
    with pytest.raises(DataError, match="no field 'chosen'"):
        to_pair({"prompt": "a", "response": "b"}, "row")


MESSAGES = [{"role": "assistant", "content": "The Baltic."}]


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (MESSAGES, "a list of messages, which is not read"),
        (["a"], "a list"),
        ({}, "an object"),
        ({1: 2}, "an object"),
    ],
)
def test_a_field_that_is_there_and_no_text_is_told_as_what_it_is(
    name: str, value: Any, kind: str, tmp_path: Path
) -> None:
    row, read, _ = READERS[name]
    fields = [
        field
        for field in row
        if field not in ("label", "human_majority", "system")
        and not (name.startswith(("seed", "prompt")) and field in ("response", "target"))
    ]
    for field in fields:
        if name == "a dialogue and answers" and field == "response":
            continue  # a note beside a pair
        with pytest.raises(DataError, match=f"'{field}' is {kind}; expected a text"):
            read({**row, field: value}, tmp_path)


def test_a_null_beside_a_text_under_another_name_is_none() -> None:
    assert to_example({"instruction": "a", "response": None, "output": "b"}, "row").answer == "b"
    with pytest.raises(DataError, match="row: 'output' is null; expected a text"):
        to_example({"instruction": "a", "output": None}, "row")


def test_a_field_that_is_renamed_takes_the_place_of_one_of_that_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "a", "input": "b", "context": "", "output": "c"}])
    (row,) = select(
        JsonLines(tmp_path / "rows.jsonl"), DataSpec(data="x", rename={"input": "context", "output": "response"}), 1
    )
    assert row == {"instruction": "a", "context": "b", "response": "c"}
