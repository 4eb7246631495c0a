"""Malformed rows of every form: each is refused with its place, counted under a reason, or trained as it stands.

A defect is drawn by a seed and put into a row whose texts all differ, between two sound rows of a
file. Of what comes through, the ids are taken apart by their control tokens and held against the
row's own texts, which are found by walking through it: what is learnt was said by an assistant,
whole, and what was said is there unless something was counted.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from form_rows import EXAMPLES, PAIRS, UNPAIRED, chatml

from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError, RowError
from openbezoar.forest import TokenPath
from openbezoar.machine.textfiles import without_halves
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Sft
from openbezoar.rows import messages as reasons
from openbezoar.rows.forms import to_example, to_pair, to_unpaired
from openbezoar.rows.known import FORMS, form_of
from openbezoar.rows.records import HALVES, Counts, Example, JsonLines, Pair, Row
from openbezoar.rows.sources import read
from openbezoar.training.data import Renderer, split_trees

FAST, ALL = 24, 200
NOTES = {HALVES, reasons.JOINED, reasons.OPENING, reasons.REST, reasons.UNTHOUGHT}
NOTES |= {"empty answer of a conversation not learnt", "oldest turns cut", "last turns cut"}
LIMIT = 600
ANSWERS = ("response", "output", "completion", "answer", "target", "targets", "chosen", "rejected")
ANSWERS += ("response1", "response2")
ASSISTANTS = ("assistant", "gpt", "bing")
PROMPTS = ("instruction", "prompt", "question", "input", "inputs", "context", "system", "system_prompt")
TALKS = ("messages", "conversations", "conversation")
NEVER = (
    "text",
    "category",
    "task",
    "id",
    "prompt_id",
    "source",
    "domain",
    "chosen_model",
    "hash",
    "role",
    "from",
    "type",
)
NEVER += ("name", "tool_calls", "rest")


class Base(NamedTuple):
    form: str
    row: Row
    convert: Callable[[Row, str], Any]


def bases() -> dict[str, list[Base]]:
    """Sound rows by the form of the table that they have."""
    rows = [Base("", row, to_example) for name, (row, *_) in EXAMPLES.items() if name != "agentinstruct"]
    rows += [Base("", row, convert) for row, _ in PAIRS.values() for convert in (to_pair, to_example)]
    rows += [Base("", row, unpaired) for row, *_ in UNPAIRED.values()]
    rows += [Base("", dict(form.example), to_pair) for form in FORMS if form.name == "pair of an instruction"]
    by_form: dict[str, list[Base]] = {form.name: [] for form in FORMS}
    for base in rows:
        name = form_of(base.row, "row").name
        by_form[name].append(base._replace(form=name))
    return by_form


def unpaired(row: Row, where: str) -> Example:
    """The answer of a row, liked or not, as one to be rendered."""
    one = to_unpaired(row, where)
    return Example(one.id, one.prompt, one.answer, notes=one.notes)


BASES = bases()

# -------------------------------------------------------------------------------- defects

WRONG: tuple[Any, ...] = (
    None,
    7,
    0.5,
    True,
    "",
    " \n",
    [],
    {},
    [[]],
    ["a", 1],
    {"a": {"b": []}},
    [None],
    "\ud83d",
    -(10**30),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values inside of a row."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def put(row: Row, path: tuple[Any, ...], change: Callable[[Any], Any]) -> None:
    """Change the value at a path; one that becomes ``...`` is taken out."""
    holder: Any = row
    for key in path[:-1]:
        holder = holder[key]
    value = change(holder[path[-1]])
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value


def lists(row: Row) -> list[list[Any]]:
    """The lists of messages in a row."""
    return [value for value in row.values() if isinstance(value, list) and value and isinstance(value[0], dict | str)]


def anywhere(row: Row, draw: random.Random) -> Row:
    wrong = draw.choice(WRONG)
    put(row, draw.choice(list(places(row))), lambda _: copy.deepcopy(wrong))
    return row


def missing(row: Row, draw: random.Random) -> Row:
    put(row, draw.choice(list(places(row))), lambda _: ...)
    return row


def long(row: Row, draw: random.Random) -> Row:
    texts = [path for path in places(row) if path[-1] not in NEVER]
    put(row, draw.choice(texts), lambda old: f"{old} word" * 60_000 if isinstance(old, str) else old)
    return row


def half(row: Row, draw: random.Random) -> Row:
    put(row, draw.choice(list(places(row))), lambda old: f"{old[:2]}\ud83d{old[2:]}" if isinstance(old, str) else old)
    return row


def feeds(row: Row, draw: random.Random) -> Row:
    put(row, draw.choice(list(places(row))), lambda old: f"\ufeff{old}\r\nAnd." if isinstance(old, str) else old)
    return row


def nested(row: Row, draw: random.Random) -> Row:
    put(row, draw.choice(list(places(row))), lambda old: [old] if draw.random() < 0.5 else {"a": old})
    return row


def mixed(row: Row, draw: random.Random) -> Row:
    other = copy.deepcopy(draw.choice(BASES[draw.choice(list(BASES))]).row)
    return {**other, **row} if draw.random() < 0.5 else {**row, **told_otherwise(other)}


def twice(row: Row, draw: random.Random) -> Row:
    for messages in lists(row)[:1]:
        place = draw.randrange(len(messages))
        messages.insert(place, {**messages[place], "rest": 1} if isinstance(messages[place], dict) else messages[place])
    return row


def dropped(row: Row, draw: random.Random) -> Row:
    for messages in lists(row):
        del messages[draw.choice((0, -1, draw.randrange(len(messages))))]
    return row


def turned(row: Row, draw: random.Random) -> Row:
    for messages in lists(row)[: draw.choice((1, 2))]:
        messages.reverse()
    return row


def strange(row: Row, draw: random.Random) -> Row:
    """A role that is none, a call of a tool, an image, a weight."""
    messages = draw.choice(lists(row) or [[]])
    dicts = [message for message in messages if isinstance(message, dict)]
    if dicts:
        message = draw.choice(dicts)
        speaker, text = ("role", "content") if "role" in message else ("from", "value")
        message |= draw.choice(
            [
                {speaker: name}
                for name in ("tool", "observation", "narrator", "", " User ", "ASSISTANT", "developer", 3, None)
            ]
            + [{"tool_calls": [{"id": "1"}]}, {"weight": 0}, {"weight": "no"}, {"reasoning_content": "Hm."}]
            + [{text: [{"type": "image_url", "image_url": "x"}]}, {text: [{"type": "text", "text": 7}]}, {text: [3]}]
        )
    return row


DEFECTS = (anywhere, anywhere, anywhere, missing, missing, half, feeds, nested, nested, mixed, twice, dropped, turned)
DEFECTS += (strange, strange)


def told_otherwise(value: Any, mark: str = " Elsewhere.") -> Any:
    """A row with every text made another one."""
    if isinstance(value, dict):
        return {k: v if k in NEVER else told_otherwise(v, mark) for k, v in value.items()}
    if isinstance(value, list):
        return [told_otherwise(inner, mark) for inner in value]
    return f"{value}{mark}" if isinstance(value, str) else value


def malformed(form: str, number: int) -> tuple[Base, Row]:
    """(the sound row, the one with a defect); the same ones every time."""
    draw = random.Random(f"{form} {number}")
    base = draw.choice(BASES[form])
    defect = long if number % 50 == 7 else draw.choice(DEFECTS)
    return base, defect(copy.deepcopy(base.row), draw)


# --------------------------------------------------------------------------------- oracle


def texts(value: Any, assistant: bool) -> Iterator[tuple[str, bool]]:
    """(text, whether an assistant says it) of what stands in a field."""
    if isinstance(value, str):
        parts = re.split(r"\n\n(Human|Assistant): ?", value)
        if len(parts) > 1:
            for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
                yield said.strip(), speaker == "Assistant"
        yield value, assistant
        yield value.strip(), assistant
    elif isinstance(value, dict):
        speaker = str(value.get("role") or value.get("from") or "").strip().lower()
        content = value.get("content") if value.get("content") is not None else value.get("value")
        if isinstance(content, list):
            content = "".join(part if isinstance(part, str) else str(part.get("text")) for part in content)
        yield from texts(content, speaker in ASSISTANTS)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from texts(inner, bool(place % 2) if isinstance(inner, str) else assistant)


def said_in(row: Row) -> tuple[set[str], set[str]]:
    """(what assistants say in a row, what others do)."""
    by: tuple[set[str], set[str]] = (set(), set())
    for name, value in row.items():
        for text, assistant in texts(value, name in ANSWERS):
            by[not assistant].add(text)
    kwargs = row.get("chat_template_kwargs")
    if isinstance(kwargs, dict):
        by[1].add(str(kwargs.get("custom_instructions")))
    return by


def joined(text: str, known: set[str]) -> bool:
    """Whether a text is one of the known ones, or several with blank lines between."""
    return text in known or any(
        text.startswith(f"{one}\n\n") and joined(text[len(one) + 2 :], known) for one in known if one != text
    )


class Part(NamedTuple):
    role: str
    text: str
    learnt: bool


def taken_apart(path: TokenPath, tokenizer: Any) -> list[Part]:
    """A path's turns; a mask that begins or ends within one is an error."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    parts, place, ids = [], 0, list(path.ids)
    while place < len(ids):
        assert ids[place] == start and not path.scored[place]
        close = ids.index(end, place)
        whole = tokenizer.decode(ids[place + 1 : close])
        role, _, text = whole.partition("\n")
        head = len(tokenizer(f"<|im_start|>{role}\n", add_special_tokens=False).input_ids)
        mask = path.scored[place : close + 1]
        assert not any(mask[:head]) and len(set(mask[head:])) == 1, "a mask that begins within a turn"
        parts.append(Part(role, text, bool(mask[-1])))
        place = close + 1
    return parts


