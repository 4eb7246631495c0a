"""Rows of the forms that TRL reads too: token ids and masks are those of its own trainers' preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

trl = pytest.importorskip("trl")

from families import CHATML
from form_rows import EXAMPLES, PAIRS, UNPAIRED, chatml
from test_form_tokens import scored

from openbezoar.dialogue.prompt import Formatter
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_example, to_pair, to_unpaired
from openbezoar.rows.records import Counts, Example, Row
from openbezoar.training.data import Renderer

pytestmark = pytest.mark.parity
NOTES = ("prompt_id", "source", "id", "system_prompt", "hash", "prompt")
MESSAGES = ("messages", "tulu 3 sft", "ultrachat", "smoltalk 2", "sharegpt", "openhermes")
SPEAKERS = {"human": "user", "gpt": "assistant"}
IGNORED = -100


def renderer_of(tokenizer: Any) -> Renderer:
    return Renderer(Formatter(tokenizer, PromptSpec(template="own")), 1000, "drop", Counts())


def prepared(kind: str, tiny: Path, tokenizer: Any, row: Row, folder: Path, **settings: Any) -> Row:
    """What TRL's trainer of a kind makes of a row, before its first step."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), report_to=[], max_length=1000, use_cpu=True, bf16=False, **settings
    )
    model = AutoModelForCausalLM.from_pretrained(str(tiny))
    model.resize_token_embeddings(len(tokenizer))
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model, args=config, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
    )
    return dict(trainer.train_dataset[0])


def labels(ids: list[int], mask: list[int]) -> list[int]:
    return [token if learnt else IGNORED for token, learnt in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("name", MESSAGES)
def test_conversations_are_those_of_assistant_only_loss(name: str, tiny: Path, tmp_path: Path) -> None:
    row, said, _ = EXAMPLES[name]
    tokenizer = chatml(tiny)
    ((path,),) = renderer_of(tokenizer).examples([to_example(row, "row")])
    plain = {key: value for key, value in row.items() if key not in NOTES}
    if "conversations" in plain:  # its converter leaves the names of speakers as they are
        renamed = [{**m, "from": SPEAKERS.get(m["from"], m["from"])} for m in plain["conversations"]]
        plain = trl.maybe_convert_to_chatml({"conversations": renamed})
    if name == "smoltalk 2":  # this template has no place for the keyword that SmolLM 3's has
        plain = {"messages": [{"role": role, "content": content} for role, content in said]}
    theirs = prepared("SFT", tiny, tokenizer, plain, tmp_path, assistant_only_loss=True)
    ids, mask = scored(path)
    assert (theirs["input_ids"], theirs["labels"]) == (ids, labels(ids, mask))


@pytest.mark.parametrize("name", ["completion of messages", "instruction", "dolly", "openorca", "task"])
def test_completions_are_those_of_prompt_and_completion(name: str, tiny: Path, tmp_path: Path) -> None:
    row, said, learnt = EXAMPLES[name]
    tokenizer = chatml(tiny)
    ((path,),) = renderer_of(tokenizer).examples([to_example(row, "row")])
    turns = [{"role": role, "content": content} for role, content in said]
    plain = (
        row if name == "completion of messages" else {"prompt": turns[: learnt[0]], "completion": turns[learnt[0] :]}
    )
    theirs = prepared("SFT", tiny, tokenizer, plain, tmp_path, completion_only_loss=True)
    ids, mask = scored(path)
    assert (theirs["input_ids"], theirs["labels"]) == (ids, labels(ids, mask))


def test_a_line_feed_after_the_end_is_learnt_by_trl_alone(tiny: Path, tmp_path: Path) -> None:
    row, _, _ = EXAMPLES["completion of messages"]
    tokenizer = chatml(tiny)
    tokenizer.chat_template = CHATML  # '<|im_end|>\n' after every turn
    ((path,),) = renderer_of(tokenizer).examples([to_example(row, "row")])
    theirs = prepared("SFT", tiny, tokenizer, row, tmp_path, completion_only_loss=True)
    ids, mask = scored(path)
    (feed,) = tokenizer("\n", add_special_tokens=False).input_ids
    assert (theirs["input_ids"], theirs["labels"]) == ([*ids, feed], [*labels(ids, mask), feed])


@pytest.mark.parametrize(
    "name",
    ["implicit prompt", "explicit prompt", "ultrafeedback", "tulu 3 preferences", "helpsteer 3", "orca_dpo_pairs"],
)
def test_pairs_are_those_of_its_preference_trainer(name: str, tiny: Path, tmp_path: Path) -> None:
    row, both = PAIRS[name]
    tokenizer = chatml(tiny)
    ((chosen, rejected),) = renderer_of(tokenizer).pairs([to_pair(row, "row")])
    turns = [[{"role": role, "content": content} for role, content in said] for said in both]
    plain = {"chosen": turns[0], "rejected": turns[1]}  # its implicit prompt
    if name == "explicit prompt":
        plain = row
    theirs = prepared("DPO", tiny, tokenizer, plain, tmp_path)
    for path, answer in ((chosen, theirs["chosen_ids"]), (rejected, theirs["rejected_ids"])):
        ids, mask = scored(path)
        assert ids == theirs["prompt_ids"] + answer
        assert mask == [0] * len(theirs["prompt_ids"]) + [1] * len(answer)


@pytest.mark.parametrize("name", ["messages", "numbers"])
def test_unpaired_answers_are_those_of_prompt_and_completion(name: str, tiny: Path, tmp_path: Path) -> None:
    row, _, _ = UNPAIRED[name]
    tokenizer = chatml(tiny)
    one = to_unpaired(row, "row")
    ((path,),) = renderer_of(tokenizer).examples([Example(one.id, one.prompt, one.answer)])
    plain = {"prompt": row["prompt"], "completion": row["completion"]}
    theirs = prepared("SFT", tiny, tokenizer, plain, tmp_path, completion_only_loss=True)
    ids, mask = scored(path)
    assert (theirs["input_ids"], theirs["labels"]) == (ids, labels(ids, mask))
