"""Length-controlled win rates: what length wins is taken out, what is better stays, and the interval covers it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openbezoar.stats.length_control import length_controlled

Judged = tuple[list[float], list[float], list[float]]


def judged(n: int, better: float, length: float, seed: int, *, longer: float = 25.0, ties: float = 0.1) -> Judged:
    """Preferences drawn from equation (1) without ties, then some of them ties; both answers' lengths."""
    generator = np.random.default_rng(seed)
    own, other = generator.gamma(4, 30 + longer, size=n), generator.gamma(4, 30, size=n)
    difference = own - other
    chance = 1 / (1 + np.exp(-(better + length * np.tanh(difference / difference.std()))))
    won = (generator.random(n) < chance).astype(float)
    won[generator.random(n) < ties] = 0.5
    return won.tolist(), own.tolist(), other.tolist()


def test_what_length_alone_wins_is_taken_out() -> None:
    won, own, other = judged(500, 0.0, 1.5, seed=3)
    found = length_controlled(won, own, other, seed=1, draws=400)
    assert found is not None
    assert np.mean(won) > 0.6
    assert found.win_rate.low < 0.5 < found.win_rate.high and found.win_rate.high < np.mean(won)
    assert found.effect > 1


def test_what_is_better_at_any_length_stays() -> None:
    won, own, other = judged(500, 1.0, 0.0, seed=3, longer=0.0, ties=0.0)
    found = length_controlled(won, own, other, seed=1, draws=400)
    assert found is not None
    assert found.win_rate.value == pytest.approx(np.mean(won), abs=0.01)
    assert found.win_rate.low > 0.6


def test_answers_of_equal_length_have_the_plain_win_rate() -> None:
    won = [1.0, 1.0, 0.5, 0.0, 1.0, 0.5] * 20
    found = length_controlled(won, [7] * 120, [7] * 120, seed=1, draws=200)
    assert found is not None
    assert found.win_rate.value == pytest.approx(np.mean(won), abs=0.001)


def test_the_other_side_s_win_rate_is_the_rest() -> None:
    won, own, other = judged(200, 0.4, 1.0, seed=5)
    one = length_controlled(won, own, other, seed=1, draws=50)
    two = length_controlled([1 - w for w in won], other, own, seed=1, draws=50)
    assert one is not None and two is not None
    assert one.win_rate.value == pytest.approx(1 - two.win_rate.value, abs=1e-8)
    assert one.effect == pytest.approx(two.effect, abs=1e-8)


def test_the_coefficients_are_where_the_penalised_likelihood_has_no_slope() -> None:
    from openbezoar.stats.length_control import RIDGE

    won, own, other = judged(80, 0.5, 1.0, seed=2)
    found = length_controlled(won, own, other, seed=1, draws=2)
    assert found is not None
    y, d = np.array(won), np.subtract(own, other)
    x, theta = np.tanh(d / d.std()), math.log(found.win_rate.value / (1 - found.win_rate.value))
    left = y - 1 / (1 + np.exp(-(theta + found.effect * x)))
    assert float(left.sum()) == pytest.approx(RIDGE * theta, abs=1e-6)
    assert float((left * x).sum()) == pytest.approx(RIDGE * found.effect, abs=1e-6)


def test_known_difficulties_take_their_part_of_the_prompts() -> None:
    """Prompts on which one side loses by their difficulty: (2) averages over them as they are."""
    generator = np.random.default_rng(4)
    hard = generator.normal(size=800)
    won = (generator.random(800) < 1 / (1 + np.exp(-(0.3 - 1.5 * hard)))).astype(float)
    lengths = generator.gamma(4, 30, size=(2, 800))
    with_, without = (
        length_controlled(won.tolist(), lengths[0].tolist(), lengths[1].tolist(), 1, difficulty=gamma, draws=50)
        for gamma in (hard.tolist(), None)
    )
    assert with_ is not None and without is not None
    assert with_.win_rate.value == pytest.approx(np.mean(won), abs=0.01)
    assert with_.win_rate.high - with_.win_rate.low < without.win_rate.high - without.win_rate.low + 0.02


def test_one_side_that_wins_everything_has_an_interval_by_the_number_of_prompts() -> None:
    found = length_controlled([1.0] * 30, list(range(30)), [5.0] * 30, seed=1)
    assert found is not None
    assert found.win_rate.value == 1.0 and 0.85 < found.win_rate.low < 0.9


def test_length_that_decides_everything_has_finite_numbers() -> None:
    own, other = [float(i) for i in range(40)], [19.5] * 40
    found = length_controlled([float(a > b) for a, b in zip(own, other, strict=True)], own, other, seed=1, draws=100)
    assert found is not None and found.win_rate.value == pytest.approx(0.5, abs=0.01)
    assert math.isfinite(found.effect) and found.win_rate.low < 0.5 < found.win_rate.high


def test_nothing_is_said_where_length_and_model_cannot_be_told_apart() -> None:
    assert length_controlled([1.0, 0.0], [9.0, 8.0], [4.0, 3.0], seed=1) is None
    assert length_controlled([], [], [], seed=1) is None


def test_numbers_that_are_no_preferences_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        length_controlled([1.5, 0.0], [1.0, 2.0], [1.0, 1.0], seed=1)
    with pytest.raises(ValueError, match="one number a prompt"):
        length_controlled([1.0, 0.0], [1.0], [1.0], seed=1)
    with pytest.raises(ValueError, match="one number a prompt"):
        length_controlled([1.0, 0.0], [1.0, 2.0], [1.0, 1.0], seed=1, difficulty=[1.0])


CASES = [(0.0, 1.5, 25.0), (0.8, 1.5, 25.0), (0.8, 0.0, 0.0), (-0.3, 1.0, -15.0)]


def covered(better: float, length: float, longer: float, *, n: int, runs: int, draws: int) -> tuple[float, float]:
    """(share of intervals that hold the true win rate, mean estimate less the true one)."""
    true, held, errors = 1 / (1 + math.exp(-better)), 0, []
    for run in range(runs):
        won, own, other = judged(n, better, length, 1000 + run, longer=longer, ties=0.0)
        found = length_controlled(won, own, other, run, draws=draws)
        assert found is not None
        held += found.win_rate.low <= true <= found.win_rate.high
        errors.append(found.win_rate.value - true)
    return held / runs, float(np.mean(errors))


def test_the_interval_holds_the_true_win_rate_most_of_the_time() -> None:
    share, error = covered(*CASES[0], n=80, runs=60, draws=200)
    assert share >= 0.85 and abs(error) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_at_its_level(case: tuple[float, float, float]) -> None:
    share, error = covered(*case, n=200, runs=500, draws=300)  # a share of 0.95 is known to ± 0.02
    assert 0.93 <= share <= 0.97 and abs(error) < 0.01
