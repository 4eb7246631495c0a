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
from openbezoar.rows.forms import to_example, to_pair, to_prompt, to_unpaired, unpaired_of
from openbezoar.rows.known import BESIDE, FORMS, SYSTEM, Form
from openbezoar.rows.records import Counts, JsonLines, Row, Turn, write_jsonl
from openbezoar.rows.sources import read, select
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
SEA = [{"role": "user", "content": "Name a sea."}]
BALTIC = {"role": "assistant", "content": "The Baltic."}
CONVERSATION: Row = {"messages": [*SEA, BALTIC]}
LISTS: Row = {"chosen": [*SEA, BALTIC], "rejected": [*SEA, {"role": "assistant", "content": "No."}]}
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
    "instruction": (INSTRUCTION, lambda row, _: to_example(row, "row"), {*SYSTEM, "context", "input"}),
    "task": (TASK, lambda row, _: to_example(row, "row"), {*SYSTEM, "input"}),
    "pair": (PAIR, lambda row, _: to_pair(row, "row"), {*SYSTEM, "context", "input"}),
    "pair of an instruction": (ASKED, lambda row, _: to_pair(row, "row"), {*SYSTEM, "context", "input"}),
    "dialogues": (WHOLE, lambda row, _: to_pair(row, "row"), {*SYSTEM}),
    "a dialogue and answers": (APART, lambda row, _: to_pair(row, "row"), {*SYSTEM}),
    "example of a pair": (PAIR, lambda row, _: to_example(row, "row"), {*SYSTEM, "context", "input"}),
    "example of dialogues": (WHOLE, lambda row, _: to_example(row, "row"), {*SYSTEM}),
    "prompt": (INSTRUCTION, lambda row, _: to_prompt(row, "row"), {*SYSTEM, "context", "input"}),
    "conversation": (CONVERSATION, lambda row, _: to_example(row, "row"), {*SYSTEM}),
    "pair of messages": (LISTS, lambda row, _: to_pair(row, "row"), {*SYSTEM}),
    "unpaired": (LABELLED, lambda row, _: to_unpaired(row, "row"), {*SYSTEM, "context"}),
    "filter": (INSTRUCTION, filtered, {"system", "context", "input"}),
    "seed": (INSTRUCTION, seeds_of("instruction"), {"context", "input"}),
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
            DataError,
            match=f"'{field}' (belongs to the prompt and would be|say different things).*; .*rename: {{{field}: ",
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
        ({"text": "a"}, "it has text; rows with a 'text' alone have no prompt"),
        ({"prompt": "a"}, "no field 'completion' (or 'response'); it has prompt"),
        (
            {"id": 1},
            "no field 'instruction' (with 'response'), 'messages', 'prompt' (with 'completion') or 'chosen'; it has id",
        ),
    ],
)
def test_a_form_that_is_not_read_is_told_by_its_name(row: Row, said: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, "file: row 1")
    assert str(caught.value).startswith("file: row 1: ") and said in str(caught.value)


@pytest.mark.parametrize("name", ["seed"])
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_readers_of_instructions_tell_other_forms_by_their_names(name: str, field: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=f"row 1: rows of the form '{field}' .{field}. are not read here; write each as instruction and response",
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
    for other in ({"prompt": "a", "response": "b"}, CONVERSATION, {"messages": []}):
        with pytest.raises(DataError, match="no field 'chosen'"):
            to_pair(other, "row")


MESSAGES: list[Row] = [{"role": "assistant", "content": "The Baltic."}]


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (MESSAGES, "a list of messages"),
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
        and not (value is MESSAGES and (field in ("prompt", "completion") or name == "pair of messages"))
        and not (value == ["a"] and name == "conversation")  # a question alone
        and not (value is MESSAGES and name == "conversation")
        and not (value is None and (name, field) == ("unpaired", "label"))
        and not (name.startswith(("seed", "prompt")) and field in ("response", "target"))
    ]
    for field in fields:
        if name == "a dialogue and answers" and field == "response":
            continue  # a note beside a pair
        with pytest.raises(DataError, match=f"'{field}' is {kind}; expected a (text|list of messages)"):
            read({**row, field: value}, tmp_path)


