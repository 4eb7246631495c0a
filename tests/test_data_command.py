"""The command ``data``: what it says of rows is what a count by hand gives, and what it shows is safe."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import CHATML

from openbezoar.cleaning.contamination import Overlap
from openbezoar.cli.app import main
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError
from openbezoar.inspection import rendering, targets
from openbezoar.inspection.looking import Looking, converted
from openbezoar.inspection.numbers import Look, Portion, Spread, concerns
from openbezoar.inspection.steps import Drawn
from openbezoar.judging.rewards import LocalRewards
from openbezoar.models.load import load_tokenizer
from openbezoar.models.references import open_checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.rows.forms import to_pair
from openbezoar.rows.records import Counts, Row, write_jsonl
from openbezoar.stats.intervals import proportion_interval
from openbezoar.training.encode import Encoder

SORRY = "I'm sorry, but I can't help with that."


def pairs() -> list[Row]:
    """Pairs with defects that are counted by hand below."""
    rows: list[Row] = [
        {
            "id": f"p{i}",
            "prompt": f"Say the number {i}, please.",
            "chosen": f"It is {i}, gladly and at length.",
            "rejected": f"No {i}.",
        }
        for i in range(40)
    ]
    for i in range(5):
        rows[i]["chosen"] = SORRY
    rows[5]["chosen"], rows[5]["rejected"] = rows[5]["rejected"], rows[5]["chosen"]
    rows[6]["chosen"] = rows[6]["rejected"]
    rows[7]["chosen"] = " "
    rows[8]["prompt"] = "Say <s>this</s>."
    rows[9] = {**rows[10], "id": "twin"}
    rows[11]["prompt"] = rows[12]["prompt"]
    rows[13]["chosen"] = "word " * 200
    return rows


def chats() -> list[Row]:
    return [
        {
            "messages": [
                *([{"role": "system", "content": "Be brief."}] if i % 2 else []),
                *(
                    {"role": role, "content": f"{role} says {i} and {k}."}
                    for k in range(1 + i % 3)
                    for role in ("user", "assistant")
                ),
            ],
            **({"source": "web"} if i < 4 else {}),
        }
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Encoder:
    return Encoder(Formatter(load_tokenizer(tiny), PromptSpec(template="own")), 200, "drop", Counts())


def look_at(rows: list[Row], encoder: Encoder | None, overlap: Overlap | None = None) -> Look:
    looking = Looking(encoder, overlap)
    for number, row in enumerate(rows, 1):
        looking.add(f"row {number}", row)
    return looking.look()


def share(k: int, n: int) -> Portion:
    low, high = proportion_interval(k, n)
    return Portion(k=k, n=n, value=k / n, low=low, high=high)


def test_what_is_said_of_pairs_is_what_a_count_by_hand_gives(encoder: Encoder) -> None:
    look = look_at(pairs(), encoder)
    assert (look.rows, look.forms) == (40, {"pair": 40})
    assert look.reasons == {"chosen equals rejected": 1, "empty answer": 1, "too long": 1}
    assert look.kept == 37
    assert look.pairs is not None
    # the swapped one and the empty one have the shorter answer chosen, the identical one neither
    assert look.pairs.longer_chosen == share(37, 39)
    assert look.pairs.refusals_chosen == share(5, 40) and look.pairs.refusals_rejected == share(0, 40)
    assert look.pairs.near_identical == share(1, 40)
    assert look.twins == share(1, 40) and look.asked_again == share(1, 40)
    assert look.control == {"<s>": 1, "</s>": 1}
    said = "\n".join(concerns(look))
    assert "the longer answer is the chosen one" in said and "begin by declining" in said and "<s> in 1" in said


def test_lengths_are_those_of_the_step_s_own_trees(encoder: Encoder) -> None:
    rows = pairs()[14:] + chats()
    for part in (rows[:26], rows[26:]):
        look = look_at(part, encoder)
        longest, learnt, read = [], [], 0
        for row in part:
            tree = encoder.encode(converted(row, "row"))
            assert tree is not None
            longest.append(max(path.kept + sum(map(len, path.runs)) for path in tree))
            learnt.append(sum(len(run) for path in tree for run in path.runs[1::2]))
            read += sum(len(run) for path in tree for run in path.runs)
        assert look.tokens == Spread.of(longest) and look.learnt == Spread.of(learnt)
        assert look.learnt_share == pytest.approx(sum(learnt) / read)
        assert (look.unit, look.max_length) == ("tokens", 200)


def test_a_row_that_is_too_long_counts_among_the_lengths(encoder: Encoder) -> None:
    look = look_at([{"instruction": "Say it.", "response": "word " * 300}], encoder)
    assert look.kept == 0 and look.reasons == {"too long": 1}
    assert look.tokens is not None and look.tokens.longest > 300
    assert "1 of 1 rows cannot be trained on (1 too long)" in concerns(look)


def test_conversations_are_counted_by_turns_columns_and_answers(encoder: Encoder) -> None:
    look = look_at(chats(), encoder)
    answers = [1 + i % 3 for i in range(12)]
    assert look.roles == {"user": sum(answers), "assistant": sum(answers), "system": 6}
    assert look.columns == {"messages": 12, "source": 4} and look.forms == {"messages": 12}
    assert look.answers == Spread.of(answers) and look.pairs is None


def test_without_a_model_lengths_are_estimated_and_said_to_be(tmp_path: Path) -> None:
    look = look_at(chats(), None)
    assert look.unit == "estimated tokens" and look.max_length is None and look.kept == 12
    assert "estimated tokens" in "\n".join(rendering.told("x", look))


def test_a_spread_has_the_least_value_that_so_many_do_not_exceed() -> None:
    spread = Spread.of(range(1, 101))
    assert spread is not None
    assert (spread.least, spread.median, spread.p95, spread.longest, spread.mean) == (1, 50, 95, 100, 50.5)
    assert sum(spread.bars) == 100 and Spread.of([]) is None
    one = Spread.of([7])
    assert one is not None and (one.median, one.p95, one.longest) == (7, 7, 7)


def test_rows_with_text_of_a_benchmark_are_told_by_its_name(encoder: Encoder) -> None:
    overlap = Overlap(13)
    question = "Which of these seas is the one that lies between Sweden and the Baltic states in the north?"
    overlap.add("geography", [{"question": question}])
    look = look_at([{"instruction": question, "response": "The Baltic."}, *chats()[:1]][:1], encoder, overlap)
    assert look.benchmarks == {"geography": 1} and any("1 of geography" in line for line in concerns(look))


def test_rows_that_stop_a_step_stop_a_look(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="row 2: "):
        look_at([chats()[0], {"messages": [{"role": "user", "content": 5}]}], encoder)


def test_of_the_rows_that_pass_each_is_drawn_with_the_same_chance_and_the_same_ones_again() -> None:
    rows: list[tuple[str, Row]] = [(str(i), {"id": i}) for i in range(1000)]
    one, two = Drawn(50), Drawn(50)
    assert list(one.through(rows)) == rows and list(two.through(iter(rows))) == rows
    assert one.sample.items == two.sample.items and one.sample.passed == 1000
    places = [row["id"] for _, row in one.sample.items]
    assert len(set(places)) == 50 and 350 < sum(places) / 50 < 650


# --------------------------------------------------------------------------- as it is shown


def test_what_is_learnt_stands_between_marks_and_nothing_else_does(encoder: Encoder) -> None:
    looking = Looking(encoder)
    for number, row in enumerate((pairs()[20], chats()[2]), 1):
        looking.add(f"row {number}", row)
    tokenizer = encoder.formatter.tokenizer
    pair, chat = ("\n".join(rendering.rendered(kept, tokenizer, ("⟦", "⟧"))) for kept in looking.drawn)
    assert pair == (
        "--- row 1\n<s>user\nSay the number 20, please.</s>\n<s>assistant\n⟦It is 20, gladly and at length.</s>⟧\n"
        "instead of that, rejected:\n… after the first"
        f" {looking.drawn[0].tree[1].kept} tokens: ⟦No 20.</s>⟧"  # type: ignore[index]
    )
    assert chat == "--- row 2\n" + "\n".join(
        f"<s>user\nuser says 2 and {k}.</s>\n<s>assistant\n⟦assistant says 2 and {k}.</s>⟧" for k in range(3)
    )


def test_a_hostile_text_is_shown_and_does_nothing(tmp_path: Path, tiny: Path, commands: Any) -> None:
    evil = "\x1b]0;owned\x07\x1b[31mred\u202e"
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": evil, "response": evil, evil: 1}] * 3)
    for more in (["--model", str(tiny)], ["--json"]):
        done = commands("data", str(tmp_path / "a.jsonl"), *more)
        assert done.code == 0, done.err
        assert not set("\x1b\x07\u202e") & set(done.out) and "owned" in done.out


@pytest.mark.slow
def test_in_a_terminal_what_is_learnt_is_coloured_and_in_a_pipe_in_brackets(
    tmp_path: Path, tiny: Path, commands: Any
) -> None:
    write_jsonl(tmp_path / "a.jsonl", chats())
    arguments = [sys.executable, "-m", "openbezoar", "data", str(tmp_path / "a.jsonl"), "--model", str(tiny)]
    end, side = pty.openpty()
    with subprocess.Popen(arguments, stdout=side, stderr=subprocess.DEVNULL) as run:
        os.close(side)
        seen = b""
        while part := _read(end):
            seen += part
    assert run.returncode == 0
    assert b"\x1b[1;32massistant says" in seen and "⟦".encode() not in seen
    piped = commands(*arguments[3:]).out
    assert "⟦assistant says" in piped and "\x1b" not in piped


def _read(end: int) -> bytes:
    try:
        return os.read(end, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_json_has_all_that_is_said(tmp_path: Path, tiny: Path, commands: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", pairs())
    limits = ["--max-length", "200", "--json", "--rows", "2", "--score", "9"]
    done = commands("data", str(tmp_path / "a.jsonl"), "--model", str(tiny), *limits)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    look = Look.model_validate(said)
    assert (look.rows, look.kept, len(said["rows_shown"])) == (40, 37, 2)
    assert look.contradicted is not None and look.contradicted.by_mean.n == look.contradicted.by_sum.n == 9
    assert said["concerns"] == concerns(look)


def test_a_reward_model_is_held_against_the_labels(tmp_path: Path, tiny_reward: Path, commands: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", pairs())
    done = commands("data", str(tmp_path / "a.jsonl"), "--reward", str(tiny_reward), "--json", "--rows", "0")
    assert done.code == 2 and "no chat template of its own" in done.err  # its own is what it reads by
    for file in tiny_reward.iterdir():
        (tmp_path / "rm").mkdir(exist_ok=True)
        (tmp_path / "rm" / file.name).symlink_to(file)
    (tmp_path / "rm" / "chat_template.jinja").write_text(CHATML)
    done = commands("data", str(tmp_path / "a.jsonl"), "--reward", str(tmp_path / "rm"), "--json", "--rows", "0")
    assert done.code == 0, done.err
    look = Look.model_validate(json.loads(done.out))
    model = LocalRewards("rm", open_checkpoint(str(tmp_path / "rm")))
    known = [to_pair(row, "row") for row in pairs()]
    known = [pair for pair in known if pair.chosen != pair.rejected]
    scores = model.scores([(pair.prompt, (pair.chosen, pair.rejected)) for pair in known])
    assert look.rewarded is not None and look.rewarded.accuracy.n == len(known)
    assert look.rewarded.accuracy.value == sum(a > b for a, b in scores) / len(known)


def test_the_model_s_likelihood_is_that_of_plain_passes(tmp_path: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_jsonl(tmp_path / "a.jsonl", pairs()[14:])
    target = targets.of_file(str(tmp_path / "a.jsonl"), str(tiny), None, None, None)
    looking = targets.looked_at(target, None)
    found = targets.contradicted(target, looking.drawn, 20)
    model = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.bfloat16).eval()
    by_sum = 0
    for kept in looking.drawn[:20]:
        assert kept.tree is not None
        prompt, chosen = kept.tree[0].runs
        sums = []
        for answer in (chosen, kept.tree[1].runs[1]):
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                table = model(ids).logits[0].float().log_softmax(-1)
            sums.append(sum(float(table[i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1])))
        by_sum += sums[1] > sums[0]
    assert found is not None and found.by_sum.k == by_sum


def test_a_step_of_a_recipe_is_looked_at_as_it_reads_its_rows(tmp_path: Path, tiny: Path, commands: Any) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**row, "kind": "x" if i % 2 else "y"} for i, row in enumerate(chats())])
    recipe = {
        "name": "r",
        "models": {"base": {"model": str(tiny)}},
        "prompt": {"template": "own"},
        "steps": {
            "tune": {"sft": {"data": "a.jsonl", "where": {"kind": "x"}}, "model": "base", "max_length": 64},
            "more": {"sft": "a.jsonl", "model": "tune", "loss_on": "last"},
            "score": {"evaluate": ["more"], "losses": {"own": "a.jsonl"}},
        },
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    target = targets.of_step(tmp_path / "r.yaml", "tune", tmp_path / "runs", None)
    looking = targets.looked_at(target, None)
    assert looking.rows == 6 and looking.look().max_length == 64
    later = targets.of_step(tmp_path / "r.yaml", "more", tmp_path / "runs", 4)
    assert (later.loss_on, targets.looked_at(later, None).rows) == ("last", 4)
    done = commands("data", "--recipe", str(tmp_path / "r.yaml"), "--step", "score")
    assert done.code == 2 and "steps.score trains no model on rows" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected FILE, or --recipe RECIPE --step NAME"),
        (("a.jsonl", "--recipe", "demo"), "name one of the two"),
        (("a.jsonl", "--score", "3"), "--score and --template go with --model"),
        (("none.parquet",), "no file"),
        (("a.jsonl", "--benchmarks", "."), "a.jsonl: the file is empty"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["data", *arguments])
    told = capsys.readouterr().err
    assert end.value.code == 2 and said in told and len(told.splitlines()) == 1
