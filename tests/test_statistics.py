"""Intervals and tests, against values worked out by hand and by simulation."""

import math

import numpy as np
import pytest

from openbezoar.stats.intervals import (
    agreement_of,
    grouped_intervals,
    holm,
    kappa_of,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_p,
    proportion_interval,
    random_signs,
    widened,
)
from openbezoar.stats.pair_accuracy import pair_accuracy


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


def test_no_item_that_differs_is_no_evidence() -> None:
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0
    assert random_signs([0.5, 0.2], [0.5, 0.2], seed=1) == 1.0


def test_mcnemars_exact_test_by_hand() -> None:
    # 7 items differ, 6 one way: 2 (C(7,0) + C(7,1)) / 2^7 = 16 / 128.
    assert mcnemar([1] * 6 + [0] + [1] * 9, [0] * 6 + [1] + [1] * 9) == 16 / 128
    assert mcnemar([1, 0], [0, 1]) == 1.0


def test_mcnemars_test_for_many_by_hand() -> None:
    # 60 and 40 of 100: z = 20 / 10, two-sided p = 0.0455.
    assert mcnemar([1] * 60 + [0] * 40, [0] * 60 + [1] * 40) == pytest.approx(0.0455, abs=1e-4)


def test_random_signs_by_hand() -> None:
    # Four equal differences: of 16 ways to sign them two are as far from 0.
    assert random_signs([1.0] * 4, [0.5] * 4, seed=1) == pytest.approx(2 / 16, abs=0.01)
    # The test that fits: McNemar's for 0 and 1.
    assert paired_p([1, 1, 1, 1], [0, 0, 0, 0], seed=1) == 2 / 16
    assert paired_p([1.0] * 4, [0.5] * 4, seed=1) == random_signs([1.0] * 4, [0.5] * 4, seed=1)


def test_a_large_difference_stays_one_among_a_thousand_comparisons() -> None:
    # 100 differences of 1 to 2: far beyond what 10,000 signs can tell; Hoeffding's bound by hand
    # for equal ones, 2 exp(-100² / 200).
    assert random_signs([1.0] * 100, [0.5] * 100, seed=1) == pytest.approx(2 * math.exp(-50))
    clear = random_signs([1 + n / 100 for n in range(100)], [0.5] * 100, seed=1)
    assert holm([clear] + [0.5] * 999)[0] < 0.001


def test_a_mean_without_spread_over_few_groups_is_not_certain() -> None:
    # By hand, one group: z² / (1 + z²) = 0.79346 of the groups may be otherwise.
    assert widened((0.5, 0.5, 0.5), 1) == pytest.approx((0.5, 0.5 - 0.79346 / 2, 0.5 + 0.79346 / 2), abs=1e-4)
    assert widened((1.0, 1.0, 1.0), 10) == pytest.approx((1.0, *proportion_interval(10, 10)))
    assert widened((0.0, 0.0, 0.0), 10) == pytest.approx((0.0, *proportion_interval(0, 10)))
    assert widened((0.5, 0.25, 0.75), 10) == (0.5, 0.25, 0.75)


def test_holms_correction_by_hand() -> None:
    # 0.01 × 4; 0.02 × 3; 0.04 × 2 = 0.08; 0.03 × 2 = 0.06, raised to nothing smaller than before; order kept.
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_kappa_by_hand() -> None:
    # Cohen 1960: agreement 0.7, marginals 0.6/0.4 and 0.5/0.5, chance 0.5: kappa 0.4.
    table = np.array([[[40.0, 20.0], [10.0, 30.0]]])
    assert agreement_of(table) == pytest.approx([0.7])
    assert kappa_of(table) == pytest.approx([0.4])
    assert np.isnan(kappa_of(np.array([[[5.0, 0.0], [0.0, 0.0]]])))
    assert np.isnan(agreement_of(np.zeros((1, 2, 2))))


def test_groups_are_drawn_whole() -> None:
    # Two questions, one always agreed on, one never: resampled agreement is 0, 1/2 or 1.
    groups = [[[9.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]]]
    assert grouped_intervals(groups, [agreement_of], seed=1) == [(0.5, 0.0, 1.0)]
    assert grouped_intervals([], [agreement_of], seed=1) == [None]
    assert grouped_intervals([[[3.0, 0.0], [0.0, 0.0]]], [kappa_of], seed=1) == [None]


# ------------------------------------------------------------------------------ simulation

FEW, MANY = 150, 1000  # a share of 0.95 is known to ± 0.014 by many


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def repeats(request: pytest.FixtureRequest) -> int:
    """How often something is simulated."""
    return int(request.param)


def within(hits: int, repeats: int, low: float, high: float) -> bool:
    """Whether a share lies between two bounds; of few repeats it may be off by as much more as chance makes it."""
    more = 0.0 if repeats == MANY else 0.02 * (math.sqrt(MANY / repeats) - 1)
    return low - more <= hits / repeats <= high + more