QUESTION, ANSWER = Turn("user", "Name a sea."), "The Baltic."
U, A = {"role": "user", "content": "Name a sea."}, {"role": "assistant", "content": "The Baltic."}
U2, A2 = {"role": "user", "content": "Another."}, {"role": "assistant", "content": "The Aral."}
S = {"role": "system", "content": "Be brief."}
NO = {"role": "assistant", "content": "No."}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_example_of_each_form_asks_for_a_sea_and_is_answered_with_one(form: Form) -> None:
    example = to_example(form.example, "row")
    assert example.answer == ANSWER and example.prompt == to_prompt(form.example, "row") and not example.notes
    assert example.prompt[-1].content.startswith("Name a sea.") and example.prompt[-1].role == "user"
    if form.kind == "pair":
        assert to_pair(form.example, "row").rejected == "No."
        liked, other = unpaired_of(to_pair(form.example, "row"))
        assert (liked.answer, liked.liked, other.answer, other.liked) == (ANSWER, True, "No.", False)
    if form.kind == "unpaired":
        assert to_unpaired(form.example, "row").liked


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [S, U, A, U2, A2]},
        {"messages": [U, A, U2, A2], "system": "Be brief."},
        {"messages": [S, U, A, U2, A2], "system_prompt": "Be brief."},
        {"messages": [{**S, "role": "developer"}, U, A, U2, A2], "prompt": "Name a sea.", "prompt_id": "x"},
        {"messages": [U, A, U2, A2], "chat_template_kwargs": {"custom_instructions": "Be brief.", "xml_tools": []}},
        {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in (S, U, A, U2, A2)]},
        {
            "conversations": [
                {"from": speaker, "value": m["content"]}
                for speaker, m in zip(("system", "human", "gpt", "user", "bing"), (S, U, A, U2, A2), strict=True)
            ]
        },
        {"conversation": [m["content"] for m in (U, A, U2, A2)], "system": "Be brief."},
        {"prompt": [S, U], "completion": [A, U2, A2], "messages": None},
    ],
)
def test_every_way_to_write_a_conversation_gives_the_same_turns_and_answers_to_learn(row: Row) -> None:
    example = to_example(row, "row")
    turns = tuple(Turn(m["role"], m["content"]) for m in (S, U, A, U2))  # type: ignore[arg-type]
    assert (example.prompt, example.answer, example.earlier, example.notes) == (turns, "The Aral.", (2,), ())


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [U, A, U2, A2], "rejected": [U, A, U2, NO]},
        {"chosen": [U, A, U2, A2], "rejected": [U, A, U2, NO], "prompt": "Name a sea.", "messages": [U, A, U2, A2]},
        {"chosen": [U, A, U2, A2], "rejected": [U, A, U2, NO], "prompt": [U, A, U2], "score_chosen": 8.0},
        {"chosen": [A2], "rejected": [NO], "prompt": [U, A, U2], "chosen_rating": 4, "rejected_rating": 1},
        {"chosen": A2, "rejected": NO, "prompt": [U, A, U2]},
        {"chosen": "The Aral.", "rejected": "No.", "prompt": [U, A, U2]},
        {"response1": "No.", "response2": "The Aral.", "overall_preference": 3, "context": [U, A, U2]},
    ],
)
def test_every_way_to_write_a_pair_gives_the_same_prompt_and_answers(row: Row) -> None:
    assert to_pair({**row, "id": 1}, "row") == to_pair({**WHOLE, "id": 1}, "row")
    assert to_pair({**row, "id": 1, "system_prompt": "Be brief."}, "row").prompt[0] == Turn("system", "Be brief.")


