"""Win rates over prompts: answers, rewards and a judge's verdicts against counts made by hand, the report of them,
and going on after a kill.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener, context_of
from synthetic_run import EVIL
from synthetic_run import step as finished_step

from openbezoar.context import StepContext
from openbezoar.engine import graph
from openbezoar.errors import RecipeError
from openbezoar.judging import rewards
from openbezoar.llm import Call, Completion
from openbezoar.llm.scripted import Scripted, last
from openbezoar.plan.estimates import estimate
from openbezoar.recipe.file import load, parse
from openbezoar.recipe.refs import not_in_key, references
from openbezoar.reporting.document import Grid, flat
from openbezoar.reporting.facts import read_facts
from openbezoar.reporting.gains import gains_table, is_of
from openbezoar.reporting.scores import differences
from openbezoar.reporting.scores_section import scores_section
from openbezoar.reporting.scores_table import columns, scores_table
from openbezoar.reporting.wording import NOTHING
from openbezoar.rows.records import Turn, read_jsonl, write_jsonl
from openbezoar.stats.intervals import holm
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.evaluate import work as stage
from openbezoar.verbs.evaluate.result import EvaluateScores
from openbezoar.verbs.evaluate.won import answer_pairs
from openbezoar.verbs.filter.benchmarks import read_benchmarks
from openbezoar.verbs.report.compare import compare_scores
from openbezoar.verbs.report.page import write_report

N = 40
CHAT: dict[str, Any] = {"prompts": "prompts.jsonl", "by": "rm", "against": "base"}
LOOP = "round and round we go again " * 12


def base(call: Call) -> str | Completion:
    """Answers at length and does not stop; loops on every fourth prompt."""
    n = int(last(call).split()[-1])
    return Completion(
        LOOP if n % 4 == 0 else f"words {n} of a talk that wanders on through towns and fields", "length", 5, 20
    )


def tuned(call: Call) -> str | Completion:
    """Stops; gives base's answer to prompt 1, none to prompt 2."""
    n = int(last(call).split()[-1])
    if n == 2:
        return Completion("", "error", 5, 0, refused="too long")
    return str(base(call).text) if n == 1 else f"good {n}."  # type: ignore[union-attr]


def final(call: Call) -> str:
    return f"good {last(call).split()[-1]}" + "!" * (int(last(call).split()[-1]) % 3)


