"""The benchmarks' shared parts: order, medians, the search for the peer's best, fields, the page. No peer runs here."""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import openbezoar
from benchmarks import common, duel, engines, full_size, generate, mismatched, page, score, searches, training
from benchmarks.common import BenchmarkError
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError
from openbezoar.llm import Completion
from openbezoar.llm.engines.programs import PROGRAMS
from openbezoar.models.load import load_tokenizer
from openbezoar.models.references import open_checkpoint
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Sft
from openbezoar.rows.forms import to_example
from openbezoar.rows.records import Counts, Row
from openbezoar.training.data import Renderer

PEERS = {"trl", "benchmarks"}
ROOT = Path(__file__).parent.parent


def test_sides_take_turns_in_every_round() -> None:
    assert [side for _, side in common.alternate(["a", "b"], 3)] == ["a", "b", "a", "b", "a", "b"]
    assert [number for number, _ in common.alternate(["a", "b"], 2)] == [0, 0, 1, 1]


def test_a_spread_is_the_median_with_the_least_and_greatest() -> None:
    assert common.spread([5.0, 1.0, 3.0]) == {"median": 3.0, "min": 1.0, "max": 5.0}


def test_ratio_is_the_peer_s_time_over_ours_and_memory_ratio_our_peak_over_the_peer_s() -> None:
    ours = [{"seconds": 1.0, "peak_memory": 10}, {"seconds": 3.0, "peak_memory": 30}]
    peer = [{"seconds": 8.0, "peak_memory": 80}, {"seconds": 8.0, "peak_memory": 80}]
    found = common.compare(ours, peer)
    assert found["ratio"] == 4.0
    assert found["memory_ratio"] == 0.25
    assert found["ratio_by_round"] == {"min": 8 / 3, "max": 8.0}


def arm(ratio: float, memory: float, same: bool) -> dict[str, Any]:
    side = {"seconds": common.spread([1.0]), "peak_memory": common.spread([1.0])}
    peer = {"seconds": common.spread([ratio]), "peak_memory": common.spread([1.0])}
    return {"ours": side, "peer": peer, "ratio": ratio, "memory_ratio": memory, "same": same}


def test_the_headline_reports_the_worse_ratio_and_holds_only_if_every_arm_is_the_same() -> None:
    found = common.headline("sft", {"bf16": arm(9.0, 0.3, True), "nf4": arm(7.0, 0.2, True)})
    assert (found["ratio"], found["peer"], found["memory_ratio"], found["worst_arm"], found["same"]) == (
        7.0,
        7.0,
        0.3,
        "nf4",
        True,
    )
    assert not common.headline("sft", {"bf16": arm(9.0, 0.3, True), "nf4": arm(7.0, 0.2, False)})["same"]
    assert set(common.REQUIRED) <= set(found)


def test_a_result_is_written_with_its_fields(tmp_path: Path) -> None:
    common.write(tmp_path / "deep" / "sft.json", common.headline("sft", {"bf16": arm(2.0, 1.0, True)}))
    assert set(common.REQUIRED) <= set(json.loads((tmp_path / "deep" / "sft.json").read_text()))
    with pytest.raises(AssertionError, match="same"):
        common.write(tmp_path / "x.json", {"benchmark": "sft", "ours": 1, "peer": 1, "ratio": 1, "memory_ratio": 1})


def test_the_search_finds_the_peer_s_fastest_setting_and_tells_each_pilot_when_it_has_lost() -> None:
    seconds, limits = {1: 5.0, 2: 3.0, 4: None, 8: 4.0}, []

    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        limits.append(limit)
        return {"seconds": seconds[setting["micro"]], "foreign_share": 0.0}

    found = searches.search([{"micro": m} for m in seconds], run, minutes=1)
    assert found["best"] == {"micro": 2}
    assert limits == [None, 5.0, 3.0, 3.0]
    assert [s["micro"] for s in searches.fastest_first(found)] == [2, 8, 1, 4]
    assert found["finished"]


def test_the_search_lists_what_it_had_no_time_for_and_what_failed() -> None:
    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        if setting["micro"] == 1:
            raise BenchmarkError("out of memory")
        return {"seconds": 1.0}

    found = searches.search([{"micro": 1}, {"micro": 2}, {"micro": 4}], run, minutes=0)
    assert found["best"] == {"micro": 2}
    assert found["untried"] == [{"micro": 4}]
    assert found["tried"][0]["error"] == "out of memory"
    assert not found["finished"]
    with pytest.raises(BenchmarkError, match="none of its settings"):
        searches.search([{"micro": 1}], run, minutes=0)