@pytest.mark.parametrize(
    ("messages", "prompt", "answer", "earlier", "notes"),
    [
        ([U, A, U2], "u", "The Baltic.", (), ("turns after the last answer left out",)),
        ([A2, U, A], "u", "The Baltic.", (), ("answer before the first question left out",)),
        ([S, A2, U, A], "su", "The Baltic.", (), ("answer before the first question left out",)),
        ([U, U2, A], "u", "The Baltic.", (), ("messages of one speaker joined",)),
        ([U, A, A2], "u", "The Baltic.\n\nThe Aral.", (), ("messages of one speaker joined",)),
        ([S, S, U, A], "su", "The Baltic.", (), ("messages of one speaker joined",)),
        ([U, A, U2, {**A2, "weight": 0}], "u", "The Baltic.", (), ("turns after the last answer left out",)),
        ([U, {**A, "weight": 0}, U2, {**A2, "weight": 1}], "uau", "The Aral.", (), ()),
        ([U, A, U2, {**A2, "content": " "}], "u", "The Baltic.", (), ("turns after the last answer left out",)),
        ([U, {**A, "reasoning_content": "Hm."}], "u", "The Baltic.", (), ("thoughts beside an answer left out",)),
        ([U, {**A, "tool_calls": None, "weight": None}], "u", "The Baltic.", (), ()),
    ],
)
def test_what_real_conversations_have_is_put_right_and_said(
    messages: list[Row], prompt: str, answer: str, earlier: tuple[int, ...], notes: tuple[str, ...]
) -> None:
    example = to_example({"messages": messages}, "row")
    assert ("".join(turn.role[0] for turn in example.prompt), example.answer) == (prompt, answer)
    assert (example.earlier, example.notes) == (earlier, notes)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "an empty list of messages"),
        ([U], "a conversation without an answer to learn"),
        ([U, {**A, "weight": 0}], "a conversation without an answer to learn"),
        ([U, {**A, "content": ""}], "a conversation without an answer to learn"),
        ([A], "an answer without a question"),
        ([S, A], "an answer without a question"),
        ([S], "an answer without a question"),
        ([U, S, A], "a system message after the first turn"),
        ([U, {**A, "content": None}], "a message without a text"),
        ([{**U, "content": " "}, A], "a message without a text"),
        ([U, {**A, "content": None, "tool_calls": [{"id": "1"}]}], "tool calls"),
        ([U, A, {"role": "tool", "content": "1"}, A2], "tool calls"),
        ([U, {"role": "narrator", "content": "1"}, A], "a role that no template renders"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, A],
            "images, audio or other parts that are no texts",
        ),
    ],
)
def test_a_conversation_of_no_use_is_dropped_by_its_reason(messages: list[Row], reason: str) -> None:
    with pytest.raises(RowError, match="row: ") as caught:
        to_example({"messages": messages}, "row")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": "Name a sea."}, "'messages' is 'Name a sea.'; expected a list of messages"),
        ({"messages": [U, "The Baltic."]}, "'messages', message 2 is 'The Baltic.'; expected an object with role"),
        ({"messages": [{"content": "a"}, A]}, "'messages', message 1 does not say who speaks (it has content)"),
        ({"messages": [{"role": 1, "content": "a"}, A]}, "message 1 does not say who speaks (its 'role' is 1)"),
        ({"messages": [{"role": "user"}, A]}, "message 1 has no 'content' (or 'value'); it has role"),
        (
            {"messages": [{"role": "user", "content": 7}, A]},
            "message 1: its 'content' is 7; expected a text, or a list",
        ),
        ({"messages": [[U, A]]}, "'messages', message 1 is a list"),
        ({"messages": [U, {**A, "weight": 0.5}]}, "message 2: 'weight' is 0.5; expected 0 (not learnt) or 1"),
        ({"messages": [S, U, A], "system": "Be long."}, "say different things"),
        (
            {"messages": [U, A], "instruction": "a", "response": "b"},
            "'messages' and 'instruction' say different things",
        ),
        ({"messages": [U, A], "prompt": "Name a lake."}, "'messages' and 'prompt' say different things"),
        (
            {"messages": [U, A], "conversations": [U2, A2]},
            "'conversations' belongs to the prompt and would be left out",
        ),
        ({"instruction": "a", "response": "b", "output": "c"}, "'response' and 'output' say different things"),
        (
            {"instruction": "a", "context": "b", "input": "c", "output": "d"},
            "'context' and 'input' say different things",
        ),
        ({"prompt": "a", "completion": "b", "instruction": "a", "response": "c"}, "say different things"),
        ({"prompt": [U], "completion": [A], "instruction": "a", "output": "b"}, "'output' and 'completion' say"),
        ({**PAIR, "instruction": "Name a lake."}, "'prompt' and 'instruction' say different things"),
        ({**WHOLE, "inputs": "Name a lake.", "targets": "The Aral."}, "'chosen' and 'inputs' say different things"),
        ({**LABELLED, "chosen": "a", "rejected": "b"}, "'chosen' and 'label' say different things"),
        (
            {**PAIR, "response1": "a", "response2": "b", "overall_preference": 1},
            "'chosen' and 'overall_preference' say different things",
        ),
        ({"chosen": [A], "rejected": [NO]}, "no field 'prompt'"),
        ({"chosen": [U, A], "rejected": "No."}, "'chosen' is a list of messages; expected a text, as 'rejected' is"),
        (
            {"chosen": [U, A], "rejected": [U, NO], "prompt": "Name a lake."},
            "'chosen' and 'prompt' say different things",
        ),
    ],
)
def test_what_is_no_message_or_says_two_things_stops_with_the_row(row: Row, said: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, "file: row 1")
    assert not isinstance(caught.value, RowError)
    assert str(caught.value).startswith("file: row 1: ") and said in str(caught.value)


