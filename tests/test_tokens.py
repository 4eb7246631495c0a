"""What a tokenizer puts around a text: the beginning stays, the end goes, wherever a model reads a plain text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny_model

from openbezoar.dialogue.prompt import Formatter
from openbezoar.dialogue.tokens import Frame
from openbezoar.gguf.vocabulary import begins_with_bos
from openbezoar.llm import Sampling
from openbezoar.llm.local import LocalLLM
from openbezoar.models.references import Checkpoint
from openbezoar.recipe.blocks import PromptSpec

FRAMES = {
    "$A </s>": ((), (1,)),
    "<s> $A </s>": ((0,), (1,)),
    "<pad> $A <pad> </s>": ((2,), (2, 1)),
    "<s> $A": ((0,), ()),
}


@pytest.fixture(scope="module", params=list(FRAMES))
def framed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_tiny_model(tmp_path_factory.mktemp("framed"), frame=request.param)


def local(folder: Path) -> LocalLLM:
    return LocalLLM(Checkpoint("m", str(folder), (), "none", "float32", PromptSpec()))


def test_a_text_keeps_its_beginning_and_loses_its_end(framed: tuple[str, Path]) -> None:
    frame, folder = framed
    tokenizer = local(folder).tokenizer
    found = Frame.of(tokenizer)
    assert (found.before, found.after) == FRAMES[frame]
    for text in ("The sea.", "It says </s>", "</s>", ""):
        bare = tokenizer(text, add_special_tokens=False).input_ids
        assert found.ids(tokenizer, text) == [*FRAMES[frame][0], *bare]


def test_a_raw_completion_goes_on_with_its_text_whatever_the_tokenizer_would_append(
    framed: tuple[str, Path], tiny: Path
) -> None:
    """The same weights (one seed) with and without an appended end give the same continuation."""
    frame, folder = framed
    made = local(folder)
    bare = made.tokenizer("Numbers: 0 1 2", add_special_tokens=False).input_ids
    (asked,) = made.complete(["Numbers: 0 1 2"], Sampling(8), [0])
    (wanted,) = made.generate([[*FRAMES[frame][0], *bare]], Sampling(8), [0])
    assert asked == wanted and asked.tokens > 0


def test_only_a_bos_counts_as_one(framed: tuple[str, Path]) -> None:
    frame, folder = framed
    formatter = Formatter(local(folder).tokenizer, PromptSpec())
    assert formatter.adds_bos == begins_with_bos(formatter) == frame.startswith("<s>")


def test_benchmarks_score_the_same_whether_or_not_the_tokenizer_appends_an_end(
    framed: tuple[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from test_harness import ROWS, opened

    from openbezoar.harness.run import score

    frame, folder = framed
    (tmp_path / "lambada_openai.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["lambada_openai"]))
    plain = save_tiny_model(tmp_path / "plain", frame=frame.split("$A")[0] + "$A")

    def scored(place: Path) -> dict[str, Any]:
        made = local(place)
        return score(made.model, made.tokenizer, opened("lambada_openai", data=tmp_path, fewshot=0))["lambada_openai"]

    found, wanted = scored(folder), scored(plain)
    appended = found.pop("end_left_out", "")
    assert appended == frame.split("$A")[1].replace(" ", "") and "end_left_out" not in wanted
    assert found == wanted
