"""What the sft and dpo benchmarks share: rows, models, the order of the data, and the plan of a run.

Reads a model and a file of rows; what each side does with them is in sft.py and dpo.py. Both
get the same token ids in the same optimiser steps. The peers get each step's rows sorted by
length, which spares them padding that a random order would cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Spec
from openbezoar.chat import Formatter
from openbezoar.errors import DataError, RowError
from openbezoar.forest import Tree
from openbezoar.forest.layout import in_order
from openbezoar.models import Checkpoint, open_checkpoint
from openbezoar.recipe import Lora, PromptSpec, Training
from openbezoar.records import Counts, Example, Pair, read_jsonl, to_example, to_pair
from openbezoar.training.data import Renderer
from openbezoar.training.load import DTYPES, device, load_for_training, load_tokenizer
from openbezoar.training.loop import batch_of

ARMS = {"bf16": "none", "nf4": "nf4"}  # how the base is held
TARGETS = ["q_proj", "k_proj", "v_proj"]
CHECK_ROWS = 4
SEED = 7


@dataclass(frozen=True)
class Job:
    """What one worker is to do, as it travels to it in JSON.

    what: 'time' or 'check'. side: 'ours' or a peer. quantize: 'none' or 'nf4'. setting: of the
    peer. limit: seconds after which a pilot has lost.
    """

    what: str
    side: str
    model: str
    data: str
    n: int
    batch: int
    max_length: int
    quantize: str
    dtype: str
    setting: Spec
    limit: float | None = None

    @property
    def lora(self) -> Lora:
        """The adapter; without dropout where both sides must compute the same."""
        return Lora(r=16, alpha=16, dropout=0.0 if self.what == "check" else 0.05, targets=TARGETS)

    def settings(self, of: type[Training], **own: Any) -> Any:
        """The package's settings of this job; a check takes all its rows in one step."""
        return of(
            model="base",
            batch=self.batch,
            max_length=self.max_length,
            quantize=self.quantize,
            dtype=self.dtype,
            lora=self.lora,
            schedule="constant",
            warmup=0.0,
            save_every=10**6,
            **own,
        )


def checkpoint(model: str) -> Checkpoint:
    """The model with the package's own prompt, which suits any tokenizer."""
    return open_checkpoint(model, PromptSpec())


def read_trees(job: Job, pairs: bool) -> list[Tree]:
    """The first ``n`` rows of the file that fit ``max_length``, as token ids."""
    formatter = Formatter(load_tokenizer(checkpoint(job.model).folder()), PromptSpec())
    renderer = Renderer(formatter, job.max_length, "drop", Counts())
    rows: Iterable[Example] | Iterable[Pair] = _rows(job.data, pairs)
    trees: list[Tree] = []
    for row in rows:
        trees += renderer.pairs([row]) if isinstance(row, Pair) else renderer.examples([row])
        if len(trees) == job.n:
            break
    if not trees:
        raise DataError(f"{job.data}: no row fits {job.max_length} tokens; expected training rows (docs/data.md)")
    return trees


def _rows(data: str, pairs: bool) -> Iterator[Any]:
    for number, row in enumerate(read_jsonl(Path(data)), 1):
        try:
            yield (to_pair if pairs else to_example)(row, f"{data}: row {row.get('id', number)}")
        except RowError:
            continue


