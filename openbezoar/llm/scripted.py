"""A model that follows a script: its answers are a function of the call.

For trying a scheme, a judge or a verb of one's own without weights or a server, and for tests:
``StepContext.opener`` opens one in the place of the recipe's models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openbezoar.errors import ModelError
from openbezoar.llm import Call, Completion, Sampling, Samplings, each
from openbezoar.rows.records import Turn

Reply = Callable[[Call], str | Completion]
Weigh = Callable[[Call], Sequence[float]]


def system(call: Call) -> str:
    """The system message of a call, '' if it has none."""
    turns = () if isinstance(call.prompt, str) else call.prompt
    return next((turn.content for turn in turns if turn.role == "system"), "")


def last(call: Call) -> str:
    """What is to be answered: the last turn's words, or the text to go on with."""
    return call.prompt if isinstance(call.prompt, str) else call.prompt[-1].content


class Scripted:
    """An LLM that answers each call by ``reply`` and weighs choices by ``weigh``; what is asked without
    its function raises ModelError.

    reply: a text, which counts a token a word, or a whole Completion. weigh: the log-probability of each
    of the call's choices. asked: every call, in order. closed: how often it was given back.
    """

    def __init__(self, reply: Reply | None = None, weigh: Weigh | None = None, name: str = "scripted") -> None:
        self.name, self.reply, self.weigh = name, reply, weigh
        self.asked: list[Call] = []
        self.closed = 0

    def chat(
        self, conversations: Sequence[Sequence[Turn]], sampling: Samplings, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answer each conversation."""
        drawn = each(sampling, len(conversations))
        return self.answers(
            [Call("chat", tuple(c), s, seed) for c, s, seed in zip(conversations, drawn, seeds, strict=True)]
        )

    def complete(self, prompts: Sequence[str], sampling: Samplings, seeds: Sequence[int]) -> list[Completion]:
        """Go on with each text."""
        drawn = each(sampling, len(prompts))
        return self.answers(
            [Call("complete", text, s, seed) for text, s, seed in zip(prompts, drawn, seeds, strict=True)]
        )

    def answers(self, calls: Sequence[Call]) -> list[Completion]:
        """The answers to calls that are made together."""
        if self.reply is None:
            raise ModelError(f"model '{self.name}': its script has no replies")
        self.asked += calls
        return [_completion(call, self.reply(call)) for call in calls]

    def choice_logprobs(
        self, conversations: Sequence[Sequence[Turn]], prefix: str, choices: Sequence[str]
    ) -> list[list[float]]:
        """Log-probabilities of the choices, [conversations][choices]."""
        if self.weigh is None:
            raise ModelError(f"model '{self.name}': its script weighs no choices")
        calls = [Call("choices", tuple(c), Sampling(1), prefix=prefix, choices=tuple(choices)) for c in conversations]
        self.asked += calls
        return [list(self.weigh(call)) for call in calls]

    def close(self) -> None:
        """Nothing is held; counted."""
        self.closed += 1


def _completion(call: Call, reply: str | Completion) -> Completion:
    if isinstance(reply, Completion):
        return reply
    return Completion(reply, "stop", len(last(call).split()), len(reply.split()))
