"""Who answers a prompt: a model in this process, or a server. One small protocol.

``open_llm`` gives the one that a recipe's name stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from openbezoar.errors import ModelError
from openbezoar.recipe import ServerModel
from openbezoar.records import Turn

if TYPE_CHECKING:
    from openbezoar.context import StepContext


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Temperature 0 is greedy. min_new_tokens: until then no token ends an answer (models in this process only)."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0


Samplings = Sampling | Sequence[Sampling]
"""How answers are drawn: one for all of them, or one for each."""


def each(sampling: Samplings, n: int) -> list[Sampling]:
    """One Sampling a prompt."""
    return [sampling] * n if isinstance(sampling, Sampling) else list(sampling)


@dataclass(frozen=True)
class Completion:
    """One answer. ``finish``: 'stop' if the model ended it (or a stop string did), 'length' at the limit, 'error' if none came."""

    text: str
    finish: Literal["stop", "length", "error"]
    prompt_tokens: int
    tokens: int


class LLM(Protocol):
    """A model that answers. Answers come in the order of the prompts; ``seeds`` has one a prompt,
    so that a row does not depend on its neighbours."""

    name: str

    def chat(self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Answer each conversation with the model's own prompt format."""

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Continue each text as it stands."""

    def choice_logprobs(self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]) -> list[list[float]]:
        """Log-probability of each choice as the answer's continuation after ``prefix``. Local models only: a server raises ModelError."""

    def close(self) -> None:
        """Give back what the model holds: memory, connections."""


def open_llm(name: str, context: StepContext) -> LLM:
    """The model behind a name of the recipe: a server's client, or a checkpoint loaded for inference."""
    spec = context.model_spec(name)
    if isinstance(spec, ServerModel):
        from openbezoar.llm.server import Server

        return Server(name, spec)
    from openbezoar.llm.local import Local

    return Local(context.checkpoint(name))


__all__ = ["LLM", "Completion", "ModelError", "Sampling", "Samplings", "each", "open_llm"]
