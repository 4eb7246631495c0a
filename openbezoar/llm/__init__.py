"""Who answers a prompt: a model in this process, or a server. One small protocol.

``open_llm`` gives the one that a recipe's name stands for, behind the call cache: every
answer is on disk before it is used (``llm/cached.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from openbezoar.errors import ModelError
from openbezoar.recipe.blocks import ServerModel
from openbezoar.recipe.fields import MAX_REFUSED
from openbezoar.rows.records import Turn
from openbezoar.stats.seeds import step_seed

if TYPE_CHECKING:
    from openbezoar.context import StepContext


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 is greedy.

    logprobs: also say how likely each token was, where a server offers it. min_new_tokens: until
    then no token ends an answer (models in this process, and vLLM; llama.cpp where it is the most, too).
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    logprobs: bool = False


Samplings = Sampling | Sequence[Sampling]
"""How answers are drawn: one for all of them, or one for each."""


def each(sampling: Samplings, n: int) -> list[Sampling]:
    """One Sampling a prompt."""
    return [sampling] * n if isinstance(sampling, Sampling) else list(sampling)


@dataclass(frozen=True)
class Completion:
    """One answer. ``finish``: 'stop' if the model ended it (or a stop string did), 'length' at the
    limit, 'error' if none came.

    logprobs: natural logarithms, one a token, if they were asked for and offered; of a call
    that weighs choices, one a choice. seconds: its share of the time that answering took.
    thoughts: what was thought before the answer, where a server tells it apart. refused: why
    this one call was turned down (a key of ``refusals.REASONS``), with finish 'error'.
    left_out: settings that the server refuses, so that it was asked without them. notes: what
    had to be put right in the reply; counted under these words.
    """

    text: str
    finish: Literal["stop", "length", "error"]
    prompt_tokens: int
    tokens: int
    logprobs: tuple[float, ...] | None = None
    seconds: float = field(default=0.0, compare=False)
    thoughts: str = ""
    refused: str = ""
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BestCompletion(Completion):
    """The best of several answers to one prompt. scores: of each of them in order, None of one that was not scored."""

    scores: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Call:
    """One thing asked of a model. kind 'choices': how likely each of ``choices`` is after ``prefix`` in the answer."""

    kind: Literal["chat", "complete", "choices"]
    prompt: tuple[Turn, ...] | str
    sampling: Sampling
    seed: int = 0
    prefix: str = ""
    choices: tuple[str, ...] = ()


class LLM(Protocol):
    """A model that answers. Answers come in the order of the prompts; ``seeds`` has one a prompt,
    so that a row does not depend on its neighbours."""

    name: str

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answer each conversation with the model's own prompt format."""

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continue each text as it stands."""

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """Log-probability of each choice as the answer's continuation after ``prefix``, [conversations][choices].

        A server gives what it offers: -inf for choices that are not among its likeliest tokens,
        ModelError if it gives none. A conversation that is refused alone has an empty list.
        """

    def close(self) -> None:
        """Give back what the model holds: memory, connections."""


def recorded(answer: Completion) -> dict[str, Any]:
    """What a row says of how its answer came: ``left_out`` (settings that the server refuses),
    ``refused`` (why there is none) and the ``scores`` that it was picked by, where there is any.
    """
    return {
        **({"left_out": list(answer.left_out)} if answer.left_out else {}),
        **({"refused": answer.refused} if answer.refused else {}),
        **({"scores": list(answer.scores)} if isinstance(answer, BestCompletion) else {}),
    }


def samples(
    llm: LLM, conversations: Sequence[Sequence[Turn]], sampling: Samplings, *, seeds: Sequence[int], n: int
) -> list[list[Completion]]:
    """``n`` answers to each conversation, [conversations][n]. Sample 0 is the one that ``chat``
    gives; each has a seed of its own.
    """
    samplings = each(sampling, len(conversations))
    rows = [
        (c, s, step_seed(seed, "sample", k) if k else seed)
        for c, s, seed in zip(conversations, samplings, seeds, strict=True)
        for k in range(n)
    ]
    answers = llm.chat([c for c, _, _ in rows], [s for _, s, _ in rows], [seed for _, _, seed in rows])
    return [answers[i : i + n] for i in range(0, len(answers), n)]


def open_llm(name: str, context: StepContext) -> LLM:
    """The model behind a name of the recipe, a server's client or a checkpoint, behind the run's call cache and budget.

    Nothing is loaded or connected before the first call that the cache cannot answer. A context
    with an opener of its own has its word alone.
    """
    if context.opener is not None:
        llm: LLM = context.opener(name, context)
        return llm
    from openbezoar.llm.budget import spending_limits, worst_case
    from openbezoar.llm.cached import CachedLLM
    from openbezoar.llm.calls import CallStore
    from openbezoar.llm.spoken import Spoken
    from openbezoar.llm.tally import Tally

    store = CallStore(context.run.path.parent, context.progress.warn)
    spending = spending_limits(context, name, store)
    most = getattr(context.recipe.steps.get(context.name), "max_refused", MAX_REFUSED)
    tally = Tally(name, context.counts, most, f"steps.{context.name}.max_refused")
    spec = context.model_spec(name)
    if isinstance(spec, ServerModel):
        from openbezoar.llm.server import ServerLLM
        from openbezoar.llm.settings import learnt

        def server() -> Any:
            def lost(call: Call) -> None:
                store.unanswered(spending.spender, worst_case([call]))

            return ServerLLM(
                name,
                spec,
                say=context.progress.warn,
                count=context.counts.add,
                lost=lost,
                settings=learnt(context.run, name, spec),
            )

        return CachedLLM(
            name,
            spec.identity(),
            server,
            store,
            spending,
            "call",
            tally=tally,
            spoken=Spoken(name, spec.thoughts, context.counts),
        )
    checkpoint = context.checkpoint(name)

    def local() -> LLM:
        from openbezoar.llm.local import LocalLLM

        model = LocalLLM(checkpoint)
        for note in model.formatter.prompt_notes:
            context.progress.say(f"  {name}: {note}")
        return model

    def formatter() -> Any:
        from openbezoar.dialogue.prompt import Formatter
        from openbezoar.models.load import load_tokenizer

        return Formatter(load_tokenizer(checkpoint.folder()), checkpoint.prompt)

    spoken = Spoken(name, checkpoint.thoughts, context.counts)
    forest = CachedLLM(
        name,
        checkpoint.identity(),
        local,
        store,
        spending,
        "row" if checkpoint.dtype == "float32" else "batch",
        formatter,
        tally,
        spoken,
    )
    from openbezoar.llm.engines.opened import by_engine

    return by_engine(name, context, checkpoint, forest) or forest


__all__ = [
    "LLM",
    "BestCompletion",
    "Call",
    "Completion",
    "ModelError",
    "Sampling",
    "Samplings",
    "each",
    "open_llm",
    "recorded",
    "samples",
]
