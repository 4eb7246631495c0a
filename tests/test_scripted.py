"""The scripted model: what it answers, what it tells of its calls, and a step that it serves through the context."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Opener, context_of

from openbezoar.errors import ModelError
from openbezoar.llm import Completion, Sampling, open_llm
from openbezoar.llm.scripted import Scripted, last, system
from openbezoar.rows.records import Turn

TALK = (Turn("system", "Be brief."), Turn("user", "Name a river."))


def test_it_answers_by_the_call_and_remembers_it() -> None:
    model = Scripted(lambda call: f"{system(call)}/{last(call)}/{call.seed}", name="m")
    assert model.chat([TALK, TALK[1:]], Sampling(8, 0.7), [3, 4]) == [
        Completion("Be brief./Name a river./3", "stop", 3, 4),
        Completion("/Name a river./4", "stop", 3, 3),
    ]
    assert [c.text for c in model.complete(["Once"], Sampling(8), [5])] == ["/Once/5"]
    assert [(call.kind, call.sampling.temperature, call.seed) for call in model.asked] == [
        ("chat", 0.7, 3),
        ("chat", 0.7, 4),
        ("complete", 0.0, 5),
    ]


def test_a_whole_completion_is_given_as_it_is() -> None:
    cut_off = Completion("Rhi", "length", 9, 1)
    assert Scripted(lambda call: cut_off).chat([TALK], Sampling(1), [0]) == [cut_off]


def test_it_weighs_choices_and_says_so_where_its_script_has_none() -> None:
    model = Scripted(weigh=lambda call: [-float(len(choice)) for choice in call.choices])
    assert model.choice_logprobs([TALK], "Rating: [[", ["1]]", "10]]"]) == [[-3.0, -4.0]]
    assert model.asked[0].prefix == "Rating: [["
    with pytest.raises(ModelError, match="model 'scripted': its script has no replies"):
        model.chat([TALK], Sampling(1), [0])
    with pytest.raises(ModelError, match="model 'm': its script weighs no choices"):
        Scripted(name="m").choice_logprobs([TALK], "", ["a"])


def test_a_context_s_opener_gives_it_in_the_place_of_the_recipe_s_model(tmp_path: Path) -> None:
    model = Scripted(lambda call: "Rhine.")
    opener = Opener({"judge": model})
    context = context_of(tmp_path, {"filter": "rows.jsonl", "judge": "judge"}, opener=opener)
    assert open_llm("judge", context) is model and opener.opened == ["judge"]
