"""MT-Bench: two turns, the judge's prompts, unscored turns, scores worked out by hand."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of

from openbezoar.context import StepContext
from openbezoar.errors import DataError, RecipeError
from openbezoar.judging.both_orders import TEXTS as PAIR
from openbezoar.judging.questions import read_answers, read_questions
from openbezoar.judging.scores import answer_numbers, rating_differences, score_table, self_preference, summary_line
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.prompts import load
from openbezoar.recipe.measure_steps import MtBench
from openbezoar.rows.records import Counts, Row, Turn, read_jsonl, write_jsonl
from openbezoar.verbs.judge import mt_bench as stage
from openbezoar.verbs.judge.protocols.single import TEXTS as SINGLE

Talk = Sequence[Turn]


def scripted(
    name: str,
    reply: Callable[[Talk], str | Completion] | None = None,
    logprobs: Callable[[Talk], list[float]] | None = None,
) -> Scripted:
    """An LLM that answers, or weighs, by a function of the conversation, and completes no raw text."""

    def answer(call: Call) -> Completion:
        assert reply and not isinstance(call.prompt, str)
        said = reply(call.prompt)
        return said if isinstance(said, Completion) else Completion(said, "stop", 10, len(said.split()))

    def weigh(call: Call) -> list[float]:
        assert logprobs and not isinstance(call.prompt, str)
        assert list(call.choices) in ([f"{n}]]" for n in range(1, 11)], ["A]]", "B]]", "C]]"])
        return logprobs(call.prompt)

    return Scripted(reply and answer, logprobs and weigh, name)


QUESTIONS: list[Row] = [
    {"question_id": 1, "category": "writing", "turns": ["Q1 first", "Q1 second"], "reference": None},
    {"question_id": 2, "category": "math", "turns": ["Q2 first", "Q2 second"], "reference": ["R2 one", "R2 two"]},
    {
        "question_id": 3,
        "category": "coding",
        "turns": ["Q3 first", "Q3 second"],
        "reference": ["note", "note"],
        "reference_gpt4": ["R3 one", "R3 two"],
    },
    {"question_id": 4, "category": "stem", "turns": ["Q4 first", "Q4 second"], "reference": ["R4 one", "R4 two"]},
    {"question_id": 5, "category": "reasoning", "turns": ["Q5 first", "Q5 second"], "reference": "R5 only"},
    {"question_id": 6, "category": "cooking", "turns": ["Q6 first", "Q6 second"]},
]


def answer(model: str) -> Callable[[Talk], str]:
    return lambda talk: f"{model} on {talk[-1].content}"


def grade(talk: Talk) -> str:
    """Model 'weak' gets 3, model 'strong' gets 8; one more on the second turn."""
    text = talk[-1].content
    return f"Fair. Rating: [[{(8 if 'strong on' in text else 3) + ('<second_answer>' in text)}]]"


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., tuple[dict[str, Any], StepContext]]:
    def run(
        llms: dict[str, Scripted],
        questions: list[Row] = QUESTIONS,
        opened: list[str] | None = None,
        published: list[Row] | None = None,
        cached: bool = False,
        **settings: Any,
    ) -> tuple[dict[str, Any], StepContext]:
        if published is not None:
            write_jsonl(tmp_path / "published.jsonl", published)
            settings["answers"] = "published.jsonl"
        write_jsonl(tmp_path / "questions.jsonl", questions)
        names = [n for n in llms if n != "judge"]
        step = {"mt_bench": names, "questions": "questions.jsonl", "judge": "judge", **settings}
        opener = Opener(llms, cached)
        opener.opened = opener.opened if opened is None else opened
        context: StepContext = context_of(tmp_path, step, name="mt", opener=opener)
        checked = context.recipe.steps["mt"]
        assert isinstance(checked, MtBench)
        return stage.run(checked, context), context

    return run


def written(context: StepContext, name: str) -> list[Row]:
    return list(read_jsonl(context.out / f"{name}.jsonl"))


def two_models() -> dict[str, Scripted]:
    return {
        "weak": scripted("weak", answer("weak")),
        "strong": scripted("strong", answer("strong")),
        "judge": scripted("judge", grade),
    }


# ------------------------------------------------------------------------------ answers


def test_each_question_is_answered_in_two_turns_and_the_second_sees_the_first(bench: Any) -> None:
    llms = two_models()
    _, context = bench(llms)
    talks = [call.prompt for call in llms["weak"].asked]
    assert (Turn("user", "Q1 first"),) in talks
    assert (Turn("user", "Q1 first"), Turn("assistant", "weak on Q1 first"), Turn("user", "Q1 second")) in talks
    rows = written(context, "answers")
    assert [(r["model"], r["question_id"]) for r in rows] == [(m, q) for m in ("weak", "strong") for q in range(1, 7)]
    assert rows[0] == {
        "model": "weak",
        "question_id": 1,
        "category": "writing",
        "questions": ["Q1 first", "Q1 second"],
        "turns": ["weak on Q1 first", "weak on Q1 second"],
        "finish": ["stop", "stop"],
        "tokens": [4, 4],
    }


def test_the_category_sets_the_temperature_of_both_turns(bench: Any) -> None:
    llms = two_models()
    bench(llms, max_new_tokens=99)
    found = {(last(c), c.sampling.temperature, c.sampling.max_new_tokens) for c in llms["weak"].asked}
    expected = {"Q1": 0.7, "Q2": 0.0, "Q3": 0.0, "Q4": 0.1, "Q5": 0.0, "Q6": 0.7}
    assert found == {(f"{q} {turn}", t, 99) for q, t in expected.items() for turn in ("first", "second")}
    assert all(c.sampling.temperature == 0 and c.sampling.max_new_tokens == 512 for c in llms["judge"].asked)


def test_seeds_differ_by_question_and_turn_and_do_not_depend_on_the_batch(bench: Any, tmp_path: Path) -> None:
    seeds = []
    for batch in (1, 4):
        for file in (tmp_path / "out").glob(".*"):
            file.unlink()
        llms = two_models()
        bench(llms, batch=batch)
        seeds.append({last(call): call.seed for call in llms["weak"].asked})
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 12


# ---------------------------------------------------------------------- what is judged


def judged(llms: dict[str, Scripted], *marks: str) -> str:
    (found,) = (text for text in map(last, llms["judge"].asked) if all(m in text for m in ("weak on", *marks)))
    return found


def test_the_second_turns_prompt_shows_the_whole_conversation(bench: Any) -> None:
    llms = two_models()
    bench(llms)
    text = judged(llms, "weak on Q1 second")
    places = [text.index(t) for t in ("Q1 first", "weak on Q1 first", "Q1 second\n", "weak on Q1 second")]
    assert places == sorted(places)
    assert "Q1 second" not in judged(llms, "<answer>\nweak on Q1 first")


def test_references_are_shown_for_math_coding_and_reasoning_and_gpt4s_go_first(bench: Any) -> None:
    llms = two_models()
    bench(llms)
    assert "R2 one" in judged(llms, "<answer>\nweak on Q2 first")
    second = judged(llms, "weak on Q2 second")
    assert "R2 one" in second
    assert "R2 two" in second
    assert "R3 two" in judged(llms, "weak on Q3 second")
    everything = " ".join(map(last, llms["judge"].asked))
    assert "note" not in everything
    assert "R4 one" not in everything
    assert "R5 only" in judged(llms, "<answer>\nweak on Q5 first")
    assert "reference" not in judged(llms, "weak on Q5 second")


@pytest.mark.parametrize("name", [*SINGLE, *PAIR])
def test_every_judge_prompt_asks_for_the_rating_or_verdict_in_double_brackets(name: str) -> None:
    text = load(name, {})
    wanted = (
        ('"[[rating]]"', "Rating: [[5]]") if name in SINGLE else ('"[[A]]"', '"[[B]]"', '"[[C]]"', "Verdict: [[C]]")
    )
    assert all(w in text for w in wanted)
    assert set(re.findall(r"\{(\w+)\}", text)) == set({**SINGLE, **PAIR}[name])


# -------------------------------------------------------------------- ratings and scores


def test_scores_by_hand(bench: Any) -> None:
    numbers, context = bench(two_models())
    weak, strong = numbers["models"]["weak"], numbers["models"]["strong"]
    assert weak["score"] == {"mean": 3.5, "low": 3.5, "high": 3.5, "n": 6}
    assert (weak["n"], weak["unscored"], weak["questions"]) == (12, 0, 6)
    assert {t: g["mean"] for t, g in strong["by_turn"].items()} == {"1": 8.0, "2": 9.0}
    assert strong["by_category"]["math"] == {"mean": 8.5, "low": 8.5, "high": 8.5, "n": 1}
    (difference,) = numbers["differences"]
    # Six equal differences: 2 of 2^6 ways to sign them are as far from 0.
    assert {**difference, "p": 0, "p_holm": 0} == {
        "a": "weak",
        "b": "strong",
        "what": "rating",
        "n": 6,
        "difference": 5.0,
        "low": 5.0,
        "high": 5.0,
        "p": 0,
        "p_holm": 0,
    }
    assert difference["p"] == difference["p_holm"] == pytest.approx(2 / 64, abs=0.005)
    assert numbers["summary"] == "weak 3.50 (3.50 to 3.50), strong 8.50 (8.50 to 8.50); 0 of 24 turns unscored"
    saved = json.loads((context.out / "scores.json").read_text())
    assert saved["models"] == numbers["models"]
    assert (saved["judge"], saved["mode"], saved["questions"]) == ("judge", "text", 6)
    first = written(context, "judgments")[0]
    assert first == {
        "model": "weak",
        "question_id": 1,
        "category": "writing",
        "turn": 1,
        "mode": "text",
        "judgment": "Fair. Rating: [[3]]",
        "rating": 3.0,
        "unscored": None,
    }


def test_a_turn_without_a_rating_is_left_out_and_counted(bench: Any) -> None:
    def reply(talk: Talk) -> str | Completion:
        text = talk[-1].content
        if "Q1 second" in text:
            return "Excellent!"
        if "Q2 second" in text:
            return Completion("It is", "length", 9, 9)
        return Completion("", "error", 0, 0) if "Q3" in text else "[[4]]"

    llms = {"weak": scripted("weak", answer("weak")), "judge": scripted("judge", reply)}
    numbers, context = bench(llms)
    weak = numbers["models"]["weak"]
    assert (weak["n"], weak["unscored"], weak["questions"]) == (8, 4, 5)
    assert weak["score"]["mean"] == 4.0
    assert "coding" in weak["by_category"]
    assert weak["by_category"]["coding"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert context.counts.by_reason == {"unscored_unparsable": 1, "unscored_cut_off": 1, "unscored_judge_error": 2}


def test_answers_that_never_came_are_unscored_and_not_shown_to_the_judge(bench: Any) -> None:
    def reply(talk: Talk) -> str | Completion:
        lost = talk[-1].content in ("Q1 first", "Q2 second")
        return Completion("", "error", 0, 0) if lost else f"weak on {talk[-1].content}"

    llms = {"weak": scripted("weak", reply), "judge": scripted("judge", grade)}
    numbers, context = bench(llms, batch=1)
    lost = [(j["question_id"], j["turn"]) for j in written(context, "judgments") if j["unscored"] == "answer_error"]
    assert lost == [(1, 1), (1, 2), (2, 2)]
    assert len(llms["judge"].asked) == 9
    assert numbers["models"]["weak"]["answers"]["errors"] == 3
    assert context.counts.by_reason == {"unscored_answer_error": 3}


def test_a_judge_without_a_single_rating_gives_no_score(bench: Any) -> None:
    llms = {
        "weak": scripted("weak", answer("weak")),
        "strong": scripted("strong", answer("strong")),
        "judge": scripted("judge", lambda _: "Nice."),
    }
    numbers, _ = bench(llms)
    assert numbers["models"]["weak"]["score"]["mean"] is None
    assert numbers["differences"] == []
    assert numbers["summary"] == "weak unscored, strong unscored; 24 of 24 turns unscored"


def test_the_probability_mode_rates_by_the_expected_rating(bench: Any) -> None:
    def logprobs(talk: Talk) -> list[float]:
        return (
            [math.log(0.5) if n in (7, 8) else -math.inf for n in range(1, 11)]
            if "Q1" in talk[-1].content
            else [-math.inf] * 10
        )

    llms = {"weak": scripted("weak", answer("weak")), "judge": scripted("judge", logprobs=logprobs)}
    numbers, context = bench(llms, mode="probability")
    assert llms["judge"].asked[-1].prefix == "Rating: [["
    assert [j["rating"] for j in written(context, "judgments")][:3] == [pytest.approx(7.5), pytest.approx(7.5), None]
    assert (numbers["models"]["weak"]["n"], numbers["models"]["weak"]["unscored"]) == (2, 10)


def test_models_are_opened_one_after_another_and_a_rerun_opens_none(bench: Any) -> None:
    opened: list[str] = []
    first, _ = bench(two_models(), opened=opened, cached=True)
    assert opened == ["weak", "strong", "judge"]
    again, _ = bench(two_models(), opened=opened, cached=True)
    assert opened == ["weak", "strong", "judge"]
    assert again == first


def test_a_killed_run_goes_on_and_gives_the_same(bench: Any, tmp_path: Path) -> None:
    class Kill(Exception):
        pass

    def dies(talk: Talk) -> str:
        if "strong on Q4" in talk[-1].content:
            raise Kill
        return grade(talk)

    with pytest.raises(Kill):
        bench({**two_models(), "judge": scripted("judge", dies)}, cached=True, batch=2)
    opened: list[str] = []
    resumed, _ = bench(two_models(), cached=True, batch=2, opened=opened)
    assert opened == ["judge"]
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    assert bench(two_models(), cached=True, batch=2)[0] == resumed


# ------------------------------------------------------------------------------ in pairs


def prefers(name: str) -> Callable[[Talk], str]:
    """A judge for whom the model called ``name`` is better wherever it stands."""

    def reply(talk: Talk) -> str:
        shown = re.findall(r"<(?:second_)?answer_a>\n(.*)\n<", talk[-1].content)
        return f"Not [[C]]. Verdict: {'[[A]]' if name in shown[0] else '[[B]]'}"

    return reply


def test_a_model_that_is_better_in_both_orders_wins_everything(bench: Any) -> None:
    numbers, context = bench({**two_models(), "judge": scripted("judge", prefers("strong"))}, grading="pairwise")
    found = numbers["pairwise"]
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["wins"], pair["losses"], pair["ties"], pair["unscored"]) == (
        "weak",
        "strong",
        0,
        12,
        0,
        0,
    )
    # Six questions without a spread: Wilson's interval, n / (n + z²) = 6 / 9.84.
    assert found["models"]["strong"]["win_rate"] == {
        "value": 1.0,
        "low": pytest.approx(0.60966, abs=1e-4),
        "high": 1.0,
        "n": 12,
    }
    assert found["models"]["weak"]["by_category"]["math"]["n"] == 2
    assert found["flips"]["value"] == 0.0
    assert found["first"]["value"] == 0.5
    assert pair["p"] == pair["p_holm"] == pytest.approx(2 / 64, abs=0.005)
    assert found["self_preference"] is None
    assert numbers["summary"] == "weak wins 0 % (0 to 39), strong wins 100 % (61 to 100); 0 of 12 comparisons unscored"
    rows = written(context, "comparisons")
    assert rows[0]["winner"] == "model_b"
    assert rows[0]["verdicts"] == ["B", "A"]
    assert not (context.out / "judgments.jsonl").exists()


def test_a_judge_that_likes_what_stands_first_decides_nothing(bench: Any) -> None:
    numbers, context = bench(
        {**two_models(), "judge": scripted("judge", lambda _: "[[A]]")}, grading="both", questions=QUESTIONS[:3]
    )
    found = numbers["pairwise"]
    assert {r["winner"] for r in written(context, "comparisons")} == {"tie (inconsistent)"}
    assert (found["pairs"][0]["ties"], found["pairs"][0]["inconsistent"]) == (6, 6)
    assert (found["flips"]["value"], found["first"]["value"]) == (1.0, 1.0)
    assert found["longer"] == {"value": None, "low": None, "high": None, "n": 0}
    assert numbers["models"]["weak"]["unscored"] == 6  # "[[A]]" is no rating


def test_a_pair_without_a_verdict_in_one_order_is_left_out_and_counted(bench: Any) -> None:
    def reply(talk: Talk) -> str:
        return "I cannot say." if "<answer_a>\nstrong on Q1" in talk[-1].content else "[[C]]"

    numbers, context = bench({**two_models(), "judge": scripted("judge", reply)}, grading="pairwise")
    assert (numbers["pairwise"]["n"], numbers["pairwise"]["unscored"]) == (11, 1)
    assert context.counts.by_reason == {"unscored_unparsable": 1}
    assert written(context, "comparisons")[0]["winner"] is None


def test_references_are_shown_to_a_judge_of_pairs(bench: Any) -> None:
    llms = {**two_models(), "judge": scripted("judge", lambda _: "[[C]]")}
    bench(llms, grading="pairwise")
    texts = [last(call) for call in llms["judge"].asked]
    assert len(texts) == 24
    assert all("R2 one" in t for t in texts if "Q2 first" in t)
    assert all(("R2 two" in t) == ("Q2 second" in t) for t in texts)
    assert not any("R4" in t for t in texts)


def test_by_probability_the_likeliest_verdict_counts(bench: Any) -> None:
    judge = scripted("judge", logprobs=lambda _: [math.log(0.5), math.log(0.2), math.log(0.3)])
    numbers, context = bench({**two_models(), "judge": judge}, grading="pairwise", mode="probability")
    assert judge.asked[-1].prefix == "Verdict: [["
    assert written(context, "comparisons")[0]["verdicts"] == ["A", "A"]
    assert numbers["pairwise"]["flips"]["value"] == 1.0


def test_comparisons_are_votes_that_agreement_reads(bench: Any) -> None:
    from openbezoar.judging.votes import read_votes

    _, context = bench({**two_models(), "judge": scripted("judge", prefers("strong"))}, grading="pairwise")
    votes, lost = read_votes(context.out / "comparisons.jsonl")
    assert (len(votes), lost) == (12, 0)
    assert {(v.key[2:], v.label) for v in votes} == {(("strong", "weak"), 0)}


def published(model: str, questions: Sequence[int] = (1, 2, 3, 4, 5, 6)) -> list[Row]:
    return [
        {"question_id": q, "model_id": model, "turns": [f"{model} on Q{q} first", f"{model} on Q{q} second"]}
        for q in questions
    ]


def test_published_answers_stand_beside_the_recipes_models(bench: Any) -> None:
    others = [
        *published("vicuna", (1, 2)),
        {"question_id": 3, "model_id": "old", "choices": [{"turns": ["strong on Q3", "ERROR"]}]},
    ]
    numbers, context = bench(
        {"weak": scripted("weak", answer("weak")), "judge": scripted("judge", grade)},
        published=[*others, *published("x", (99,))],
    )
    assert list(numbers["models"]) == ["weak", "vicuna", "old"]
    assert (numbers["models"]["vicuna"]["n"], numbers["models"]["old"]["n"], numbers["models"]["old"]["unscored"]) == (
        4,
        1,
        1,
    )
    assert numbers["models"]["old"]["score"]["mean"] == 8.0
    assert context.counts.by_reason == {
        "published answers to other questions": 1,
        "vicuna: questions without a published answer": 4,
        "old: questions without a published answer": 5,
        "unscored_answer_error": 1,
    }


@pytest.mark.parametrize(
    "beside",
    [
        {"tokens": 12},
        {"finish": "stop"},
        {"finish": ["eos", "eos"], "tokens": [3, 4]},
        {"finish": ["stop", "stop"]},
        {"finish": ["stop"], "tokens": [1]},
    ],
)
def test_how_published_answers_ended_is_not_taken_from_fields_of_other_meaning(beside: Row) -> None:
    questions = read_questions([{"question_id": 1, "turns": ["a", "b"], "category": "math", "reference": 12}])
    assert questions[0].references == ("12", "")
    for odd in ({"answer": "12"}, [["12"], "13"]):
        with pytest.raises(DataError, match="row 1: a reference is"):
            read_questions([{"question_id": 1, "turns": ["a", "b"], "category": "math", "reference": odd}])
    (row,) = read_answers([{"question_id": 1, "model_id": "m", "turns": ["x", "y"], **beside}], questions, Counts())
    assert (row["finish"], row["tokens"]) == ([None, None], [None, None])
    assert answer_numbers([row])["ended"] is None


def test_a_steps_answers_can_be_graded_again_elsewhere(bench: Any, tmp_path: Path) -> None:
    lost = scripted(
        "weak",
        lambda talk: (
            Completion("", "error", 0, 0) if talk[-1].content == "Q2 second" else f"weak on {talk[-1].content}"
        ),
    )
    first, context = bench({"weak": lost, "judge": scripted("judge", grade)})
    rows = written(context, "answers")
    for file in context.out.iterdir():
        file.unlink()
    again, _ = bench({"judge": scripted("judge", grade)}, published=rows)
    assert again["models"] == first["models"]


def test_published_answers_alone_can_be_compared_with_one_of_them(bench: Any) -> None:
    rows = [*published("one"), *published("two"), *published("strong")]
    llms = {"judge": scripted("judge", prefers("strong"))}
    numbers, _ = bench(llms, published=rows, grading="pairwise", against="strong")
    assert [(p["a"], p["b"]) for p in numbers["pairwise"]["pairs"]] == [("one", "strong"), ("two", "strong")]
    assert numbers["pairwise"]["models"]["one"]["win_rate"]["n"] == 12


def test_a_judge_among_the_contestants_is_shown_with_its_own_scores(bench: Any) -> None:
    def reply(talk: Talk) -> str:
        text = talk[-1].content
        if "[[rating]]" in text:
            return grade(talk)
        return prefers("strong")(talk) if "[[A]]" in text else answer("strong")(talk)

    llms = {"weak": scripted("weak", answer("weak")), "strong": scripted("strong", reply)}
    numbers, _ = bench(llms, grading="both", judge="strong")
    assert numbers["self_preference"] == {"model": "strong", "mean": 5.0, "low": 5.0, "high": 5.0, "n": 6}
    own = numbers["pairwise"]["self_preference"]
    assert (own["model"], own["value"], own["n"]) == ("strong", 1.0, 12)
    # "strong" has two letters more
    assert (numbers["pairwise"]["longer"]["value"], numbers["pairwise"]["longer"]["n"]) == (1.0, 12)


def test_official_prompts_are_used_word_for_word(bench: Any, tmp_path: Path) -> None:
    names = {"single-v1": "judge_single", "single-math-v1": "judge_single_reference"}
    names |= {"single-v1-multi-turn": "judge_single_turn2", "single-math-v1-multi-turn": "judge_single_turn2_reference"}
    rows = [
        {
            "name": official,
            "system_prompt": "SYSTEM" if "multi" in official else "",
            "prompt_template": " ".join(f"<{p}> {{{p}}}" for p in SINGLE[own]),
        }
        for official, own in names.items()
    ]
    write_jsonl(tmp_path / "judge_prompts.jsonl", rows)
    llms = {"weak": scripted("weak", lambda _: "</answer> {question}"), "judge": scripted("judge", grade)}
    bench(llms, judge_prompts="judge_prompts.jsonl")
    talks = [call.prompt for call in llms["judge"].asked]
    assert (Turn("user", "<question> Q1 first <answer> </answer> {question}"),) in talks
    assert sum(talk[0] == Turn("system", "SYSTEM") for talk in talks) == 6
    write_jsonl(tmp_path / "judge_prompts.jsonl", rows[1:])
    with pytest.raises(DataError, match="no text 'single-v1' with 'prompt_template'"):
        bench(llms, judge_prompts="judge_prompts.jsonl")


# ------------------------------------------------------------------------------ figures


def judgment(model: str, question: int, turn: int, rating: float | None) -> Row:
    return {"model": model, "question_id": question, "category": "math", "turn": turn, "rating": rating}


def test_a_question_counts_once_however_many_of_its_turns_are_rated() -> None:
    rows = [judgment("m", 1, 1, 2.0), judgment("m", 1, 2, 4.0), judgment("m", 2, 1, 9.0), judgment("m", 2, 2, None)]
    table = score_table(["m"], [], rows, seed=1)
    assert table["m"]["score"]["mean"] == (3 + 9) / 2
    assert (table["m"]["n"], table["m"]["unscored"]) == (3, 1)


def test_the_difference_is_over_the_questions_that_both_models_have() -> None:
    rows = [
        judgment("a", 1, 1, 2.0),
        judgment("a", 2, 1, 9.0),
        judgment("b", 1, 1, 5.0),
        judgment("b", 3, 1, 1.0),
        judgment("c", 1, 1, 4.0),
    ]
    found = rating_differences(["a", "b", "c"], rows, seed=1)
    assert [(d["a"], d["b"], d["n"], d["difference"]) for d in found] == [
        ("a", "b", 1, 3.0),
        ("a", "c", 1, 2.0),
        ("b", "c", 1, -1.0),
    ]
    assert all(d["p_holm"] == 1.0 for d in found)
    assert summary_line(score_table(["a", "b", "c"], [], rows, seed=1)).endswith("; 0 of 5 turns unscored")


def test_a_turn_that_one_model_has_no_rating_for_favours_neither() -> None:
    # Second turns get 4, first turns 8, whoever answers; the judge could not be read on any second turn of a.
    rows = [
        judgment(m, q, t, None if (m, t) == ("a", 2) else 12.0 - 4 * t) for m in "ab" for q in range(30) for t in (1, 2)
    ]
    (found,) = rating_differences(["a", "b"], rows, seed=1)
    assert (found["difference"], found["n"], found["p_holm"]) == (0, 30, 1)
    assert self_preference("a", ["a", "b"], rows, seed=1)["mean"] == 0
    # By hand, where all is rated: of question 1 (2 + 4) / 2 less (5 + 3) / 2, of question 2 only
    # the first turns, 9 less 6.
    rows = [judgment("b", 1, 1, 2.0), judgment("b", 1, 2, 4.0), judgment("a", 1, 1, 5.0), judgment("a", 1, 2, 3.0)]
    rows += [judgment("b", 2, 1, 9.0), judgment("b", 2, 2, 1.0), judgment("a", 2, 1, 6.0)]
    (found,) = rating_differences(["a", "b"], rows, seed=1)
    assert (found["difference"], found["n"]) == ((-1 + 3) / 2, 2)


def test_the_look_of_answers_by_hand() -> None:
    loop = "on and on and " * 9
    rows = [
        {"turns": ["fine", ""], "finish": ["stop", "stop"], "tokens": [2, 1]},
        {"turns": [loop, ""], "finish": ["length", "error"], "tokens": [27, 0]},
    ]
    assert answer_numbers(rows) == {
        "turns": 4,
        "errors": 1,
        "empty": 1,
        "ended": 2 / 3,
        "degenerate": 1 / 3,
        "refusals": 0.0,
        "mean_tokens": 10.0,
    }
    assert answer_numbers([])["ended"] is None
    published = answer_numbers([{"turns": ["fine", ""], "finish": [None, "error"], "tokens": [None, None]}])
    assert published == {
        "turns": 2,
        "errors": 1,
        "empty": 0,
        "ended": None,
        "degenerate": 0.0,
        "refusals": 0.0,
        "mean_tokens": None,
    }


# ----------------------------------------------------------------------- users' mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grading": "pairwise"}, "one model alone cannot be compared"),
        (
            {"grading": "pairwise", "against": "nobody", "published": published("other")},
            "against: no model 'nobody' in this step",
        ),
        ({"published": published("weak")}, "'weak' is also a model of this step"),
        ({"published": [{"question_id": 1, "model_id": "m"}]}, "row 1: expected 'question_id', 'model_id' and 'turns'"),
        ({"published": published("m", (1, 1))}, "m answers it twice"),
    ],
)
def test_a_step_that_cannot_be_graded_says_why(bench: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, RecipeError), match=message):
        bench({"weak": scripted("weak", answer("weak")), "judge": scripted("judge", grade)}, **settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1, "turns": ["one"]}, "row 1: 'turns' is not a list of two texts"),
        ({"question_id": 1, "turns": ["one", " "]}, "'turns' is not a list of two texts"),
        ({"turns": ["one", "two"]}, "row 1: no 'question_id'"),
    ],
)
def test_a_bad_question_is_named(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stage.read_questions([row])


def test_an_id_met_twice_is_an_error() -> None:
    with pytest.raises(DataError, match="question_id 0 occurs 2 times"):
        stage.read_questions([{"question_id": 0, "turns": ["a", "b"]}] * 2)
