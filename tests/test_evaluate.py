"""The evaluate stage: several checkpoints, paired comparisons, and going on after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

import openbezoar.models.load as load_module
from openbezoar.context import StepContext
from openbezoar.errors import (
    DataError,
    ModelError,
    RecipeError,
)
from openbezoar.progress import PlainProgress
from openbezoar.recipe.file import parse
from openbezoar.recipe.measure_steps import Evaluate
from openbezoar.recipe.schema import Recipe
from openbezoar.stats.intervals import mcnemar
from openbezoar.store.runs import RunFolder
from openbezoar.verbs.evaluate.work import run

QUESTIONS = [
    {"id": f"q{i}", "split": "eval", "question": q, "choices": c, "gold": g}
    for i, (q, c, g) in enumerate(
        [
            ("What do bees make?", ["milk", "honey"], 1),
            ("Which melts in the sun?", ["ice", "iron", "sand"], 0),
            ("Which animal barks?", ["dog", "hen"], 0),
            ("What falls from clouds?", ["coins", "rain"], 1),
        ]
    )
]
ANSWERS = [
    {"id": f"r{i}", "instruction": f"Name {word}.", "response": f"{word} is a fine thing. " * (i + 1)}
    for i, word in enumerate(["snow", "rain", "wind"])
]
PAIRS = [
    {"id": "p0", "prompt": "Say hello.", "chosen": "Hello!", "rejected": "Go away, please do."},
    {
        "id": "p1",
        "prompt": "Say goodbye.",
        "chosen": "A long and warm goodbye to you and all of yours.",
        "rejected": "Bye.",
    },
    {"id": "p2", "prompt": "Say nothing.", "chosen": "All right.", "rejected": "All right."},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_model(folder: Path, seed: int, window: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps(row) for row in (*QUESTIONS, *ANSWERS, *PAIRS)] * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=window,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder with models, task rows and data rows."""
    folder = tmp_path_factory.mktemp("place")
    for name, seed, window in (("one", 1, 512), ("two", 2, 512), ("narrow", 1, 64)):
        save_model(folder / name, seed, window)
    (folder / "tasks").mkdir()
    for name, rows in (("tasks/arc_easy", QUESTIONS), ("answers", ANSWERS), ("pairs", PAIRS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def made(place: Path, tmp_path: Path, **settings: Any) -> tuple[Evaluate, StepContext]:
    step = {
        "evaluate": ["one", "two"],
        "tasks": ["arc_easy"],
        "data": "tasks",
        "losses": {"plain": "answers.jsonl"},
        "pairs": {"polite": "pairs.jsonl"},
        **settings,
    }
    models: dict[str, Any] = {name: {"model": name, "dtype": "float32"} for name in ("one", "two", "narrow")}
    models["far"] = {"server": "http://localhost:1/v1", "model": "x"}
    recipe: Recipe = parse(
        {"name": "r", "models": models, "prompt": {"system": "Be brief."}, "steps": {"scores": step}}, "test"
    )
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    parsed = recipe.steps["scores"]
    assert isinstance(parsed, Evaluate)
    return parsed, StepContext(
        "scores", recipe, place, RunFolder(tmp_path / "run"), out, 7, PlainProgress(quiet=True), ("scores",)
    )


def result(context: StepContext) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((context.out / "scores.json").read_text())
    return content


def by_hand(folder: Path, turns_text: str, answer: str) -> list[float]:
    """Log-probabilities of an answer's tokens and its end, by one plain forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    text = f"### System:\nBe brief.\n\n### Instruction:\n{turns_text}\n\n### Response:\n"
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = [*tokenizer(text + answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(table[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]


def test_scores_hold_tasks_losses_and_pairs_of_every_checkpoint(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path)
    numbers = run(step, context)
    found = result(context)
    assert list(found["checkpoints"]) == ["one", "two"]
    for content in found["checkpoints"].values():
        assert content["tasks"]["arc_easy"]["n"] == 4 and len(content["tasks"]["arc_easy"]["items"]) == 4
        assert content["losses"]["plain"]["n"] == 3 and content["pairs"]["polite"]["n"] == 2
    assert set(numbers["table"]["one"]) == {"arc_easy", "loss plain", "polite, likelihood accuracy"}
    assert "one → two" in numbers["summary"] and "arc_easy" in numbers["summary"]


def test_a_held_out_loss_counts_every_answer_token_alike(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path, tasks=[], pairs={})
    run(step, context)
    loss = result(context)["checkpoints"]["one"]["losses"]["plain"]
    rows = [by_hand(place / "one", row["instruction"], row["response"]) for row in ANSWERS]
    tokens = [x for row in rows for x in row]
    assert loss["tokens"] == len(tokens)
    assert loss["value"] == pytest.approx(-sum(tokens) / len(tokens), abs=1e-5)
    assert sum(loss["items"]) / 3 == pytest.approx(loss["value"], abs=1e-9)
    assert loss["low"] <= loss["value"] <= loss["high"]


def test_of_a_conversation_every_answer_counts_and_together_they_are_one_item(place: Path, tmp_path: Path) -> None:
    talk = [("user", "Name snow."), ("assistant", "Cold."), ("user", "And rain?"), ("assistant", "Wet it is.")]
    one = [("user", ANSWERS[0]["instruction"]), ("assistant", ANSWERS[0]["response"])]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]} for turns in (talk, one)]
    (place / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    step, context = made(place, tmp_path, tasks=[], pairs={}, losses={"talks": "talks.jsonl"})
    run(step, context)
    loss = result(context)["checkpoints"]["one"]["losses"]["talks"]
    later = "Name snow.\n\n### Response:\nCold.</s>\n\n### Instruction:\nAnd rain?"
    answers = [
        *by_hand(place / "one", "Name snow.", "Cold."),
        *by_hand(place / "one", later, "Wet it is."),
        *by_hand(place / "one", ANSWERS[0]["instruction"], ANSWERS[0]["response"]),
    ]
    assert (loss["n"], loss["tokens"], len(loss["items"])) == (2, len(answers), 2)
    assert loss["value"] == pytest.approx(-sum(answers) / len(answers), abs=1e-5)


def test_pairs_are_decided_by_the_sum_and_by_the_mean(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path, tasks=[], losses={})
    run(step, context)
    found = result(context)["checkpoints"]["one"]["pairs"]["polite"]
    sums, means = [], []
    for row in PAIRS[:2]:
        chosen, rejected = (by_hand(place / "one", row["prompt"], row[key]) for key in ("chosen", "rejected"))
        sums.append(sum(chosen) > sum(rejected))
        means.append(sum(chosen) / len(chosen) > sum(rejected) / len(rejected))
    assert sums == [True, False]  # the short answer is the likelier one
    assert found["items"] == [1, 0, None]
    assert found["accuracy"]["value"] == sum(sums) / 2 and found["normalised"]["value"] == sum(means) / 2
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["identical"] == 1
    assert context.counts.by_reason["one, pairs polite: chosen and rejected are identical"] == 1


def test_every_two_checkpoints_are_compared_over_the_same_items_later_less_earlier(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path, evaluate=["one", "two", "one", "narrow"], pairs={})
    run(step, context)
    found = result(context)
    checkpoints = found["checkpoints"]
    assert [(d["a"], d["b"]) for d in found["differences"]] == [("one", "two"), ("one", "narrow"), ("two", "narrow")]
    for d in found["differences"]:
        a, b = (checkpoints[d[k]]["tasks"]["arc_easy"]["items"] for k in "ab")
        assert d["task"] == "arc_easy" and d["metric"] == "acc_norm" and d["n"] == 4
        assert d["difference"] == pytest.approx(sum(y - x for x, y in zip(a, b, strict=True)) / 4)
        assert d["low"] <= d["difference"] <= d["high"]
        assert d["p"] == mcnemar(b, a) <= d["p_holm"] <= 1
    loss = found["loss_differences"][0]
    assert loss["difference"] == pytest.approx(
        checkpoints["two"]["losses"]["plain"]["value"] - checkpoints["one"]["losses"]["plain"]["value"]
    )


def test_rows_beyond_the_window_are_counted_and_left_out_of_the_comparison(place: Path, tmp_path: Path) -> None:
    step, context = made(place, tmp_path, evaluate=["one", "narrow"], tasks=[], pairs={})
    run(step, context)
    found = result(context)
    wide, narrow = (found["checkpoints"][name]["losses"]["plain"] for name in ("one", "narrow"))
    missing = narrow["unscored"]
    assert (
        0 < missing < 3
        and narrow["n"] == 3 - missing
        and narrow["items"].count(None) == missing
        and wide["unscored"] == 0
    )
    assert context.counts.by_reason["narrow, losses plain: too long for the model's window, or empty"] == missing
    assert found["loss_differences"][0]["n"] == narrow["n"]


def test_a_killed_run_goes_on_with_the_next_checkpoint(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, context = made(place, tmp_path)
    real, loaded = load_module.load_for_inference, []

    def load(checkpoint: Any) -> Any:
        loaded.append(checkpoint.name)
        if loaded == ["one", "two"]:
            raise KeyboardInterrupt
        return real(checkpoint)

    monkeypatch.setattr(load_module, "load_for_inference", load)
    with pytest.raises(KeyboardInterrupt):
        run(step, context)
    assert (context.out / ".resume-one.json").is_file() and not (context.out / "scores.json").exists()
    run(step, context)
    assert loaded == ["one", "two", "two"]
    whole = result(context)
    clean_step, clean = made(place, tmp_path, evaluate=["one", "two"])
    for kept in clean.out.glob(".resume-*"):
        kept.unlink()
    monkeypatch.setattr(load_module, "load_for_inference", real)
    run(clean_step, clean)
    assert result(clean) == whole


def test_mistakes_show_before_a_model_is_loaded(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(checkpoint: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(load_module, "load_for_inference", load)
    with pytest.raises(DataError, match=r"no file piqa\.jsonl"):
        run(*made(place, tmp_path, tasks=["arc_easy", "piqa"]))
    with pytest.raises(RecipeError, match="'far' is behind a server"):
        run(*made(place, tmp_path, evaluate=["one", "far"]))
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        run(*made(place, tmp_path, losses={"plain": "nowhere.jsonl"}))


def test_a_model_of_no_numbers_gets_no_score(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is above and below nothing: such a model would score what its first choices score, and
    differ from every other 'outside noise'.
    """
    import openbezoar.llm.local  # noqa: F401  imported under the patch for the first time, it would keep it for all later tests
    from openbezoar.forest import Scorer

    load = load_module.load_for_inference

    def damaged(checkpoint: Any) -> Any:
        model, tokenizer = load(checkpoint)
        model.model.norm.weight.data[0] = torch.nan
        return model, tokenizer

    monkeypatch.setattr(load_module, "load_for_inference", damaged)
    with pytest.raises(ModelError, match="not numbers"):
        run(*made(place, tmp_path))
    monkeypatch.setattr(Scorer, "_check_once", lambda self, trees: None)  # as where only long rows overflow
    with pytest.raises(ModelError, match=r"arc_easy: .* not numbers"):
        run(*made(place, tmp_path))
    with pytest.raises(ModelError, match=r"plain, row 1: .* not numbers"):
        run(*made(place, tmp_path, tasks=[]))


def test_pairs_that_prefer_nothing_are_an_error(place: Path, tmp_path: Path) -> None:
    (place / "same.jsonl").write_text(json.dumps(PAIRS[2]))
    with pytest.raises(DataError, match=r"pairs\.same: none of 1 pairs can be scored \(1 have identical answers"):
        run(*made(place, tmp_path, tasks=[], losses={}, pairs={"same": "same.jsonl"}))


def test_a_model_is_scored_from_its_reference(place: Path) -> None:
    from openbezoar.harness.run import score_reference

    found = score_reference(str(place / "one"), ["arc_easy"], place / "tasks", limit=3)
    assert found["model"] == str(place / "one") and found["tasks"]["arc_easy"]["n"] == 3