class Liking:
    """A reward model by rule: so much for 'good', and a tenth a mark of exclamation."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Turn], Sequence[str]]] = []
        self.closed = 0

    def scores(
        self,
        asked: Sequence[tuple[Sequence[Turn], Sequence[str]]],
        done: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        self.asked += asked
        return [[float("good" in text) + 0.1 * text.count("!") for text in texts] for _, texts in asked]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def liking(monkeypatch: pytest.MonkeyPatch) -> Liking:
    model = Liking()
    monkeypatch.setattr(rewards, "is_reward_model", lambda recipe, name: name == "rm")
    monkeypatch.setattr(rewards, "open_rewards", lambda context, name: model)
    return model


def made(folder: Path, opener: Opener | None = None, seed: int = 7, **settings: Any) -> StepContext:
    write_jsonl(folder / "prompts.jsonl", [{"id": "same", "instruction": f"Tell me of {n}"} for n in range(1, N + 1)])
    chat = {**CHAT, **settings}
    models = {"base": Scripted(base), "sft": Scripted(tuned), "dpo": Scripted(final), "rm": Scripted()}
    opener = opener or Opener(models)
    step = {"evaluate": ["base", "sft", "dpo"], "wins": {"chat": chat}}
    context: StepContext = context_of(folder, step, name="scores", seed=seed, opener=opener)
    return context


def run(context: StepContext) -> dict[str, Any]:
    stage.run(context.recipe.steps["scores"], context)  # type: ignore[arg-type]
    content: dict[str, Any] = json.loads((context.out / "scores.json").read_text())
    return content


def finished(context: StepContext, folder: Path) -> RunFolder:
    """The step as a run has it when it is whole."""
    settings = context.recipe.steps["scores"].model_dump(mode="json")
    files = {"scores.json": json.loads((context.out / "scores.json").read_text())}
    files["answers.jsonl"] = list(read_jsonl(context.out / "answers.jsonl"))
    identities = {name: {"model": name} for name in context.recipe.models}
    data = {"prompts.jsonl": "a digest"}
    finished_step(folder, "scores", "evaluate", settings, [], files, models=identities, data_files=data)
    return RunFolder(folder)


# ---------------------------------------------------------------------------- by rewards


def test_win_rates_are_what_one_counts_by_hand(tmp_path: Path, liking: Liking) -> None:
    context = made(tmp_path)
    found = run(context)
    sft, dpo = (found["checkpoints"][name]["wins"]["chat"] for name in ("sft", "dpo"))
    rate = sft["against"]["base"]
    assert (rate["wins"], rate["ties"], rate["losses"], rate["unscored"]) == (N - 2, 1, 0, 1)
    assert rate["win_rate"]["value"] == pytest.approx((N - 1.5) / (N - 1))
    assert (
        rate["win_rate"]["low"] < rate["win_rate"]["value"] <= rate["win_rate"]["high"]
        and rate["win_rate"]["n"] == N - 1
    )
    assert rate["items"][:3] == [0.5, None, 1.0]
    assert dpo["against"]["base"]["wins"] == N and list(dpo["against"]) == ["base"]
    assert found["checkpoints"]["base"]["wins"]["chat"]["against"] == {}
    assert found["wins"]["chat"]["by"] == "rm"
    assert liking.closed == 1 and context.counts.by_reason == {"sft, wins chat: prompts without an answer": 1}


def test_answers_are_told_by_length_end_and_loops(tmp_path: Path, liking: Liking) -> None:
    found = run(made(tmp_path))["checkpoints"]
    first, sft = found["base"]["wins"]["chat"], found["sft"]["wins"]["chat"]
    assert first["stopped"]["value"] == 0.0 and first["degenerate"]["value"] == 0.25 and first["tokens"]["value"] == 20
    assert sft["stopped"] == {**sft["stopped"], "value": 1.0, "n": N - 1} and sft["errors"] == 1
    assert sft["items"]["stopped"][:3] == [1.0, None, 1.0]
    assert sft["reward"]["value"] == pytest.approx((N - 2) / (N - 1))


def test_every_answer_is_kept_with_what_it_got(tmp_path: Path, liking: Liking) -> None:
    context = made(tmp_path)
    run(context)
    rows = list(read_jsonl(context.out / "answers.jsonl"))
    assert len(rows) == 3 * N and len({(row["model"], row["id"]) for row in rows}) == 3 * N
    row = next(row for row in rows if row["model"] == "dpo" and row["id"] == "2:same")
    assert row == {
        "set": "chat",
        "id": "2:same",
        "model": "dpo",
        "prompt": [{"role": "user", "content": "Tell me of 2"}],
        "answer": "good 2!!",
        "finish": "stop",
        "tokens": 2,
        "stopped": True,
        "score": 1.2,
    }
    assert next(row for row in rows if row["finish"] == "error")["score"] is None


def test_two_checkpoints_that_say_the_same_tie_and_are_scored_once(tmp_path: Path, liking: Liking) -> None:
    run(made(tmp_path, limit=1))
    assert [list(texts) for _, texts in liking.asked] == [[base_text(1), "good 1!"]]


def base_text(n: int) -> str:
    answer = base(Call("chat", (Turn("user", f"Tell me of {n}"),), sampling=None))  # type: ignore[arg-type]
    assert isinstance(answer, Completion)
    return answer.text


def test_several_opponents_and_each_two_once(tmp_path: Path, liking: Liking) -> None:
    found = run(made(tmp_path, against=["base", "sft"]))
    against = {name: list(of["wins"]["chat"]["against"]) for name, of in found["checkpoints"].items()}
    assert against == {"base": [], "sft": ["base"], "dpo": ["base", "sft"]}
    rows = [row for row in found["win_differences"] if row["what"] == "win_rate"]
    assert [(row["a"], row["b"]) for row in rows] == [("base", "sft"), ("base", "dpo"), ("sft", "dpo")]


def test_differences_are_the_later_checkpoint_s_and_corrected_together(tmp_path: Path, liking: Liking) -> None:
    """Against the last one of the list, a checkpoint that always loses to it."""
    found = run(made(tmp_path, against="dpo"))
    rows = found["win_differences"]
    first = next(row for row in rows if (row["a"], row["b"], row["what"]) == ("base", "dpo", "win_rate"))
    assert found["checkpoints"]["base"]["wins"]["chat"]["against"]["dpo"]["win_rate"]["value"] == 0.0
    assert first["difference"] == 0.5 and first["p"] < 0.001
    assert [row["what"] for row in rows].count("win_rate") == 2 and len(rows) == 2 + 2 * 3
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])


def test_the_same_answers_win_as_often_as_they_lose(tmp_path: Path, liking: Liking) -> None:
    models = {name: Scripted(final) for name in ("base", "sft", "dpo")}
    found = run(made(tmp_path, Opener({**models, "rm": Scripted()})))
    rate = found["checkpoints"]["dpo"]["wins"]["chat"]["against"]["base"]
    assert rate["ties"] == N and rate["win_rate"]["value"] == 0.5 and rate["length_controlled"]["value"] == 0.5
    assert {row["p_holm"] for row in found["win_differences"]} == {1.0}


def test_what_wins_by_length_alone_does_not_at_equal_length(
    tmp_path: Path, liking: Liking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer on two prompts of three, by more or less; a reward model that counts characters."""

    def longer(call: Call) -> str:
        n = int(last(call).split()[-1])
        return "x" * (60 + n if n % 3 else 60 - n)

    def rewarded(asked: Any, done: Any) -> list[list[float]]:
        return [[float(len(text)) for text in texts] for _, texts in asked]

    monkeypatch.setattr(liking, "scores", rewarded)
    models = {"base": Scripted(lambda call: "y" * 60), "sft": Scripted(longer), "dpo": Scripted(longer)}
    found = run(made(tmp_path, Opener({**models, "rm": Scripted()})))
    rate = found["checkpoints"]["sft"]["wins"]["chat"]["against"]["base"]
    assert rate["win_rate"]["value"] == 27 / 40 and rate["win_rate"]["low"] > 0.5
    equal = rate["length_controlled"]
    assert equal["low"] < 0.5 < equal["high"] and equal["n"] == N


