"""What sft, dpo and kto have in common: the step's model loaded, its rows rendered, and ``model.json`` written."""

from __future__ import annotations

from typing import Any, Literal

from openbezoar.context import StepContext
from openbezoar.dialogue.prompt import Formatter
from openbezoar.models.load import load_for_training, load_tokenizer
from openbezoar.models.memory import quantisation
from openbezoar.models.references import Checkpoint, write_checkpoint
from openbezoar.models.shards import count_values
from openbezoar.recipe.train_steps import ALL_LINEAR, Training
from openbezoar.stats.seeds import step_seed
from openbezoar.training import distributed
from openbezoar.training.data import Renderer
from openbezoar.training.fit import ADAPTER


def renderer_of(step: Training, context: StepContext, loss_on: Literal["all", "last"] = "all") -> Renderer:
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


def loaded(step: Training, context: StepContext, continues: bool) -> Any:
    """The step's model with an adapter to train. continues: go on with its last adapter, which it has."""
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
    if step.lora.targets == ALL_LINEAR:
        found["targets"] = sorted(model.peft_config[model.active_adapter].target_modules)
    return found


def write_model(step: Training, context: StepContext, continues: bool) -> None:
    """``model.json``: the base and the adapters of what was trained. continues: as in ``loaded``."""
    if distributed.rank() > 0:
        return
    base = context.checkpoint(step.model)
    older = base.adapters[:-1] if continues else base.adapters
    dtype = base.dtype if step.dtype == "float32" else step.dtype
    checkpoint = Checkpoint(
        context.name,
        base.base,
        (*older, context.out / ADAPTER),
        held_in(step, context),
        dtype,
        base.prompt,
        base.licence,
        base.thoughts,
    )
    write_checkpoint(context.out, checkpoint, context.run.path, published=context.folder(context.name))