MACHINE = {
    "processor": "a CPU",
    "cores": 2,
    "threads": 2,
    "device": "cpu",
    "load_before": 0.1,
    "versions": {"torch": "2", "trl": "1", "openbezoar": "0"},
}


def test_a_search_goes_on_where_it_was_left_on_the_same_machine_alone(tmp_path: Path) -> None:
    seconds, asked = {1: 5.0, 2: 3.0, 4: 2.0}, []

    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        asked.append((setting["micro"], limit))
        return {"seconds": seconds[setting["micro"]], "foreign_share": 0.0}

    settings = [{"micro": m} for m in seconds]
    kept, about = searches.Kept(tmp_path / "new" / "searches.json", MACHINE), {"benchmark": "sft", "n": 16}
    first = searches.search(settings, run, 0, (kept, about))
    assert (first["best"], first["untried"], first["finished"]) == ({"micro": 1}, settings[1:], False)
    second = searches.search(settings, run, kept=(kept, about))
    assert asked == [(1, None), (2, 5.0), (4, 3.0)], (
        "the first setting is not tried again, and its time is to be beaten"
    )
    assert (second["best"], second["finished"]) == ({"micro": 4}, True)
    later = {**MACHINE, "load_before": 3.0, "versions": MACHINE["versions"] | {"openbezoar": "1"}}  # type: ignore[operator]
    assert len(searches.Kept(kept.path, later).trials(about)) == 3
    for other, what in (
        ({**MACHINE, "processor": "another"}, about),
        ({**MACHINE, "versions": {"torch": "2", "trl": "2"}}, about),
        (MACHINE, {**about, "n": 8}),
    ):
        assert searches.Kept(kept.path, other).trials(what) == []
    kept.path.write_text("[")
    with pytest.raises(BenchmarkError, match=r"searches\.json: no JSON"):
        kept.trials(about)


def test_a_setting_that_was_cut_off_has_lost_to_those_that_are_searched_again_only(tmp_path: Path) -> None:
    seconds, asked = {1: 5.0, 2: 3.0, 4: 9.0}, []

    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        asked.append(setting["micro"])
        taken = seconds[setting["micro"]]
        return {"seconds": None if limit is not None and taken > limit else taken, "foreign_share": 0.0}

    kept = searches.Kept(tmp_path / "searches.json", MACHINE), {"benchmark": "sft"}
    searches.search([{"micro": m} for m in (2, 1)], run, kept=kept)
    assert searches.search([{"micro": m} for m in (2, 1)], run, kept=kept)["finished"] and asked == [2, 1]
    assert searches.search([{"micro": 4}], run, kept=kept)["best"] == {"micro": 4}
    found = searches.search([{"micro": m} for m in (4, 1)], run, kept=kept)
    assert found["best"] == {"micro": 1} and asked == [2, 1, 4, 1]


def test_a_pilot_beside_other_work_is_not_kept_and_its_search_not_finished(tmp_path: Path) -> None:
    shares = iter([0.3, 0.0, 0.0])
    kept, about = searches.Kept(tmp_path / "searches.json", MACHINE), {"benchmark": "sft"}

    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        return {"seconds": 1.0, "foreign_share": next(shares)}

    assert not searches.search([{"micro": 1}, {"micro": 2}], run, kept=(kept, about))["finished"]
    assert [t["setting"]["micro"] for t in kept.trials(about)] == [2]
    assert searches.search([{"micro": 1}, {"micro": 2}], run, kept=(kept, about))["finished"]


def test_the_best_setting_is_tried_with_half_the_threads_too() -> None:
    def run(setting: dict[str, Any], limit: float | None) -> dict[str, Any]:
        return {"seconds": 4.0 / setting["micro"] / (2 if "threads" in setting else 1), "foreign_share": None}

    found = searches.search([{"micro": 1}, {"micro": 2}], run, refine=duel.fewer_threads(2))
    assert found["best"] == {"micro": 2, "threads": 1}
    assert len(found["tried"]) == 3 and found["finished"]
    assert duel.fewer_threads(1)({"micro": 2}) == []


