"""How many tokens training passes over, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from openbezoar.models.fitting import arithmetic_of, step_memory
from openbezoar.models.memory import quantised, trained_parameters
from openbezoar.models.pace import fit_of
from openbezoar.recipe.blocks import Shape
from openbezoar.recipe.losses import LOSSES
from openbezoar.recipe.train_steps import Dpo, Kto, Reward, Sft, Training
from openbezoar.rows.lengths import TextLengths
from openbezoar.rows.lengths import trained as lengths
from openbezoar.verbs.book import Book, Estimate


def sft(step: Sft, book: Book) -> Estimate:
    """A backward pass with a frozen base costs about one more forward pass for the inputs' gradients."""
    return _cost(step, book, "sft", book.texts(step.sft, rejected=False), 2)


def dpo(step: Dpo, book: Book) -> Estimate:
    """As ``sft``, and the reference's forward pass, where the loss has one."""
    return _cost(step, book, "dpo", book.texts(step.dpo), 3 if LOSSES[step.loss].needs_reference else 2)


def kto(step: Kto, book: Book) -> Estimate:
    """As ``sft``, the reference's forward pass, and those of policy and reference over mismatched
    answers. A pair is two rows.
    """
    answers = (
        TextLengths(some.rows, (characters,), some.own_system)
        for some in book.texts(step.kto)
        for characters in some.paths
    )
    return _cost(step, book, "kto", answers, 5)


def reward(step: Reward, book: Book) -> Estimate:
    """As ``sft``, of both answers of a pair; the vocabulary head is not run."""
    return _cost(step, book, "reward", book.texts(step.reward), 2)


def _cost(step: Training, book: Book, verb: str, texts: Iterable[TextLengths], passes: int) -> Estimate:
    rows, length = lengths(step, texts, book.system(step.model))
    steps = math.ceil(round(math.ceil(rows / step.batch) * step.epochs, 6))
    tokens = min(rows * step.epochs, (step.max_steps or steps) * step.batch) * length
    shape = book.shape(step.model)
    dtype = arithmetic_of(step, book.device)
    estimate = Estimate(round(rows), int(tokens), 0, dtype=dtype, remedy=_remedy(step, shape))
    if shape is not None:
        trained = 4 * trained_parameters(shape, step)
        estimate.memory_bytes = step_memory(shape, step, book.device)
        # values and two moments, perhaps the best values
        estimate.written_bytes, estimate.passing_bytes = trained, trained * (4 if step.evaluate_every else 3)
        if step.whole and step.dtype != "float32":
            estimate.written_bytes //= 2
    # the gradients of all weights are a forward pass's worth more
    book.timed(estimate, verb, step.model, tokens * (passes + step.whole))
    if shape is not None:
        fit = fit_of(shape, step, book.device, length=length, passes=passes)
        estimate.fit = fit
        if estimate.seconds is None and fit.tokens_per_second:
            estimate.seconds = tokens / fit.tokens_per_second
    return estimate


def _remedy(step: Training, shape: Shape | None) -> str:
    if step.whole:
        return "give lora an adapter in place of none, set smaller tokens and max_length, or take a smaller model"
    held = step.quantize if shape is None else quantised(shape, step)
    ways = ["quantize: nf4"] if held == "none" else ["nf4: packed"] if step.nf4 == "unpacked" else []
    ways += ["checkpointing: true"] if step.checkpointing is False else []
    return f"set {' and '.join([*ways, 'smaller tokens and max_length'])}, or take a smaller model"
