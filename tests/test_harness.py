"""LM-Eval tasks on the forest scorer: the same numbers as lm-eval's own model, from local rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from openbezoar.errors import (
    DataError,
    RecipeError,
    UserError,
)
from openbezoar.forest import (
    Scorer,
    TokenPath,
)
from openbezoar.forest.layout import lay_out
from openbezoar.harness.run import (
    FEWSHOT_SEED,
    quiet,
    score,
)
from openbezoar.harness.tasks import (
    LOCAL,
    NLTK_DATA,
    Benchmark,
    open_benchmarks,
)
from openbezoar.recipe.measure_steps import TaskSpec
from openbezoar.rows.records import read_jsonl

SHARED = Path(__file__).parents[2] / "shared" / "data" / "lm_eval"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_tokenizer(adds_bos: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps(row) for rows in ROWS.values() for row in rows] * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_model(seed: int = 0, window: int = 512) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

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
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def choice(split: str, question: str, choices: list[str], gold: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"{split}-{question[:9]}",
        "split": split,
        "question": question,
        "choices": choices,
        "gold": gold,
        **more,
    }


ARC = [
    choice("eval", "Which of these melts in the sun?", ["ice", "iron", "a stone", "sand"], 0),
    choice("eval", "What do bees make?", ["milk", "bread", "honey"], 2),
    choice("fewshot", "What falls from clouds?", ["rain", "coins", "leaves", "chalk"], 0),
    choice("fewshot", "Which animal barks?", ["cat", "dog", "cow", "hen"], 1),
    choice("fewshot", "What is frozen water called?", ["ice", "steam", "fog", "oil"], 0),
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": ARC,
    "arc_challenge": ARC,
    "openbookqa": [choice("eval", "A plant needs", ["light", "shoes", "a lid", "a bell"], 0)],
    "piqa": [choice("eval", "Keep bread fresh.", ["Put it in a box.", "Put it in a bath."], 0)],
    "social_iqa": [
        choice("eval", "Ann lost her keys.  She was late. How would Ann feel?", ["cross", "glad", "proud"], 0)
    ],
    "hellaswag": [
        choice(
            "eval",
            "A man runs. He stops at the U.N. gate. a woman in Rome",
            ["waves.", "[substeps] sings.", "sleeps.", "melts."],
            1,
        ),
        choice(
            "eval",
            "[header] How to boil eggs [title] Fill a pot. [step] Use cold water.",
            ["Wait.", "Run.", "Hop.", "Dig."],
            0,
        ),
        choice("eval", "He bakes bread. he", ["eats.", "flies.", "rusts.", "rings."], 0, activity_label="Baking"),
    ],
    "boolq": [
        {
            "id": "b1",
            "split": "eval",
            "passage": "Snow is white.",
            "question": "is snow white?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        {"id": "b2", "split": "eval", "passage": "Coal is black.", "question": "is coal white", "gold": 0},
    ],
    "rte": [
        {
            "split": "eval",
            "premise": "Tom owns two cats.",
            "hypothesis": "Tom owns a cat.",
            "choices": ["True", "False"],
            "gold": 0,
        }
    ],
    "copa": [
        choice("eval", "The glass fell, therefore", ["it broke.", "It sang."], 0),
        choice("eval", "He slept because", ["he was tired.", "he ran."], 0),
    ],
    "winogrande": [
        {
            "split": "eval",
            "sentence": "The cup did not fit the box because the _ was big.",
            "choices": ["cup", "box"],
            "gold": 0,
        }
    ],
    "truthfulqa_mc": [
        {
            "split": "eval",
            "question": "Can pigs fly?",
            "mc1": {"choices": ["Yes", "No", "At night"], "gold": 1},
            "mc2": {"choices": ["Yes", "No", "They cannot"], "labels": [0, 1, 1]},
        }
    ],
    "lambada_openai": [{"split": "eval", "context": "She opened the door of the", "continuation": "house"}],
    "gsm8k": [{"split": "eval", "question": "What is 2+3?", "answer": "2+3=<<2+3=5>>5\n#### 5", "final": "5"}],
    "mmlu": [
        *(
            choice("fewshot", f"Example {i}?", ["a", "b", "c", "d"], i % 4, subject=s)
            for s in ("anatomy", "astronomy")
            for i in range(5)
        ),
        *(choice("eval", f"Bone {i}?", ["a", "b", "c", "d"], i % 4, subject="anatomy") for i in range(3)),
        choice("eval", "Star?", ["a", "b", "c", "d"], 3, subject="astronomy"),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def opened(*tasks: str | TaskSpec, data: Path | None, **settings: Any) -> list[Benchmark]:
    with quiet():
        return open_benchmarks(tasks, data, **settings)


def forest_lm(model: Any, tokenizer: Any) -> Any:
    from openbezoar.harness.forest_lm import ForestLM

    return ForestLM(model, tokenizer)


def hf_lm(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    with quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)


def evaluated(lm: Any, benchmark: Benchmark) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    for task in benchmark.parts.values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    with quiet():
        found = evaluate(lm, {"tasks": benchmark.parts}, limit=benchmark.limit, bootstrap_iters=0)
    assert found is not None
    return dict(found)


def responses(found: dict[str, Any]) -> list[tuple[float, bool]]:
    return [response[0] for samples in found["samples"].values() for sample in samples for response in sample["resps"]]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def assert_alike(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert len(ours) == len(theirs) > 0
    # fp32 sums of hundreds of tokens
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], abs=1e-4, rel=1e-6)
    assert [flag for _, flag in ours] == [flag for _, flag in theirs]


# ------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("task", ["arc_easy", "hellaswag", "boolq", "winogrande", "lambada_openai", "truthfulqa_mc2"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_log_probabilities_and_greedy_flags_are_those_of_lm_evals_own_model(
    task: str, adds_bos: bool, data: Path
) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer(adds_bos)
    (benchmark,) = opened(task, data=data, fewshot=2 if task == "arc_easy" else 0)
    ours, theirs = evaluated(forest_lm(model, tokenizer), benchmark), evaluated(hf_lm(model, tokenizer), benchmark)
    assert_alike(responses(ours), responses(theirs))
    for key, value in theirs["results"][task].items():
        assert ours["results"][task][key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (
            key
        )


@pytest.mark.parametrize("context", ["", "The sea is ", "<s>Snow", "Snow\n\n"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_odd_contexts_are_encoded_as_lm_eval_encodes_them(context: str, adds_bos: bool) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer(adds_bos)
    asked = requests("loglikelihood", (context, " blue and wide"), (context, "x"))
    assert_alike(
        forest_lm(model, tokenizer).loglikelihood(asked),
        hf_lm(model, tokenizer).loglikelihood(asked, disable_tqdm=True),
    )


def test_a_context_of_spaces_alone_scores_every_token_of_what_follows(tokenizer: Any) -> None:
    model = tiny_model()
    assert_alike(
        *(
            forest_lm(model, tokenizer).loglikelihood(requests("loglikelihood", pair))
            for pair in (("  ", "x"), ("", "  x"))
        )
    )


def test_a_continuation_that_greedy_decoding_gives_is_flagged(tokenizer: Any) -> None:
    model = tiny_model()
    context = list(tokenizer.encode("What do bees make?"))
    out = model.generate(input_ids=torch.tensor([context]), max_new_tokens=6, do_sample=False, pad_token_id=1)[
        0
    ].tolist()
    greedy = out[len(context) :]
    other = [*greedy[:-1], (greedy[-1] + 1) % 400]
    found = forest_lm(model, tokenizer)._loglikelihood_tokens(
        [(None, context, greedy), (None, context, other), (None, context, greedy[:2])]
    )
    assert [flag for _, flag in found] == [True, False, True]


def test_long_contexts_lose_their_left_end_as_in_lm_eval_and_are_counted(tokenizer: Any) -> None:
    model = tiny_model(window=24)
    asked = requests("loglikelihood", ("Snow is white. " * 20, "Rain is wet."), ("Snow", " is"))
    ours = forest_lm(model, tokenizer)
    assert_alike(ours.loglikelihood(asked), hf_lm(model, tokenizer).loglikelihood(asked, disable_tqdm=True))
    assert ours.truncated == 1


def test_rolling_log_probabilities_are_those_of_lm_evals_own_model(tokenizer: Any) -> None:
    model = tiny_model(window=16)
    asked = requests("loglikelihood_rolling", ("Snow is white. " * 9,), ("Short.",))
    assert forest_lm(model, tokenizer).loglikelihood_rolling(asked) == pytest.approx(
        hf_lm(model, tokenizer).loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3
    )


def test_generated_answers_are_those_of_lm_evals_own_model(tokenizer: Any) -> None:
    model = tiny_model(3)
    probe = forest_lm(model, tokenizer).generate_until(
        requests("generate_until", ("Snow is", {"until": [], "max_gen_toks": 24}))
    )[0]
    stop = probe[len(probe) // 2 :][:3]
    settings = {"until": [stop], "max_gen_toks": 24, "do_sample": False}
    asked = requests(
        "generate_until",
        ("Snow is", settings),
        ("What do bees make? They make", settings),
        ("A", {"until": ["\n"], "max_gen_toks": 5}),
    )
    ours = forest_lm(model, tokenizer).generate_until(asked)
    lm = hf_lm(model, tokenizer)
    theirs = [lm.generate_until([request], disable_tqdm=True)[0] for request in asked]  # one at a time: no padding
    assert ours == theirs
    assert stop and stop not in ours[0] and probe.startswith(ours[0])


def test_greedy_answers_read_what_their_contexts_share_once_and_are_those_of_transformers(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shots = tiny_model(3), "Question: what is snow? Answer: it is white. " * 6
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests(
        "generate_until",
        *(
            (f"{shots}Question: what is {word}? Answer:", settings)
            for word in ("rain", "a long river", "ice", "the sea")
        ),
    )
    lm = forest_lm(model, tokenizer)
    read: list[int] = []
    prefill = lm.scorer.prefill
    monkeypatch.setattr(
        lm.scorer,
        "prefill",
        lambda trees, cache: (read.append(len(lay_out(trees, torch.device("cpu")).ids)), prefill(trees, cache))[1],
    )
    ours = lm.generate_until(asked)
    lengths = [len(tokenizer(request.args[0]).input_ids) for request in asked]
    assert 0 < sum(read) < sum(lengths) / 2
    monkeypatch.setattr(lm, "_plain_greedy", lambda settings: False)
    read.clear()
    assert lm.generate_until(asked) == ours and any(ours)
    assert not read


@pytest.mark.parametrize(
    ("own", "settings"),
    [
        ({"repetition_penalty": 3.0}, {}),
        ({}, {"repetition_penalty": 3.0}),
        ({}, {"num_beams": 3}),
        ({"no_repeat_ngram_size": 1}, {}),
    ],
)
def test_answers_that_ask_for_more_than_the_likeliest_token_are_left_to_transformers(
    tokenizer: Any, own: dict[str, Any], settings: dict[str, Any]
) -> None:
    model = tiny_model(3)
    given = {"until": [], "max_gen_toks": 24, "do_sample": False}
    plain = forest_lm(model, tokenizer).generate_until(requests("generate_until", ("Snow is", given)))
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    asked = requests("generate_until", ("Snow is", {**given, **settings}))
    ours = forest_lm(model, tokenizer).generate_until(asked)
    assert ours == hf_lm(model, tokenizer).generate_until(asked, disable_tqdm=True)
    assert ours != plain


def test_an_answer_ends_where_its_stop_string_does(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = forest_lm(tiny_model(3), tokenizer)
    whole = lm.generate_until(requests("generate_until", ("Snow is", {"until": [], "max_gen_toks": 24})))[0]
    made: list[int] = []
    draw = lm.decoder.draw
    monkeypatch.setattr(
        lm.decoder,
        "draw",
        lambda prompts, rows, stopped: (draw(prompts, rows, stopped), made.extend(len(row.ids) for row in rows)),
    )
    stop = whole[len(whole) // 2 :][:3]
    (ended,) = lm.generate_until(requests("generate_until", ("Snow is", {"until": [stop], "max_gen_toks": 24})))
    assert whole.startswith(ended) and 1 < made[0] < 24


def test_every_end_token_of_the_models_own_settings_ends_an_answer(tokenizer: Any) -> None:
    model = tiny_model(3)
    asked = requests("generate_until", ("Snow is", {"until": [], "max_gen_toks": 8}))
    context = tokenizer("Snow is").input_ids
    third = int(
        model.generate(input_ids=torch.tensor([context]), max_new_tokens=3, do_sample=False, pad_token_id=1)[0, -1]
    )
    (free,) = forest_lm(model, tokenizer).generate_until(asked)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, third]
    (ended,) = forest_lm(model, tokenizer).generate_until(asked)
    assert ended == hf_lm(model, tokenizer).generate_until(asked, disable_tqdm=True)[0]
    assert free.startswith(ended) and len(ended) < len(free)


def test_asking_for_greedy_flags_changes_neither_scores_nor_gradients() -> None:
    model = tiny_model()
    paths = [TokenPath.of([5, 6, 7], [8, 9]), TokenPath.of([5, 6], [7, 8, 9, 10])]
    scorer = Scorer(model)
    model.model.embed_tokens.weight.requires_grad_(True)
    gradients = []
    for flags in (None, []):
        model.zero_grad()
        scores = torch.cat(scorer.forward(paths, flags))
        scores.sum().backward()
        gradients.append((scores.detach().clone(), model.model.embed_tokens.weight.grad.clone()))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])
    logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    assert flags is not None and flags[0].tolist() == [bool(logits[2].argmax() == 8), bool(logits[3].argmax() == 9)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")
@pytest.mark.parametrize("task", ["arc_easy", "hellaswag", "boolq"])
def test_real_rows_score_as_in_lm_eval(task: str, tokenizer: Any) -> None:
    model = tiny_model(window=1024)
    (benchmark,) = opened(task, data=SHARED, fewshot=1, limit=8)
    assert_alike(
        responses(evaluated(forest_lm(model, tokenizer), benchmark)),
        responses(evaluated(hf_lm(model, tokenizer), benchmark)),
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")
@pytest.mark.parametrize("task", LOCAL)
def test_every_file_beside_the_repository_is_understood(task: str) -> None:
    if task == "ifeval":
        for package in ("langdetect", "immutabledict", "nltk"):
            pytest.importorskip(package)
    (benchmark,) = opened(task, data=SHARED)
    assert all(len(part.eval_docs) > 0 for part in benchmark.parts.values())


# ----------------------------------------------------------------------------- prompts

PROMPTS: dict[str, list[tuple[str, list[str]]]] = {
    "arc_easy": [("Question: Which of these melts in the sun?\nAnswer:", [" ice", " iron", " a stone", " sand"])],
    "openbookqa": [("A plant needs", [" light", " shoes", " a lid", " a bell"])],
    "piqa": [("Question: Keep bread fresh.\nAnswer:", [" Put it in a box.", " Put it in a bath."])],
    "social_iqa": [("Q: Ann lost her keys.  She was late. How would Ann feel?\nA:", [" cross", " glad", " proud"])],
    "hellaswag": [
        ("A man runs. He stops at the U.N. gate. A woman in rome", [" waves.", "  sings.", " sleeps.", " melts."]),
        ("How to boil eggs. Fill a pot. Use cold water.", [" Wait.", " Run.", " Hop.", " Dig."]),
        ("Baking: He bakes bread. He", [" eats.", " flies.", " rusts.", " rings."]),
    ],
    "boolq": [
        ("Snow is white.\nQuestion: is snow white?\nAnswer:", [" no", " yes"]),
        ("Coal is black.\nQuestion: is coal white?\nAnswer:", [" no", " yes"]),
    ],
    "rte": [("Tom owns two cats.\nQuestion: Tom owns a cat. True or False?\nAnswer:", [" True", " False"])],
    "copa": [
        ("The glass fell therefore", ["  it broke.", "  it sang."]),
        ("He slept because", ["  he was tired.", "  he ran."]),
    ],
    "lambada_openai": [("She opened the door of the", [" house"])],
}


@pytest.mark.parametrize("task", PROMPTS)
def test_plain_rows_give_the_official_prompts(task: str, data: Path) -> None:
    (benchmark,) = opened(task, data=data)
    definition = benchmark.parts[task]
    with quiet():
        definition.build_all_requests()
    found: dict[int, tuple[str, list[str]]] = {}
    for request in definition.instances:
        found.setdefault(request.doc_id, (request.args[0], []))[1].append(request.args[1])
    assert [found[i] for i in range(len(PROMPTS[task]))] == PROMPTS[task]


def test_winogrande_fills_the_blank_and_scores_what_follows(data: Path) -> None:
    (benchmark,) = opened("winogrande", data=data)
    definition = benchmark.parts["winogrande"]
    with quiet():
        definition.build_all_requests()
    assert [r.args for r in definition.instances] == [
        (f"The cup did not fit the box because the {word}", " was big.") for word in ("cup", "box")
    ]


def test_the_right_choice_of_truthfulqa_mc1_comes_first(data: Path) -> None:
    (benchmark,) = opened("truthfulqa_mc1", data=data, fewshot=5)
    definition = benchmark.parts["truthfulqa_mc1"]
    assert definition.doc_to_choice(definition.eval_docs[0]) == ["No", "Yes", "At night"]
    assert definition.config.num_fewshot == 0  # the definition fixes it


def test_fewshot_rows_are_the_examples_and_nothing_else_is(data: Path) -> None:
    (benchmark,) = opened("arc_easy", data=data, fewshot=2)
    definition = benchmark.parts["arc_easy"]
    definition.set_fewshot_seed(FEWSHOT_SEED)
    with quiet():
        definition.build_all_requests()
    prompt = definition.instances[0].args[0]
    shown = [part.split("\nAnswer:")[0].removeprefix("Question: ") for part in prompt.split("\n\n")]
    assert len(shown) == 3 and shown[-1] == ARC[0]["question"]
    assert set(shown[:-1]) <= {row["question"] for row in ARC if row["split"] == "fewshot"}


def test_gsm8k_shows_as_many_examples_as_its_definition_says(tmp_path: Path) -> None:
    rows = [
        ROWS["gsm8k"][0],
        *({**ROWS["gsm8k"][0], "split": "fewshot", "question": f"What is {i}?"} for i in range(6)),
    ]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opened("gsm8k", data=tmp_path)[0].parts["gsm8k"].config.num_fewshot == 5
    assert opened("gsm8k", data=tmp_path, fewshot=1)[0].parts["gsm8k"].config.num_fewshot == 1


@pytest.mark.parametrize("name", LOCAL)
def test_local_rows_stand_in_the_splits_that_the_definition_names(name: str) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    if name == "ifeval":
        pytest.importorskip("langdetect")  # its definition imports its metric
    local = LOCAL[name]
    task = "mmlu_anatomy" if name == "mmlu" else local.task or name
    folder = Path(lm_eval.tasks.__file__).parent / local.folder
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=[folder])
    config = load_yaml(manager.task_index[task].yaml_path)
    assert local.questions == (config.get("test_split") or config["validation_split"])
    assert local.examples == (config.get("fewshot_split") or config.get("training_split") or "")


# ------------------------------------------------------------------------------ results


def test_a_result_has_items_intervals_and_a_prompt_hash(data: Path, tokenizer: Any) -> None:
    results = [
        score(tiny_model(seed), tokenizer, opened("arc_easy", TaskSpec(task="boolq", limit=1), data=data))
        for seed in (0, 1)
    ]
    arc = results[0]["arc_easy"]
    assert (
        arc["main"] == "acc_norm"
        and arc["n"] == 2
        and arc["fewshot"] == 0
        and arc["version"] == 1.0
        and arc["truncated"] == 0
    )
    for metric in arc["metrics"].values():
        assert metric["low"] <= metric["value"] <= metric["high"]
    assert arc["metrics"]["acc_norm"]["value"] == pytest.approx(sum(arc["items"]) / 2)
    assert results[0]["boolq"]["n"] == 1
    assert results[1]["arc_easy"]["prompt_hash"] == arc["prompt_hash"] != results[0]["boolq"]["prompt_hash"]
    assert json.loads(json.dumps(results)) == results


def test_mmlu_weights_subjects_by_their_questions(data: Path, tokenizer: Any) -> None:
    found = score(tiny_model(), tokenizer, opened("mmlu", "mmlu_anatomy", data=data, fewshot=5))
    mmlu = found["mmlu"]
    assert {name: part["n"] for name, part in mmlu["subjects"].items()} == {"mmlu_anatomy": 3, "mmlu_astronomy": 1}
    weighted = sum(part["n"] * part["acc"] for part in mmlu["subjects"].values()) / 4
    assert mmlu["n"] == 4 and mmlu["metrics"]["acc"]["value"] == pytest.approx(weighted)
    assert found["mmlu_anatomy"]["items"] == mmlu["items"][:3]


def test_perplexity_and_its_interval_belong_together(tmp_path: Path, tokenizer: Any) -> None:
    words = ["house", "ship", "barn", "car", "shop"]
    (tmp_path / "lambada_openai.jsonl").write_text(
        "\n".join(json.dumps({"context": "She opened the door of the", "continuation": w}) for w in words)
    )
    result = score(tiny_model(), tokenizer, opened("lambada_openai", data=tmp_path))["lambada_openai"]
    perplexity = result["metrics"]["perplexity"]
    assert 1 < perplexity["low"] < perplexity["value"] < perplexity["high"]
    assert result["main"] == "acc" and set(result["items"]) <= {0, 1} and result["n"] == 5


def test_shares_that_are_not_0_or_1_get_a_bootstrap_interval(data: Path, tokenizer: Any) -> None:
    result = score(tiny_model(), tokenizer, opened("truthfulqa_mc2", data=data))["truthfulqa_mc2"]
    assert 0 < result["items"][0] < 1 and result["metrics"]["acc"]["value"] == pytest.approx(result["items"][0])


def test_generated_answers_are_scored_under_both_of_gsm8ks_filters(data: Path, tokenizer: Any) -> None:
    result = score(tiny_model(), tokenizer, opened("gsm8k", data=data, fewshot=0))["gsm8k"]
    assert (
        set(result["metrics"]) == {"exact_match,strict-match", "exact_match,flexible-extract"}
        and result["main"] == "exact_match,strict-match"
    )
    assert result["n"] == 1


def test_scoring_says_nothing_but_its_own_progress(
    data: Path, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    score(tiny_model(), tokenizer, opened("arc_easy", "hellaswag", data=data, fewshot=0))
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------- errors


def test_other_rows_are_reported_under_their_own_name(data: Path, tokenizer: Any) -> None:
    spec = TaskSpec(task="arc_easy", name="everyday", file="arc_challenge.jsonl")
    found = score(tiny_model(), tokenizer, opened(spec, data=None, resolve=lambda text: data / text))
    assert list(found) == ["everyday"] and found["everyday"]["task"] == "arc_easy"


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}: no file piqa\.jsonl or piqa\.jsonl\.gz"):
        opened("piqa", data=tmp_path)


def test_an_unknown_task_is_an_error_that_lists_the_known(data: Path) -> None:
    with pytest.raises(RecipeError, match=r"'arc_esy'.*did you mean 'arc_easy'.*winogrande"):
        opened("arc_esy", data=data)


def test_a_name_given_twice_is_an_error(data: Path) -> None:
    with pytest.raises(RecipeError, match="'arc_easy' is there twice"):
        opened("arc_easy", TaskSpec(task="arc_easy", fewshot=1), data=data)


@pytest.mark.parametrize(
    ("task", "row", "field"),
    [
        ("arc_easy", {"question": "Why?", "choices": ["a", "b"]}, "gold"),
        ("arc_easy", {"question": "Why?", "choices": ["a", "b"], "gold": 2}, "gold"),
        ("arc_easy", {"question": "Why?", "choices": ["a"], "gold": 0}, "choices"),
        ("boolq", {"question": "why", "gold": 0}, "passage"),
        ("boolq", {"passage": "p", "question": "why", "gold": 0, "choices": ["yes", "no"]}, "choices"),
        ("copa", {"question": "He slept", "choices": ["a", "b"], "gold": 0}, "question"),
        ("winogrande", {"sentence": "No blank.", "choices": ["a", "b"], "gold": 0}, "sentence"),
        ("lambada_openai", {"context": "a", "continuation": "two words"}, "continuation"),
        ("gsm8k", {"question": "2?", "answer": "2"}, "answer"),
        ("ifeval", {"prompt": "Say yes.", "kwargs": [{}]}, "instruction_id_list"),
        ("ifeval", {"prompt": "Say yes.", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{}]}, "kwargs"),
        ("truthfulqa_mc1", {"question": "q"}, "mc1"),
        ("truthfulqa_mc2", {"question": "q", "mc2": {"choices": ["a"], "labels": [0]}}, "labels"),
        ("mmlu", {"question": "q", "choices": list("abcd"), "gold": 0}, "subject"),
        ("piqa", {"question": "q", "choices": ["a", "b"], "gold": 0, "split": "test"}, "split"),
    ],
)
def test_a_row_without_its_fields_is_named(
    task: str, row: dict[str, Any], field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOCAL, "ifeval", dataclasses.replace(LOCAL["ifeval"], needs=lambda: None))
    file = tmp_path / f"{LOCAL[task].file or task}.jsonl"
    file.write_text(json.dumps({"id": "row-7", **row}))
    with pytest.raises(DataError, match=rf"{file}: row row-7.*field '{field}'"):
        opened(task, data=tmp_path)


IFEVAL = {
    "id": "i1",
    "key": 7,
    "prompt": "Say yes, without commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


@pytest.mark.parametrize("lost", ["langdetect", "immutabledict"])
def test_what_ifevals_metric_reads_is_named_where_it_is_not_installed(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(IFEVAL))
    monkeypatch.setattr("openbezoar.machine.extras.find_spec", lambda name: None if name == lost else name)
    with pytest.raises(UserError, match=rf"{lost}.*install"):
        opened("ifeval", data=tmp_path)


SENTENCES = [
    ("One. Two! Three?", 3),
    ("Dr. Smith met Mrs. Jones at 3 p.m. They talked of J. S. Bach.", 2),
    ("It costs 3.50 dollars. It is worth it.", 2),
    ("She moved to the U.S. in 1990. He stayed.", 2),
    ("1. First of all\n2. Then that", 3),
    ("no end at all", 1),
]


@pytest.mark.parametrize(("text", "n"), SENTENCES)
def test_sentences_are_counted_without_nltks_data(text: str, n: int) -> None:
    """By NLTK's own splitter with this project's abbreviations."""
    nltk = pytest.importorskip("nltk")
    from nltk.tokenize.punkt import PunktSentenceTokenizer, load_punkt_params

    nltk.data.path.append(str(NLTK_DATA))
    try:
        folder = nltk.data.FileSystemPathPointer(str(NLTK_DATA / "tokenizers/punkt_tab/english"))
        assert len(PunktSentenceTokenizer(load_punkt_params(folder)).tokenize(text)) == n
    finally:
        nltk.data.path.remove(str(NLTK_DATA))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the repository")
def test_counts_of_sentences_are_nltks_for_nearly_every_answer_where_its_data_is_installed() -> None:
    nltk = pytest.importorskip("nltk")
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer, load_punkt_params

    assert str(NLTK_DATA) not in nltk.data.path or nltk.data.path.remove(str(NLTK_DATA)) is None
    try:
        trained = PunktTokenizer("english")
    except LookupError:
        pytest.skip("NLTK's data punkt_tab is not installed")
    nltk.data.path.append(str(NLTK_DATA))
    folder = nltk.data.FileSystemPathPointer(str(NLTK_DATA / "tokenizers/punkt_tab/english"))
    own = PunktSentenceTokenizer(load_punkt_params(folder))
    texts = [str(row["response"]) for row in islice(read_jsonl(SHARED.parent / "dolly.jsonl.gz"), 500)]
    same = [len(own.tokenize(text)) == len(trained.tokenize(text)) for text in texts]
    assert sum(same) >= 0.97 * len(same)


def test_ifeval_reaches_no_network_and_answers_alike_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads NLTK's data or guesses a language, on a fixed answer: no download, and no verdict by chance."""
    for package in ("langdetect", "immutabledict", "nltk"):
        pytest.importorskip(package)
    import nltk

    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("a download"))
    kinds: dict[str, dict[str, Any]] = {
        "length_constraints:number_sentences": {"num_sentences": 3, "relation": "at least"},
        "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
        "language:response_language": {"language": "en"},
        "change_case:english_capital": {},
    }
    row = {**IFEVAL, "instruction_id_list": [*kinds], "kwargs": [*kinds.values()]}
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(row))
    (benchmark,) = opened("ifeval", data=tmp_path)
    (task,) = benchmark.parts.values()
    doc = next(iter(task.eval_docs))
    text = "Dr. Smith came to THE house. He saw NOBODY there. He left again."
    verdicts = {tuple(task.process_results(doc, [text])["inst_level_strict_acc"]) for _ in range(3)}
    assert verdicts == {(True, True, True, False)}