def test_other_work_is_what_the_cores_did_less_what_we_did(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = common._busy(), common._own()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert common._own() > own, "a child that has ended counts as ours"
    assert busy is None or common._busy() > busy  # type: ignore[operator]
    for name, values in (("_busy", [10.0, 14.0]), ("_own", [1.0, 3.0])):
        monkeypatch.setattr(common, name, iter(values).__next__)
    monkeypatch.setattr("time.perf_counter", iter([100.0, 102.0]).__next__)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert common.Beside().share() == 0.5
    assert common.disturbed({"foreign_share": 0.06}) and not common.disturbed({"foreign_share": None})


def test_a_ratio_is_given_only_against_a_finished_search_on_an_idle_machine() -> None:
    idle = {"finished": True, "foreign_share": 0.01}
    assert common.doubts_of(idle) == "" and page._ratio(2.04, idle) == "2.0"
    for doubted in (idle | {"finished": False}, idle | {"foreign_share": 0.2}):
        assert common.doubts_of(doubted) and page._ratio(2.04, doubted) == "—"
    older = {"search": {"trl": {"untried": []}, "plain": {"untried": [{"micro": 1}]}}}
    assert page._ratio(2.04, older) == "—" and page._ratio(2.04, {"search": {"trl": {"untried": []}}}) == "2.0"
    arms = {"bf16": arm(2.0, 1.0, True) | {"finished": False}, "nf4": arm(3.0, 1.0, True) | {"foreign_share": 0.2}}
    assert not common.headline("sft", arms)["finished"] and common.headline("sft", arms)["foreign_share"] == 0.2


def test_the_first_step_is_before_the_clock_and_the_rest_as_without_it(tmp_path: Path, tiny: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {i}.", "response": "word"}) + "\n" for i in range(10)))
    job = training.Job("time", "ours", str(tiny), str(rows), 6, 3, 512, "none", "float32", {}, warm=3)
    settings = job.settings(Sft, sft="rows")
    trees = training.read_trees(job, pairs=False)
    warm, *rest = training.in_our_order(trees, settings, job.warm)
    assert len(trees) == 9 and {id(tree) for tree in warm} == {id(tree) for tree in trees[:3]}
    assert rest == training.in_our_order(trees[3:], settings)
    with pytest.raises(DataError, match="before the clock"):
        training.read_trees(replace(job, warm=10), pairs=False)


def test_a_worker_that_fails_is_reported_with_the_end_of_its_stderr() -> None:
    with pytest.raises(BenchmarkError, match="nothing_of_this_name"):
        common.run_worker("benchmarks.nothing_of_this_name", {})


def test_losses_must_agree_absolutely_and_gradient_norms_relatively() -> None:
    ours = {"loss": 2.0, "gradient_norm": 100.0, "logprobs": [-50.0, -1.0], "lengths": [40, 1]}
    near = {"loss": 2.0009, "gradient_norm": 100.09, "logprobs": [-50.0019, -1.0]}
    assert duel.agreement(ours, near)["same"]
    assert not duel.agreement(ours, {**near, "loss": 2.0011})["same"]
    assert not duel.agreement(ours, {**near, "gradient_norm": 100.2})["same"]
    assert not duel.agreement(ours, {**near, "logprobs": [-50.0021, -1.0]})["same"], "of 40 tokens"
    assert not duel.agreement(ours, {**near, "logprobs": [-50.0, -1.0001]})["same"], "of one token"
    exact = {"loss": 2.0001, "logprobs": [-50.0004, -1.0]}
    found = duel.agreement(ours, near, exact)
    assert found["loss"]["fp64"] == 2.0001 and found["logprobs"]["fp64"]["nearer"] == "ours"
    assert found["logprobs"]["fp64"]["ours"] == pytest.approx(1e-5 / 2**0.5)


def test_the_peer_gets_our_steps_with_the_longest_rows_first(tmp_path: Path, tiny: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": f"Say {i}.", "response": "word " * (1 + i % 5)}) + "\n" for i in range(10))
    )
    job = training.Job("time", "ours", str(tiny), str(rows), 7, 4, 512, "none", "float32", {})
    trees = training.read_trees(job, pairs=False)
    steps = training.in_our_order(trees, job.settings(Sft, sft="rows"))
    assert len(trees) == 7
    assert [len(step) for step in steps] == [4, 3]
    assert all(
        lengths == sorted(lengths, reverse=True) for lengths in ([len(tree[0].ids) for tree in step] for step in steps)
    )
    assert sorted(map(id, training.flat(steps))) == sorted(map(id, trees))


def test_a_check_s_adapter_is_the_same_on_both_sides_and_has_no_zeros(tiny: Path) -> None:
    import torch

    job = training.Job("check", "ours", str(tiny), "", 4, 4, 512, "none", "float32", {})
    first, second = training.load_ours(job), training.load_ours(job)
    for model in (first, second):
        training.fill_adapter(model)
    pairs = list(zip(first.named_parameters(), second.named_parameters(), strict=True))
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert all(bool(p.any()) for _, p in first.named_parameters() if p.requires_grad)
    assert job.lora.dropout == 0.0


def test_scores_agree_only_if_every_item_and_every_argmax_does() -> None:
    def result(values: list[float], lengths: tuple[int, ...] = (10, 20)) -> dict[str, Any]:
        return {"tasks": {"piqa 0": {"answers": {"piqa 0": values}, "lengths": {"piqa 0": list(lengths)}}}}

    assert score.agreement(result([-1.0, -2.0]), result([-1.0004, -2.0009]))["same"]
    assert not score.agreement(result([-1.0, -2.0]), result([-1.0006, -2.0]))["same"]
    assert not score.agreement(result([-1.0, -2.0]), result([-1.0, -2.0011]))["same"]
    close = score.agreement(result([-1.0, -1.0004]), result([-1.0004, -1.0]))
    assert close["same"], "two choices that are nearer to each other than the tolerance may change places"
    turned = score.agreement(result([-1.0, -3.0]), result([-3.0, -1.0]))
    assert not turned["same"]
    assert turned["differences"][0]["question"] == "piqa 0"
    exact = score.agreement(result([-1.0, -2.0]), result([-1.0004, -2.0]), result([-1.0004, -2.0]))
    assert exact["fp64"]["nearer"] == "peer" and exact["fp64"]["items"] == 2
    assert score.scored_texts([("q", " a"), ("q", " b")]) == [" a", " b"]
    assert score.scored_texts({"gen_args_0": {"arg_0": "q", "arg_1": " a"}}) == [" a"]


def test_generation_s_sides_get_the_same_prompts_and_give_the_same_greedy_tokens(tmp_path: Path, tiny: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"instruction": f"Name {n} things.", "response": "ok"}) + "\n" for n in range(5))
    )
    job = generate.Job("check", "ours", str(tiny), str(rows), 3, 12, "float32")
    ours, *theirs = (generate.work(vars(job) | {"side": side}) for side in ("ours", "single", "batch"))
    assert [len(ids) for ids in ours["made"]] == [12] * 3
    assert all(their["made"] == ours["made"] and their["prompt_tokens"] == ours["prompt_tokens"] for their in theirs)
    changed = generate.work(vars(job) | {"what": "batches", "n": 5})
    assert (changed["sizes"], changed["rows"], changed["sampled"], changed["greedy"]) == ([5, 2], 5, 0, 0)


