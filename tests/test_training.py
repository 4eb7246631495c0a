"""Scoring, losses, the loop, merging: numbers held against plain arithmetic."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from openbezoar.engine import execution, graph
from openbezoar.errors import DataError, ModelError
from openbezoar.forest import Scorer, TokenPath
from openbezoar.models.load import keep_4bit_layout, load_base, load_for_training
from openbezoar.models.references import Checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.file import load
from openbezoar.recipe.train_steps import Lora, Sft, Training
from openbezoar.rows.forms import to_pair, unpaired_of
from openbezoar.rows.records import Counts, Example, Turn
from openbezoar.training.data import Renderer, split_heldout
from openbezoar.training.loop import batch_of, plan_steps, rate_at


def checkpoint(folder: Path, dtype: str = "float32") -> Checkpoint:
    return Checkpoint("base", str(folder), (), "none", dtype, PromptSpec())  # type: ignore[arg-type]


def random_paths(seed: int, vocabulary: int = 400) -> list[tuple[TokenPath, ...]]:
    generator = torch.Generator().manual_seed(seed)
    trees = []
    for n in (3, 40, 17, 5):
        ids = torch.randint(3, vocabulary, (n,), generator=generator).tolist()
        trees.append((TokenPath.of(ids[: n // 2], ids[n // 2 :]), TokenPath.of(ids[: n // 2], ids[: n // 3 + 1])))
    return trees


@pytest.mark.parametrize("plain", [False, True], ids=["forest", "plain"])
@pytest.mark.parametrize("model_fixture", ["tiny", "tiny_gemma"])
def test_scores_and_gradients_equal_a_plain_log_softmax(
    model_fixture: str, plain: bool, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(request.getfixturevalue(model_fixture)), dtype=torch.float32
    ).eval()
    model.requires_grad_(False)
    probe = model.model.layers[0].self_attn.q_proj.weight
    probe.requires_grad_(True)
    trees = random_paths(1)
    # several passes, and head chunks of three rows
    scorer = Scorer(model, tokens=64, head_bytes=4 * 500 * 3, plain=plain)
    total = torch.zeros(())
    for group in scorer.batches(trees):
        for scores in scorer.score([trees[i] for i in group]):
            total = total + sum(path.sum() * (k + 1) for k, path in enumerate(scores))
    total.backward()
    ours, probe.grad = probe.grad.clone(), None
    plain = torch.zeros(())
    for tree in trees:
        for k, path in enumerate(tree):
            ids = torch.tensor([path.ids])
            logs = model(ids).logits[0].float().log_softmax(-1)
            for place, asked in enumerate(path.scored):
                if asked:
                    plain = plain + (k + 1) * logs[place - 1, path.ids[place]]
    plain.backward()
    assert total.item() == pytest.approx(plain.item(), abs=1e-3)
    assert (ours - probe.grad).abs().max() <= 1e-4 * probe.grad.abs().max()


def test_scoring_does_not_depend_on_the_token_budget(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.float32).requires_grad_(False)
    trees = random_paths(2)
    alone, together = Scorer(model, tokens=1).logprobs(trees), Scorer(model, tokens=10_000).logprobs(trees)
    for a, b in zip(alone, together, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_paths_that_ask_for_nothing_are_scored_as_nothing(tiny: Path, plain: bool) -> None:
    scorer = Scorer(load_base(checkpoint(tiny), (), "none", dtype="float32"), plain=plain)
    greedy: list[list[bool]] = []
    for ids in ((3,), (3, 4, 5)):
        assert [len(x) for x in scorer.logprobs([(TokenPath(ids, (False,) * len(ids)),)], greedy=greedy)[0]] == [0]
    assert greedy == [[True], [True]]


def test_a_shared_prefix_is_laid_out_once_and_last_tokens_are_left_out() -> None:
    from openbezoar.forest.layout import in_order, lay_out

    tree = (TokenPath.of([1, 2, 3], [4, 5, 6]), TokenPath.of([1, 2, 3], [4, 7]), TokenPath.of([1, 2, 3], [8]))
    other = (TokenPath.of([1, 2], [9, 9]),)
    layout = lay_out([tree, other], torch.device("cpu"))
    assert layout.ids.tolist() == [1, 2, 3, 4, 5, 9]
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 2]
    assert [(g.start, g.end, g.before) for g in layout.segments] == [
        (0, 2, ()),
        (2, 3, ((0, 2),)),
        (3, 4, ((0, 2), (2, 3))),
        (4, 5, ((0, 2), (2, 3), (3, 4))),
        (5, 6, ((0, 2),)),
    ]
    assert layout.targets.tolist() == [4, 5, 6, 4, 7, 8, 9, 9]
    assert layout.rows.tolist() == [2, 3, 4, 2, 3, 2, 1, 5]
    assert layout.counts == [3, 2, 1, 2]
    assert in_order([other, tree]) == [(1, 5), (0, 1)]


@hypothesis_settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=8))
def test_every_path_can_be_read_back_from_the_row_and_its_segments(paths: list[list[int]]) -> None:
    from openbezoar.forest.layout import in_order, lay_out

    trees = [(TokenPath.of(p[:1], p[1:]),) for p in paths]
    layout = lay_out(trees, torch.device("cpu"))
    first = 0
    for path, count in zip(paths, layout.counts, strict=True):
        rows = layout.rows[first : first + count].tolist()
        assert layout.ids[rows].tolist() == path[:-1]
        assert layout.positions[rows].tolist() == list(range(len(path) - 1))
        assert layout.targets[first : first + count].tolist() == path[1:]
        segment = next(g for g in layout.segments if g.start <= rows[-1] < g.end)
        before = [t for a, b in segment.before for t in range(a, b)]
        assert before + list(range(segment.start, rows[-1] + 1)) == rows
        first += count
    assert (
        len(layout.ids)
        == len({tuple(p[:k]) for p in paths for k in range(1, len(p))})
        == sum(cost for _, cost in in_order(trees))
    )


def test_a_model_that_ignores_the_layout_is_found_before_it_is_scored(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny), dtype=torch.float32).requires_grad_(False)
    scorer, trunk = Scorer(model), model.model.forward
    model.model.forward = lambda forest=None, attention_mask=None, **rest: trunk(**rest)
    with pytest.raises(ModelError, match="not supported"):
        scorer.logprobs(random_paths(1))


def settings(**changes: Any) -> Training:
    return Sft(sft="x", model="base", **{**FAST, **changes})


def test_an_epoch_sees_each_row_once_and_its_order_depends_on_seed_and_epoch_alone() -> None:
    made = [[i for step in range(first, first + 3) for i in batch_of(step, 10, settings(), seed=5)] for first in (0, 3)]
    assert sorted(made[0]) == sorted(made[1]) == list(range(10))
    assert made[0] != made[1]
    assert batch_of(4, 10, settings(), seed=5) == batch_of(4, 10, settings(), seed=5)
    assert plan_steps(10, settings()) == 3
    assert plan_steps(10, settings(batch=1, epochs=1.1)) == 11
    assert plan_steps(10, settings(epochs=2.0, max_steps=5)) == 5


def test_warm_up_and_schedules() -> None:
    constant = settings(warmup=0.2, learning_rate=1.0)
    assert [rate_at(s, 10, constant) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]
    linear = settings(warmup=0.0, learning_rate=1.0, schedule="linear")
    assert [rate_at(s, 4, linear) for s in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = settings(warmup=0.0, learning_rate=1.0, schedule="cosine")
    assert rate_at(2, 4, cosine) == pytest.approx(0.5)


def test_one_pass_of_eight_rows_gives_the_gradient_of_eight_passes_of_one(tiny: Path) -> None:
    from openbezoar.training.objectives import sft_objective, supervised_tokens

    model = load_for_training(
        checkpoint(tiny), Lora(r=4, dropout=0.0), "none", dtype="float32", continues=False, seed=0
    )
    trees = [tree[:1] for seed in range(2) for tree in random_paths(seed)]
    gradients = []
    for tokens in (1, 10_000):
        scorer = Scorer(model, tokens)
        objective, whole = sft_objective(scorer, trees), sum(map(supervised_tokens, trees))
        groups = scorer.batches(trees)
        assert len(groups) == (8 if tokens == 1 else 1)
        for group in groups:
            objective.loss([trees[i] for i in group], whole)[0].backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-5 * max(float(gradient.abs().max()), 1e-6)


def test_evaluation_between_two_steps_leaves_nf4_gradients_bit_identical(tiny: Path) -> None:
    model = load_for_training(
        checkpoint(tiny), Lora(r=4, dropout=0.1), "nf4", dtype="bfloat16", continues=False, seed=0, nf4="packed"
    )
    scorer, trees = Scorer(model), [tree[:1] for tree in random_paths(3)]

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        torch.manual_seed(7)  # as the loop does before each step
        torch.stack([path.sum() for tree in scorer.score(trees) for path in tree]).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    before = gradients()
    scorer.logprobs(trees)
    with torch.no_grad(), model.disable_adapter():
        model.eval()
        scorer.score(trees)
    after = gradients()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert any(float(g.abs().max()) > 0 for g in before.values())


def test_without_the_guard_bitsandbytes_would_repack_or_the_guard_is_idle(tiny: Path) -> None:
    model = load_for_training(
        checkpoint(tiny), Lora(r=4), "nf4", dtype="bfloat16", continues=False, seed=0, nf4="packed"
    )
    flags = [
        layer.support_avx512bf16_for_cpu for layer in model.modules() if hasattr(layer, "support_avx512bf16_for_cpu")
    ]
    assert flags and not any(flags)
    keep_4bit_layout(model)


def test_rows_that_do_not_fit_are_dropped_or_lose_their_oldest_turns_and_are_counted(tiny: Path) -> None:
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer

    formatter = Formatter(load_tokenizer(tiny), PromptSpec(system=""))
    long = Example("x", (Turn("user", "word " * 60), Turn("assistant", "b"), Turn("user", "short")), "answer")
    counts = Counts()
    assert Renderer(formatter, 80, "drop", counts).examples([long, Example("y", (Turn("user", "a"),), "")]) == []
    assert counts.by_reason == {"too long": 1, "empty answer": 1}
    counts = Counts()
    ((path,),) = Renderer(formatter, 80, "truncate", counts).examples([long])
    assert counts.by_reason == {"oldest turns cut": 1}
    assert formatter.tokenizer.decode(path.ids) == "### Instruction:\nshort\n\n### Response:\nanswer</s>"
    assert path.scored[-1] and path.ids[-1] == 1
    assert formatter.tokenizer.decode([i for i, s in zip(path.ids, path.scored, strict=True) if s]) == "answer</s>"


def test_a_row_is_counted_once_however_many_turns_it_loses(tiny: Path) -> None:
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer

    def talk(last: str) -> Example:
        return Example(
            "x",
            (*(Turn("user" if i % 2 == 0 else "assistant", "word " * 30) for i in range(6)), Turn("user", last)),
            "answer",
        )

    formatter, counts = Formatter(load_tokenizer(tiny), PromptSpec(system="")), Counts()
    assert len(Renderer(formatter, 80, "truncate", counts).examples([talk("short"), talk("word " * 60)])) == 1
    assert counts.by_reason == {"oldest turns cut": 1, "too long": 1}


def test_a_run_whose_end_token_carries_no_loss_is_refused(tiny: Path) -> None:
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer

    formatter = Formatter(load_tokenizer(tiny), PromptSpec())
    formatter.answer_ids = lambda turns, answer, head=None, cut=False: [5, 6]  # type: ignore[method-assign,misc,assignment]
    with pytest.raises(DataError, match="never learn to stop"):
        Renderer(formatter, 500, "drop", Counts()).examples([Example("x", (Turn("user", "a"),), "b")])


def test_a_rejected_answer_that_was_cut_off_is_learnt_without_an_end(tiny: Path) -> None:
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer

    formatter = Formatter(load_tokenizer(tiny), PromptSpec(system=""))
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "For it and", "rejected_finish": "length"}
    pair = to_pair(row, "here")
    ((chosen, rejected),) = Renderer(formatter, 80, "drop", Counts()).pairs([pair])

    def learnt(path: TokenPath) -> str:
        return str(formatter.tokenizer.decode([i for i, s in zip(path.ids, path.scored, strict=True) if s]))

    assert (learnt(chosen), learnt(rejected)) == ("So.</s>", "For it and")
    assert [one.cut for one in unpaired_of(pair)] == [False, True]
    ((liked,), (other,)) = Renderer(formatter, 80, "drop", Counts()).trees(unpaired_of(pair))
    assert (learnt(liked), learnt(other)) == ("So.</s>", "For it and")
    ((_, ended),) = Renderer(formatter, 80, "drop", Counts()).pairs(
        [to_pair(row | {"rejected_finish": "stop"}, "here")]
    )
    assert learnt(ended) == "For it and</s>"


def test_held_out_rows_are_every_nth_and_never_trained_on() -> None:
    rows = [Example(str(i), (), "") for i in range(10)]
    train, held = split_heldout(rows, 3, 2)
    assert [r.id for r in held] == ["2", "5"]
    assert not {r.id for r in train} & {r.id for r in held}


def test_too_few_rows_to_hold_one_out_is_said_with_what_to_do(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe({"a": {"sft": {"data": "rows.jsonl", "limit": 8}, "model": "base", **FAST}})
    with pytest.raises(DataError, match=r"no row is held out .*lower heldout_every"):
        run(path, tmp_path / "runs")


def test_a_merge_without_a_row_for_its_drift_is_refused_in_one_line(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openbezoar.verbs.merge import work as merge

    monkeypatch.setattr(merge, "LONGEST", 8)
    path = write_recipe({"a": {"sft": "rows.jsonl", "model": "base", **FAST, "max_steps": 1}, "m": {"merge": "a"}})
    with pytest.raises(
        DataError,
        match=r"none of the rows for the drift can be used, 8 tokens at most \(2 too long\); name others with 'drift'",
    ):
        run(path, tmp_path / "runs")


def run(path: Path, runs: Path, to: str | None = None) -> graph.Graph:
    built = graph.build(load(path), path, runs)
    execution.execute(built, PlainProgress(quiet=True), to)
    return graph.build(load(path), path, runs)


def test_sft_merge_and_dpo_in_a_chain_learn_and_count(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(
        {
            "sft": {
                "sft": "rows.jsonl",
                "model": "base",
                "epochs": 6,
                "heldout_every": 6,
                **FAST,
                "learning_rate": 2e-2,
            },
            "more": {"sft": "rows.jsonl", "model": "sft", "epochs": 1, **FAST},
            "SFT": {"merge": "more", "onto": "dequantized", "dtype": "float32"},
            "SFT16": {"merge": "more", "onto": "original", "dtype": "float32"},
            "dpo": {
                "dpo": "pairs.jsonl",
                "model": "SFT",
                "epochs": 4,
                "heldout_every": 5,
                **FAST,
                "learning_rate": 5e-3,
            },
            "unmerged": {"dpo": "pairs.jsonl", "model": "more", "max_steps": 2, **FAST},
            "DPO": {"merge": "dpo", "dtype": "float32"},
        }
    )
    built = run(path, tmp_path / "runs")
    assert {n.state for n in built.nodes.values()} == {"done"}
    numbers = {name: (built.run.manifest(name) or {})["numbers"] for name in built.nodes}
    assert numbers["sft"]["heldout_loss_after"] < numbers["sft"]["heldout_loss_before"] - 0.1
    assert numbers["sft"]["trainable_parameters"] == 2 * 4 * ((64 + 64) + 2 * (64 + 32))
    assert numbers["sft"]["rows"] == 20 and numbers["sft"]["heldout_rows"] == 4 and numbers["sft"]["steps"] == 30
    # The second step continues the first one's adapter: it begins where that one ended.
    first_line = json.loads((built.run.step("more") / "heldout.jsonl").read_text().splitlines()[0])
    assert first_line["loss"] < numbers["sft"]["heldout_loss_before"] - 0.1
    for name in ("dpo", "unmerged"):
        assert numbers[name]["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert numbers[name]["heldout_loss_before"] == pytest.approx(math.log(2), abs=1e-5)
        assert numbers[name]["heldout_accuracy_before"] == 0.0
    assert numbers["dpo"]["heldout_loss_after"] < 0.65
    assert numbers["dpo"]["heldout_accuracy_after"] == 1.0
    # In fp32 a merge onto what the adapter saw changes nothing; onto the original weights it does.
    assert numbers["SFT"]["max_logprob_difference"] < 1e-4
    assert numbers["SFT"]["max_logprob_difference"] < numbers["SFT16"]["max_logprob_difference"]
    assert abs(numbers["SFT"]["kl"]) < 1e-6
    assert numbers["SFT"]["loss"] == pytest.approx(numbers["SFT"]["loss_unmerged"], abs=1e-5)
    # 'best' tries both, keeps the one with the lower loss, and says so.
    best = numbers["DPO"]
    assert best["losses"].keys() == {"original", "dequantized"}
    assert best["onto"] == min(best["losses"], key=best["losses"].get)


def test_of_a_model_whose_answers_are_known_the_layers_are_free(tiny: Path) -> None:
    from openbezoar.verbs.merge.work import _Answers

    model: Any = load_base(checkpoint(tiny), (), "none", dtype="float32").eval()
    layers = weakref.ref(model.model)
    answers = _Answers.of(model, [random_paths(1)[1][:1]])
    del model
    gc.collect()
    assert layers() is None and math.isfinite(answers.loss())


def test_of_two_merges_that_are_as_good_one_is_kept(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {
        "loss": 1.0,
        "kl": 0.0,
        "max_logprob_difference": 0.0,
        "mean_logprob_difference": 0.0,
        "rows": 1,
        "tokens": 1,
    }
    monkeypatch.setattr("openbezoar.verbs.merge.work._drift", lambda *given: same)
    path = write_recipe(
        {"sft": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, **FAST}, "SFT": {"merge": "sft"}}
    )
    built = run(path, tmp_path / "runs")
    assert [folder.name for folder in built.run.step("SFT").glob("model*") if folder.is_dir()] == ["model"]
    numbers = (built.run.manifest("SFT") or {})["numbers"]
    assert numbers["onto"] == "original" and numbers["losses"] == {"original": 1.0, "dequantized": 1.0}


def test_a_step_goes_on_from_a_merge_in_a_relative_run_folder(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(
        {
            "sft": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, **FAST},
            "M": {"merge": "sft"},
            "dpo": {"dpo": "pairs.jsonl", "model": "M", "max_steps": 1, **FAST},
        }
    )
    monkeypatch.chdir(tmp_path)
    built = run(Path(path.name), Path("runs"))
    assert {n.state for n in built.nodes.values()} == {"done"}
    assert json.loads(Path("runs/t/dpo/model.json").read_text())["base"] == "run:M/model"


def test_a_merge_adds_scale_times_b_times_a(write_recipe: Callable[..., Path], tmp_path: Path, tiny: Path) -> None:
    path = write_recipe(
        {
            "sft": {"sft": "rows.jsonl", "model": "base", "quantize": "none", "max_steps": 2, **FAST},
            "M": {"merge": "sft", "onto": "original", "dtype": "float32"},
        }
    )
    built = run(path, tmp_path / "runs")
    before, after = (
        load_file(tiny / "model.safetensors"),
        load_file(built.run.step("M") / "model" / "model.safetensors"),
    )
    adapter = load_file(built.run.step("sft") / "adapter" / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    a, b = adapter[f"base_model.model.{name}.lora_A.weight"], adapter[f"base_model.model.{name}.lora_B.weight"]
    assert float(b.abs().max()) > 0
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 1.0 * b @ a, atol=1e-7)
    untouched = [n for n in before if not n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]
    assert all(torch.equal(before[n], after[n]) for n in untouched)


def test_dpo_refuses_to_start_when_the_reference_is_another_model() -> None:
    from openbezoar.training.objectives import checked_first_loss

    check = checked_first_loss(math.log(2))
    check({"loss": math.log(2) + 1e-5})
    with pytest.raises(ModelError, match="before the first update"):
        check({"loss": 0.72})


def test_only_what_changed_and_what_follows_runs_again(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    steps = {
        "sft": {"sft": "rows.jsonl", "model": "base", "max_steps": 1, **FAST},
        "SFT": {"merge": "sft"},
        "dpo": {"dpo": "pairs.jsonl", "model": "SFT", "max_steps": 1, **FAST},
        "DPO": {"merge": "dpo"},
    }
    path = write_recipe(steps)
    built = graph.build(load(path), path, tmp_path / "runs")
    assert execution.execute(built, PlainProgress(quiet=True)) == ["sft", "SFT", "dpo", "DPO"]
    again = graph.build(load(path), path, tmp_path / "runs")
    assert execution.execute(again, PlainProgress(quiet=True)) == []
    changed = graph.build(load(path, ["steps.dpo.beta=0.2"]), path, tmp_path / "runs")
    assert {n.name: n.state for n in changed.nodes.values()} == {
        "sft": "done",
        "SFT": "done",
        "dpo": "stale",
        "DPO": "stale",
    }
    assert changed.nodes["dpo"].why == "beta: 0.1 → 0.2"
    assert changed.nodes["DPO"].why == "its input dpo changed"
    assert execution.execute(changed, PlainProgress(quiet=True)) == ["dpo", "DPO"]
    rows = (path.parent / "rows.jsonl").read_text()
    (path.parent / "rows.jsonl").write_text(rows.replace("Say the", "Tell the"))
    touched = graph.build(load(path), path, tmp_path / "runs")
    assert touched.nodes["sft"].state == "stale"
    assert touched.nodes["sft"].why == "file rows.jsonl changed"