def test_an_answer_that_was_not_liked_is_never_learnt_by_sft_and_a_tie_is_no_pair() -> None:
    for row, reason in (
        ({**LABELLED, "label": False}, "an answer that was not liked"),
        ({"response1": "a", "response2": "b", "overall_preference": 0, "context": [U]}, "neither answer preferred"),
        ({"messages": [U, A], "tools": [{"name": "f"}]}, "tool calls"),
        ({"messages": [U, A], "chat_template_kwargs": {"xml_tools": ["f"]}}, "tool calls"),
    ):
        with pytest.raises(RowError) as caught:
            to_example(row, "row")
        assert caught.value.reason == reason
    assert [to_unpaired({**LABELLED, "label": label}, "row").liked for label in (True, 1, 1.0, False, 0)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(DataError, match="'label' is 'yes'; expected true or false"):
        to_unpaired({**LABELLED, "label": "yes"}, "row")


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


def read_all(folder: Path, rows: list[Row], **spec: Any) -> list[Row]:
    write_jsonl(folder / "rows.jsonl", rows)
    return [row for _, row in read(DataSpec(data="rows.jsonl", **spec), folder, None, {}, 0)]


def test_rows_of_two_kinds_in_one_file_are_refused_with_the_row_unless_where_or_rename_parts_them(
    tmp_path: Path,
) -> None:
    rows = [{**CONVERSATION, "kind": "a"}, {**CONVERSATION, "kind": "a"}, {**PAIR, "kind": "b"}]
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, rows)
    assert str(caught.value).endswith(
        "rows.jsonl: row 3: it is of the form 'pair' (chosen, prompt), and row 1 of the form 'messages' (messages); put"
        " rows of one form into a file of their own, and name both files"
    )
    assert len(read_all(tmp_path, rows, where={"kind": "a"})) == 2
    assert len(read_all(tmp_path, [INSTRUCTION, TASK, {"prompt": "a", "response": "b"}])) == 3  # all of them answers
    assert len(read_all(tmp_path, [{"title": "a"}, {"title": "b", "category": "c"}])) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, {**A, "tool_calls": [{"id": "1"}]}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]},
        {"messages": [U, A], "tools": [{"name": "f"}]},
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [A], "rejected": [NO]},
    ],
)
def test_what_no_template_renders_is_dropped_and_counted_or_refused_as_the_recipe_says(
    row: Row, tmp_path: Path
) -> None:
    usable = {"messages": [U, A]} if "chosen" not in row else LISTS
    rows = [usable, row, usable]
    counts = [0, 0]
    for each in read_all(tmp_path, rows):
        try:
            to_example(each, "row")
            counts[0] += 1
        except RowError:
            counts[1] += 1
    assert counts == [2, 1]
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: .*; drop the row.* or all such rows with unusable: drop"):
        read_all(tmp_path, rows, unusable="refuse")
    assert len(read_all(tmp_path, [usable], unusable="refuse")) == 1


def test_unusable_changes_what_a_step_is_made_of_only_where_it_is_set() -> None:
    assert "unusable" not in DataSpec(data="x").model_dump(mode="json")
    assert DataSpec(data="x", unusable="refuse").model_dump(mode="json")["unusable"] == "refuse"
