"""Rows in other trainers' forms, as TRL itself reads them: it takes them for conversations, finds the same
prompts, and renders the same texts and end as we train on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openbezoar.dialogue.prompt import Formatter
from openbezoar.models.load import load_tokenizer
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_example, to_pair, to_unpaired
from openbezoar.rows.outgoing import rewritten

trl = pytest.importorskip("trl.data_utils")
pytestmark = pytest.mark.parity

ROW = {"system": "Be brief.", "instruction": "Name a sea.", "response": "The Baltic."}
TALK = {
    "messages": [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye."},
        {"role": "assistant", "content": "So long."},
    ]
}
PAIR = {"system": "Be brief.", "question": "Name a sea.", "chosen": "The Baltic.", "rejected": "No."}


@pytest.fixture(scope="module")
def formatter(tiny: Path) -> Formatter:
    return Formatter(load_tokenizer(tiny), PromptSpec(template="own"))


@pytest.mark.parametrize("row", [ROW, TALK], ids=["instruction", "conversation"])
def test_messages_are_conversations_to_trl_and_rendered_as_we_render_them(
    row: dict[str, Any], formatter: Formatter
) -> None:
    (made,) = rewritten(row, "messages", "here").rows
    assert trl.is_conversational(made)
    text = trl.apply_chat_template(made, formatter.tokenizer)["text"]
    example = to_example(row, "here")
    ours = formatter.prompt_text(example.prompt) + example.answer + formatter.end_text
    assert text.rstrip("\n") == ours.rstrip("\n")


def test_a_pair_is_trl_s_preference_with_the_same_prompt_and_answers(formatter: Formatter) -> None:
    (made,) = rewritten(PAIR, "preference", "here").rows
    assert trl.is_conversational(made)
    pair = to_pair(PAIR, "here")
    assert trl.maybe_extract_prompt(made) == made  # its prompt is apart already
    whole = {name: made["prompt"] + made[name] for name in ("chosen", "rejected")}
    found = trl.extract_prompt(whole)
    assert (found["prompt"], found["chosen"], found["rejected"]) == (made["prompt"], made["chosen"], made["rejected"])
    rendered = trl.apply_chat_template(made, formatter.tokenizer)
    assert rendered["prompt"] == formatter.prompt_text(pair.prompt)
    for name in ("chosen", "rejected"):
        assert rendered[name].rstrip("\n") == (getattr(pair, name) + formatter.end_text).rstrip("\n")


def test_a_pair_as_two_answers_is_what_trl_makes_of_it(formatter: Formatter) -> None:
    from datasets import Dataset

    (pair,) = rewritten(PAIR, "preference", "here").rows
    two = rewritten(PAIR, "unpaired", "here").rows
    apart = trl.unpair_preference_dataset(Dataset.from_list([pair])).to_list()
    assert sorted(map(str, apart)) == sorted(str({name: one[name] for name in apart[0]}) for one in two)
    for one in two:
        assert trl.is_conversational(one)
        rendered = trl.apply_chat_template(one, formatter.tokenizer)
        record = to_unpaired(one, "here")
        assert rendered["prompt"] == formatter.prompt_text(record.prompt)
        assert rendered["completion"].rstrip("\n") == (record.answer + formatter.end_text).rstrip("\n")
        assert rendered["label"] is record.liked