def test_greedy_answers_are_asked_for_and_sampled_ones_with_seeds_of_the_prompts(
    tmp_path: Path, liking: Liking
) -> None:
    def asked(**settings: Any) -> list[Call]:
        llm = Scripted(final)
        run(
            made(tmp_path, Opener({"base": llm, "sft": Scripted(final), "dpo": Scripted(final), "rm": llm}), **settings)
        )
        return llm.asked

    greedy, drawn = asked(max_new_tokens=9), asked(temperature=0.7, top_p=0.9)
    assert {(c.sampling.temperature, c.sampling.max_new_tokens) for c in greedy} == {(0.0, 9)}
    assert {(c.sampling.temperature, c.sampling.top_p) for c in drawn} == {(0.7, 0.9)}
    assert len({c.seed for c in drawn}) == N


def test_a_reward_that_is_no_number_is_counted_and_no_verdict(
    tmp_path: Path, liking: Liking, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = liking.scores
    monkeypatch.setattr(
        liking,
        "scores",
        lambda asked, done: [
            [float("nan") if "3" in t else v for t, v in zip(ts, vs, strict=True)]
            for (_, ts), vs in zip(asked, of(asked), strict=True)
        ],
    )
    context = made(tmp_path, limit=4)
    found = run(context)
    assert found["checkpoints"]["dpo"]["wins"]["chat"]["against"]["base"]["unscored"] == 1
    assert context.counts.by_reason["dpo against base, wins chat: no verdict"] == 1


def test_a_killed_run_scores_nothing_twice(tmp_path: Path, liking: Liking, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_compare", die)
        with pytest.raises(Killed):
            run(made(tmp_path))
    scored = len(liking.asked)
    whole = run(made(tmp_path))
    assert len(liking.asked) == scored == N
    other = tmp_path / "other"
    other.mkdir()
    assert run(made(other)) == whole


def save_classifier(tiny: Path, folder: Path) -> Path:
    """A tiny model with a random head of one output, in transformers' form."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny, num_labels=1, pad_token_id=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_real_checkpoints_answer_and_are_rewarded_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model under two prompts gives what it gives by itself, rewards are transformers' own, and a second
    try asks neither again.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from openbezoar.judging.rewards import LocalRewards
    from openbezoar.llm import Sampling
    from openbezoar.llm.local import LocalLLM

    context = made(tmp_path)
    context.opener = None
    rm = save_classifier(tiny, tmp_path / "rm")
    entry = {"model": str(tiny), "dtype": "float32"}
    models = {"base": entry, "sft": {**entry, "prompt": {"system": "Be short."}}}
    models["rm"] = {"reward": str(rm), "dtype": "float32"}
    step = {"evaluate": ["base", "sft"], "wins": {"chat": {**CHAT, "limit": 5, "batch": 2, "max_new_tokens": 6}}}
    context.recipe = parse({"name": "t", "models": models, "steps": {"scores": step}}, "t.yaml")
    found = run(context)
    rows = list(read_jsonl(context.out / "answers.jsonl"))
    prompts = [(Turn("user", f"Tell me of {n}"),) for n in range(1, 6)]
    for name in ("base", "sft"):
        alone = LocalLLM(context.checkpoint(name)).chat(prompts, Sampling(6), [0] * 5)
        said = [(row["answer"], row["tokens"], row["finish"]) for row in rows if row["model"] == name]
        assert said == [(got.text, got.tokens, got.finish) for got in alone]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(rm).eval(), AutoTokenizer.from_pretrained(rm)
    for row in rows:
        talk = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
        ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert row["score"] == pytest.approx(float(model(**ids).logits), abs=1e-4)
    monkeypatch.setattr(LocalLLM, "generate", lambda *_: pytest.fail("asked twice"))
    monkeypatch.setattr(LocalRewards, "scores", lambda *_: pytest.fail("scored twice"))
    assert run(context) == found


# ------------------------------------------------------------------------------ by judge


def judged(folder: Path, reply: Callable[[Call], str], **settings: Any) -> tuple[dict[str, Any], StepContext]:
    models = {"base": Scripted(base), "sft": Scripted(tuned), "dpo": Scripted(final), "rm": Scripted()}
    context = made(folder, Opener({**models, "judge": Scripted(reply)}), by="judge", **settings)
    return run(context), context


def test_a_judge_that_names_the_first_answer_makes_every_comparison_a_tie(tmp_path: Path, liking: Liking) -> None:
    found, context = judged(tmp_path, lambda call: "Verdict: [[A]]")
    rate = found["checkpoints"]["dpo"]["wins"]["chat"]["against"]["base"]
    assert rate["ties"] == N and rate["win_rate"]["value"] == 0.5
    rows = list(read_jsonl(context.out / "comparisons.jsonl"))
    assert len(rows) == 2 * N and rows[0]["winner"] == "tie (inconsistent)"
    assert liking.asked == []


def test_a_judge_sees_both_orders_and_its_verdict_is_about_the_answer(tmp_path: Path, liking: Liking) -> None:
    def prefers_good(call: Call) -> str:
        good, other = (re.search(mark, last(call)) for mark in (r"good \d", r"words \d|round and"))
        assert good is not None
        return "Verdict: [[C]]" if other is None else f"Verdict: [[{'A' if good.start() < other.start() else 'B'}]]"

    found, _ = judged(tmp_path, prefers_good, limit=8, against="dpo")
    rate = found["checkpoints"]["base"]["wins"]["chat"]["against"]["dpo"]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (0, 0, 8)
    difference = next(r for r in found["win_differences"] if r["a"] == "base" and r["what"] == "win_rate")
    assert difference["difference"] == 0.5


def test_a_judge_reads_a_prompt_under_its_system_message_as_every_judge_does(tmp_path: Path, liking: Liking) -> None:
    asked = []

    def tie(call: Call) -> str:
        asked.append(last(call))
        return "Verdict: [[C]]"

    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of 1"}]
    models = {"base": Scripted(base), "sft": Scripted(tuned), "dpo": Scripted(final), "rm": Scripted()}
    context = made(tmp_path, Opener({**models, "judge": Scripted(tie)}), by="judge")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": messages}])
    run(context)
    assert asked and all("Be brief.\n\nTell me of 1" in text and "system: " not in text for text in asked)


def test_a_judge_that_says_nothing_leaves_pairs_unscored(tmp_path: Path, liking: Liking) -> None:
    found, context = judged(tmp_path, lambda call: "Well.", limit=3)
    rate = found["checkpoints"]["dpo"]["wins"]["chat"]["against"]["base"]
    assert rate["win_rate"] is None and rate["unscored"] == 3 and rate["length_controlled"] is None
    assert context.counts.by_reason["dpo against base, wins chat: no verdict"] == 3
    assert {row["what"] for row in found["win_differences"]} == {"stopped", "degenerate"}


# ---------------------------------------------------------------------------- the recipe

RECIPE: dict[str, Any] = {
    "name": "r",
    "models": {"base": {"model": "base"}, "sft": {"model": "sft"}, "rm": {"model": "rm"}},
    "steps": {"scores": {"evaluate": ["base", "sft"]}},
}


def recipe_with(**wins: Any) -> Any:
    step = {
        "evaluate": ["base", "sft"],
        "wins": {"chat": {**CHAT, **wins}},
    }
    return parse({**RECIPE, "steps": {"scores": step}}, "r.yaml").steps["scores"]


def test_what_a_set_names_is_known_of_the_step() -> None:
    named = {(one.key, one.name, one.ref.role) for one in references(recipe_with())}
    assert {("wins.chat.prompts", "prompts.jsonl", "benchmark"), ("wins.chat.by", "rm", "judge")} <= named
    assert "wins" in not_in_key(parse(RECIPE, "r.yaml").steps["scores"]) and "wins" not in not_in_key(recipe_with())


@pytest.mark.parametrize(
    ("wins", "said"),
    [
        ({"against": "dpo"}, "wins.chat.against: 'dpo' is not in the list that is evaluated; add it there"),
        ({"against": []}, "wins.chat.against"),
        ({"limit": 0}, "wins.chat.limit"),
        ({"promts": "x"}, "promts"),
    ],
)
def test_a_mistake_in_a_set_is_one_line(wins: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_with(**wins)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_one_checkpoint_alone_is_refused() -> None:
    step = {"evaluate": ["base"], "wins": {"chat": CHAT}}
    with pytest.raises(RecipeError, match="wins against nobody; evaluate another one too"):
        parse({**RECIPE, "steps": {"scores": step}}, "r.yaml")


def test_a_plan_counts_answers_and_what_compares_them(
    write_recipe: Callable[..., Path], tiny: Path, tiny_reward: Path, tmp_path: Path
) -> None:
    """Of a prompt an answer of each checkpoint; a reward model reads each once, a judge every two twice."""
    chat = {**CHAT, "limit": 10, "max_new_tokens": 100}
    judged = {**chat, "by": "base", "mode": "probability"}
    step = {"evaluate": ["base", "again"]}
    sets = {
        "none": {},
        "judged": {"chat": judged},
        "rewarded": {"chat": chat},
        "text": {"chat": {**judged, "mode": "text"}},
    }
    models = {"base": {"model": str(tiny)}, "again": {"model": str(tiny)}, "rm": {"reward": str(tiny_reward)}}
    path = write_recipe({name: {**step, "wins": wins} for name, wins in sets.items()}, models=models)
    write_jsonl(path.parent / "prompts.jsonl", [{"instruction": f"Say {n}."} for n in range(20)])
    made_plan = estimate(graph.build(load(path), path, tmp_path / "runs"))
    counts = {name: (one.rows, one.tokens_in, one.tokens_out) for name, one in made_plan.items()}
    assert counts["none"] == (0, 0, 0)
    assert counts["judged"] == (20, 20 * 150 + 20 * (400 + 2 * 60), 20 * 60)
    assert counts["text"] == (20, 20 * 150 + 20 * (400 + 2 * 60), 20 * 60 + 20 * 256)
    assert counts["rewarded"] == (20, 20 * 150 + 20 * (150 + 60), 20 * 60)


def test_prompts_are_kept_out_of_training_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"instruction": "Tell me of the seven lighthouses of the northern coast"}])
    steps = {"scores": {"evaluate": ["base", "sft"], "wins": {"chat": CHAT}}}
    overlap, elsewhere = read_benchmarks(parse({**RECIPE, "steps": steps}, "r.yaml"), tmp_path, words=5, seed=0)
    assert elsewhere == []
    hit = overlap.find("Write about the seven lighthouses of the northern coast.")
    assert hit is not None and hit.benchmark == "scores: chat.prompts"


# ------------------------------------------------------------------------------ the report


def test_the_table_and_the_report_tell_of_wins(tmp_path: Path, liking: Liking) -> None:
    context = made(tmp_path)
    run(context)
    facts = read_facts(finished(context, tmp_path / "runs"))
    table = scores_table(facts)
    assert [header.partition(" (n")[0] for header in table.headers] == [
        "checkpoint",
        "chat: win rate against base",
        "chat: length-controlled win rate against base",
        "chat: answers that stop",
        "chat: degenerate answers, lower is better",
    ]
    assert "chat: Preferred by 'rm'. How far its preferences are people's was not measured here." in (table.note or "")
    section = scores_section(facts)
    assert section is not None
    names = [block.name for block in flat(section.blocks) if isinstance(block, Grid)]
    assert {"Win rates", "The answers"} <= set(names)
    (result,) = facts.results(EvaluateScores)
    told = {(d.before, d.after, d.what): d for d in (*result.differences(), *result.answer_differences())}
    assert told["base", "dpo", "chat: win rate against base"].verdict == "better"
    assert told["base", "sft", "chat: degenerate answers"].gain == pytest.approx(10 / (N - 1))


def test_what_no_two_were_compared_in_is_tested_all_the_same_where_it_needs_no_opponent(
    tmp_path: Path, liking: Liking
) -> None:
    """Against the base only, or against the last: stops and loops of every two checkpoints, and each win rate's own."""
    for against, at in (("base", 0), ("dpo", 2)):
        folder = tmp_path / against
        folder.mkdir()
        context = made(folder, against=against)
        run(context)
        table = gains_table(read_facts(finished(context, folder / "runs")))
        cells = {title.partition(" (n")[0]: row[-2:] for title, *row in table.rows}
        for title in ("chat: answers that stop", "chat: degenerate answers, lower is better"):
            assert [cell.split()[0] for cell in cells[title]] == ["better", "noise"]
        told = ["better" if at == 0 else NOTHING, NOTHING if at == 0 else "better"]
        assert [cell.split()[0] for cell in cells[f"chat: win rate against {against}"]] == told


def test_a_checkpoint_may_be_called_as_a_set_s_kept_rewards_are(tmp_path: Path, liking: Liking) -> None:
    models = {"base": Scripted(base), "wins-chat": Scripted(final), "rm": Scripted()}
    context = made(tmp_path, Opener({**models, "sft": Scripted(tuned), "dpo": Scripted(final)}))
    step = {"evaluate": ["base", "wins-chat"], "wins": {"chat": CHAT}}
    context.recipe = parse({"name": "t", "models": {n: {"model": n} for n in models}, "steps": {"scores": step}}, "t")
    assert run(context)["checkpoints"]["wins-chat"]["wins"]["chat"]["against"]["base"]["wins"] == N


def test_a_checkpoint_whose_name_begins_as_another_s_has_its_own_verdict(tmp_path: Path, liking: Liking) -> None:
    """'win rate against sft' is not 'win rate against sft-dpo', nor the set 'chat' another step's."""
    models = {"sft": Scripted(tuned), "sft-dpo": Scripted(final), "last": Scripted(final), "rm": Scripted()}
    context = made(tmp_path, Opener({"base": Scripted(base), "dpo": Scripted(base), **models}))
    step = {"evaluate": ["sft", "sft-dpo", "last"], "wins": {"chat": {**CHAT, "against": ["sft", "sft-dpo"]}}}
    context.recipe = parse({"name": "t", "models": {n: {"model": n} for n in models}, "steps": {"scores": step}}, "t")
    run(context)
    facts = read_facts(finished(context, tmp_path / "runs"))
    table = gains_table(facts)
    cells = {title.partition(" (n")[0]: row for title, *row in table.rows}
    assert cells["chat: win rate against sft-dpo"][-2:] == [NOTHING, "noise +0.000 [+0.000, +0.000]"]
    assert cells["chat: win rate against sft"][-2].startswith("better") and (
        cells["chat: win rate against sft"][-1] == NOTHING
    )
    by_title = {column.title: column for column in columns(facts)}
    found = [d for d in differences(facts) if d.kind == "wins" and d.before == "sft"]
    assert all(is_of(d, by_title["chat: win rate against sft"]) for d in found) and len(found) == 2
    assert not any(is_of(d, by_title["chat: win rate against sft-dpo"]) for d in found)
    assert not any(is_of(replace(d, source="again"), by_title["chat: win rate against sft"]) for d in found)


def test_what_was_measured_of_who_compares_stands_beside_its_number(tmp_path: Path, liking: Liking) -> None:
    """Of a reward model by the step that trained it, of any by an agreement step."""
    share = {"value": 0.63, "low": 0.52, "high": 0.73, "n": 80}
    saved: dict[str, Any] = {
        "accuracy": share,
        "length": {**share, "value": 0.5},
        "gain": [0.1, 0, 0.2],
        "matched": share,
    }
    saved |= {"subsets": {}, "bins": [], "off": 0.1}
    finished_step(tmp_path / "run", "rm", "reward", {"reward": "pairs.jsonl"}, [], numbers={"saved": saved})
    agreement = {"setup": "S1", "pair": "judge-majority", "n": 80, "agreement": 0.63, "low": 0.52, "high": 0.73}
    scores = {"scores.json": {"version": 1, "judge": "rm", "n": 80, "agreement": [agreement]}}
    finished_step(tmp_path / "run", "check", "agreement", {"agreement": "rm"}, [], scores)
    context = made(tmp_path)
    steps = {
        "rm": {"reward": "pairs.jsonl", "model": "base"},
        "check": {"agreement": "base", "pairs": "pairs.jsonl"},
        "scores": {"evaluate": ["base", "sft", "dpo"], "wins": {"chat": {**CHAT, "judge_check": "check"}}},
    }
    models = {name: {"model": name} for name in ("base", "sft", "dpo")}
    context.recipe = parse({"name": "t", "models": models, "steps": steps}, "t.yaml")
    assert run(context)["wins"]["chat"]["trust"] == [
        "The reward model rm is right about 0.630 [0.520, 0.730] n=80 pairs, the length 0.500 (pairs held out; the"
        " length: of the longer answer, or of the shorter one where that is right more often).",
        "The judge rm and the majority of people agree on 0.630 [0.520, 0.730] n=80 of the compared answers (ties"
        " count).",
    ]


def test_answers_to_show_are_drawn_by_the_seed(tmp_path: Path, liking: Liking) -> None:
    context = made(tmp_path)
    run(context)
    (result,) = read_facts(finished(context, tmp_path / "runs")).results(EvaluateScores)
    pairs = answer_pairs(result.step, "chat", "base", "sft")
    assert len(pairs) == 10 and pairs == answer_pairs(result.step, "chat", "base", "sft")
    assert all(p.before == base_text(int(p.prompt.split()[-1])) for p in pairs)
    places = [int(p.prompt.split()[-1]) for p in pairs]
    assert places == sorted(places) and places != [1, *range(3, 12)] and 2 not in places
    assert len(answer_pairs(result.step, "chat", "base", "sft", 99)) == N - 1
    assert answer_pairs(result.step, "other", "base", "sft") == []


def test_a_model_s_text_is_text_in_the_report(tmp_path: Path, liking: Liking) -> None:
    models = {name: Scripted(lambda call: EVIL) for name in ("base", "sft", "dpo")}
    context = made(tmp_path, Opener({**models, "rm": Scripted()}), limit=3)
    run(context)
    write_report(finished(context, tmp_path / "runs"), tmp_path / "page")
    html = (tmp_path / "page/report.html").read_text()
    assert "&lt;script&gt;alert(&#" in html or "&lt;script&gt;alert(" in html
    assert "<script>alert('x')" not in html and "<img src=x onerror" not in html


def test_two_runs_are_paired_where_who_compares_and_the_opponent_are_the_same(tmp_path: Path, liking: Liking) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        context = made(tmp_path / name)
        run(context)
        runs.append(finished(context, tmp_path / f"runs-{name}"))
    found = {(c.checkpoint, c.title): c for c in compare_scores(*map(read_facts, runs))}
    assert found["dpo", "chat: win rate against base"].difference.value == 0  # type: ignore[union-attr]
    assert found["dpo", "chat: answers that stop"].difference.n == N  # type: ignore[union-attr]
    manifest = runs[1].step("scores") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rm": {"model": "rm"}', '"rm": {"model": "another"}'))
    found = {(c.checkpoint, c.title): c for c in compare_scores(*map(read_facts, runs))}
    assert found["dpo", "chat: win rate against base"].difference is None
    assert found["dpo", "chat: answers that stop"].difference is not None
