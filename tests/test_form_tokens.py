"""Every form of rows, from a file to token ids and the mask of what is learnt, against ChatML written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from form_rows import EXAMPLES, LONG, PAIRS, UNPAIRED, chatml, ids_and_mask, messages

from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import TokenPath
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_example, to_pair, to_unpaired
from openbezoar.rows.known import FORMS, form_of
from openbezoar.rows.lengths import texts_of
from openbezoar.rows.records import Counts, Example, Row, write_jsonl
from openbezoar.rows.sources import read
from openbezoar.training.data import Renderer


@pytest.fixture(scope="module")
def renderer(tiny: Path) -> Renderer:
    return Renderer(Formatter(chatml(tiny), PromptSpec(template="own")), 1000, "drop", Counts())


def from_file(row: Row, folder: Path) -> tuple[str, Row]:
    write_jsonl(folder / "rows.jsonl", [row])
    (one,) = read("rows.jsonl", folder, None, {}, 0)
    return one


def scored(path: TokenPath) -> tuple[list[int], list[int]]:
    return list(path.ids), [int(yes) for yes in path.scored]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_s_ids_and_mask(name: str, renderer: Renderer, tmp_path: Path) -> None:
    row, said, learnt = EXAMPLES[name]
    where, got = from_file(row, tmp_path)
    ((path,),) = renderer.examples([to_example(got, where)])
    assert scored(path) == ids_and_mask(renderer.formatter.tokenizer, said, learnt)
    assert not renderer.counts.by_reason


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_s_ids_and_mask_and_those_of_its_chosen_answer(name: str, renderer: Renderer, tmp_path: Path) -> None:
    row, both = PAIRS[name]
    where, got = from_file(row, tmp_path)
    ((chosen, rejected),) = renderer.pairs([to_pair(got, where)])
    tokenizer = renderer.formatter.tokenizer
    assert [scored(path) for path in (chosen, rejected)] == [
        ids_and_mask(tokenizer, said, (len(said) - 1,)) for said in both
    ]
    ((path,),) = renderer.examples([to_example(got, where)])
    assert scored(path) == scored(chosen)
    assert not renderer.counts.by_reason


@pytest.mark.parametrize("name", UNPAIRED)
def test_an_unpaired_answer_s_ids_and_mask(name: str, renderer: Renderer, tmp_path: Path) -> None:
    row, said, liked = UNPAIRED[name]
    where, got = from_file(row, tmp_path)
    one = to_unpaired(got, where)
    assert one.liked is liked
    ((path,),) = renderer.examples([Example(one.id, one.prompt, one.answer)])
    assert scored(path) == ids_and_mask(renderer.formatter.tokenizer, said, (len(said) - 1,))


def test_every_form_of_the_table_is_among_these_rows() -> None:
    rows = [row for table in (EXAMPLES, PAIRS, UNPAIRED) for row, *_ in table.values()]  # type: ignore[attr-defined]
    assert {form_of(row, "row").name for row in rows} | {"pair of an instruction"} == {form.name for form in FORMS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_plan_counts_all_that_is_said(name: str) -> None:
    row, said, _ = EXAMPLES[name]
    if name in ("smoltalk 2",):
        said = said[1:]  # a system message for one template's keyword
    characters = sum(len(content) for _, content in said)
    assert texts_of(row).characters == pytest.approx(characters, abs=2 + len("Be brief.") * (name == "openhermes"))
    assert texts_of(row).own_system == (said[0][0] == "system")


@pytest.mark.parametrize(
    "name", ["ultrafeedback", "tulu 3 preferences", "explicit prompt", "last messages", "texts", "helpsteer 3"]
)
def test_plan_counts_a_pair_s_prompt_with_both_answers(name: str) -> None:
    row, both = PAIRS[name]
    paths = tuple(sum(len(content) for _, content in said) for said in both)
    assert sorted(texts_of(row).paths) == sorted(paths)
    assert texts_of({"messages": messages(LONG)}).rows == 1