@pytest.mark.parametrize("n", [10, 40, 200])
@pytest.mark.parametrize("shape", ["normal", "ratings"])
def test_intervals_of_means_cover_93_to_97_percent(n: int, shape: str, repeats: int) -> None:
    generator = np.random.default_rng(n)
    truth, hits = (0.0 if shape == "normal" else 5.5), 0
    for repeat in range(repeats):
        values = generator.normal(size=n) if shape == "normal" else generator.integers(1, 11, size=n).astype(float)
        _, low, high = mean_interval(values, seed=repeat, draws=600)  # type: ignore[arg-type]
        hits += low <= truth <= high
    assert within(hits, repeats, 0.93, 0.97)


@pytest.mark.parametrize(("n", "share"), [(50, 0.3), (200, 0.85), (684, 0.25)])
def test_intervals_of_shares_and_their_differences_cover_93_to_97_percent(n: int, share: float, repeats: int) -> None:
    generator = np.random.default_rng(n)
    single, paired = 0, 0
    for repeat in range(repeats):
        a = generator.random(n) < share
        b = np.where(generator.random(n) < 0.3, generator.random(n) < share, a)  # correlated, and as good
        low, high = proportion_interval(int(a.sum()), n)
        single += low <= share <= high
        _, low, high = paired_difference(b.astype(float), a.astype(float), seed=repeat, draws=600)  # type: ignore[arg-type]
        paired += low <= 0 <= high
    assert within(single, repeats, 0.93, 0.97)
    assert within(paired, repeats, 0.93, 0.97)


def test_intervals_of_agreement_cover_93_to_97_percent_though_votes_on_a_question_go_together(repeats: int) -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for repeat in range(repeats):
        # 64 questions with 8 votes and a probability each; mean 2/3
        agreed = generator.binomial(8, generator.beta(4, 2, size=64))
        tables = np.zeros((64, 2, 2))
        tables[:, 0, 0], tables[:, 0, 1] = agreed, 8 - agreed
        (found,) = grouped_intervals(tables, [agreement_of], seed=repeat, draws=600)
        assert found is not None
        hits += found[1] <= 2 / 3 <= found[2]
    assert within(hits, repeats, 0.93, 0.97)


def test_intervals_of_pair_accuracies_cover_93_to_97_percent_though_pairs_of_a_prompt_go_together(
    repeats: int,
) -> None:
    generator = np.random.default_rng(6)
    grouped, gains, alone = 0, 0, 0
    for repeat in range(repeats):
        # 60 prompts with 5 pairs each, of which the chance of being right is the prompt's; mean 2/3, length 1/2
        right = generator.random((60, 5)) < generator.beta(4, 2, size=(60, 1))
        rewards = [(1.0, 0.0) if hit else (0.0, 1.0) for hit in right.ravel()]
        prompts = [prompt for prompt in range(60) for _ in range(5)]
        even = [(1, 1)] * len(prompts)
        found = pair_accuracy(rewards, even, repeat, groups=prompts, draws=400)
        grouped += found.accuracy.low <= 2 / 3 <= found.accuracy.high
        gains += found.gain[1] <= 2 / 3 - 1 / 2 <= found.gain[2]
        low, high = proportion_interval(int(right.sum()), right.size)
        alone += low <= 2 / 3 <= high
    assert within(grouped, repeats, 0.93, 0.97) and within(gains, repeats, 0.93, 0.97)
    assert alone < grouped, "as if pairs were independent the interval is too narrow"


def test_paired_tests_have_their_nominal_size(repeats: int) -> None:
    generator = np.random.default_rng(11)
    exact, many, signs = 0, 0, 0
    for repeat in range(repeats):
        few, lots = generator.integers(0, 2, size=(2, 30)), generator.integers(0, 2, size=(2, 400))
        exact += mcnemar(*few.tolist()) <= 0.05
        many += mcnemar(*lots.tolist()) <= 0.05
        values = generator.normal(size=(2, 25))
        signs += random_signs(*values.tolist(), seed=repeat, draws=400) <= 0.05
    assert within(exact, repeats, 0.0, 0.05)  # a discrete test is never above its size, and below it for few items
    assert within(many, repeats, 0.035, 0.065)
    assert within(signs, repeats, 0.035, 0.065)


def test_holm_keeps_false_alarms_among_many_comparisons_below_5_percent(repeats: int) -> None:
    generator = np.random.default_rng(3)
    plain = corrected = 0
    for _ in range(repeats):
        ps = generator.random(12).tolist()
        plain += min(ps) <= 0.05
        corrected += min(holm(ps)) <= 0.05
    assert within(plain, repeats, 0.4, 1.0)
    assert within(corrected, repeats, 0.0, 0.065)
