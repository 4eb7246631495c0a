"""The win rate of one model over another with the length of answers held equal. Reads and writes nothing; numpy only.

Longer answers win where they are no better. AlpacaEval 2 (arXiv 2404.04475, section 3) fits what a
judge prefers by a logistic regression with length in it, and asks what it says without:

    P(y_i = 1) = sigma(theta + phi tanh(d_i / s) + psi gamma_i)        (1)
    win rate   = mean_i sigma(theta + psi gamma_i)                     (2)

y_i is the preference on prompt i (1 won, 0 lost, 0.5 a tie), d_i the length of the model's answer less
the other's, s the standard deviation of d over the prompts. theta is the paper's difference of two
models' terms; with one pair only that difference can be seen. gamma_i, how hard a prompt is, the paper
estimates from the judgements of many models against one baseline. One pair has one judgement a prompt,
from which no number of each prompt can be told, so the term is left out unless a caller knows the gammas.

The fit has an L2 penalty on all coefficients, weak as the paper's: ``RIDGE``, which keeps them finite
where one side won everything or where length decides everything. The interval is the bootstrap over prompts of all
of it, s too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from openbezoar.stats.intervals import DRAWS, LEVEL, Array, Interval, tails, widened

RIDGE = 0.1  # this project's: against n/4 of n even prompts, what a coefficient weighs in the likelihood
ROUNDS = 100
LONGEST = 2.0  # of a Newton step, which else may overshoot where one side won nearly everything
CLOSE = 1e-9
_CHUNK = 1 << 20  # values of (1) held at a time


class LengthControlled(NamedTuple):
    """win_rate: (2), from 0 to 1. effect: phi of (1), above 0 where longer answers win."""

    win_rate: Interval
    effect: float


def length_controlled(
    preferences: Sequence[float],
    lengths: Sequence[float],
    others: Sequence[float],
    seed: int,
    *,
    difficulty: Sequence[float] | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> LengthControlled | None:
    """The length-controlled win rate over the same prompts, with its bootstrap interval.

    preferences: for each prompt from 0 (the other won) to 1. lengths, others: of the two answers, in any
    one unit. difficulty: gamma of each prompt. None without prompts, and where all answers differ by one
    and the same length, which no regression tells from a better model. Raises ValueError if the
    sequences differ in length or a preference is outside of 0 to 1.
    """
    y, d = np.asarray(preferences, dtype=np.float64), np.subtract(lengths, others, dtype=np.float64)
    gamma = np.zeros((0, y.size)) if difficulty is None else np.asarray([difficulty], dtype=np.float64)
    if y.ndim != 1 or d.shape != y.shape or gamma.shape[1] != y.size:
        raise ValueError(f"length_controlled needs one number a prompt, got {y.shape}, {d.shape}, {gamma.shape}")
    if ((y < 0) | (y > 1)).any():
        raise ValueError("length_controlled needs preferences from 0 to 1")
    if y.size == 0 or (d[0] != 0 and (d == d[0]).all()):
        return None
    if (y == y[0]).all():  # length changes nothing, and drawing again shows no spread
        return LengthControlled(widened(Interval(float(y[0]), float(y[0]), float(y[0])), y.size), 0.0)
    ((rate, effect),) = _fitted(y, d, gamma, np.ones((1, y.size)))
    generator, step = np.random.default_rng(seed), max(1, _CHUNK // y.size)
    even = np.full(y.size, 1 / y.size)
    again = np.concatenate(
        [
            _fitted(y, d, gamma, generator.multinomial(y.size, even, size=min(step, draws - first)).astype(np.float64))
            for first in range(0, draws, step)
        ]
    )
    low, high = np.quantile(again[:, 0], tails(y.size, level))
    return LengthControlled(Interval(float(rate), float(low), float(high)), float(effect))


def _fitted(y: Array, d: Array, gamma: Array, times: Array) -> Array:
    """(2) and phi, [draws, 2], where each prompt counts as often as it was drawn, times: [draws, prompts]."""
    n = times.sum(axis=1, keepdims=True)
    mean = (times @ d)[:, None] / n
    spread = np.sqrt((times * (d - mean) ** 2).sum(axis=1, keepdims=True) / n)
    length = np.tanh(np.divide(d, spread, out=np.zeros_like(times), where=spread > 0))
    ones = np.ones_like(times)
    features = np.stack([ones, length, *(ones * one for one in gamma)], axis=2)  # [draws, prompts, terms]
    found = _logistic(y, features, times)
    equal = np.where(np.arange(features.shape[2]) == 1, 0.0, found)
    rate = (times * _sigma(np.einsum("dnk,dk->dn", features, equal))).sum(axis=1) / n[:, 0]
    return np.stack([rate, found[:, 1]], axis=1)


def _logistic(y: Array, features: Array, times: Array) -> Array:
    """Coefficients of ridge logistic regressions, one a draw, by Newton's method: [draws, terms]."""
    found = np.zeros((features.shape[0], features.shape[2]))
    penalty = RIDGE * np.eye(features.shape[2])
    for _ in range(ROUNDS):
        p = _sigma(np.einsum("dnk,dk->dn", features, found))
        uphill = np.einsum("dn,dnk->dk", times * (y - p), features) - RIDGE * found
        weighed = features * (times * p * (1 - p))[:, :, None]
        curved = np.einsum("dnk,dnl->dkl", weighed, features, optimize=True) + penalty
        step = np.linalg.solve(curved, uphill[:, :, None])[:, :, 0]
        step /= np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True) / LONGEST)
        found += step
        if np.abs(step).max() < CLOSE:
            break
    return found


def _sigma(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
