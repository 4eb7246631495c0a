"""Log-probabilities of given answers from what a server says of its own tokens. Reads and writes nothing.

A server tells, for each token that it wrote, the likeliest ones at that place. The rating is
looked up where the asked-for beginning of the answer ends. What is not among the likeliest
tokens counts as impossible, so these are bounds from below; how much probability the tokens that are
not told have together is how far they can be off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """A token that was written, its log-probability, and the likeliest ones at its place."""

    text: str
    logprob: float
    likeliest: Mapping[str, float]


@dataclass
class Weighed:
    """Log-probabilities of choices, -inf for those that cannot be seen. unseen: the probability of all tokens
    that are not told, in the places that were looked at.
    """

    logprobs: dict[str, float]
    unseen: float = 0.0


def weigh(tokens: Sequence[Token], prefix: str, choices: Sequence[str]) -> tuple[list[float], float]:
    """Log-probability of each choice after ``prefix`` in the answer, -inf for what cannot be seen; and the
    probability that is not seen.

    A model that leaves out the prefix's beginning ("[[7]]" for "Rating: [[7]]") is
    understood; one that writes nothing of it is read from its first token.
    """
    tokens = [token for token in tokens if token.text]  # an end token's text may be left out
    text = "".join(token.text for token in tokens)
    words = prefix.split()
    places = [(text.find(tail), tail) for i in range(len(words)) if (tail := " ".join(words[i:])) in text]
    start = places[0][0] + len(places[0][1]) if places else 0
    found = Weighed({})
    at = 0
    for number, token in enumerate(tokens):
        if at + len(token.text) > start:
            _spread(tokens, number, token.text[: start - at], "", 0.0, choices, found)
            break
        at += len(token.text)
    return [found.logprobs.get(choice, -math.inf) for choice in choices], found.unseen


def _spread(
    tokens: Sequence[Token],
    number: int,
    head: str,
    begun: str,
    weight: float,
    choices: Sequence[str],
    found: Weighed,
) -> None:
    """Share out the probability at one place. head: what its tokens must begin with; done: what of
    the choice was written before.
    """
    token = tokens[number]
    told = {token.text: token.logprob, **token.likeliest}
    found.unseen += math.exp(weight) * max(0.0, 1.0 - sum(map(math.exp, told.values())))
    for text, logprob in told.items():
        if not text.startswith(head):
            continue
        part = begun + (text[len(head) :] if begun or head else text.lstrip())
        fitting = [c for c in choices if part and (c.startswith(part) or part.startswith(c))]
        if len(fitting) > 1 and text == token.text and number + 1 < len(tokens):
            _spread(tokens, number + 1, "", part, weight + logprob, fitting, found)
        elif fitting:
            # "1" may begin "10" as well; where the next token is not told, the shortest is the likeliest.
            best = min(fitting, key=len)
            found.logprobs[best] = _sum(found.logprobs.get(best, -math.inf), weight + logprob)


def _sum(a: float, b: float) -> float:
    """Logarithm of the sum of two probabilities given by theirs."""
    high, low = max(a, b), min(a, b)
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high
