"""Intervals, against values worked out by hand."""

import pytest

from openbezoar.judging.statistics import mean_interval, paired_difference, proportion_interval


def test_the_interval_of_equal_values_has_no_width() -> None:
    assert mean_interval([3.0] * 5, seed=1) == (3.0, 3.0, 3.0)


def test_two_values_draw_four_equally_likely_samples() -> None:
    # Means of two draws from {0, 10}: 0 and 10 a quarter each, so the 2.5 % tails lie on the values themselves.
    assert mean_interval([0.0, 10.0], seed=1) == (5.0, 0.0, 10.0)


def test_the_bootstrap_comes_near_the_normal_interval_for_many_values() -> None:
    # 200 zeros and 200 ones: mean 0.5, standard error sqrt(0.25 / 400) = 0.025, interval 0.5 ± 1.96 × 0.025.
    mean, low, high = mean_interval([0.0, 1.0] * 200, seed=3)
    assert mean == 0.5
    assert low == pytest.approx(0.451, abs=0.004)
    assert high == pytest.approx(0.549, abs=0.004)


def test_a_seed_fixes_the_interval_and_another_moves_it() -> None:
    values = [float(v * v % 17) for v in range(30)]
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_large_samples_are_drawn_in_pieces_with_the_right_number_of_draws() -> None:
    mean, low, high = mean_interval([1.0, 2.0] * 5_000_00, seed=1, draws=10)
    assert mean == 1.5
    assert 1.49 < low <= high < 1.51


def test_a_paired_difference_uses_the_pairs() -> None:
    a, b = [1.0, 5.0, 9.0], [0.0, 4.0, 8.0]
    assert paired_difference(a, b, seed=1) == (1.0, 1.0, 1.0)  # unpaired, the interval would be wide
    assert paired_difference(b, a, seed=1) == (-1.0, -1.0, -1.0)


def test_no_items_or_unequal_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="one value or more"):
        mean_interval([], seed=1)
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 2.0], seed=1)
    with pytest.raises(ValueError, match="0 <= k <= n"):
        proportion_interval(3, 2)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # By hand with z² = 3.8415: for k=0, high = z²/(n + z²); for k=n, low = n/(n + z²).
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        # centre (0.5 + 3.8415/20)/1.38415 = 0.5; half = 1.95996/1.38415 × sqrt(0.025 + 0.0096036) = 0.26341
        (5, 10, 0.23659, 0.76341),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilsons_interval_for_a_share(k: int, n: int, low: float, high: float) -> None:
    assert proportion_interval(k, n) == pytest.approx((low, high), abs=1e-4)
