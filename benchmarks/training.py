"""What the sides of the sft and dpo benchmarks share: rows, their order, models, the peers' trainer and loop.

Reads a model and a file of rows; what each side does with them is in sft.py and dpo.py. Both
get the same token ids in the same optimiser steps. The peers get each step's rows sorted by
length, which spares them padding that a random order would cost.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.common import Spec
from openbezoar.cli import process
from openbezoar.dialogue.prompt import Formatter
from openbezoar.errors import DataError, RowError
from openbezoar.forest import Scorer, Tree
from openbezoar.forest.layout import in_order
from openbezoar.models.fitting import settled
from openbezoar.models.load import device, load_for_training, load_tokenizer
from openbezoar.models.references import Checkpoint, open_checkpoint
from openbezoar.progress import PlainProgress
from openbezoar.recipe.blocks import PromptSpec
from openbezoar.recipe.train_steps import Lora, Training
from openbezoar.rows.forms import to_example, to_pair
from openbezoar.rows.records import Counts, Example, Pair, read_jsonl
from openbezoar.training.data import Renderer
from openbezoar.training.loop import Objective, batch_of, train

ARMS = {"bf16": "none", "nf4": "nf4"}  # how the base is held
TARGETS = ["q_proj", "k_proj", "v_proj"]
CHECK_ROWS = 4
SEED = 7


@dataclass(frozen=True)
class Job:
    """What one worker is to do, as it travels to it in JSON.

    what: 'time' or 'check'. side: 'ours' or a peer. quantize: 'none' or 'nf4'. setting: of the
    peer. limit: seconds after which a pilot has lost. warm: rows of an optimiser step before the clock
    starts, beside ``n``; what a process does once (our self-check and rate measurement, the kernels' set-up,
    a trainer's) is over then, on every side.
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
    warm: int = 0

    @property
    def lora(self) -> Lora:
        """The adapter; without dropout where both sides must compute the same."""
        return Lora(r=16, alpha=16, dropout=0.0 if self.what == "check" else 0.05, targets=TARGETS)

    def settings(self, of: type[Training], **own: Any) -> Any:
        """The package's settings of this job; a check takes all its rows in one step."""
        given = of(
            model="base",
            batch=self.batch,
            max_length=self.max_length,
            quantize=self.quantize,
            dtype="float32" if self.dtype == "float64" else self.dtype,  # fp64 is for the plain loop alone
            lora=self.lora,
            schedule="constant",
            warmup=0.0,
            save_every=10**6,
            **own,
        )
        return settled(given, None)


def checkpoint(model: str) -> Checkpoint:
    """The model with the package's own prompt, which suits any tokenizer."""
    return open_checkpoint(model, PromptSpec())


def read_trees(job: Job, pairs: bool) -> list[Tree]:
    """The first ``warm`` and ``n`` rows of the file that fit ``max_length``, as token ids."""
    formatter = Formatter(load_tokenizer(checkpoint(job.model).folder()), PromptSpec())
    renderer = Renderer(formatter, job.max_length, "drop", Counts())
    rows: Iterable[Example] | Iterable[Pair] = _rows(job.data, pairs)
    trees: list[Tree] = []
    for row in rows:
        trees += renderer.pairs([row]) if isinstance(row, Pair) else renderer.examples([row])
        if len(trees) == job.warm + job.n:
            break
    if len(trees) <= job.warm:
        raise DataError(
            f"{job.data}: {len(trees)} rows fit {job.max_length} tokens, {job.warm} of them before the clock starts;"
            " expected more training rows (docs/data.md)"
        )
    return trees


def _rows(data: str, pairs: bool) -> Iterator[Any]:
    for number, row in enumerate(read_jsonl(Path(data)), 1):
        try:
            yield (to_pair if pairs else to_example)(row, f"{data}: row {row.get('id', number)}")
        except RowError:
            continue


def in_our_order(trees: Sequence[Tree], settings: Training, warm: int = 0) -> list[list[Tree]]:
    """The trees of each optimiser step as the package's loop takes them, the longest of a step first; the first
    step has the ``warm`` trees, where there are any.
    """
    batches = [list(trees[:warm])] if warm else []
    timed = trees[warm:]
    steps = -(-len(timed) // settings.batch)
    batches += [[timed[i] for i in batch_of(step, len(timed), settings, seed=SEED)] for step in range(steps)]
    return [sorted(batch, key=lambda tree: -max(len(path.ids) for path in tree)) for batch in batches]


def flat(batches: Iterable[Sequence[Tree]]) -> list[Tree]:
    """All steps' trees in one list."""
    return list(chain.from_iterable(batches))


# --------------------------------------------------------------------------------- models


def load_ours(job: Job) -> Any:
    """The model as the package's own training steps load it."""
    process.own()
    return load_for_training(checkpoint(job.model), job.lora, job.quantize, dtype=job.dtype, continues=False, seed=SEED)  # type: ignore[arg-type]


def time_ours(
    model: Any, scorer: Scorer, trees: Sequence[Tree], objective: Objective, settings: Training, warm: int = 0
) -> dict[str, Any]:
    """The package's loop under the clock: seconds, peak memory, and the first step's loss and gradient norm."""
    loaded = common.resident_peak()

    def run(some: Sequence[Tree], objective: Objective) -> tuple[common.Stopwatch, Any]:
        with tempfile.TemporaryDirectory() as folder:
            with common.Stopwatch() as watch:
                train(
                    model,
                    scorer,
                    some,
                    objective=objective,
                    settings=settings,
                    out=Path(folder),
                    progress=PlainProgress(quiet=True),
                    seed=SEED,
                )
            return watch, json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[0])

    if warm:
        run(trees[:warm], objective)
        objective = replace(objective, check_first=lambda metrics: None)  # the adapter is no longer the first one
    watch, first = run(trees[warm:], objective)
    return {
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu,
        "peak_memory": common.peak_memory(),
        "loaded_memory": loaded,
        "loss": first["loss"],
        "gradient_norm": first["gradient_norm"],
    }


def load_peer(job: Job) -> Any:
    """The base as TRL's and PEFT's documentation load it: transformers, NF4 with double
    quantisation through bitsandbytes. Sets the number of threads, if the setting has one.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if threads := job.setting.get("threads"):
        torch.set_num_threads(threads)
    options: dict[str, Any] = {
        "dtype": getattr(torch, job.dtype),
        "attn_implementation": "sdpa",
        "device_map": {"": str(device())},
    }
    if job.quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, job.dtype),
        )
    return AutoModelForCausalLM.from_pretrained(str(checkpoint(job.model).folder()), **options)


def lora_config(job: Job) -> Any:
    """The same adapter in PEFT's words."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=16, lora_dropout=job.lora.dropout, target_modules=TARGETS, task_type="CAUSAL_LM")


def fill_adapter(model: Any) -> None:
    """Give the trainable tensors fixed values in fp32, B's other than zero, so that two sides have
    the same adapter and all its gradients count.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for _, parameter in sorted((name, p) for name, p in model.named_parameters() if p.requires_grad):
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.device)


def wide(logits: Any) -> Any:
    """Logits as a loss takes them: in fp32, or in fp64 if they are."""
    import torch

    return logits if logits.dtype == torch.float64 else logits.float()


def clock(limit: float | None, warm: bool = False) -> Any:
    """A callback of transformers' Trainer: the seconds of its training loop alone, ended early once
    ``limit`` is passed. warm: from the end of the first optimiser step.
    """
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        begun = seconds = cpu_begun = cpu = 0.0
        cut = False

        def start(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.begun, self.cpu_begun = time.perf_counter(), time.process_time()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if warm and state.global_step == 1:
                self.start()

        def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if limit is not None and time.perf_counter() - self.begun > limit:
                self.cut = control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds, self.cpu = time.perf_counter() - self.begun, time.process_time() - self.cpu_begun

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
        "cpu_seconds": stopwatch.cpu,
        "peak_memory": common.peak_memory(),
        "loaded_memory": loaded,
        "loss": first.get("loss"),
        "gradient_norm": first.get("grad_norm"),
    }


def plain_loop(
    job: Job, model: Any, batches: Sequence[Sequence[Tree]], loss_of: Any, clip: float, rate: float
) -> dict[str, Any]:
    """The loop that people write over PEFT: micro-batches, backward, clip, AdamW. loss_of:
    micro-batch, its step's rows → loss to be summed.
    """
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    loaded, first, cut = common.resident_peak(), None, False
    model.train()
    with ExitStack() as stack:
        watch = common.Stopwatch() if job.warm else stack.enter_context(common.Stopwatch())
        for number, batch in enumerate(batches):
            if job.warm and number == 1:
                stack.enter_context(watch)
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
    return {
        "seconds": None if cut else watch.seconds,
        "cpu_seconds": watch.cpu,
        "peak_memory": common.peak_memory(),
        "loaded_memory": loaded,
        "loss": loss_value,
        "gradient_norm": norm_value,
    }


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


def work_of(unit: str, trees: Sequence[Tree], model: Any, passes: int) -> dict[str, Any]:
    """The work that is needed: rows, tokens, and FLOPs of the linear layers without a token twice
    or a position unasked.

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
