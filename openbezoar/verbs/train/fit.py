"""What sft, dpo and kto have in common: the step's model loaded, its rows rendered, its reference, and what
was trained written with its ``model.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.forest import Scorer, Tree
from openbezoar.machine import distributed
from openbezoar.machine.devices import this_device
from openbezoar.models.files.towers import text_config
from openbezoar.models.fitting import held, recomputed_layers, settled
from openbezoar.models.load import DTYPES, load_for_training, load_tokenizer, load_whole
from openbezoar.models.memory import quantisation, shape_of
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.models.save import save_model
from openbezoar.models.shards import count_values
from openbezoar.recipe.train_steps import ALL_LINEAR, Lora, Sft, Training
from openbezoar.stats.seeds import step_seed
from openbezoar.training.data import Renderer
from openbezoar.training.encode import LossOn
from openbezoar.training.fit import ADAPTER, Bench, fit
from openbezoar.training.loop import Objective, Sampler
from openbezoar.training.objectives import Reference, frozen_reference, same_pass_reference

MODEL = "model"
T = TypeVar("T", bound=Training)


def renderer_of(step: Training, context: StepContext, loss_on: LossOn = "all") -> Renderer:
    """What renders the step's rows: needs the model's tokenizer only, so that a mistake in the rows
    shows before the model is loaded. loss_on: as ``Encoder`` has it.
    """
    checkpoint = context.checkpoint(step.model)
    # one process fetches and converts, the others find it done
    distributed.from_first(lambda: str(checkpoint.folder()))
    formatter = Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)
    for note in formatter.notes:
        context.progress.say(f"  {step.model}: {note}")
    return Renderer(formatter, step.max_length, step.too_long, context.counts, loss_on)


def suited(step: T, context: StepContext) -> T:
    """The step with what it leaves to the device chosen for its model; on a GPU it is told."""
    try:
        config = json.loads((context.checkpoint(step.model).folder() / "config.json").read_text(encoding="utf-8"))
        shape = shape_of(text_config(config))
    except (KeyError, OSError, ValueError):  # a family whose sizes have other names, or no config; loading tells
        shape = None
    device = this_device()
    chosen = settled(step, shape, device)
    if device.kind == "cuda" and shape is not None:
        recomputed = recomputed_layers(shape, chosen, device)
        context.progress.say(
            f"  {context.name}: up to {chosen.tokens:,} tokens a pass in {chosen.dtype}, activations of {recomputed} of"
            f" {shape.layers} layers recomputed, {held(shape, chosen, device)}"
        )
    return chosen


def loaded(step: Training, context: StepContext, continues: bool) -> Any:
    """The step's model with an adapter to train, or with all its weights to train. continues: go on with its last
    adapter, which it has.
    """
    if not isinstance(step.lora, Lora):
        return load_whole(context.checkpoint(step.model), dtype=step.dtype, trained=True)
    return load_for_training(
        context.checkpoint(step.model),
        step.lora,
        held_in(step, context),
        dtype=step.dtype,
        continues=continues,
        seed=step_seed(context.seed, "adapter"),
        nf4=step.nf4,
    )


def held_in(step: Training, context: StepContext) -> Literal["nf4", "none"]:
    """How the base is held, which 'quantize: auto' leaves to its size."""
    return quantisation(step.quantize, count_values(context.checkpoint(step.model).folder()))


def resolved(step: Training, context: StepContext, model: Any) -> dict[str, Any]:
    """What settings that leave something to the model came to, for the manifest; nothing where all is named."""
    found: dict[str, Any] = {"quantize": held_in(step, context)} if step.quantize == "auto" else {}
    if isinstance(step.lora, Lora) and step.lora.targets == ALL_LINEAR:
        found["targets"] = sorted(model.peft_config[model.active_adapter].target_modules)
    return found


def continued(step: Sft, context: StepContext) -> bool:
    """Whether the step goes on with the last adapter of its model."""
    return step.adapter == "continue" and not step.whole and bool(context.checkpoint(step.model).adapters)


def reference_of(step: Training, context: StepContext, scorer: Scorer) -> Reference:
    """Log-probabilities of the model as given, while it is trained: the adapter off, or a second copy of it."""
    if not step.whole:
        return same_pass_reference(scorer)
    given = load_whole(context.checkpoint(step.model), dtype=step.dtype, trained=False)
    return frozen_reference(Scorer(given, step.tokens, plain=scorer.plain))


def fitted(
    step: Training,
    context: StepContext,
    bench: Bench[Any],
    trees: Sequence[Tree],
    objective: Objective,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    """The training itself, in the step's folder; gives the manifest's numbers."""
    return fit(
        step,
        bench,
        trees,
        objective=objective,
        out=context.out,
        seed=context.seed,
        progress=context.progress,
        sampler=sampler,
        tell=context.tell,
    )


def write_model(step: Training, context: StepContext, model: Any, continues: bool = False) -> None:
    """``model.json``: the base and the adapters of what was trained; where that is all weights, ``model/`` too.
    continues: as in ``loaded``.
    """
    if distributed.rank() > 0:
        return
    given = context.checkpoint(step.model)
    made = _whole(step, context, model, given) if step.whole else _adapted(step, context, given, continues)
    write_checkpoint(context.out, made, context.run.path, published=context.folder(context.name))


def _whole(step: Training, context: StepContext, model: Any, given: Checkpoint) -> Checkpoint:
    folder = context.out / MODEL
    for words in save_model(model, given.folder(), folder, DTYPES[step.dtype]):
        context.progress.warn(f"  {context.name}: the base's generation settings cannot be saved as they are: {words}")
    return replace(given, name=context.name, base=str(folder), adapters=(), quantize="none", dtype=step.dtype)


def _adapted(step: Training, context: StepContext, given: Checkpoint, continues: bool) -> Checkpoint:
    older = given.adapters[:-1] if continues else given.adapters
    return replace(
        given,
        name=context.name,
        adapters=(*older, context.out / ADAPTER),
        quantize=held_in(step, context),
        dtype=given.dtype if step.dtype == "float32" else step.dtype,
    )