def in_our_order(trees: Sequence[Tree], settings: Training) -> list[list[Tree]]:
    """The trees of each optimiser step as the package's loop takes them, the longest of a step first."""
    steps = -(-len(trees) // settings.batch)
    batches = [[trees[i] for i in batch_of(step, len(trees), settings, SEED)] for step in range(steps)]
    return [sorted(batch, key=lambda tree: -max(len(path.ids) for path in tree)) for batch in batches]


def flat(batches: Iterable[Sequence[Tree]]) -> list[Tree]:
    """All steps' trees in one list."""
    return list(chain.from_iterable(batches))


# --------------------------------------------------------------------------------- models


def load_ours(job: Job) -> Any:
    """The model as the package's own training steps load it."""
    return load_for_training(checkpoint(job.model), job.lora, job.quantize, job.dtype, False, SEED)[0]  # type: ignore[arg-type]


def load_peer(job: Job) -> Any:
    """The base as TRL's and PEFT's documentation load it: transformers, NF4 with double quantisation through bitsandbytes."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": DTYPES[job.dtype], "attn_implementation": "sdpa", "device_map": {"": str(device())}}
    if job.quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=DTYPES[job.dtype]
        )
    return AutoModelForCausalLM.from_pretrained(str(checkpoint(job.model).folder()), **options)


def lora_config(job: Job) -> Any:
    """The same adapter in PEFT's words."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=16, lora_dropout=job.lora.dropout, target_modules=TARGETS, task_type="CAUSAL_LM")


def fill_adapter(model: Any) -> None:
    """Give the trainable tensors fixed values in fp32, B's other than zero, so that two sides have the same adapter and all its gradients count."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for _, parameter in sorted((name, p) for name, p in model.named_parameters() if p.requires_grad):
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device)


def clock(limit: float | None) -> Any:
    """A callback of transformers' Trainer: the seconds of its training loop alone, ended early once ``limit`` is passed."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        begun = seconds = 0.0
        cut = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = time.perf_counter()

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if limit is not None and time.perf_counter() - self.begun > limit:
                self.cut = control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.begun

    return Clock()


def trainer_options(job: Job, micro: int, autocast: bool, folder: str) -> dict[str, Any]:
    """Options of transformers' Trainer, and so of TRL's, that suit speed on this machine.

    No gradient checkpointing (TRL's default, which computes the forward pass twice), nothing
    saved or reported, rows in the given order. ``autocast``: over the weights' own dtype;
    without it the arithmetic is in that dtype throughout, which is faster on CPUs.
    """
    import torch

    return {
        "output_dir": folder,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(1, job.batch // micro),
        "num_train_epochs": 1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
        "bf16": autocast,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1 if job.what == "check" else 10**6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "seed": SEED,
    }


def trained(trainer: Any, stopwatch: Any) -> dict[str, Any]:
    """Run a trainer; what a worker answers."""
    trainer.add_callback(stopwatch)
    loaded = common.resident_peak()
    trainer.train()
    first = next((line for line in trainer.state.log_history if "grad_norm" in line), {})
    return {
        "seconds": None if stopwatch.cut else stopwatch.seconds,
        "peak_memory": common.peak_memory(),
        "loaded_memory": loaded,
        "loss": first.get("loss"),
        "gradient_norm": first.get("grad_norm"),
    }


def plain_loop(job: Job, model: Any, batches: Sequence[Sequence[Tree]], loss_of: Any, clip: float, rate: float) -> dict[str, Any]:
    """The loop that people write over PEFT: micro-batches, backward, clip, AdamW. loss_of: micro-batch, its step's rows → loss to be summed."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    loaded, first, cut = common.resident_peak(), None, False
    model.train()
    with common.Stopwatch() as watch:
        for batch in batches:
            total = 0.0
            for start in range(0, len(batch), job.setting["micro"]):
                loss = loss_of(batch[start : start + job.setting["micro"]], batch)
                loss.backward()
                total += float(loss.detach())
                cut = cut or (job.limit is not None and time.perf_counter() - watch.begun > job.limit)
                if cut:
                    break
            if cut:
                break
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
            first = first or (total, norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    loss_value, norm_value = first or (None, None)
    seconds = None if cut else watch.seconds
    return {"seconds": seconds, "peak_memory": common.peak_memory(), "loaded_memory": loaded, "loss": loss_value, "gradient_norm": norm_value}


def padded(paths: Sequence[Any], pad: int) -> tuple[Any, Any, Any]:
    """ids, attention mask and scored mask, int64 and bool [rows, width], padded on the right."""
    import torch

    width = max(len(path.ids) for path in paths)
    ids = torch.full((len(paths), width), pad)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for r, path in enumerate(paths):
        ids[r, : len(path.ids)] = torch.tensor(path.ids)
        mask[r, : len(path.ids)] = 1
        scored[r, : len(path.ids)] = torch.tensor(path.scored)
    return ids.to(device()), mask.to(device()), scored.to(device())


# ------------------------------------------------------------------------- a whole benchmark


@dataclass(frozen=True)
class Plan:
    """A benchmark of training. settings: a peer's, by side; modes: TRL's, whose sameness is checked one by one."""

    name: str
    trl: list[Spec]
    plain: list[Spec]
    modes: list[Spec]


def run(plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    """All arms of a benchmark; the result's JSON."""
    common.require_peers("trl", "peft", "bitsandbytes")
    about = common.machine()
    base = Job("time", "ours", str(checkpoint(options.model).folder()), str(options.data), options.n, options.batch, options.max_length, "none", "bfloat16", {})
    work = call(plan, replace(base, what="work"))
    result: dict[str, Any] = {}
    order: dict[str, list[Spec]] = {"trl": plan.trl, "plain": plan.plain}
    for arm in options.arms:
        job = replace(base, quantize=ARMS[arm])
        result[arm] = _arm(plan, job, order, options)
        order = {side: common.fastest_first(result[arm]["search"][side]) for side in order}
        for side in ("ours", "peer", "second_peer"):
            result[arm][side]["matmul_share"] = work["flops"] / result[arm][side]["seconds"]["median"] / work["rate"]
            result[arm][side][f"{work['unit']}_per_second"] = work["rows"] / result[arm][side]["seconds"]["median"]
    return {
        **common.headline(plan.name, result),
        "peer_name": "TRL",
        "second_peer_name": "plain PEFT loop",
        "model": options.model,
        "data": str(options.data.name),
        **work,
        "batch": options.batch,
        "max_length": options.max_length,
        "rounds": options.rounds,
        "arms": result,
        "machine": about,
    }


def parser(name: str, about: str, n: int, n_help: str) -> argparse.ArgumentParser:
    """The command line of a benchmark of training."""
    made = common.parser(name, about, n, n_help)
    made.add_argument("--batch", type=int, default=16, help="rows an optimiser step, of every side (default 16)")
    made.add_argument("--max-length", type=int, default=1024, help="rows with more tokens are left out (default 1024)")
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="how the base is held (default: both)")
    return made


def micros(options: argparse.Namespace) -> list[int]:
    """The micro-batches that divide the batch. Raises BenchmarkError without one."""
    fit = [m for m in options.micro if options.batch % m == 0]
    if not fit:
        raise common.BenchmarkError(f"--micro: none of {options.micro} divides --batch {options.batch}; give one that does, such as 1")
    return fit


def work_of(unit: str, trees: Sequence[Tree], model: Any, passes: int) -> dict[str, Any]:
    """The work that is needed: rows, tokens, and FLOPs of the linear layers without a token twice or a position unasked.

    passes: through the trunk, the gradient of its activations counting as one; each is 2 FLOPs
    a parameter and token. The head runs forward and backward at the scored positions.
    """
    trunk, head = common.linear_parameters(model)
    tokens = sum(cost for tree in trees for _, cost in in_order([tree]))
    scored = sum(path.n_scored for tree in trees for path in tree)
    written_out = sum(len(path.ids) for tree in trees for path in tree)
    return {
        "unit": unit,
        "rows": len(trees),
        "tokens": written_out,
        "distinct_tokens": tokens,
        "scored_tokens": scored,
        "flops": 2.0 * passes * (tokens * trunk + scored * head),
        "rate": common.matmul_rate("bfloat16"),
    }


def call(plan: Plan, job: Job) -> dict[str, Any]:
    """Run one worker."""
    return common.run_worker(f"benchmarks.{plan.name}", vars(job))


def _arm(plan: Plan, job: Job, order: dict[str, list[Spec]], options: argparse.Namespace) -> dict[str, Any]:
    common.say(f"{plan.name} {job.quantize}: checking that all sides compute the same")
    checks = _checks(plan, job)
    trusted = [mode for mode in plan.modes if checks["trl " + named(mode)]["same"]] or plan.modes  # with none the result says that it is not the same
    searches = {}
    for side in ("trl", "plain"):
        settings = [s for s in order[side] if side == "plain" or mode_of(plan, s) in trusted]
        pilot = replace(job, side=side, n=min(job.n, job.batch))
        common.say(f"{plan.name} {job.quantize}: searching {side}'s best of {len(settings)} settings")
        minutes = options.minutes / (2 * len(options.arms))
        searches[side] = common.search(settings, lambda s, limit, pilot=pilot: call(plan, replace(pilot, setting=s, limit=limit)), minutes)  # type: ignore[misc]
    rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": [], "plain": []}
    for number, side in common.alternate(list(rounds), options.rounds):
        setting = {} if side == "ours" else searches[side]["best"]
        rounds[side].append(call(plan, replace(job, side=side, setting=setting)))
        common.say(f"{plan.name} {job.quantize}: round {number + 1} {side} {rounds[side][-1]['seconds']:.1f} s {named(setting)}")
    second = common.compare(rounds["ours"], rounds["plain"])
    return {
        **common.compare(rounds["ours"], rounds["trl"]),
        "second_peer": second["peer"],
        "second_ratio": second["ratio"],
        "same": all(checks[side]["same"] for side in ("trl " + named(mode_of(plan, searches["trl"]["best"])), "plain micro 2")),
        "checks": checks,
        "search": searches,
        "rounds": rounds,
    }


def mode_of(plan: Plan, setting: Spec) -> Spec:
    """The checked mode that a setting belongs to."""
    return next(mode for mode in plan.modes if mode.get("mode") == setting.get("mode"))


def named(setting: Spec) -> str:
    """A setting in words."""
    return " ".join(str(v) if isinstance(v, str) else f"{k} {v}" for k, v in setting.items() if v is not False)


def _checks(plan: Plan, job: Job) -> dict[str, Any]:
    """First-step loss and gradient norm (and per-item log-probabilities, where a side gives them) in fp32, each peer against ours."""
    check = replace(job, what="check", n=CHECK_ROWS, batch=CHECK_ROWS, dtype="float32")
    ours = call(plan, check)
    sides = [("trl", mode) for mode in plan.modes] + [("plain", {"micro": 2})]
    found = {}
    for side, setting in sides:
        try:
            theirs = call(plan, replace(check, side=side, setting=setting))
        except common.BenchmarkError as error:
            found[f"{side} {named(setting)}"] = {"same": False, "error": str(error)}
            continue
        found[f"{side} {named(setting)}"] = agreement(ours, theirs)
    return found


def agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """One peer's first step against ours."""
    same = common.close(ours["loss"], theirs["loss"]) and common.close(ours["gradient_norm"], theirs["gradient_norm"], relative=True)
    found = {name: {"ours": ours[name], "peer": theirs[name]} for name in ("loss", "gradient_norm")}
    if items := theirs.get("logprobs"):
        gap = max(abs(a - b) for a, b in zip(ours["logprobs"], items, strict=True))
        found["logprobs"] = {"items": len(items), "largest_difference": gap}
        same = same and gap <= common.TOLERANCE
    return {"same": same, **found}