def test_ifeval_is_answered_and_checked_by_its_own_metric(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("langdetect", "immutabledict", "nltk"):
        pytest.importorskip(package)
    monkeypatch.setattr("openbezoar.harness.forest_lm.MAX_NEW_TOKENS", 8)
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(IFEVAL))
    (benchmark,) = opened("ifeval", data=tmp_path)
    for task in benchmark.parts.values():
        task.config.generation_kwargs["max_gen_toks"] = 8
    found = score(tiny_model(), tokenizer, [benchmark])["ifeval"]
    assert found["n"] == 1 and found["main"] == "prompt_level_strict_acc"
    assert found["items"] in ([0], [1]) and found["metrics"]["inst_level_loose_acc"]["low"] is None


def test_a_subject_that_lm_eval_does_not_know_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(choice("eval", "q?", list("abcd"), 0, subject="cookery")))
    with pytest.raises(DataError, match="no task 'mmlu_cookery'"):
        opened("mmlu", data=tmp_path)


def test_too_few_examples_are_an_error_before_anything_runs(data: Path) -> None:
    with pytest.raises(DataError, match=r"3 rows with split 'fewshot'; 5-shot prompts need 5"):
        opened("arc_easy", data=data, fewshot=5)
    with pytest.raises(DataError, match=r"0 rows with split 'fewshot'; 1-shot prompts need 2"):
        opened("boolq", data=data, fewshot=1)


def test_an_unreachable_hub_is_one_line_that_says_to_give_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    class Offline:
        task_index = all_tasks = ("arc_easy",)

        def load(self, names: list[str]) -> None:
            raise ConnectionError("no\nroute")

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Offline)
    with pytest.raises(DataError, match=r"the rows of 'arc_easy': .*; or give 'data'") as caught:
        opened("arc_easy", data=None)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="no task 'arc_esy'; did you mean 'arc_easy'"):
        opened("arc_esy", data=None)


def test_an_answer_without_a_token_of_its_own_is_an_error(tokenizer: Any) -> None:
    lm = forest_lm(tiny_model(), tokenizer)
    with pytest.raises(DataError, match="no token for the answer 'x'"):
        lm._loglikelihood_tokens([(("c", "x"), [5], [])])


def test_a_tokenizer_without_an_end_is_refused() -> None:
    from openbezoar.errors import ModelError

    with pytest.raises(ModelError, match="no end-of-sequence token"):
        forest_lm(tiny_model(), SimpleNamespace(eos_token_id=None, name_or_path="odd"))
