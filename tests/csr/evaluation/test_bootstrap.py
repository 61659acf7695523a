"""Bootstrap intervals against enumerated resamples, binomial quantiles and cases in which only one source varies."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, t

from csr.evaluation import bootstrap, weighted
from csr.evaluation.bootstrap import (
    Difference,
    Interval,
    bootstrap_interval,
    holm,
    paired_bootstrap,
    paired_mean_bootstrap,
    paired_ratio_bootstrap,
)
from csr.evaluation.metrics import macro_f1

SEEDS = st.integers(0, 10_000)
CASES = settings(deadline=None, max_examples=40)
CLASSES = 3


def runs(seed: int, seeds: int = 3, studies: int = 60, accuracy: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Truth and S×N predictions that are right with the given probability and random otherwise."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, studies)
    guess = rng.integers(0, CLASSES, (seeds, studies))
    return truth, np.where(rng.random((seeds, studies)) < accuracy, truth, guess)


def f1_by_hand(truth, predicted):
    values = []
    for c in range(CLASSES):
        hit = sum(t == c == p for t, p in zip(truth, predicted, strict=True))
        total = list(truth).count(c) + list(predicted).count(c)
        values.append(2 * hit / total if total else 0.0)
    return sum(values) / CLASSES


def enumerated(measure, studies: int, seeds: int) -> np.ndarray:
    """The measure of every equally likely resample and seed, measure(rows, s): R×S."""
    return np.array(
        [[measure(list(rows), s) for s in range(seeds)] for rows in product(range(studies), repeat=studies)]
    )


def assert_interval(result: Interval, values: np.ndarray, units: int, slack: float = 0.004) -> None:
    """The bounds are those of all resamples, give or take the error of 20 000 draws.

    Args:
        values: R×S of `enumerated`.
        units: that are resampled.
    """
    means = values.mean(1)
    if values.shape[1] == 1:
        means = np.repeat(means, 100)  # so that few outcomes are not interpolated
        low, high = (np.quantile(means, [0.025 + way * slack, 0.975 + way * slack]) for way in (-1, 1))
        assert low[0] - 1e-9 <= result.low <= high[0] + 1e-9
        assert low[1] - 1e-9 <= result.high <= high[1] + 1e-9
        return
    seeds = values.shape[1]
    observed = observed_by_seed(values, units)
    parts = means.var(), observed.var(ddof=1) / seeds
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (units - 1) + parts[1] ** 2 / (seeds - 1))
    margin = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert result.mean == pytest.approx(observed.mean())
    np.testing.assert_allclose([result.low, result.high], observed.mean() + np.array([-margin, margin]), rtol=0.03)


def observed_by_seed(values: np.ndarray, units: int) -> np.ndarray:
    """The resample that draws every unit once, in order: what was observed."""
    return values[[*product(range(units), repeat=units)].index(tuple(range(units)))]


# macro F1


@CASES
@given(SEEDS, st.integers(1, 4), st.integers(CLASSES, 7))
def test_the_centre_is_the_macro_f1_of_metrics_exactly(seed, seeds, classes):
    truth, predicted = runs(seed, seeds, studies=9)  # few studies and more classes: some are absent
    expected = np.mean([macro_f1(truth, row, classes) for row in predicted])
    assert bootstrap_interval(truth, predicted, classes, draws=2).mean == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_interval_of_one_system_is_that_of_all_enumerated_resamples(seeds):
    truth = np.array([0, 1, 2, 1])
    predicted = np.array([[0, 1, 1, 1], [2, 1, 2, 0]])[:seeds]
    values = enumerated(lambda rows, s: f1_by_hand(truth[rows], predicted[s][rows]), 4, seeds)
    assert_interval(bootstrap_interval(truth, predicted, CLASSES, draws=20_000), values, 4)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_interval_of_a_difference_pairs_studies_and_seeds_as_all_enumerated_resamples_do(seeds):
    truth = np.array([0, 1, 2, 1])
    ours, theirs = np.array([[0, 1, 1, 1], [2, 1, 2, 0]])[:seeds], np.array([[0, 1, 1, 0], [0, 2, 2, 2]])[:seeds]
    values = enumerated(
        lambda rows, s: f1_by_hand(truth[rows], ours[s][rows]) - f1_by_hand(truth[rows], theirs[s][rows]), 4, seeds
    )
    result = paired_bootstrap(truth, ours, theirs, CLASSES, draws=20_000)
    assert isinstance(result, Difference)
    assert_interval(result, values, 4)


@CASES
@given(SEEDS)
def test_swapping_the_systems_turns_the_interval_round(seed):
    truth, ours = runs(seed)
    theirs = runs(seed + 1)[1]
    there, back = (paired_bootstrap(truth, *pair, CLASSES, draws=50) for pair in ((ours, theirs), (theirs, ours)))
    np.testing.assert_allclose([there.mean, there.low, there.high], [-back.mean, -back.high, -back.low], atol=1e-12)


def test_a_system_differs_from_itself_by_nothing_though_each_alone_is_uncertain():
    truth, ours = runs(0)
    same = paired_bootstrap(truth, ours, ours, CLASSES)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    alone = bootstrap_interval(truth, ours, CLASSES)
    assert alone.low < alone.mean - 0.03 < alone.mean + 0.03 < alone.high


def test_seeds_are_paired_too():
    truth, ours = runs(1, seeds=2)
    ours[1] = (truth + 1) % CLASSES  # one good run, one that is never right
    swapped = paired_bootstrap(truth, ours, ours[::-1], CLASSES)
    assert swapped.mean == 0
    assert swapped.low < -0.5 < 0.5 < swapped.high


def test_a_clear_gain_is_found_and_the_same_draws_give_the_same_numbers():
    truth, theirs = runs(2, studies=300, accuracy=0.5)
    ours = np.where(np.random.default_rng(3).random(theirs.shape) < 0.5, truth, theirs)
    gain = paired_bootstrap(truth, ours, theirs, CLASSES)
    assert 0.1 < gain.low < gain.mean < gain.high
    assert gain == paired_bootstrap(truth, ours, theirs, CLASSES)
    other = paired_bootstrap(truth, ours, theirs, CLASSES, seed=1)
    assert gain.mean == other.mean
    assert gain.low != other.low
    assert gain.low == pytest.approx(other.low, abs=0.01)


# means and ratios


def test_with_one_seed_the_interval_of_a_mean_is_the_binomial_one():
    hits = np.repeat([1.0, 0.0], [140, 60])
    result = paired_mean_bootstrap(hits[None], np.zeros((1, 200)), draws=20_000)
    assert result.mean == pytest.approx(0.7)
    np.testing.assert_allclose([result.low, result.high], binom.ppf([0.025, 0.975], 200, 0.7) / 200, atol=1 / 200)


def test_seeds_alone_give_students_interval_when_all_studies_are_alike():
    by_seed = [0.1, 0.4, 0.2]
    result = paired_mean_bootstrap(np.array(by_seed)[:, None].repeat(50, axis=1), np.zeros((3, 50)))
    expected = t.interval(0.95, 2, np.mean(by_seed), np.std(by_seed, ddof=1) / math.sqrt(3))
    np.testing.assert_allclose([result.low, result.high], expected)


@pytest.mark.parametrize(("of_seeds", "of_studies"), [(1.0, 0.0), (0.3, 1.0), (0.1, 3.0)])
def test_three_seeds_cover_what_they_were_drawn_from(of_seeds, of_studies):
    """Seeds and studies with effects of their own and of both together: the truth, 0, is within in 95 of 100."""
    rng, covered, repeats = np.random.default_rng(7), 0, 300
    for _ in range(repeats):
        seed, study = of_seeds * rng.normal(size=(3, 1)), of_studies * rng.normal(size=(1, 60))
        found = paired_mean_bootstrap(seed + study + rng.normal(size=(3, 60)), np.zeros((3, 60)), draws=200)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / repeats <= 0.995


@pytest.mark.parametrize("seeds", [1, 3])
def test_p_says_what_the_interval_says(seeds):
    rng = np.random.default_rng(2)
    for effect in (0.0, 0.1, 0.2, 0.3, 0.5, -0.5):
        found = paired_mean_bootstrap(effect + rng.normal(size=(seeds, 60)), np.zeros((seeds, 60)))
        outside = not found.low <= 0 <= found.high
        assert 0 < found.p <= 1 and (found.p < 0.05) == outside


def test_p_is_evenly_spread_where_there_is_no_difference():
    rng = np.random.default_rng(8)
    found = [paired_mean_bootstrap(rng.normal(size=(3, 40)), np.zeros((3, 40)), draws=200).p for _ in range(200)]
    assert np.mean(np.array(found) < 0.1) < 0.15 and 0.3 < np.median(found) < 0.75


def test_holm_by_hand_leaves_out_what_is_no_number():
    # 0.01 × 4, 0.02 × 3, 0.03 × 2, 0.04: each at least as large as the one before
    np.testing.assert_allclose(holm([0.04, 0.01, float("nan"), 0.03, 0.02]), [0.06, 0.04, np.nan, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_trials_of_few_prototypes_are_as_sure_as_those_prototypes():
    rng, covered, repeats = np.random.default_rng(5), 0, 300
    prototypes, patients = np.repeat(np.arange(12), 40), np.tile(np.arange(40), 12)
    for _ in range(repeats):
        values = rng.normal(size=12)[prototypes] + rng.normal(size=40)[patients] + rng.normal(size=480)
        found = bootstrap.crossed_difference(values, np.zeros(480), patients, prototypes)
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / repeats <= 0.99
    one_way = bootstrap.crossed_difference(values, np.zeros(480), patients)
    assert found.high - found.low > 1.3 * (one_way.high - one_way.low)


def test_one_kind_of_unit_with_a_trial_each_is_students_interval():
    values = np.random.default_rng(1).normal(size=20)
    found = bootstrap.crossed_difference(values, np.zeros(20), np.arange(20))
    np.testing.assert_allclose(
        [found.low, found.high], t.interval(0.95, 19, values.mean(), values.std(ddof=1) / 20**0.5)
    )
    assert math.isnan(bootstrap.crossed_difference(values, np.zeros(20), np.zeros(20)).low)  # one unit tells nothing
    with pytest.raises(ValueError, match="needs N values"):
        bootstrap.crossed_difference(values, np.zeros(20), np.arange(19))


def test_studies_without_a_value_are_left_out():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 3, 30))
    known = rng.random(30) < 0.6
    holes = np.where(known, 0, np.nan)
    some, all_known = paired_mean_bootstrap(ours + holes, theirs + holes), (ours[:, known], theirs[:, known])
    assert some == paired_mean_bootstrap(*all_known)
    assert some.mean == pytest.approx((all_known[0] - all_known[1]).mean())


def test_a_ratio_resamples_studies_with_all_their_pairs():
    counts = np.array([1, 0, 4, 2, 1])
    ours, theirs = np.array([[1, 0, 4, 0, 1], [0, 0, 2, 2, 0]]), np.array([[0, 0, 1, 1, 1], [1, 0, 0, 2, 0]])
    result = paired_ratio_bootstrap(ours, theirs, counts, draws=20_000)
    assert result.mean == pytest.approx(((6 - 3) / 8 + (4 - 3) / 8) / 2)
    judged = [0, 2, 3, 4]

    def gain(rows: list[int], s: int) -> float:
        chosen = [judged[row] for row in rows]
        return (ours[s, chosen].sum() - theirs[s, chosen].sum()) / counts[chosen].sum()

    assert_interval(result, enumerated(gain, 4, 2), 4)


def test_clusters_make_the_interval_wider_than_pairs_that_are_taken_for_independent():
    rng = np.random.default_rng(0)
    hit = rng.random(60) < 0.5  # a study's five pairs hit or miss together
    clustered = paired_ratio_bootstrap(5.0 * hit[None], np.zeros((1, 60)), np.full(60, 5))
    flat = np.repeat(hit, 5).astype(float)[None]
    independent = paired_mean_bootstrap(flat, np.zeros_like(flat))
    assert clustered.mean == pytest.approx(independent.mean)
    assert clustered.high - clustered.low == pytest.approx(math.sqrt(5) * (independent.high - independent.low), rel=0.1)


# patients


PATIENTS = np.array(["b", "a", "b", "c", "d", "c"])
OF_PATIENT = [[0, 2], [1], [3, 5], [4]]  # a patient's studies


def drawn(patients: list[int]) -> list[int]:
    """The studies of drawn patients, one after the other."""
    return [study for patient in patients for study in OF_PATIENT[patient]]


def test_patients_are_drawn_with_all_their_studies_as_all_enumerated_resamples_of_patients_do():
    truth = np.array([0, 1, 2, 1, 0, 1])
    ours = np.array([[0, 1, 1, 1, 0, 2], [2, 1, 2, 0, 0, 1]])
    theirs = np.array([[0, 1, 1, 0, 0, 0], [0, 2, 2, 2, 1, 1]])

    def f1(predicted: np.ndarray, rows: list[int]) -> float:
        return f1_by_hand(truth[rows], predicted[rows])

    one = bootstrap_interval(truth, ours, CLASSES, draws=20_000, clusters=PATIENTS)
    assert_interval(one, enumerated(lambda patients, s: f1(ours[s], drawn(patients)), 4, 2), 4)
    assert one.mean == bootstrap_interval(truth, ours, CLASSES, draws=2).mean

    def gain(patients: list[int], s: int) -> float:
        return f1(ours[s], drawn(patients)) - f1(theirs[s], drawn(patients))

    pair = paired_bootstrap(truth, ours, theirs, CLASSES, draws=20_000, clusters=PATIENTS)
    assert_interval(pair, enumerated(gain, 4, 2), 4)
    assert pair != paired_bootstrap(truth, ours, theirs, CLASSES, draws=20_000)


def test_patients_without_anything_to_judge_are_not_drawn_and_the_others_bring_all_they_have():
    counts = np.array([1, 0, 4, 2, 1, 1])
    ours = np.array([[1, 0, 4, 0, 1, 0], [0, 0, 2, 2, 1, 1]])
    theirs = np.array([[0, 0, 1, 1, 0, 1], [1, 0, 0, 2, 1, 0]])
    result = paired_ratio_bootstrap(ours, theirs, counts, draws=20_000, clusters=PATIENTS)

    def gain(patients: list[int], s: int) -> float:
        rows = drawn([(0, 2, 3)[patient] for patient in patients])
        return (ours[s, rows].sum() - theirs[s, rows].sum()) / counts[rows].sum()

    assert_interval(result, enumerated(gain, 3, 2), 3)
    holes = np.where(counts > 0, 0, np.nan)
    of_means = paired_mean_bootstrap(ours + holes, theirs + holes, draws=500, clusters=PATIENTS)
    ones = (counts > 0).astype(float)
    assert of_means == paired_ratio_bootstrap(ours * ones, theirs * ones, ones, draws=500, clusters=PATIENTS)


def test_with_one_study_a_patient_the_numbers_are_those_of_studies_bit_for_bit():
    truth, ours = runs(0)
    theirs, counts = runs(1)[1], np.random.default_rng(5).integers(0, 4, 60)

    def found(names: np.ndarray | None) -> list[Interval]:
        return [
            bootstrap_interval(truth, ours, CLASSES, clusters=names),
            paired_bootstrap(truth, ours, theirs, CLASSES, clusters=names),
            paired_ratio_bootstrap(ours % 2 * counts, theirs % 2 * counts, counts, clusters=names),
        ]

    assert found(np.array([f"p{99 - study}" for study in range(60)])) == found(None)


def test_repeating_each_study_of_a_patient_tells_nothing_new():
    truth, ours = runs(4)
    names = np.repeat(np.arange(60), 5)
    many = bootstrap_interval(truth.repeat(5), ours.repeat(5, axis=1), CLASSES, clusters=names)
    few = bootstrap_interval(truth, ours, CLASSES)
    np.testing.assert_allclose([many.mean, many.low, many.high], [few.mean, few.low, few.high], atol=1e-12)


def test_resamples_in_which_an_auroc_is_undefined_are_left_out():
    """One positive of eight studies is in two resamples of three; a draw without it tells nothing of the AUROC."""
    labels, ours, theirs = np.zeros((1, 8)), np.arange(8.0)[None], np.zeros((1, 8))
    labels[0, 5] = theirs[0, 5] = 1  # they are always right
    difference = bootstrap.paired_auroc_bootstrap(labels, ours, theirs, draws=300)
    assert difference.low <= difference.mean <= difference.high and 0 < difference.p <= 1
    ratio = bootstrap.auroc_ratio_bootstrap(labels, ours, theirs, draws=300)
    assert ratio.low <= ratio.mean <= ratio.high
    nobody = bootstrap.paired_auroc_bootstrap(np.zeros((1, 8)), ours, theirs, draws=300)
    assert all(math.isnan(value) for value in (nobody.mean, nobody.low, nobody.high, nobody.p))


def test_nothing_to_judge_gives_no_number():
    result = paired_ratio_bootstrap(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3))
    assert all(math.isnan(value) for value in (result.mean, result.low, result.high))


def test_shapes_that_do_not_fit_are_refused():
    truth, ours = runs(0)
    with pytest.raises(ValueError, match="one row a seed"):
        paired_bootstrap(truth, ours, ours[:2], CLASSES)
    with pytest.raises(ValueError, match="one row a seed"):
        bootstrap_interval(truth, ours[0], CLASSES)
    with pytest.raises(ValueError, match="one row a seed"):
        paired_ratio_bootstrap(ours, ours, np.ones(5))
    with pytest.raises(ValueError, match="one cluster a study"):
        bootstrap_interval(truth, ours, CLASSES, clusters=np.arange(3))
    holes = ours.astype(float)
    holes[1, 4] = np.nan
    with pytest.raises(ValueError, match="every run"):
        paired_mean_bootstrap(holes, holes)


def test_the_weighted_auroc_is_scikit_learns_ties_included() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 2, (2, 60)), rng.integers(0, 8, (2, 60)).astype(float)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    exact = [
        np.mean([roc_auc_score(y, s, sample_weight=w) for y, s in zip(labels, scores, strict=True)]) for w in weights
    ]
    np.testing.assert_allclose(weighted.auroc(labels, scores, weights), exact)


def test_auroc_differences_and_ratios_hold_what_is_known() -> None:
    rng = np.random.default_rng(4)
    labels = np.tile(np.repeat([0, 1], 100), (3, 1))
    right, chance = labels + 0.1 * rng.random(labels.shape), rng.random(labels.shape)
    same = bootstrap.paired_auroc_bootstrap(labels, right, right)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    better = bootstrap.paired_auroc_bootstrap(labels, right, chance)
    assert better.low > 0.4 and better.low < better.mean < better.high
    assert bootstrap.auroc_ratio_bootstrap(labels, right, right, floor=0.5).mean == 1
    assert abs(bootstrap.auroc_ratio_bootstrap(labels, chance, right, floor=0.5).mean) < 0.15
