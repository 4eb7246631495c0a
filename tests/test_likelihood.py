"""Filtering by a model's likelihood: perplexities and IFD against plain passes, thresholds by hand, the step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import context_of, save_tiny_model

from openbezoar.cleaning.likelihood import Scored, numbers, screen
from openbezoar.cleaning.rules import BY_LIKELIHOOD
from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.engine import graph
from openbezoar.errors import DataError, ModelError, RecipeError
from openbezoar.models.load import load_for_inference
from openbezoar.models.references import Checkpoint
from openbezoar.plan.estimates import estimate
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.data_steps import Filter, Likelihood
from openbezoar.recipe.file import load, parse
from openbezoar.rows.forms import to_example
from openbezoar.rows.records import Example, Row, Turn, read_jsonl, write_jsonl
from openbezoar.verbs.filter import likelihood as module
from openbezoar.verbs.filter import work as stage
from openbezoar.verbs.filter.likelihood import AnswerLikelihood


class Small:
    """A model with its prompt, and plain passes of transformers over it."""

    def __init__(self, folder: Path, template: str = "own") -> None:
        checkpoint = Checkpoint("small", str(folder), (), "none", "float32", PromptSpec(template=template))
        self.model, self.tokenizer = load_for_inference(checkpoint)
        self.formatter = Formatter(self.tokenizer, checkpoint.prompt)

    def scorer(self, window: int = 1024) -> AnswerLikelihood:
        from openbezoar.forest import Scorer

        return AnswerLikelihood(self.formatter, Scorer(self.model), window)

    def loss(self, before: list[int], answer: list[int]) -> tuple[float, int]:
        """Sum of the negative log-probabilities of an answer's tokens that have something before them, and their
        number, from the logits of one plain pass."""
        import torch

        ids = torch.tensor([before + answer])
        with torch.no_grad():
            logps = self.model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        places = range(max(1, len(before)), len(before) + len(answer))
        return -sum(float(logps[place - 1, ids[0, place]]) for place in places), len(places)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def small(tiny: Path) -> Small:
    return Small(tiny)


def example(answer: str, *prompt: str, earlier: tuple[int, ...] = ()) -> Example:
    roles: tuple[Any, ...] = ("user", "assistant")
    return Example(
        "e", tuple(Turn(roles[i % 2], text) for i, text in enumerate(prompt or ("Name a colour.",))), answer, earlier
    )


# --------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("template", ["own", "openbezoar"])
@pytest.mark.parametrize("bos", [False, True])
def test_perplexities_and_ifd_are_those_of_plain_passes(tmp_path: Path, template: str, bos: bool) -> None:
    small = Small(save_tiny_model(tmp_path, bos=bos), template)
    rows = [
        example("Blue is a colour of the sky."),
        example("Paris, a city on the river.", "What is the capital of France?"),
        example("8"),
    ]
    begun = [small.tokenizer.bos_token_id] if bos else []
    for row, scored in zip(rows, small.scorer().score(rows), strict=True):
        prompt = small.ids(small.formatter.prompt_text(row.prompt))
        answer = small.ids(small.formatter.prompt_text(row.prompt) + row.answer)[len(prompt) :]
        given, n = small.loss(prompt, answer)
        alone, m = small.loss(begun, answer)
        assert scored.tokens == n == len(answer)
        assert scored.perplexity == pytest.approx(math.exp(given / n), rel=1e-4)
        if m:
            assert scored.perplexity_alone == pytest.approx(math.exp(alone / m), rel=1e-4)
            assert scored.ifd == pytest.approx(math.exp(given / n) / math.exp(alone / m), rel=1e-4)
        else:  # one token, and nothing before it
            assert not bos and len(answer) == 1 and scored.alone is None and scored.ifd is None


def test_an_answer_does_not_depend_on_the_rows_beside_it(small: Small) -> None:
    rows = [example(f"The number is {n}, as you asked.", f"Say {n}.") for n in range(9)]
    together = small.scorer().score(rows)
    for row, scored in zip(rows, together, strict=True):
        (by_itself,) = small.scorer().score([row])
        assert by_itself.given == pytest.approx(scored.given, rel=1e-5)
        assert by_itself.alone == pytest.approx(scored.alone, rel=1e-5)


def test_of_a_conversation_each_learnt_answer_counts_after_what_stands_before_it(small: Small) -> None:
    row = example("Four, of course.", "Say one.", "One.", "Say two.", "Two, gladly.", "Say four.", earlier=(3,))
    (scored,) = small.scorer().score([row])
    first = small.ids(small.formatter.prompt_text(row.prompt[:3])), small.ids("Two, gladly.")
    last = small.ids(small.formatter.prompt_text(row.prompt)), small.ids("Four, of course.")
    (a, n), (b, m) = small.loss(*first), small.loss(*last)
    assert (scored.tokens, scored.given) == (n + m, pytest.approx((a + b) / (n + m), rel=1e-4))
    (c, k), (d, j) = small.loss([], first[1]), small.loss([], last[1])
    assert scored.alone == pytest.approx((c + d) / (k + j), rel=1e-4)


def test_an_answer_that_is_too_long_is_scored_as_far_as_it_fits_and_one_without_room_not(small: Small) -> None:
    row = example("Blue is a colour of the sky and of the sea.")
    prompt = small.ids(small.formatter.prompt_text(row.prompt))
    answer = small.ids(row.answer)
    (scored,) = small.scorer(window=len(prompt) + 5).score([row])
    given, n = small.loss(prompt, answer[:5])
    assert scored == Scored(pytest.approx(given / n, rel=1e-4), scored.alone, 5, True)  # type: ignore[arg-type]
    alone, m = small.loss([], answer[:5])
    assert scored.alone == pytest.approx(alone / m, rel=1e-4)
    assert small.scorer(window=len(prompt)).score([row]) == [Scored(None, None, 0, True)]


def test_an_empty_answer_has_no_likelihood_and_the_rows_beside_it_theirs(small: Small) -> None:
    empty, other = small.scorer().score([example(""), example("Blue it is.")])
    assert empty == Scored(None, None, 0) and other.ifd is not None


def test_a_model_whose_numbers_are_none_stops_the_step(tiny: Path) -> None:
    small = Small(tiny)
    scorer = small.scorer()
    scorer.score([example("Blue.")])
    with pytest.MonkeyPatch.context() as patch:
        import torch

        patch.setattr(scorer.scorer, "logprobs", lambda trees: [[torch.full((3,), math.nan)] * 2 for _ in trees])
        with pytest.raises(ModelError, match=r"e: .*not numbers"):
            scorer.score([example("Blue.")])


# -------------------------------------------------------------------------- what is dropped


def of_ifd(*ratios: float | None) -> list[Scored]:
    return [Scored(1.0, None, 1) if r is None else Scored(math.log(r) + 2, 2.0, 9) for r in ratios]


def rules_of(**settings: Any) -> Likelihood:
    return Likelihood(model="base", **settings)


def reasons(scores: list[Scored], **settings: Any) -> list[str]:
    return [drop.rule if drop else "" for drop in screen(scores, rules_of(**settings)).drops]


def test_from_one_on_rows_fall_and_the_highest_below_stay() -> None:
    scores = of_ifd(0.5, 1.2, 0.9, None, 0.7, 1.0001, 0.8, 0.6, 0.3, 0.2)
    high, low, none = "ifd_too_high", "ifd_too_low", "no_likelihood"
    assert reasons(scores, ifd={}) == ["", high, "", none, "", high, "", "", "", ""]
    three = [low, high, "", none, "", high, "", low, low, low]
    assert reasons(scores, ifd={"keep": 3}) == three
    assert reasons(scores, ifd={"keep": 0.3}) == three  # of all ten rows, not of those below
    assert reasons(scores, ifd={"keep": 0.39}) == three  # whole rows
    assert reasons(scores, ifd={"keep": 1.0}) == reasons(scores, ifd={"keep": 1000}) == reasons(scores, ifd={})
    assert reasons(scores, ifd={"below": 0.75, "keep": 2})[4] == "" and reasons(scores, ifd={"below": 0.75})[2] == high
    screened = screen(scores, rules_of(ifd={"keep": 3}))
    assert screened.thresholds == {"ifd_below": 1.0, "ifd_from": pytest.approx(0.7)}
    assert screened.drops[0] is not None and screened.drops[0].why == "IFD 0.5, the 3 highest are from 0.7 on"


def test_equal_rows_at_the_border_stay_in_their_order() -> None:
    assert reasons(of_ifd(*[0.5] * 5), ifd={"keep": 2}) == ["", "", *["ifd_too_low"] * 3]
    exactly_one = [Scored(2.0, 2.0, 9)]
    assert exactly_one[0].ifd == 1.0 and reasons(exactly_one, ifd={}) == ["ifd_too_high"]


def test_a_share_of_few_rows_keeps_one() -> None:
    assert reasons(of_ifd(0.5, 0.6), ifd={"keep": 0.1}) == ["ifd_too_low", ""]


def test_a_band_of_perplexities_keeps_its_ends() -> None:
    scores = [Scored(math.log(value), 3.0, 9) for value in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]
    low, high = "perplexity_too_low", "perplexity_too_high"
    inner = [low, *[""] * 9, high]
    assert reasons(scores, perplexity={"between": [0.1, 0.9]}) == inner
    assert reasons(scores, perplexity={"bounds": [1.5, 10.5]}) == inner
    assert reasons(scores, perplexity={"bounds": [None, 10.5]}) == ["", *inner[1:]]
    assert reasons(scores, perplexity={"bounds": [5.5, None]}) == [low] * 5 + [""] * 6
    assert reasons(scores, perplexity={"between": [0, 1]}) == [""] * 11
    assert reasons([*scores, Scored(None, None, 0)], perplexity={"between": [0.1, 0.9]}) == [*inner, "no_likelihood"]


def test_ifd_ranks_what_the_band_leaves() -> None:
    scores = [Scored(9.0, 9.1, 9), Scored(2.0, 2.5, 9), Scored(2.0, 3.0, 9)]
    assert reasons(scores, perplexity={"bounds": [None, 100]}, ifd={"keep": 2}) == ["perplexity_too_high", "", ""]
    assert reasons(scores) == ["", "", ""]  # scores only


def test_every_reason_has_a_row_that_it_drops() -> None:
    scores = [*of_ifd(None, 1.5, 0.5, 0.6), Scored(50.0, 60.0, 9), Scored(0.0, 1.0, 9)]
    dropped = reasons(scores, ifd={"keep": 2}, perplexity={"bounds": [1.1, 1e6]})
    assert dropped == ["no_likelihood", "ifd_too_high", "", "", "perplexity_too_high", "perplexity_too_low"]
    assert set(dropped) | set(reasons(of_ifd(0.1, 0.2), ifd={"keep": 0.5})) == {*BY_LIKELIHOOD, ""}


def test_extreme_numbers_stay_numbers() -> None:
    scores = [Scored(5000.0, 1.0, 9), Scored(0.0, 5000.0, 9)]
    assert all(math.isfinite(v) for s in scores for v in (s.perplexity or 0, s.perplexity_alone or 0, s.ifd or 0))
    told = numbers(scores, {})
    assert json.loads(json.dumps(told, allow_nan=False))["ifd_histogram"]["0.0"] == 1
    assert numbers([], {})["ifd"] == {} == numbers([], {})["ifd_histogram"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ifd": {"keep": 1}}, "share above 0 and at most 1.0, or a number of rows, 2 or more"),
        ({"ifd": {"keep": 1.5}}, "share above 0 and at most 1.0"),
        ({"ifd": {"keep": 0}}, "share above 0 and at most 1.0"),
        ({"ifd": {"keep": True}}, "expected a number"),
        ({"perplexity": {}}, "one of between .* and bounds"),
        ({"perplexity": {"between": [0.9, 0.1]}}, "two quantiles from 0 to 1"),
        ({"perplexity": {"between": [5, 95]}}, "two quantiles from 0 to 1"),
        ({"perplexity": {"bounds": [9, 2]}}, "lower one first"),
        ({"perplexity": {"bounds": [None, None]}}, "a lower bound, an upper one, or both"),
        ({"perplexity": {"between": [0, 1], "bounds": [1, 2]}}, "one of between .* and bounds"),
        ({"ifd": {"under": 1.0}}, "under"),
    ],
)
def test_settings_that_say_nothing_sensible_are_refused(settings: dict[str, Any], message: str) -> None:
    recipe = {
        "name": "t",
        "models": {"base": "base"},
        "steps": {"kept": {"filter": "data.jsonl", "likelihood": {"model": "base", **settings}}},
    }
    with pytest.raises(RecipeError, match=message):
        parse(recipe, "t.yaml")


# --------------------------------------------------------------------------------- the step


def rows(n: int) -> list[Row]:
    return [
        {"id": f"r{i}", "instruction": f"Explain thing {i}.", "response": f"{'Blue sky and sea. ' * (i % 4)}It is {i}."}
        for i in range(n)
    ]


RULES = {"near_duplicates": None, "drop_repetition": 1}


@pytest.fixture
def filtered(tmp_path: Path, tiny: Path) -> Callable[..., tuple[dict[str, Any], StepContext]]:
    def run(data: list[Row], out: str = "out", **likelihood: Any) -> tuple[dict[str, Any], StepContext]:
        write_jsonl(tmp_path / "data.jsonl", data)
        step = {"filter": "data.jsonl", "rules": RULES, "likelihood": {"model": "base", **likelihood}}
        top = {"models": {"base": {"model": str(tiny), "dtype": "float32"}}}
        context: StepContext = context_of(tmp_path, step, name="kept", out=out, top=top)
        checked = context.recipe.steps["kept"]
        assert isinstance(checked, Filter)
        return stage.run(checked, context), context

    return run


def test_the_step_drops_by_rank_and_writes_scores_and_reasons(filtered: Any) -> None:
    numbers, context = filtered([*rows(20), {"id": "short", "instruction": "Say.", "response": "No."}], ifd={"keep": 5})
    kept, rejected = (list(read_jsonl(context.out / f"{name}.jsonl")) for name in ("rows", "rejected"))
    assert rejected[-1]["rule"] == "instruction_too_short" and "ifd" not in rejected[-1]
    scored = [*kept, *rejected[:-1]]
    assert len(scored) == 20 and all(row["ifd"] > 0 for row in scored)
    below = sorted((row["ifd"] for row in scored if row["ifd"] < 1), reverse=True)
    assert sorted((row["ifd"] for row in kept), reverse=True) == below[: len(kept)]
    assert {row["rule"] for row in rejected[:-1]} <= set(BY_LIKELIHOOD)
    assert all((row["rule"] == "ifd_too_high") == (row["ifd"] >= 1) for row in rejected[:-1])
    assert all(row["why"].startswith("IFD ") for row in rejected[:-1])
    told = numbers["likelihood"]
    assert told["model"] == "base" and told["rows"] == 20 and sum(told["ifd_histogram"].values()) == 20
    assert told["thresholds"]["ifd_from"] == pytest.approx(min(row["ifd"] for row in kept), rel=1e-5)
    assert sum(numbers["rejected_by_rule"].values()) + numbers["kept"] == 21
    assert {name for name, _ in numbers["funnel"]} >= set(numbers["rejected_by_rule"])
    lines = list(read_jsonl(context.out / module.FILE))
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(20)]
    assert not (context.out / module.PART).exists()


def test_a_second_filter_takes_the_first_one_s_columns_off(filtered: Any) -> None:
    _, context = filtered(rows(8))
    once = list(read_jsonl(context.out / "rows.jsonl"))
    _, again = filtered(once, out="again", perplexity={"bounds": [None, 1e6]})
    assert list(read_jsonl(again.out / "rows.jsonl")) == once


def test_a_killed_step_goes_on_from_its_last_chunk_and_ends_with_the_same_bytes(
    filtered: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    _, whole = filtered(rows(14), ifd={"keep": 6})
    score = AnswerLikelihood.score
    asked: list[int] = []

    def killed(self: AnswerLikelihood, examples: Any) -> list[Scored]:
        asked.append(len(examples))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return score(self, examples)

    monkeypatch.setattr(AnswerLikelihood, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        filtered(rows(14), out="torn", ifd={"keep": 6})
    part = tmp_path / "torn" / module.PART
    part.write_text(part.read_text() + '{"given": 1.0, "al')  # a line that the kill cut off
    _, torn = filtered(rows(14), out="torn", ifd={"keep": 6})
    assert asked == [4, 4, 4, 4, 2]  # two chunks were there
    for name in ("rows.jsonl", "rejected.jsonl", module.FILE):
        assert (torn.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_another_threshold_asks_the_model_nothing_and_other_rows_only_their_chunk(
    filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    _, context = filtered(rows(12))
    context.run.step("kept").parent.mkdir(parents=True, exist_ok=True)
    context.out.rename(context.run.step("kept"))
    score = AnswerLikelihood.score
    asked: list[list[str]] = []

    def noted(self: AnswerLikelihood, examples: Any) -> list[Scored]:
        asked.append([one.id for one in examples])
        return score(self, examples)

    monkeypatch.setattr(AnswerLikelihood, "score", noted)
    numbers, _ = filtered(rows(12), ifd={"keep": 2})
    assert not asked and numbers["likelihood"]["rows"] == 12
    changed = rows(12)
    changed[5]["response"] = "Quite another thing."
    filtered(changed, ifd={"keep": 2})
    assert asked == [["r4", "r5", "r6", "r7"]]
    asked.clear()
    filtered(rows(12), max_length=64)  # other numbers
    assert len(asked) == 3


def test_nothing_left_names_the_likelihood(filtered: Any) -> None:
    with pytest.raises(DataError, match=r"no row is kept .* widen 'likelihood'"):
        filtered(rows(6), perplexity={"bounds": [None, 1e-6]})


def test_a_server_s_model_is_refused_by_name(write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe(
        {"kept": {"filter": "rows.jsonl", "likelihood": {"model": "far"}}},
        models={"far": {"server": "http://localhost:1/v1", "model": "m"}},
    )
    with pytest.raises(RecipeError, match=r"kept\.likelihood\.model: 'far' is a server's model"):
        graph.build(load(recipe), recipe, tmp_path / "runs")


def test_an_unknown_model_is_refused_by_name(write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe({"kept": {"filter": "rows.jsonl", "likelihood": {"model": "bse"}}})
    with pytest.raises(RecipeError, match=r"kept\.likelihood: no step or model 'bse'"):
        graph.build(load(recipe), recipe, tmp_path / "runs")


def test_the_key_has_the_model_and_is_the_old_one_without(write_recipe: Any, tmp_path: Path) -> None:
    def parts(**settings: Any) -> dict[str, Any]:
        path = write_recipe({"kept": {"filter": "rows.jsonl", **settings}})
        parts: dict[str, Any] = graph.build(load(path), path, tmp_path / "runs").nodes["kept"].parts
        return parts

    assert "likelihood" not in parts()["settings"] and parts()["models"] == {}
    asked = parts(likelihood={"model": "base"})
    assert asked["settings"]["likelihood"]["model"] == "base" and "files" in asked["models"]["base"]


def test_plan_knows_what_it_reads_and_how_much_memory_it_takes(write_recipe: Any, tmp_path: Path) -> None:
    def planned(**settings: Any) -> Any:
        path = write_recipe({"kept": {"filter": "rows.jsonl", **settings}})
        return estimate(graph.build(load(path), path, tmp_path / "runs"))["kept"]

    without, asked = planned(), planned(likelihood={"model": "base"})
    assert not without.tokens_in and not without.memory_bytes
    assert asked.tokens_in > 24 * 25 and asked.memory_bytes > 0 and asked.flops > 0
    judged = planned(judge="base")
    both = planned(judge="base", likelihood={"model": "base"})
    assert both.tokens_in == judged.tokens_in + asked.tokens_in
    assert both.memory_bytes == judged.memory_bytes
    few = planned(judge="base", likelihood={"model": "base", "ifd": {"keep": 2}})
    assert few.tokens_in < judged.tokens_in + asked.tokens_in


def test_a_run_of_a_recipe_filters_and_its_report_says_how(write_recipe: Any, tmp_path: Path, commands: Any) -> None:
    recipe = write_recipe(
        {
            "kept": {"filter": "rows.jsonl", "rules": RULES, "likelihood": {"model": "base", "ifd": {"below": 9.0}}},
            "report": {"report": ["kept"]},
        }
    )
    result = commands("run", str(recipe), cwd=tmp_path)
    assert result.code == 0, result
    manifest = json.loads((tmp_path / "runs" / "t" / "kept" / "manifest.json").read_text())
    assert manifest["numbers"]["likelihood"]["thresholds"] == {"ifd_below": 9.0}
    page = (tmp_path / "runs" / "t" / "report" / "report.md").read_text()
    assert "likelihood by base: 24 rows scored; kept: IFD below 9" in page and "quantile" in page


def test_conversations_are_scored_over_all_their_answers(filtered: Any, tiny: Path) -> None:
    talk = [
        {"role": "user", "content": "Say one number."},
        {"role": "assistant", "content": "One it is, then."},
        {"role": "user", "content": "Say two."},
        {"role": "assistant", "content": "Two, as you asked."},
    ]
    _, context = filtered([{"id": "t", "messages": talk}, {"id": "o", "messages": talk[:2]}])
    kept = list(read_jsonl(context.out / "rows.jsonl"))
    both = Small(tiny, "openbezoar").scorer().score([to_example(row, "here") for row in kept])
    assert [row["ifd"] for row in kept] == [pytest.approx(one.ifd, rel=1e-4) for one in both]
    assert both[0].tokens > both[1].tokens
