"""What a row of data becomes: an example, a pair, an answer that was liked or not, a prompt. Takes
rows, writes nothing.

The forms themselves are the table in ``known``. Rows are read one by one, whatever stands
before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from openbezoar.errors import DataError, RowError, named
from openbezoar.rows.dialogues import is_dialogue, parse_dialogue, parse_prompt
from openbezoar.rows.doubles import check_one_answer, check_one_preference, check_one_prompt
from openbezoar.rows.fields import absent, ambiguous, check_beside, kind_of, one_of, text_in
from openbezoar.rows.instructions import with_context
from openbezoar.rows.known import CONTEXT, SYSTEM, Fields, Form, fitting, form_of
from openbezoar.rows.messages import (
    TOOLS,
    Conversation,
    Unusable,
    after,
    ends_with_question,
    is_list,
    last_learnt,
    opened,
    read_messages,
    texts_in,
)
from openbezoar.rows.records import Example, Pair, Turn, Unpaired

_MESSAGES = ("messages", "conversations", "conversation", "prompt", "context", "completion", "chosen", "rejected")

NOT_LIKED = "an answer that was not liked"
NO_PREFERENCE = "neither answer preferred"
NO_LABEL = "without a label"
SAME_ANSWER = "chosen equals rejected"
OTHER_PROMPTS = "chosen and rejected have different prompts"
NO_END = "not a dialogue that ends with an answer"


# ----------------------------------------------------------------------- what rows become


def to_example(row: Fields, where: str) -> Example:
    """The training example in a row of any form: of a pair the chosen answer, of answers that were
    liked or not the liked ones, of a conversation all its answers.

    Raises DataError naming ``where`` and the field that is missing, is no text, or would be left
    out; RowError for a row whose content is of no use, which is counted.
    """
    form = form_of(row, where)
    if form.kind == "pair":
        pair = to_pair(row, where)
        return Example(pair.id, pair.prompt, pair.chosen, notes=pair.notes)
    if form.kind == "unpaired":
        one = to_unpaired(row, where)
        if not one.liked:
            raise RowError(f"{where}: its answer was not liked", NOT_LIKED)
        return Example(one.id, one.prompt, one.answer, notes=one.notes)
    return _example(row, form, where)


def to_prompt(row: Fields, where: str) -> tuple[Turn, ...]:
    """The turns before the answer, in a row of any form; errors as ``to_example``. A conversation's
    are those before its last answer, or all where it ends with the user's.
    """
    form = form_of(row, where)
    if form.kind == "conversation":
        talk = _conversation(row, form, where)
        return talk.turns if talk.turns[-1].role == "user" else talk.turns[:-1]
    if form.kind == "pair" and (not form.prompt or _whole(row)):
        return to_pair(row, where).prompt
    return _asked(row, form, where).turns


def to_pair(row: Fields, where: str) -> Pair:
    """The preference pair in a row: two whole conversations (lists of messages, or HH-RLHF's
    text) that differ in the last answer, or a prompt with the two answers apart. A ``rejected_finish`` of 'length'
    says that the rejected answer was cut off.

    Raises DataError if a field is missing, no text, or would be left out, RowError if a dialogue
    is none or the two do not share their prompt.
    """
    form = next((form for form in fitting(row) if form.kind == "pair"), None)
    if form is None:
        raise _no_pair(row, where)
    check_one_preference(row, where)
    if not form.answer:
        pair = _ranked(row, form, where)
    elif is_list(row.get("chosen")) or is_list(row.get("rejected")):
        pair = _pair_of_messages(row, form, where)
    else:
        pair = _pair_of_texts(row, form, where)
    check_one_prompt(row, form, pair.prompt, where)
    return replace(pair, cut=True) if row.get("rejected_finish") == "length" else pair


def to_unpaired(row: Fields, where: str) -> Unpaired:
    """The answer in a row of prompt, completion and label, and whether it was liked.

    Raises DataError and RowError as ``to_example``, RowError too for a label that is null.
    """
    form = next((form for form in fitting(row) if form.kind == "unpaired"), None)
    if form is None:
        if "label" in row and row["label"] is None:
            raise RowError(f"{where}: its label is null", NO_LABEL)
        for name in ("prompt", "completion"):
            text_in(row, (name,), where)
        raise absent(row, ("label",), where)
    check_one_preference(row, where)
    if row["label"] not in (0, 1):  # true and false are numbers too
        raise DataError(f"{where}: 'label' is {kind_of(row['label'])}; expected true or false (or 1 or 0)")
    example = _example(row, form, where)
    check_one_prompt(row, form, example.prompt, where)
    return Unpaired(example.id, example.prompt, example.answer, bool(row["label"]), example.notes)


def unpaired_of(pair: Pair) -> tuple[Unpaired, Unpaired]:
    """A pair as two answers, the chosen one liked and the rejected one not; its notes stand with the first."""
    return (
        Unpaired(pair.id, pair.prompt, pair.chosen, True, pair.notes),
        Unpaired(pair.id, pair.prompt, pair.rejected, False, cut=pair.cut),
    )


def to_answers(row: Fields, where: str) -> tuple[Unpaired, ...]:
    """The answers in a row that were liked or not: the one of an unpaired row, both of a pair.

    Raises DataError and RowError as ``to_unpaired`` and ``to_pair``, RowError too for a pair of one answer.
    """
    if not any(form.kind == "pair" for form in fitting(row)):
        return (to_unpaired(row, where),)
    pair = to_pair(row, where)
    if pair.chosen == pair.rejected:
        raise RowError(f"{where}: its two answers are the same", SAME_ANSWER)
    return unpaired_of(pair)


def check_usable(row: Fields, where: str) -> None:
    """Raises DataError for a row with something that no template here renders, where such rows are
    not to be dropped.
    """
    lists = {name: row[name] for name in _MESSAGES if is_list(row.get(name))}
    try:
        if lists:
            _check_no_tools(row, where)
        for name, value in lists.items():
            read_messages(value, name, where)
    except Unusable as error:
        raise DataError(f"{error}, or all such rows with unusable: drop") from None
    except DataError:
        return  # what else is amiss is told by those who read the row


def _id(row: Fields, where: str) -> str:
    return named(row["id"]) if "id" in row else where


# ------------------------------------------------------------------------------ answers


def _example(row: Fields, form: Form, where: str) -> Example:
    """The example in a row of a conversation, or of a prompt and its answer."""
    if form.kind == "conversation":
        talk = last_learnt(_conversation(row, form, where), where)
    else:
        asked = _asked(row, form, where)
        answer = form.answered(row)
        check_one_answer(row, form, where)
        if is_list(row.get(answer)) and answer == "completion":
            said = read_messages(row[answer], answer, where)
            if said.turns[0].role != "assistant":
                raise RowError(f"{where}: the completion does not begin with a turn of the assistant", NO_END)
            talk = last_learnt(after(asked, said), where)
        else:
            return Example(_id(row, where), asked.turns, text_in(row, form.answer, where), notes=asked.notes)
    *earlier, last = sorted(talk.learnt)
    return Example(_id(row, where), talk.turns[:last], talk.turns[last].content, tuple(earlier), talk.notes)


def _asked(row: Fields, form: Form, where: str) -> Conversation:
    """What a row of a form with a prompt asks, its system message and context with it."""
    name = next((name for name in form.prompt if row.get(name) is not None), form.prompt[0])
    if is_list(row.get(name)) and name in ("prompt", "context"):
        talk = opened(ends_with_question(read_messages(row[name], name, where), where), where)
        return _complete(row, where, talk, form.uses - set(CONTEXT) | {name})
    asked = text_in(row, form.prompt, where)
    if not asked.strip():
        raise DataError(f"{where}: the instruction is empty; drop the row or fill it in")
    if is_dialogue(asked):
        uses = form.uses - set(CONTEXT) | ({name} & form.uses)
        check_beside(row, where, uses, prompt=asked, answers=_answers(row))
        return _under_system(row, where, Conversation(parse_prompt(asked, where)))
    names = tuple(one for one in CONTEXT if one in form.uses and one != name)
    whole = with_context(asked, one_of(row, names, where) or "") if name not in CONTEXT else asked
    check_beside(row, where, form.uses, prompt=whole, answers=_answers(row))
    return _under_system(row, where, Conversation((Turn("user", whole),)))


def _answers(row: Fields) -> list[str]:
    """The texts of a row's answers, which a list of messages beside a prompt may repeat."""
    names = ("chosen", "response", "output", "completion", "answer", "target", "targets")
    return [text for name in names for text in texts_in(row.get(name))]


