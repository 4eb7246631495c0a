"""Supervised fine-tuning with LoRA: this package against TRL's SFTTrainer and a plain PEFT loop.

Reads a model and instruction rows. Every side gets the same token ids, the same loss mask and
the same rows in each optimiser step, and is timed over its training loop alone: loading,
rendering and tokenising are outside. benchmarks/training.py has what the sides share,
benchmarks/duel.py the course of a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import common, duel, training
from benchmarks.duel import Plan
from benchmarks.training import Job
from openbezoar.forest import Scorer, Tree
from openbezoar.recipe.train_steps import Sft
from openbezoar.training.objectives import sft_objective


def ours(job: Job) -> dict[str, Any]:
    """The package's own loop, its logs included; only the held-out loss is left out, which no side measures."""
    settings = job.settings(Sft, sft="rows")
    trees = training.read_trees(job, pairs=False)
    model = training.load_ours(job)
    if job.what == "check":
        training.fill_adapter(model)
    scorer = Scorer(model, settings.tokens)
    objective = replace(sft_objective(scorer, []), heldout=lambda: {"loss": 0.0})
    return training.time_ours(model, scorer, trees, objective, settings, job.warm)


def trl(job: Job) -> dict[str, Any]:
    """TRL's trainer on the same ids.

    Modes: 'padded', its default; 'padding_free', a micro-batch's rows in one row; 'packing',
    rows packed best-fit up to ``max_length``, with as many packs a step as hold its rows on
    average. The last two rely on transformers' block mask from the position ids.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer, pack_dataset

    settings = job.settings(Sft, sft="rows")
    trees = training.flat(training.in_our_order(training.read_trees(job, pairs=False), settings, job.warm))
    rows = Dataset.from_list([_row(tree) for tree in trees])
    mode = job.setting["mode"]
    with tempfile.TemporaryDirectory() as folder:
        options = training.trainer_options(job, job.setting["micro"], bool(job.setting.get("autocast")), folder)
        if mode == "packing":
            packs = len(pack_dataset(rows, job.max_length, "bfd"))
            options["gradient_accumulation_steps"] = max(1, round(job.batch * packs / len(rows) / job.setting["micro"]))
        config = SFTConfig(
            **options,
            learning_rate=settings.learning_rate,
            max_grad_norm=settings.clip,
            max_length=None if mode == "padding_free" else job.max_length,
            packing=mode == "packing",
            padding_free=mode == "padding_free",
        )
        trainer = SFTTrainer(
            model=training.load_peer(job),
            args=config,
            train_dataset=rows,
            processing_class=training.load_tokenizer(training.checkpoint(job.model).folder()),
            peft_config=training.lora_config(job),
        )
        if job.what == "check":
            training.fill_adapter(trainer.model)
        return training.trained(trainer, training.clock(job.limit, bool(job.warm)))


def _row(tree: Tree) -> dict[str, list[int]]:
    (path,) = tree
    return {
        "input_ids": list(path.ids),
        "labels": [i if scored else -100 for i, scored in zip(path.ids, path.scored, strict=True)],
    }


def plain(job: Job) -> dict[str, Any]:
    """PEFT and a loop: padded micro-batches, logits of all positions, cross-entropy in fp32."""
    import torch
    from peft import get_peft_model

    settings = job.settings(Sft, sft="rows")
    batches = training.in_our_order(training.read_trees(job, pairs=False), settings, job.warm)
    torch.manual_seed(training.SEED)
    model = get_peft_model(training.load_peer(job), training.lora_config(job))
    if job.what == "check":
        training.fill_adapter(model)
    if job.dtype == "float64":
        model.double()

    def loss_of(micro: Sequence[Tree], step: Sequence[Tree]) -> Any:
        ids, mask, scored = training.padded([path for tree in micro for path in tree], 0)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        labels = ids.masked_fill(~scored, -100)[:, 1:]
        total = torch.nn.functional.cross_entropy(
            training.wide(logits.flatten(0, 1)), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        return total / sum(path.n_scored for tree in step for path in tree)

    return training.plain_loop(job, model, batches, loss_of, settings.clip, settings.learning_rate)


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """One worker's job. The needed work: forward, and the gradient of the activations (the base is frozen)."""
    job = Job(**spec)
    if job.what == "work":
        return training.work_of(
            "samples", training.read_trees(job, pairs=False)[job.warm :], training.load_peer(job), passes=2
        )
    return {"ours": ours, "trl": trl, "plain": plain}[job.side](job)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark."""
    settings: list[dict[str, Any]] = []
    for micro in duel.micros(options):
        settings += [{"mode": "padded", "micro": micro}] + (
            [{"mode": "padding_free", "micro": micro}] if micro > 1 else []
        )
    settings.insert(2, {"mode": "packing", "micro": 1})
    settings += [{**setting, "autocast": True} for setting in settings]
    modes = [{"mode": "padded", "micro": 2}, {"mode": "padding_free", "micro": 2}, {"mode": "packing", "micro": 1}]
    return duel.run(Plan("sft", settings, [{"micro": m} for m in duel.micros(options)], modes), options)


if __name__ == "__main__":
    sys.exit(common.main(duel.parser("sft", __doc__.splitlines()[0], 32, "rows"), work, run))
