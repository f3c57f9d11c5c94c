"""Comparisons of estimators on hand-made runs with known answers: ties, outliers, diverged seeds, unequal seeds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fake_runs import make_config, write_run

from analysis.records import load
from analysis.statistics.comparisons import (
    across_tasks,
    holm,
    interquartile_mean,
    normalised,
    pairs,
    probability_of_improvement,
    sign_flip_p,
    smallest_p,
    verdict,
)
from analysis.statistics.summary import final_rows, select

INF = float("inf")


def chosen_of(tmp_path, tests, task="vae_bernoulli"):
    """``tests`` maps an estimator to its negative bounds by seed; ``None`` diverged, ``"failed"`` failed."""
    for estimator, values in tests.items():
        for seed, value in enumerate(values):
            status = {None: "diverged", "failed": "failed"}.get(value, "finished")
            bound = -value if status == "finished" else 0.0
            write_run(tmp_path, make_config(estimator, task, seed=seed), test=bound, valid=bound, status=status)
    return select(final_rows(load(tmp_path)))


def test_sign_flips_by_hand():
    # Of the 8 flips of (1, 2, 3) two have a mean as far from zero as (1, 2, 3) itself: p = 2 / 8.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 0.25 == smallest_p(3)
    # (-1, 2, 3): sums 4, -4, and of the others 6, -6: 4 / 8
    assert sign_flip_p([-1.0, 2.0, 3.0]) == 0.5
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0] * 6) == 2 / 64
    assert sign_flip_p([5.0]) == 1.0 and np.isnan(sign_flip_p([]))
    assert [smallest_p(n) for n in (1, 2, 5, 6)] == [1.0, 0.5, 0.0625, 0.03125]


@pytest.mark.parametrize("n", [4, 7])
def test_sign_flips_are_all_of_them(n):
    sample = np.random.default_rng(n).normal(0.4, 1.0, n)
    means = [abs(np.mean(sample * signs)) for signs in product((1, -1), repeat=n)]
    assert sign_flip_p(sample) == np.mean(np.array(means) >= abs(sample.mean()) - 1e-12)


def test_many_pairs_are_flipped_at_random_and_the_same_each_time():
    sample = np.random.default_rng(0).normal(0.3, 1.0, 25)
    p = sign_flip_p(sample)
    half = 4 * np.sqrt(p * (1 - p) / 2**14)
    draws = np.random.default_rng(1).choice([1.0, -1.0], (40_000, 25)) * sample
    assert abs(p - (np.abs(draws.mean(axis=1)) >= abs(sample.mean())).mean()) < 2 * half
    assert p == sign_flip_p(sample)


def test_the_level_of_the_test_holds():
    """Of differences around zero at most 5 % come out below .05: 3 standard errors above at 1000 repeats are .071."""
    noise = np.random.default_rng(3)
    p = [sign_flip_p(noise.standard_t(3, 8)) for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.05) < 0.071


def test_holm_by_hand():
    # sorted .01, .02, .03, .5 times 4, 3, 2, 1: .04, .06, .06, .5
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.4, 0.9]), [0.8, 0.9])
    assert holm([]).size == 0


def test_probability_of_improvement_by_hand():
    p, low, high = probability_of_improvement([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (p, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 3))  # three wins of three have probability low^3 = 2.5 %
    assert probability_of_improvement([1.0, 5.0, 3.0, 4.0], [2.0, 3.0, 3.0, INF])[0] == 2.5 / 4
    assert probability_of_improvement([INF], [INF])[0] == 0.5 and probability_of_improvement([INF], [1.0])[0] == 0.0
    p, low, high = probability_of_improvement([1.0] * 5, [1.0] * 5)
    assert (p, low, high) == (0.5, 0.0, 1.0)
    assert np.isnan(probability_of_improvement([], [])).all()


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_coverage_of_the_probability(n):
    """At least 95 % for every p, since Clopper's and Pearson's interval is exact; ties only widen it."""
    noise = np.random.default_rng(n)
    x, y = noise.normal(0.0, 1.0, (400, n)), noise.normal(0.5, 1.0, (400, n))
    true = 0.6381631950841185  # Phi(0.5 / sqrt(2))
    covered = [low <= true <= high for _, low, high in map(probability_of_improvement, x, y)]
    assert np.mean(covered) > 0.95 - 4 * np.sqrt(0.05 * 0.95 / 400)


def test_pairs_are_paired_by_seed(tmp_path):
    # Seeds differ by tens of nats and the estimators by one: unpaired nobody could tell.
    chosen = chosen_of(tmp_path, {"nvil": [100.0, 130.0, 160.0], "rloo": [99.0, 129.2, 158.8]})
    (row,) = pairs(chosen).to_dict("records")
    assert (row["estimator"], row["other"], row["n"], row["unpaired"], row["family"]) == ("rloo", "nvil", 3, 0, 1)
    assert row["difference"] == pytest.approx(-1.0)
    assert row["high"] - row["difference"] == pytest.approx(4.302653 * 0.2 / 3**0.5, abs=1e-5)
    assert (row["p"], row["p_holm"], row["smallest_p"], row["probability"]) == (0.25, 0.25, 0.25, 1.0)


def test_an_outlier_seed_takes_the_mean_along_but_not_the_probability(tmp_path):
    chosen = chosen_of(tmp_path, {"nvil": [100.0] * 6, "rloo": [99.0] * 5 + [160.0]})
    (row,) = pairs(chosen).to_dict("records")
    assert (row["estimator"], row["probability"]) == ("nvil", 1 / 6)
    assert row["difference"] == pytest.approx(-55 / 6) and row["low"] < 0 < row["high"] and row["p"] > 0.5


def test_lost_seeds_are_counted_and_a_diverged_run_loses(tmp_path):
    chosen = chosen_of(tmp_path, {"nvil": [100.0, None, 100.0, "failed"], "rloo": [101.0, 101.0, 101.0, 101.0, 101.0]})
    (row,) = pairs(chosen).to_dict("records")
    assert (row["estimator"], row["n"], row["unpaired"], row["difference"]) == ("nvil", 2, 3, -1.0)
    assert (row["probability_n"], row["probability"]) == (3, 2 / 3)


def test_an_estimator_that_always_diverges_loses_every_seed(tmp_path):
    chosen = chosen_of(tmp_path, {"nvil": [None, None], "rloo": [101.0, 101.0], "muprop": [100.0, 100.0]})
    table = pairs(chosen).set_index(["estimator", "other"])
    assert table.loc[("muprop", "rloo"), ["family", "p", "smallest_p_holm"]].tolist() == [1, 0.5, 0.5]
    lost = table.loc[("nvil", "rloo")]
    assert (lost["n"], lost["probability"], lost["probability_n"]) == (0, 0.0, 2) and np.isnan(lost["p_holm"])


def test_ties(tmp_path):
    (row,) = pairs(chosen_of(tmp_path, {"nvil": [1.0, 2.0], "rloo": [1.0, 2.0]})).to_dict("records")
    assert (row["difference"], row["p"], row["probability"]) == (0.0, 1.0, 0.5)


def test_too_few_seeds_are_said_to_be_too_few(tmp_path):
    tests = {name: [100.0 + 10 * place + seed for seed in range(3)] for place, name in enumerate(("a", "b", "c"))}
    compared = pairs(chosen_of(tmp_path, tests))
    assert compared["p_holm"].tolist() == [0.75] * 3
    (sentence,) = verdict(compared)
    assert "0 of 3 pairs" in sentence and "none can with 3 shared seeds" in sentence
    assert "the smallest p is 0.25, and 0.75 after the correction for 3 pairs; it takes 7 seeds" in sentence
    more = {name: [100.0 + 10 * place + seed for seed in range(7)] for place, name in enumerate(("a", "b", "c"))}
    (sentence,) = verdict(pairs(chosen_of(tmp_path / "more", more)))
    assert "3 of 3 pairs" in sentence and "none can" not in sentence


def test_interquartile_mean_by_hand():
    # The middle half of 1 ... 8 is 3, 4, 5, 6; an outlier in the upper quarter does not move it.
    assert interquartile_mean([np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])])[0] == 4.5
    assert interquartile_mean([np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 800])])[0] == 4.5
    assert interquartile_mean([np.array([1.0, 1]), np.array([1.0, 1])])[1:] == (1.0, 1.0)
    assert np.isnan(interquartile_mean([np.array([1.0]), np.array([1.0, 2])])[1:]).all()


def test_interquartile_mean_interval_is_too_narrow_for_few_seeds_and_near_its_level_for_many():
    """Four tasks of normal scores: the shares stand in the docstring's sense, .95 is reached only with many seeds."""
    noise, shares = np.random.default_rng(0), {}
    for n in (3, 30):
        ends = [interquartile_mean(list(noise.normal(0.0, 1.0, (4, n))))[1:] for _ in range(120)]
        shares[n] = np.mean([low <= 0.0 <= high for low, high in ends])
    assert shares[3] < shares[30] and 0.70 < shares[3] < 0.97 and shares[30] > 0.87


