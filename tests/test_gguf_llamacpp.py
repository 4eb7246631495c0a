"""GGUF files in llama.cpp itself: the same ids, and greedy answers that our model gives too. Opt-in: make test-gguf.

node-llama-cpp is installed once into the cache folder. OPENBEZOAR_GGUF_MODELS adds real models:
MODEL=TEMPLATE, separated by commas (a reference, and openbezoar or own).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from released import HOSTILE, KINDS, ROPES, released

from openbezoar.dialogue.prompt import Formatter
from openbezoar.gguf.file import SUFFIX, write_gguf
from openbezoar.models.references import Checkpoint, cache_folder
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.tell_steps import GgufForm
from openbezoar.rows.records import Turn
from openbezoar.verbs.release.work import write_tokenizer

pytestmark = pytest.mark.llamacpp
REAL = [item.split("=") for item in os.environ.get("OPENBEZOAR_GGUF_MODELS", "").split(",") if item]
TALKS = (
    (Turn("user", "What is the capital of France?"),),
    (Turn("system", "Answer in one short sentence."), Turn("user", "Name three uses of a brick.")),
    (Turn("user", "Say a number."), Turn("assistant", "7"), Turn("user", "Now a colour.")),
)
TEXTS = [unicodedata.normalize("NFC", text) for text in HOSTILE]  # a GGUF cannot say that Qwen composes text
TOKENS = 24
# Nats by which a token of llama.cpp's may lie below our best one. llama.cpp computes with 16-bit
# (q8_0: 8-bit) activations,
# so where two tokens are nearly as likely it may take the other.
SLACK: dict[GgufForm, float] = {"f16": 0.05, "q8_0": 0.3}
SAME: dict[GgufForm, float] = {"f16": 0.95, "q8_0": 0.8}  # share of tokens that are exactly ours, at least


@dataclass(frozen=True)
class Case:
    """A released model with its GGUF files."""

    name: str
    folder: Path
    formatter: Formatter


@pytest.fixture(scope="session")
def node() -> Path:
    """A folder with node-llama-cpp and the script beside it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = cache_folder() / "llama.cpp"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (Path(__file__).parent / "gguf").iterdir():
        shutil.copy(file, folder / file.name)
    if not (folder / "node_modules/node-llama-cpp").is_dir():
        subprocess.run(
            ["npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
            cwd=folder,
            check=True,
        )
    return folder


@pytest.fixture(scope="session", params=[*KINDS, *ROPES, *(name for name, _ in REAL)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("gguf") / "model"
    if request.param in (*KINDS, *ROPES):
        return Case(request.param, folder, released(request.param, folder))
    checkpoint = Checkpoint(
        "real", request.param, (), "none", "bfloat16", PromptSpec(template=dict(REAL)[request.param])
    )
    folder.mkdir()
    for file in checkpoint.folder().iterdir():
        if file.suffix == ".safetensors" or file.name in ("config.json", "model.safetensors.index.json"):
            (folder / file.name).symlink_to(file)
    return Case("real", folder, write_tokenizer(checkpoint, folder))


def ask(node: Path, gguf: Path, prompts: list[str]) -> dict[str, Any]:
    job = json.dumps({"texts": TEXTS, "prompts": prompts, "tokens": TOKENS})
    done = subprocess.run(
        ["node", "answers.mjs", str(gguf)], cwd=node, input=job, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_reads_the_same_ids_and_answers_as_we_do(node: Path, case: Case, kind: GgufForm) -> None:
    from transformers import AutoModelForCausalLM

    gguf = case.folder / f"{SUFFIX[kind]}.gguf"
    write_gguf(case.folder, case.formatter, kind, out=gguf, about={"name": "model", "license": "apache-2.0"})
    wanted = [case.formatter.prompt_ids(talk) for talk in TALKS]
    bos = case.formatter.tokenizer.bos_token
    found = ask(
        node,
        gguf,
        [case.formatter.prompt_text(talk).removeprefix(bos if case.formatter.adds_bos else "") for talk in TALKS],
    )
    assert found["prompts"] == wanted, "llama.cpp reads another prompt than was trained"
    assert (
        found["template"] == (case.folder / "chat_template.jinja").read_text()
        and found["eos"] == case.formatter.tokenizer.eos_token_id
    )

    # A text after a BOS token: this is how a prompt's inner texts are read, whatever the tokenizer
    # does at a text's beginning.
    lead = bos or ""
    for text, ids in zip(TEXTS, found["texts"], strict=True):
        ours = case.formatter.tokenizer(lead + text, add_special_tokens=False).input_ids[1 if lead else 0 :]
        assert ids == ours, f"{text!r}: llama.cpp {ids}, ours {ours}"

    model = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    same = total = 0
    for prompt, answer in zip(wanted, found["answers"], strict=True):
        with torch.no_grad():
            logp = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        below = logp.amax(-1) - logp[torch.arange(len(answer)), torch.tensor(answer)]
        assert below.max() <= SLACK[kind], (
            f"after {prompt[-5:]}: llama.cpp's {answer} lies {below.tolist()} nats below our best"
        )
        same, total = same + int((below == 0).sum()), total + len(answer)
    print(f"{case.name} {kind}: {same} of {total} greedy tokens are ours exactly")
    assert same >= SAME[kind] * total
