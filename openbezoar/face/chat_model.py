"""A model to talk to and to take log-probabilities from, with exactly the prompt that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openbezoar.dialogue.prompt import Prompt, prompt_of
from openbezoar.errors import UserError, shown
from openbezoar.forest import TokenPath
from openbezoar.llm import Sampling
from openbezoar.llm.local import LocalLLM
from openbezoar.machine import extras
from openbezoar.models import needs
from openbezoar.models.references import Checkpoint, open_checkpoint
from openbezoar.rows.records import Turn
from openbezoar.stats.seeds import step_seed

Messages = str | Sequence[Mapping[str, str]]
"""What a user says, or a conversation as {role, content}: system, user, assistant, the last one the user's."""

ROLES = ("system", "user", "assistant")


class ChatModel:
    """A causal language model of transformers with its prompt, in evaluation mode and frozen. ``load`` gives
    those of runs and references.
    """

    def __init__(self, model: Any, tokenizer: Any, prompt: Prompt | None = None) -> None:
        """prompt: default, the tokenizer's own chat template, or the project's where it has none."""
        spec = prompt_of(tokenizer, prompt)
        checkpoint = Checkpoint("the model", "", (), "none", "float32", spec)
        self._local = LocalLLM(checkpoint, (model.eval().requires_grad_(False), tokenizer))

    @classmethod
    def _of(cls, local: LocalLLM) -> ChatModel:
        made = cls.__new__(cls)
        made._local = local
        return made

    @property
    def model(self) -> Any:
        """transformers' or PEFT's model."""
        return self._local.model

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer."""
        return self._local.tokenizer

    def chat(
        self,
        messages: Messages,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """The answer to a message or a conversation, without thoughts.

        temperature 0 is greedy; seed: the same answer each time. Raises UserError for a conversation
        that leaves no room for an answer in the model's window.
        """
        turns = turns_of(messages)
        length = len(self._local.formatter.prompt_ids(turns))
        if length + max_new_tokens > self._local.window:
            raise UserError(
                f"chat: the prompt takes {length} tokens and the answer may take {max_new_tokens}, of"
                f" {self._local.window} in all; shorten it, or lower max_new_tokens"
            )
        sampling = Sampling(max_new_tokens, temperature, top_p)
        return self._local.answer(turns, sampling, step_seed(seed, "chat", 1), lambda piece: None).text

    def logprobs(self, prompt: Messages, answers: Sequence[str]) -> list[float]:
        """Log-probability of each whole answer to a prompt, in nats: the sum over its tokens, those that
        close it among them, given the prompt and what of the answer stands before. The prompt, and what
        answers have in common, is computed once.

        Raises UserError for an answer that does not fit into the model's window.
        """
        turns = turns_of(prompt)
        formatter = self._local.formatter
        head = formatter.prompt_ids(turns)
        paths = tuple(TokenPath.of(head, formatter.answer_ids(turns, answer, head)) for answer in answers)
        if (longest := max((len(path.ids) for path in paths), default=0)) > self._local.window:
            raise UserError(
                f"logprobs: prompt and answer take {longest} tokens, of {self._local.window} that the model reads;"
                " shorten them"
            )
        return [float(path.sum()) for path in self._local.scorer.logprobs([paths])[0]] if paths else []

    def close(self) -> None:
        """Free the model's memory."""
        self._local.close()


def turns_of(messages: Messages) -> list[Turn]:
    """Messages as turns. Raises UserError for what is no conversation that ends with the user's words."""
    if isinstance(messages, str):
        return [Turn("user", messages)]
    turns = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"messages: expected a role ({', '.join(ROLES)}) and a content (it is {shown(message)})")
        turns.append(Turn(role, content))  # type: ignore[arg-type]
    if not turns or turns[-1].role != "user":
        raise UserError("messages: expected a conversation whose last message is the user's")
    return turns


def load(reference: str | Path) -> ChatModel:
    """The model of a reference: a step's folder, a release, a model folder, ``org/name``, ``pypi:NAME`` or a
    ``.gguf`` file. A step's folder keeps the prompt that was trained; others use their own chat template.

    Raises ModelError for a reference that leads nowhere, UserError for a package that is missing.
    """
    extras.require(*needs.MODEL)
    return ChatModel._of(LocalLLM(open_checkpoint(str(reference))))
