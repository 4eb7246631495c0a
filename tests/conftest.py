"""What many tests share: a tiny random model on disk, recipes in a folder, and a clean environment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist gives its workers one; tables have the width that a pipe gets

TEXT = [
    (
        "### System:\nBelow is an instruction.\n\n### Instruction:\nName a colour.\n\n### Response:\nBlue is a colour"
        " of the sky."
    ),
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "Write a short poem about the sea and the wind, and say why you like it.",
    "Numbers: 0 1 2 3 4 5 6 7 8 9 10. Rating: [[8]] Yes, no, perhaps.",
]


def save_tiny_model(folder: Path, seed: int = 0, kind: str = "llama", bos: bool = False, frame: str = "") -> Path:
    """A random two-layer model with a byte-level tokenizer, in transformers' format. frame: what
    the tokenizer makes of a text, such as "<s> $A </s>".
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    if bos or frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=frame or "<s> $A", special_tokens=[("<s>", 0), ("</s>", 1), ("<pad>", 2)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}{% if"
        " add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
    )
    shape = {
        "vocab_size": len(fast),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config: Any
    if kind == "gemma3":
        config = Gemma3TextConfig(
            **shape, **ids, head_dim=16, sliding_window=16, query_pre_attn_scalar=16, final_logit_softcapping=20.0
        )
    else:
        config = LlamaConfig(**shape, **ids, tie_word_embeddings=False)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Gemma 3 model with a soft cap, a sliding window and a BOS token."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-gemma"), kind="gemma3", bos=True)


@pytest.fixture(scope="session")
def tiny_reward(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random reward model: a Llama classifier with one output."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-reward")
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(str(tiny), num_labels=1))
    model.float().save_pretrained(folder)
    for file in tiny.glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def commands() -> Iterator[Any]:
    """The command line in forks of one warm process (``warm.Commands``)."""
    from warm import Commands

    warm = Commands()
    yield warm
    warm.close()


def recipe_in(folder: Path, tiny: Path, steps: dict[str, Any], **top: Any) -> Path:
    """A recipe of these steps on the tiny model, beside rows and pairs for them."""
    rows = [
        {
            "id": f"r{i}",
            "instruction": f"Say the number {i}.",
            "context": "",
            "response": f"The number is {i}, as you asked.",
        }
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pairs = [
        {
            "id": f"p{i}",
            "subset": "helpful",
            "chosen": f"\n\nHuman: Say {i}.\n\nAssistant: It is {i}, gladly.",
            "rejected": f"\n\nHuman: Say {i}.\n\nAssistant: No way.",
        }
        for i in range(20)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    recipe = {
        "name": "t",
        "seed": 1,
        "models": {"base": {"model": str(tiny), "dtype": "float32"}},
        **top,
        "steps": steps,
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arithmetic in bfloat16 on a CPU without such products too: torch emulates them."""
    from openbezoar.models import load

    monkeypatch.setattr(load, "cpu_has_bfloat16", lambda: True)


@pytest.fixture
def write_recipe(tmp_path: Path, tiny: Path) -> Callable[..., Path]:
    """Writes a recipe and its data into a temporary folder (``recipe_in``); steps are given as a mapping."""
    return partial(recipe_in, tmp_path, tiny)


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    """Runs a generate step in a folder of its own, with scripted models."""
    from test_schemes import Bench

    return Bench(tmp_path)


class Opener:
    """Opens scripted models in the place of a recipe's (``StepContext.opener``), behind a call cache in the
    step's folder where ``cached``. opened: their names, in order.
    """

    def __init__(self, llms: Mapping[str, Any], cached: bool = False) -> None:
        self.llms, self.cached = llms, cached
        self.opened: list[str] = []

    def __call__(self, name: str, context: Any) -> Any:
        def model() -> Any:
            self.opened.append(name)
            return self.llms[name]

        return remembered(model, name, context) if self.cached else model()


def context_of(
    folder: Path,
    step: dict[str, Any],
    *,
    name: str = "step",
    out: str = "out",
    seed: int = 7,
    opener: Opener | None = None,
    top: Mapping[str, Any] | None = None,
) -> Any:
    """The StepContext of a recipe with one step; the step itself is ``context.recipe.steps[name]``.

    out: its folder, which is made. seed: the step's. opener: of the models that the recipe then has.
    top: what else the recipe says.
    """
    from openbezoar.context import StepContext
    from openbezoar.progress import PlainProgress
    from openbezoar.recipe.file import parse
    from openbezoar.store.runs import RunFolder

    models = list(opener.llms) if opener else ["base"]
    recipe = parse(
        {"name": "t", "models": dict(zip(models, models, strict=True)), **(top or {}), "steps": {name: step}}, "t.yaml"
    )
    (folder / out).mkdir(exist_ok=True)
    return StepContext(
        name=name,
        recipe=recipe,
        recipe_folder=folder,
        run=RunFolder(folder / "run"),
        out=folder / out,
        seed=seed,
        progress=PlainProgress(quiet=True),
        steps=(name,),
        opener=opener,
    )


def remembered(opener: Callable[[], Any], name: str, context: Any) -> Any:
    """A scripted model behind a call cache in the step's folder; ``opener`` is called when it is first asked."""
    from openbezoar.llm.budget import spending_limits
    from openbezoar.llm.cached import CachedLLM
    from openbezoar.llm.calls import CallStore
    from openbezoar.llm.spoken import Spoken

    store = CallStore(context.out)
    return CachedLLM(
        name,
        {"scripted": name},
        opener,
        store,
        spending_limits(context, name, store),
        "batch",
        spoken=Spoken(name, "drop", context.counts),
    )


FAST: dict[str, Any] = {"dtype": "float32", "batch": 4, "lora": {"r": 4, "alpha": 4}, "learning_rate": 1e-3}


@pytest.fixture
def hostile_server() -> Iterator[Any]:
    """A judge's server (``hostile.Hostile``) that answers well until it is told not to."""
    from hostile import GOOD, Hostile

    made = Hostile(lambda prompt: GOOD)
    yield made
    made.close()


@pytest.fixture
def judged(
    tmp_path: Path, hostile_server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs a filter over some rows with that server as its judge, through the command line; gives a
    ``hostile.Outcome``.
    """
    from openbezoar.cli.app import main

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openbezoar.llm.server.pause", lambda tries, asked, seed: 0.001)

    def run(rows: int = 3, model: dict[str, Any] | None = None, top: dict[str, Any] | None = None, **step: Any) -> Any:
        data = [
            {
                "id": f"r{n}",
                "instruction": f"Name river {n} of Europe.",
                "response": f"The river number {n} flows to the sea.",
            }
            for n in range(rows)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        judge = {"server": hostile_server.url, "model": "m", "retries": 2, "timeout": 20, **(model or {})}
        kept = {"filter": "rows.jsonl", "judge": "judge", "retries": 0, "rules": {"near_duplicates": None}, **step}
        recipe = {"name": "t", "models": {"judge": judge}, **(top or {}), "steps": {"kept": kept}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / "recipe.yaml"), "--runs", str(tmp_path / "runs"), "--quiet"])
        manifest = tmp_path / "runs/t/kept/manifest.json"
        return (
            int(str(ended.value.code)),
            capsys.readouterr().err,
            json.loads(manifest.read_text()) if manifest.exists() else {},
        )

    return run