def test_across_tasks_by_hand(tmp_path):
    chosen_of(tmp_path, {"nvil": [110.0, 110.0], "rloo": [100.0, 100.0], "muprop": [105.0, None]})
    chosen = chosen_of(
        tmp_path, {"nvil": [60.0, 60.0], "rloo": [70.0, 70.0], "muprop": [61.0, 61.0], "darn": [0.0]}, "sbn_bernoulli"
    )
    table = across_tasks(chosen).set_index("estimator")
    # muprop is halfway on one task (its finished seed) and at a tenth on the other: of .5, .1, .1 nothing is trimmed
    assert table["iqm"].to_dict() == pytest.approx({"nvil": 0.5, "rloo": 0.5, "muprop": 0.7 / 3})
    assert table["diverged"].to_dict() == {"nvil": 0, "rloo": 0, "muprop": 1}
    assert across_tasks(chosen).attrs["left_out"] == ["darn"]
    nats = across_tasks(chosen, reference="rloo").set_index("estimator")["iqm"]
    assert nats.to_dict() == pytest.approx({"rloo": 0.0, "nvil": 0.0, "muprop": (5 - 9 - 9) / 3})
    with pytest.raises(ValueError, match="'darn'"):
        normalised(chosen, reference="darn")
    assert across_tasks(chosen[chosen["task"] == "sbn_bernoulli"]).empty


def test_nothing_to_compare(tmp_path):
    chosen = chosen_of(tmp_path, {"nvil": [1.0, 2.0]})
    assert pairs(chosen).empty and verdict(pairs(chosen)) == []
    assert across_tasks(chosen).empty
    lost = chosen_of(tmp_path / "lost", {"nvil": [None], "rloo": [None]})
    assert across_tasks(lost).empty and pairs(lost)["probability"].tolist() == [0.5]