# ------------------------------------------------------------------------- conversations


def _conversation(row: Fields, form: Form, where: str) -> Conversation:
    """A row's conversation from its first question on, under its system message."""
    (name,) = form.prompt
    talk = _complete(row, where, opened(read_messages(row[name], name, where), where), form.uses | {name})
    others = (other for other in fitting(row) if other.kind == "answer")
    for field in (field for other in others for field in (*other.prompt, other.answered(row)) if field):
        if not talk.repeats(row[field]):
            raise ambiguous(where, name, field)
    return talk


def _complete(row: Fields, where: str, talk: Conversation, uses: frozenset[str]) -> Conversation:
    """A talk of messages under its system message. Raises Unusable where tools stand beside it,
    DataError where a field beside it would be left out.
    """
    _check_no_tools(row, where)
    whole = _under_system(row, where, talk)
    check_beside(row, where, uses, prompt=whole.text, answers=_answers(row))
    return whole


def _check_no_tools(row: Fields, where: str) -> None:
    given = {**_kwargs(row), **{name: row.get(name) for name in ("tools", "functions")}}
    for name in ("tools", "functions", "xml_tools", "python_tools"):
        value = given.get(name)
        if value and not (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null")):
            raise Unusable(
                f"{where}: the field '{name}' belongs to the prompt and would be left out; drop the row, or add"
                f" rename: {{{name}: unused}}",
                TOOLS,
            )


def _kwargs(row: Fields) -> Mapping[str, Any]:
    """What SmolTalk 2 has beside its messages for SmolLM 3's template."""
    given = row.get("chat_template_kwargs")
    return given if isinstance(given, Mapping) else {}


def _under_system(row: Fields, where: str, talk: Conversation) -> Conversation:
    """The talk under the row's own system message; "" is one too, of no words. Raises DataError
    where the talk has another one of its own.
    """
    kwargs = _kwargs(row)
    fields = {**row, "custom_instructions": kwargs.get("custom_instructions") or None}
    text = one_of(fields, (*SYSTEM, "custom_instructions"), where)
    if text is None:
        return talk
    if talk.turns[0].role != "system":
        moved = frozenset(place + 1 for place in talk.learnt)
        return Conversation((Turn("system", text), *talk.turns), moved, talk.notes)
    if text.strip() not in ("", talk.turns[0].content.strip()):
        name = next(name for name in (*SYSTEM, "custom_instructions") if fields.get(name))
        raise ambiguous(where, "the system message of the conversation", name)
    return talk


# -------------------------------------------------------------------------------- pairs


def _pair_of_texts(row: Fields, form: Form, where: str) -> Pair:
    """A pair whose answers are texts: HH-RLHF's whole dialogues, or answers with their prompt apart."""
    chosen, rejected = (text_in(row, (name,), where) for name in ("chosen", "rejected"))
    id_, subset = _id(row, where), str(row.get("subset", ""))
    if form.prompt and not _whole(row):
        asked = _asked(row, form, where)
        prompt = next((row[name] for name in form.prompt if isinstance(row.get(name), str)), "")
        tidy: Callable[[str], str] = str.strip if is_dialogue(prompt) else str
        return Pair(id_, asked.turns, tidy(chosen), tidy(rejected), subset, asked.notes)
    for name in ("prompt", "instruction", "question"):
        if name in row and row[name] is None and not _whole(row):
            text_in(row, (name,), where)
    first, second = parse_dialogue(chosen, where), parse_dialogue(rejected, where)
    _check_shared(first[:-1], second[:-1], where)
    check_beside(row, where, frozenset(SYSTEM), prompt=chosen, answers=[chosen])
    talk = _under_system(row, where, Conversation(first[:-1]))
    return Pair(id_, talk.turns, first[-1].content, second[-1].content, subset)


def _pair_of_messages(row: Fields, form: Form, where: str) -> Pair:
    """A pair whose answers are lists of messages: whole conversations, or last messages with their prompt apart."""
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if not is_list(row.get(name)):
            text_in(row, (name,), where)
            raise DataError(
                f"{where}: '{other}' is {kind_of(row[other])}; expected a text, as '{name}' is, or both as messages"
            )
    first, second = (read_messages(row[name], name, where) for name in ("chosen", "rejected"))
    for talk in (first, second):
        if talk.turns[-1].role != "assistant":
            raise RowError(f"{where}: a list of messages does not end with the assistant's", NO_END)
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    _check_shared(first.turns[:-1], second.turns[:-1], where)
    if len(first.turns) > 1:
        shared = opened(Conversation(first.turns[:-1], frozenset(), notes), where)
        for name in form.prompt:
            if not shared.repeats(row[name]):
                raise ambiguous(where, "chosen", name)
        asked = _complete(row, where, shared, form.uses | set(form.prompt))
    elif form.prompt:
        asked = _asked(row, form, where)
        asked = Conversation(asked.turns, asked.learnt, (*asked.notes, *notes))
    else:
        raise absent(row, ("prompt",), where)
    answers = first.turns[-1].content, second.turns[-1].content
    return Pair(_id(row, where), asked.turns, *answers, str(row.get("subset", "")), asked.notes)


def _check_shared(first: tuple[Turn, ...], second: tuple[Turn, ...], where: str) -> None:
    if first != second:
        raise RowError(
            f"{where}: chosen and rejected do not share their prompt; they may differ in the last answer only",
            OTHER_PROMPTS,
        )


def _ranked(row: Fields, form: Form, where: str) -> Pair:
    """HelpSteer3's two answers and how much the second is preferred."""
    preference = row["overall_preference"]
    if isinstance(preference, bool) or not isinstance(preference, int | float) or not -3 <= preference <= 3:
        raise DataError(f"{where}: 'overall_preference' is {kind_of(preference)}; expected a number from -3 to 3")
    if preference == 0:
        raise RowError(f"{where}: neither answer is preferred", NO_PREFERENCE)
    asked = _asked(row, form, where)
    one, two = (text_in(row, (name,), where) for name in ("response1", "response2"))
    chosen, rejected = (one, two) if preference < 0 else (two, one)
    return Pair(_id(row, where), asked.turns, chosen, rejected, str(row.get("subset", "")), asked.notes)


def _whole(row: Fields) -> bool:
    """Whether both answers of a pair are whole conversations, prompt and all, whatever stands in ``prompt``."""
    answers = [row.get(name) for name in ("chosen", "rejected")]
    return all(
        is_dialogue(answer) if isinstance(answer, str) else isinstance(answer, list) and len(answer) > 1
        for answer in answers
    )


def _no_pair(row: Fields, where: str) -> DataError:
    """The error for a row that is no pair."""
    form = next(iter(fitting(row)), None)
    if form is not None and form.kind == "unpaired":
        names = ", ".join(form.known_by)
        return DataError(f"{where}: unpaired preferences ({names}) are no pairs; train on them with kto")
    if row.get("chosen", "") is None:
        return DataError(f"{where}: 'chosen' is null; expected a text: fill it in, or drop the row")
    return absent(row, ("chosen",), where)