def check_path(row: Row, parts: list[Part]) -> None:
    """What came through of a row on one path."""
    roles = [part.role for part in parts]
    first = int(roles[0] == "system")
    assert roles[first:] == ["user", "assistant"] * ((len(roles) - first) // 2), roles
    assert parts[-1].learnt and not any(part.learnt for part in parts if part.role != "assistant")
    assistants, others = said_in(row)
    dicts = [message for messages in lists(row) for message in messages if isinstance(message, dict)]
    silent = [message.get("content") for message in dicts if message.get("weight") == 0]
    for part in parts:
        assert not (part.learnt and part.text in silent)
        assert joined(part.text, assistants if part.role == "assistant" else others), (part, row)
        assert part.text.strip() or not part.learnt


def check_all_is_there(row: Row, parts: list[Part]) -> None:
    """Of a row of which nothing was counted that leaves something out."""
    shown = "\n\n".join(part.text for part in parts)
    for name in (*TALKS, *PROMPTS):
        for text, _ in texts(row.get(name), False):
            assert text.strip() in shown or "Human:" in text, (name, text, parts)


# ---------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def formatter(tiny: Path) -> Formatter:
    return Formatter(chatml(tiny), PromptSpec(template="own"))


def outcome_of(form: str, number: int, formatter: Formatter, folder: Path) -> str:
    """What became of a malformed row between two sound ones: 'refused', 'counted', 'trained'."""
    base, row = malformed(form, number)
    renderer = Renderer(formatter, LIMIT, "truncate" if number % 2 else "drop", Counts())
    lines = [json.dumps(base.row), json.dumps(row), json.dumps(base.row)]
    ends = "\r\n" if number % 3 else "\n"
    bom = "\ufeff" if number % 4 == 0 else ""
    (folder / "rows.jsonl").write_bytes((bom + ends.join(lines) + ends).encode())
    counts = Counts()
    trees = []
    rows = read("rows.jsonl", folder, None, {}, 0, mended=counts.add)
    try:
        for place in range(3):
            where, got = next(rows)
            if place != 1:
                assert len(renderer.trees([base.convert(got, where)])) == 1
                continue
            renderer.counts.by_reason.clear()
            try:
                converted: Example | Pair = base.convert(got, where)
            except RowError as error:
                assert where in str(error) and error.reason
                trees.append(error.reason)
                continue
            tree = renderer.encoder.encode(converted)
            counts.merge(renderer.counts.by_reason)
            if tree is None:
                (reason,) = set(renderer.counts.by_reason) - NOTES
                trees.append(reason)
                continue
            (paths,) = renderer.trees([converted])
            parts = [taken_apart(path, renderer.formatter.tokenizer) for path in paths]
            for each in parts:
                check_path(got, each)
            if set(counts.by_reason) <= {HALVES, reasons.JOINED}:
                check_all_is_there(got, [part for each in parts for part in each])
            trees.append("")
    except DataError as error:
        assert not isinstance(error, RowError)
        assert re.search(rf"rows.jsonl: (row|line) (2|{re.escape(str(row.get('id', 2)))})", str(error)), error
        assert "\n" not in str(error) and len(str(error)) < 1000
        return "refused"
    assert len(trees) == 1
    return "counted" if trees[0] else "trained"


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_a_malformed_row_is_refused_counted_or_trained_as_it_stands(
    form: str, formatter: Formatter, tmp_path: Path
) -> None:
    outcomes = Counter(outcome_of(form, number, formatter, tmp_path) for number in range(FAST))
    assert outcomes["refused"] and outcomes["refused"] + outcomes["counted"] + outcomes["trained"] == FAST


@pytest.mark.slow
@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_two_hundred_malformed_rows_of_a_form(form: str, formatter: Formatter, tmp_path: Path) -> None:
    outcomes = Counter(outcome_of(form, number, formatter, tmp_path) for number in range(ALL))
    print(f"\n{form}: {dict(outcomes)}")
    assert outcomes.total() == ALL and min(outcomes["refused"], outcomes["trained"]) > 10


@pytest.mark.parametrize("form", [form.name for form in FORMS])
def test_rows_in_are_rows_trained_held_out_and_counted(form: str, formatter: Formatter, tmp_path: Path) -> None:
    rows = []
    for number in range(FAST):
        base, row = malformed(form, number)
        try:
            base.convert(without_halves(row)[0], "row")
        except RowError:
            pass
        except DataError:
            continue
        rows.append((base, row))
    base = BASES[form][0]
    usable = [row for one, row in rows if one.convert is base.convert] + [base.row] * 4
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in usable))
    own = Renderer(formatter, LIMIT, "drop", Counts())
    table = JsonLines(tmp_path / "rows.jsonl", mended=own.counts.add)
    given = ((f"row {n}", row) for n, row in enumerate(table, 1))
    settings = Sft(sft="x", model="x", heldout_every=2)
    split = split_trees(settings, given, base.convert, own, what="row", folder=tmp_path, processes=1)
    counted = sum(n for reason, n in own.counts.by_reason.items() if reason not in NOTES)
    assert len(split.trained) + len(split.heldout) + counted == len(usable)
