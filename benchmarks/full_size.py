"""The paper's size on a small machine: time and peak memory of each step.

    python -m benchmarks.full_size --folder F --json OUT [--pairs FILE] [--layers N]

Writes into F a checkpoint with OpenLLaMA 3B v2's shape, random bfloat16 weights and a small
tokenizer trained on the pairs' own text (its ids lie below the shape's 32,000), then a
recipe on it that goes through the package's own steps, each in a process of its own:

    load   the base into NF4 with a new adapter, nothing else
    sft    optimiser steps of 2,048 tokens
    remerge  the base with that adapter merged in, into NF4
    merge  the adapter into the base: 16-bit shards, drift measured, both bases tried
    dpo    optimiser steps of 8 pairs on the merged model, in NF4 again

Reads preference pairs in HH-RLHF's schema (``--pairs``; default: the demo's). Writes OUT.
Random weights make no sensible losses; time and memory do not depend on their values.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHAPE = {"hidden": 3200, "layers": 26, "heads": 32, "mlp": 8640, "vocabulary": 32000}
PARAMETERS, LORA_PARAMETERS = 3_426_473_600, 7_987_200
LORA = {"r": 16, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "k_proj", "v_proj"]}
# tokens of an SFT step and of a pass, an SFT step's rows; optimiser steps; pairs of a DPO step
TOKENS, PASS, ROWS, STEPS, PAIRS = 2048, 1024, 4, 2, 8
LIMITS = {"load": 8e9, "sft": 8e9, "remerge": 8e9, "merge": 15e9, "dpo": 15e9}  # a T4 has 15 GB
STAGES = ("write", *LIMITS)


def status() -> dict[str, int]:
    """This process's memory in bytes: resident now, its high water, and anonymous and file-backed parts now."""
    names = {"VmRSS": "resident", "VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file_backed"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {names[words[0][:-1]]: 1024 * int(words[1]) for words in lines if words[0][:-1] in names}


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """Filled at the end: ``peak`` (the kernel's high-water mark of all resident pages) and
    ``peak_anonymous`` (sampled).
    """
    found: dict[str, int] = {"peak_anonymous": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            found["peak_anonymous"] = max(found["peak_anonymous"], status()["anonymous"])

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        found["peak"] = status()["peak"]


@dataclass(frozen=True)
class RandomTensor:
    """Normal values with standard deviation 0.02 (ones for a norm), from the tensor's number as the seed."""

    size: tuple[int, ...]
    number: int
    made: Any

    def shape(self) -> tuple[int, ...]:
        return self.size

    def __getitem__(self, everything: Any) -> Any:
        import torch

        if len(self.size) == 1:
            return torch.ones(self.size, dtype=self.made)
        generator = torch.Generator().manual_seed(self.number)
        return torch.empty(self.size, dtype=self.made).normal_(0.0, 0.02, generator=generator)


def write_checkpoint(folder: Path, layers: int, pairs: Path) -> dict[str, Any]:
    """Write the model shard by shard, its tokenizer and its config; the number of its parameters."""
    import torch
    from transformers import LlamaConfig

    from openbezoar.models.shards import skeleton, write

    config = LlamaConfig(
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=layers,
        num_attention_heads=SHAPE["heads"],
        intermediate_size=SHAPE["mlp"],
        vocab_size=SHAPE["vocabulary"],
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_tokenizer(folder, read_pairs(pairs))
    shapes = {name: tuple(value.shape) for name, value in skeleton(folder).state_dict().items()}
    weights = {name: RandomTensor(size, number, torch.bfloat16) for number, (name, size) in enumerate(shapes.items())}
    write(weights, folder)
    return {
        "parameters": sum(torch.Size(size).numel() for size in shapes.values()),
        "bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    }


def write_tokenizer(folder: Path, pairs: Sequence[dict[str, str]]) -> None:
    """A byte-level BPE tokenizer trained on the pairs' text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((pair["chosen"] for pair in pairs), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(str(folder))


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Rows of a JSONL file, gzipped or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode("utf-8").split("\n") if line]


def write_recipe(folder: Path, layers: int, pairs: Path) -> Path:
    """Data and recipe for the stages: SFT rows that fill a pass, eight pairs a DPO step, short held-out rows."""
    from openbezoar.dialogue.prompt import Formatter
    from openbezoar.models.load import load_tokenizer
    from openbezoar.recipe.blocks import PromptSpec
    from openbezoar.rows.records import Turn

    formatter = Formatter(load_tokenizer(folder / "base"), PromptSpec())
    rows = read_pairs(pairs)
    words = " ".join(row["chosen"] for row in rows).split()

    def example(number: int, tokens: int) -> dict[str, str]:
        turns = (Turn("user", f"Go on, part {number}."),)
        head = formatter.prompt_ids(turns)
        first, low, high = number * 997 % max(1, len(words) // 2), 1, tokens
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            fits = len(head) + len(formatter.answer_ids(turns, " ".join(words[first : first + middle]), head)) <= tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return {
            "id": f"r{number}",
            "instruction": turns[0].content,
            "context": "",
            "response": " ".join(words[first : first + low]),
        }

    _write_lines(folder / "rows.jsonl", [example(n, TOKENS // ROWS) for n in range(ROWS * STEPS)])
    _write_lines(folder / "heldout.jsonl", [example(100 + n, 128) for n in range(2)])
    fitting = [row for row in rows if len(formatter.tokenizer(row["chosen"] + row["rejected"]).input_ids) < 900]
    _write_lines(folder / "pairs.jsonl", fitting[: PAIRS * STEPS])
    _write_lines(folder / "heldout-pairs.jsonl", fitting[PAIRS * STEPS : PAIRS * STEPS + 1])
    common = {
        "lora": LORA,
        "quantize": "nf4",
        "max_length": PASS,
        "tokens": PASS,
        "max_steps": STEPS,
        "checkpointing": "auto",
    }
    recipe = {
        "name": "full",
        "models": {"base": {"model": "base", "shape": SHAPE | {"layers": layers}}},
        "steps": {
            "sft": {"sft": "rows.jsonl", "heldout": "heldout.jsonl", "model": "base", "batch": ROWS, **common},
            "merge": {"merge": "sft"},
            "dpo": {"dpo": "pairs.jsonl", "heldout": "heldout-pairs.jsonl", "model": "merge", "batch": PAIRS, **common},
        },
    }
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(folder: Path, adapters: tuple[Path, ...]) -> dict[str, Any]:
    """Load the base for training in NF4, ``adapters`` merged in before it is quantised."""
    from openbezoar.models.load import load_for_training
    from openbezoar.models.references import Checkpoint
    from openbezoar.recipe.blocks import PromptSpec
    from openbezoar.recipe.train_steps import Lora

    checkpoint = Checkpoint("base", str(folder / "base"), adapters, "nf4", "bfloat16", PromptSpec())
    model = load_for_training(checkpoint, Lora.model_validate(LORA), "nf4", dtype="bfloat16", continues=False, seed=0)
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "held": status()["resident"],
    }


def run_step(folder: Path, name: str) -> dict[str, Any]:
    """One step of the recipe, through the package's own graph; its manifest's numbers."""
    from openbezoar.engine import execution, graph
    from openbezoar.progress import PlainProgress
    from openbezoar.recipe.file import load as load_recipe

    path = folder / "recipe.json"
    shutil.rmtree(folder / "runs/full" / name, ignore_errors=True)
    built = graph.build(load_recipe(path), path, folder / "runs")
    execution.execute(built, PlainProgress(), name)
    manifest = built.run.manifest(name) or {}
    numbers = manifest["numbers"]
    made = {"seconds_of_step": manifest["seconds"], "numbers": numbers}
    if "steps" in numbers:
        made["seconds_an_optimiser_step"] = round(
            numbers["tokens"] / numbers["tokens_per_second"] / numbers["steps"], 2
        )
        made["tokens_an_optimiser_step"] = numbers["tokens"] // numbers["steps"]
    return made


def stage(name: str, folder: Path, layers: int, pairs: Path) -> dict[str, Any]:
    """Run one stage in this process and measure it."""
    imports = time.monotonic()
    import bitsandbytes  # noqa: F401  what every stage imports is counted before it begins
    import peft  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import openbezoar.verbs.train.fit  # noqa: F401
    from openbezoar.cli import process

    process.own()
    before = status()["resident"]
    begun = time.monotonic()
    with peaks() as found:
        if name == "write":
            made = write_checkpoint(folder / "base", layers, pairs)
            write_recipe(folder, layers, pairs)
        elif name in ("load", "remerge"):
            made = load(folder, (folder / "runs/full/sft/adapter",) if name == "remerge" else ())
        else:
            made = run_step(folder, name)
    return {
        "stage": name,
        "seconds": round(time.monotonic() - begun, 2),
        "seconds_of_imports": round(begun - imports, 2),
        "process": before,
        **found,
        "threads": torch.get_num_threads(),
        **made,
    }


def estimates(folder: Path) -> dict[str, int | None]:
    """What ``plan`` says of the same steps, and its term for loading."""
    from openbezoar.engine import graph
    from openbezoar.models.fitting import load_memory
    from openbezoar.plan.estimates import estimate
    from openbezoar.recipe.blocks import LocalModel
    from openbezoar.recipe.file import load as load_recipe
    from openbezoar.recipe.train_steps import Sft

    path = folder / "recipe.json"
    built = graph.build(load_recipe(path), path, folder / "plan")
    base, sft = built.recipe.models["base"], built.recipe.steps["sft"]
    assert isinstance(base, LocalModel) and base.shape and isinstance(sft, Sft)
    loading = load_memory(base.shape, sft)
    return {"load": loading, "remerge": loading} | {name: made.memory_bytes for name, made in estimate(built).items()}


def compare(results: dict[str, Any], layers: int, planned: dict[str, int | None]) -> None:
    """Add the limits and the plan's figures to the results; assert the model's known size."""
    for name, key, known in (("write", "parameters", PARAMETERS), ("load", "trainable_parameters", LORA_PARAMETERS)):
        assert layers != SHAPE["layers"] or name not in results or results[name][key] == known, (
            name,
            results[name][key],
            known,
        )
    for name, limit in LIMITS.items():
        if name in results:
            result = results[name]
            result |= {"limit": int(limit), "within_limit": result["peak"] <= limit}
            if guess := planned.get(name):
                result |= {"planned": guess, "planned_over_peak": round(guess / result["peak"], 3)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.full_size", description="Time and peak memory of the paper's size on this machine."
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="where to write the checkpoint (about 7 GB, 14 more while it is merged)",
    )
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument(
        "--pairs", type=Path, default=ROOT / "recipes/demo/pairs.jsonl", help="preference pairs in HH-RLHF's schema"
    )
    parser.add_argument("--layers", type=int, default=SHAPE["layers"], help="fewer for a quick look")
    parser.add_argument(
        "--only", nargs="*", choices=STAGES, help="these stages, on what earlier runs left in the folder"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.stage:
        print(json.dumps(stage(given.stage, given.folder, given.layers, given.pairs)))
        return 0
    results: dict[str, Any] = {}
    for name in given.only or STAGES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.full_size",
            "--stage",
            name,
            "--folder",
            str(given.folder),
            "--layers",
            str(given.layers),
            "--pairs",
            str(given.pairs),
            "--json",
            str(given.json),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:8} {results[name]['seconds']:8.1f} s   peak {results[name]['peak'] / 1e9:6.2f} GB",
            file=sys.stderr,
            flush=True,
        )
    compare(results, given.layers, estimates(given.folder))
    import torch
    import transformers

    made = {
        "pairs": given.pairs.name,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "shape": SHAPE | {"layers": given.layers},
        "stages": results,
    }
    given.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0 if all(r.get("within_limit", True) for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