def test_an_engine_is_a_side_with_the_same_prompts_in_its_fastest_setting(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {Path(__file__).with_name("fake_engine.py")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("OPENBEZOAR_VLLM", str(program))
    monkeypatch.setenv("FAKE_ENGINE", str(tmp_path / "engine.json"))
    monkeypatch.setattr(PROGRAMS["llama.cpp"].__class__, "find", lambda one: str(program) * (one.name == "vllm"))
    assert engines.installed() == ["vllm"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Name {n} things."}) + "\n" for n in range(5)))
    setting = {"dtype": "float32", "args": ["--max-num-seqs", "2"]}
    job = generate.Job("check", "vllm", str(tiny), str(rows), 3, 12, "float32", setting)
    found = generate.work(vars(job))
    assert len(found["made"]) == 3 and found["tokens"] == 18 and found["peak_memory"] > 1e6
    formatter = Formatter(load_tokenizer(tiny), open_checkpoint(str(tiny)).prompt)
    start, _, *calls = map(json.loads, (tmp_path / "engine.seen").read_text().splitlines())
    assert start["argv"][-2:] == setting["args"]
    asked = [list(formatter.prompt_ids(talk)) for talk in generate.conversations(job)]
    assert sorted(call["call"] for call in calls) == sorted(asked), "the ids that ours reads"
    assert all(call["body"]["min_tokens"] == call["body"]["max_tokens"] == 12 for call in calls)
    equal = generate.equal_texts(str(tiny), [[3, 5], [7]], [load_tokenizer(tiny).decode([3, 5]), "another"])
    assert equal == {"of": 2, "equal": 1}
    sizes = [setting["args"][1] for setting in engines.settings_of("llama.cpp", 20, "float32")]
    assert sizes == ["8", "16", "32"], "as a recipe starts it, and up to all at once"
    pilots: list[tuple[list[str], int]] = []

    def pilot(job: generate.Job) -> dict[str, Any]:
        pilots.append((job.setting["args"], job.tokens))
        return {"seconds": 3.0 - len(pilots), "foreign_share": 0.0}

    monkeypatch.setattr(generate, "call", pilot)
    options = argparse.Namespace(model="m", data=rows, minutes=9.0)
    kept = searches.Kept(tmp_path / "searches.json", MACHINE)
    best = generate.fastest(replace(job, side="llama.cpp", n=9, tokens=128), options, 1, kept)
    assert best["best"]["args"][:2] == ["-np", "16"] and best["finished"]
    assert [(args[1], tokens) for args, tokens in pilots] == [("8", 32), ("16", 32)]


def test_a_conversation_without_an_answer_makes_no_figure() -> None:
    engines._whole("vllm", [Completion("a", "length", 3, 1)])
    with pytest.raises(BenchmarkError, match=r"vllm: 1 of 2 conversations have no answer \(too long\)"):
        engines._whole("vllm", [Completion("a", "length", 3, 1), Completion("", "error", 3, 0, refused="too long")])


def test_the_page_names_an_engine_s_setting_and_gives_no_ratio_beside_other_work() -> None:
    done = {"peak_memory": 2.0**30, "version": "0.32"}
    search = {"best": {"dtype": "float32", "args": []}, "tried": [], "untried": [], "finished": True}
    result = {
        **{"n": 4, "n_single": 4, "prompt_tokens": 9, "new_tokens": 8, "temperature": 1, "top_p": 1, "model": "m"},
        "tokens_per_second": {"ours": common.spread([8.0]), "vllm": common.spread([4.0])},
        "rounds": {"ours": [done], "vllm": [done, {**done, "peak_memory": None}]},
        **{"ratio_vllm": 2.0, "same": True, "same_by_engine": {"vllm": {"of": 6, "equal": 5}}},
        "search": {"vllm": search},
        "foreign_share": 0.01,
        "changed_by_batch_size": {"sizes": [4, 1], "rows": 4, "tokens": 8, "dtype": "d", "sampled": 0, "greedy": 0},
    }
    text = page._generate(result)
    assert "| vLLM 0.32 (float32) | 4 (4 to 4) | 2.0 | 1.0 |" in text and "vLLM: 5 of 6 answers equal ours." in text
    assert "| 2.0 |" not in page._generate({**result, "foreign_share": 0.4})
    search["finished"] = False
    assert "No ratio is given: the search" in page._generate(result)


def test_the_page_says_that_different_results_make_ratios_meaningless(tmp_path: Path) -> None:
    side = {"seconds": common.spread([1.0]), "peak_memory": common.spread([2.0**30]), "matmul_share": 0.5}
    task = {"questions": 2, "ours": common.spread([1.0]), "peer": common.spread([4.0]), "ratio": 4.0, "batch_size": 8}
    found = {
        **common.headline("score", {"bf16": arm(4.0, 0.5, False)}),
        "peer_name": "HFLM",
        "n": 2,
        "data": "d",
        "model": "m",
        "rounds": 1,
        "check": {"questions": 2, "largest_difference": 0.5, "differences": [{}]},
        "arms": {"bf16": {"ours": side, "peer": side, "ratio": 4.0, "tasks": {"mmlu 5": task}}},
    }
    text = page.page({"score": found}, "docs/benchmarks")
    assert "Nothing was timed on a GPU" in text
    assert "| mmlu 5 | 2 | 1.0 (1.0 to 1.0) | 4.0 (4.0 to 4.0) | 8 | 4.0 |" in text
    assert "**Same result: no**" in text


def test_the_page_shows_sizes_peaks_beside_plan_s_and_each_machine_once() -> None:
    machine = {"processor": "a CPU", "device": "cpu", "threads": 2, "cores": 2, "versions": {"torch": "2", "trl": None}}
    size = {
        "rows": 1000,
        "rows_per_second": 2500.4,
        "seconds_per_row": 0.0004,
        "memory": {"peak_of_this_process": 5e8, "peak": 6e8},
    }
    stage = {
        "seconds": 201.3,
        "seconds_an_optimiser_step": 61.2,
        "tokens_an_optimiser_step": 1024,
        "peak": 7.48e9,
        "limit": 8e9,
        "planned": 7.2e9,
        "planned_over_peak": 0.963,
    }
    results = {
        "data": {"data": "rows.jsonl", "sizes": [size], "remark": "It was cold."},
        "full_size": {
            "shape": {"layers": 26, "hidden": 3200, "vocabulary": 32000},
            "pairs": "pairs.jsonl",
            "stages": {"sft": stage, "write": {"seconds": 9.0, "peak": 1e9}},
        },
    }
    text = page.page(results, "docs/benchmarks")
    assert "It was cold.\n\n| rows of |" in text
    assert "| `rows.jsonl` | 1,000 | 2,500 | 0.40 | 500 | 600 |" in text
    assert "| sft | 201 | 61 | 1,024 | 7.48 | 8 | 7.20 (0.96) |" in text and "| write | 9 |  |  | 1.00 |  |  |" in text
    told = page._machines(
        {
            "sft": {**machine, "load_before": 0.1},
            "dpo": {**machine, "load_before": 2},
            "score": {**machine, "cores": 4, "load_before": 0},
        }
    )
    assert list(told.values()) == [
        ["`sft` (load 0.1 before it)", "`dpo` (load 2 before it)"],
        ["`score` (load 0 before it)"],
    ]
    assert all("trl" not in words for words in told)


def test_a_full_size_sft_step_has_2048_tokens_in_whole_passes_of_1024(tmp_path: Path) -> None:
    pairs = ROOT / "recipes/demo/pairs.jsonl"
    full_size.write_tokenizer(tmp_path / "base", full_size.read_pairs(pairs))
    recipe = json.loads(full_size.write_recipe(tmp_path, 1, pairs).read_text())
    step = recipe["steps"]["sft"]
    formatter = Formatter(load_tokenizer(tmp_path / "base"), PromptSpec())
    rows, counts = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()], Counts()
    trees = Renderer(formatter, step["max_length"], "drop", counts).examples([to_example(row, "row") for row in rows])
    lengths = [len(path.ids) for (path,) in trees]
    assert counts.by_reason == {} and len(lengths) == step["batch"] * step["max_steps"]
    assert step["tokens"] == 1024 and all(504 < length <= 512 for length in lengths)
    assert 2016 < sum(lengths) / step["max_steps"] <= 2048


def test_the_search_begins_with_middling_micro_batches_that_divide_the_batch() -> None:
    options = argparse.Namespace(micro=[1, 2, 3, 4, 8, 16], batch=16)
    assert duel.micros(options) == [4, 2, 8, 1, 16]
    with pytest.raises(BenchmarkError, match="--micro"):
        duel.micros(argparse.Namespace(micro=[3], batch=16))


def test_the_package_never_imports_a_peer_that_only_benchmarks_need() -> None:
    for file in Path(openbezoar.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {name.split(".")[0] for name in names} & PEERS, file
            assert not any("lm_eval.models.huggingface" in name for name in names), file


def test_importing_the_benchmarks_imports_no_peer() -> None:
    for file in Path(common.__file__).parent.glob("*.py"):
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {"trl", "lm_eval", "datasets", "peft"} & {
            name.split(".")[0] for node in top for name in _names(node)
        }, file


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]


def test_mismatched_answers_are_as_long_as_the_own_ones() -> None:
    rows: list[Row] = [{"id": n, "instruction": f"Say {n}.", "response": "word " * (5 + n % 7)} for n in range(21)]
    rows += [{"id": 99, "instruction": "Short.", "response": "No."}, {**rows[0], "id": 98, "context": "Of this."}]
    made = list(mismatched.mismatched(rows, 300))
    assert len(made) == 40 and len({row["id"] for row in made}) == 40
    own, another = ([row for row in made if row["label"] is label] for label in (True, False))
    assert sorted(row["response"] for row in own) == sorted(row["response"] for row in another)
    assert all(f"{row['id']}".endswith("-own") for row in own)
    assert [row["instruction"] for row in own] == [row["instruction"] for row in another]
    assert list(mismatched.mismatched(rows, 300)) == made
    assert len(list(mismatched.mismatched(rows, 7))) == 12
