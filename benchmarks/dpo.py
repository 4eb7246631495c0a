"""Direct preference optimisation with LoRA: this package against TRL's DPOTrainer and a plain PEFT loop.

Reads a model and preference pairs. Every side gets the same token ids and the same pairs in
each optimiser step, takes the adapter switched off as the reference and finds its
log-probabilities in the same run, and is timed over its training loop alone.
benchmarks/training.py has what the sides share, benchmarks/duel.py the course of a run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from benchmarks import common, duel, training
from benchmarks.duel import Plan
from benchmarks.training import Job
from openbezoar.forest import Scorer, Tree
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.train_steps import Dpo
from openbezoar.training.objectives import preference_objective, same_pass_reference


def ours(job: Job) -> dict[str, Any]:
    """The package's own loop; only the held-out loss is left out, which no side measures."""
    settings = job.settings(Dpo, dpo="pairs")
    trees = training.read_trees(job, pairs=True)
    model = training.load_ours(job)
    if job.what == "check":
        training.fill_adapter(model)
    scorer = Scorer(model, settings.tokens)
    objective = preference_objective(
        LOSSES[settings.loss], settings.constants, scorer=scorer, heldout=[], reference=same_pass_reference(scorer)
    )
    objective = replace(objective, heldout=lambda: {"loss": 0.0})
    extra = {}
    if job.what == "check":
        # The filled adapter is not zero, so policy and reference differ at the first step.
        objective = replace(objective, check_first=lambda metrics: None)
        ordered = training.flat(training.in_our_order(trees, settings))
        lengths = [tree[side].n_scored for side in (0, 1) for tree in ordered]
        extra = {"logprobs": _scores(scorer, model, ordered), "lengths": lengths}
    return {**training.time_ours(model, scorer, trees, objective, settings, job.warm), **extra}


def _scores(scorer: Scorer, model: Any, trees: Sequence[Tree]) -> list[float]:
    """The reference's log-probabilities: those of all chosen answers, then of all rejected."""
    with model.disable_adapter():
        sums = [[float(path.sum()) for path in tree] for tree in scorer.logprobs(trees)]
    return [pair[0] for pair in sums] + [pair[1] for pair in sums]


def trainer_of(job: Job, trees: Sequence[Tree], settings: Dpo, folder: str) -> Any:
    """TRL's trainer on the same ids, the adapter switched off as its reference.

    It has no padding-free mode in 1.16. Finding the reference's log-probabilities beforehand
    takes the same passes when each pair is seen once, so that option is left alone.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Ready(DPOTrainer):  # type: ignore[misc]
        """The trainer, given rows that are tokenised already, which it has no option for."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    config = DPOConfig(
        **training.trainer_options(job, job.setting["micro"], bool(job.setting.get("autocast")), folder),
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.clip,
        max_length=job.max_length,
        beta=settings.beta,
        loss_type=[settings.loss],
        disable_dropout=job.what == "check",
    )
    return Ready(
        model=training.load_peer(job),
        args=config,
        train_dataset=Dataset.from_list([row(tree) for tree in trees]),
        processing_class=training.load_tokenizer(training.checkpoint(job.model).folder()),
        peft_config=training.lora_config(job),
    )


def trl(job: Job) -> dict[str, Any]:
    """TRL's training."""
    settings = job.settings(Dpo, dpo="pairs")
    trees = training.flat(training.in_our_order(training.read_trees(job, pairs=True), settings, job.warm))
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(job, trees, settings, folder)
        if job.what != "check":
            return training.trained(trainer, training.clock(job.limit, bool(job.warm)))
        training.fill_adapter(trainer.model)
        found = training.trained(trainer, training.clock(job.limit))
        # Afterwards and in training mode: before it, an evaluation pass would have bitsandbytes
        # repack NF4 weights on a CPU.
        trainer.model.train()
        chosen, rejected = trainer.compute_ref_log_probs(
            trainer.model, trainer.data_collator([row(tree) for tree in trees])
        )
        return found | {"logprobs": chosen.tolist() + rejected.tolist()}


def row(tree: Tree) -> dict[str, list[int]]:
    """A pair as TRL's collator takes it."""
    chosen, rejected = tree
    prompt = list(chosen.ids[: chosen.scored.index(True)])  # type: ignore[attr-defined]
    return {
        "prompt_ids": prompt,
        "chosen_ids": list(chosen.ids[len(prompt) :]),
        "rejected_ids": list(rejected.ids[len(prompt) :]),
    }


def plain(job: Job) -> dict[str, Any]:
    """PEFT and a loop: chosen and rejected padded into one batch, a pass with the adapter and one without."""
    import torch
    from peft import get_peft_model

    settings = job.settings(Dpo, dpo="pairs")
    batches = training.in_our_order(training.read_trees(job, pairs=True), settings, job.warm)
    torch.manual_seed(training.SEED)
    model = get_peft_model(training.load_peer(job), training.lora_config(job))
    if job.what == "check":
        training.fill_adapter(model)
    if job.dtype == "float64":
        model.double()

    def summed(paths: Sequence[Any], reference: bool) -> Any:
        ids, mask, scored = training.padded(paths, 0)
        with model.disable_adapter() if reference else nullcontext(), torch.set_grad_enabled(not reference):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            logits = training.wide(logits)
            chosen = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
            return (chosen * scored[:, 1:]).sum(-1)

    def loss_of(micro: Sequence[Tree], step: Sequence[Tree]) -> Any:
        paths = [tree[0] for tree in micro] + [tree[1] for tree in micro]
        reference, policy = summed(paths, True), summed(paths, False)
        ratio = (policy - reference).view(2, -1)
        return -torch.nn.functional.logsigmoid(settings.beta * (ratio[0] - ratio[1])).sum() / len(step)

    found = training.plain_loop(job, model, batches, loss_of, settings.clip, settings.learning_rate)
    if job.what == "check":
        trees = training.flat(batches)
        found["logprobs"] = summed([tree[0] for tree in trees] + [tree[1] for tree in trees], True).tolist()
    return found


def work(spec: dict[str, Any]) -> dict[str, Any]:
    """One worker's job. The needed work: the reference's forward, the policy's, and the gradient of the activations."""
    job = Job(**spec)
    if job.what == "work":
        return training.work_of(
            "pairs", training.read_trees(job, pairs=True)[job.warm :], training.load_peer(job), passes=3
        )
    return {"ours": ours, "trl": trl, "plain": plain}[job.side](job)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark."""
    sizes = duel.micros(options)
    settings: list[dict[str, Any]] = [{"mode": "padded", "micro": m} for m in sizes]
    settings += [{**setting, "autocast": True} for setting in settings]
    return duel.run(Plan("dpo", settings, [{"micro": m} for m in sizes], [{"mode": "padded", "micro": 2}]), options)


if __name__ == "__main__":
    sys.exit(common.main(duel.parser("dpo", __doc__.splitlines()[0], 16, "pairs"), work, run))
