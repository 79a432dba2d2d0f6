"""Negative sampling: which rows are kept, and that the correction makes the sample speak for the whole."""

import math

import numpy as np
import pytest

from stream.sampling import KEEP_ALL, Sampling


def rows(n, click_rate, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-(2**62), 2**62, n), rng.integers(-(2**62), 2**62, n), rng.random(n) < click_rate


def test_every_click_is_kept_and_the_share_of_others_is_the_rate():
    impressions, items, clicked = rows(200_000, 0.05)
    kept = Sampling(0.3, seed=1).keep(impressions, items, clicked)
    assert kept[clicked].all()
    n = (~clicked).sum()
    assert abs(kept[~clicked].mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / n)


def test_a_row_is_kept_by_what_it_is_and_not_by_where_it_stands():
    impressions, items, clicked = rows(5_000, 0.05)
    order = np.random.default_rng(1).permutation(5_000)
    sampling = Sampling(0.5, seed=9)
    assert np.array_equal(
        sampling.keep(impressions, items, clicked)[order],
        sampling.keep(impressions[order], items[order], clicked[order]),
    )
    assert (
        Sampling(0.5, seed=10).keep(impressions, items, clicked) != sampling.keep(impressions, items, clicked)
    ).any()


def test_neighbouring_ids_are_kept_independently():
    n = 400
    impressions, items = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    kept = Sampling(0.5).keep(impressions, items, np.zeros(n * n, np.bool_)).reshape(n, n)
    z = 6 * 0.5 / math.sqrt(n)
    assert np.abs(kept.mean(0) - 0.5).max() < z
    assert np.abs(kept.mean(1) - 0.5).max() < z


def fitted(clicked, offset):
    """Maximum-likelihood intercept f of P(click) = sigmoid(f + offset)."""
    rate = clicked.mean()
    return math.log(rate / (1 - rate)) - offset


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_what_is_fitted_to_the_sample_with_the_offset_is_calibrated_on_the_whole(rate):
    impressions, items, clicked = rows(400_000, 0.04)
    sampling = Sampling(rate, seed=3)
    kept = sampling.keep(impressions, items, clicked)
    f = fitted(clicked[kept], sampling.offset)
    assert 1 / (1 + math.exp(-f)) == pytest.approx(clicked.mean(), rel=0.03)


@pytest.mark.parametrize("wrong", [0.0, math.log(0.1)])
def test_no_correction_or_one_of_the_wrong_sign_is_caught(wrong):
    impressions, items, clicked = rows(400_000, 0.04)
    kept = Sampling(0.1, seed=3).keep(impressions, items, clicked)
    f = fitted(clicked[kept], wrong)
    assert 1 / (1 + math.exp(-f)) != pytest.approx(clicked.mean(), rel=0.5)


def test_sums_over_the_sample_weighted_by_one_over_the_rate_are_unbiased():
    impressions, items, clicked = rows(2_000, 0.0)
    x = np.random.default_rng(2).normal(size=2_000)
    sums = [(x * Sampling(0.25, seed=s).keep(impressions, items, clicked)).sum() / 0.25 for s in range(400)]
    error = np.std(sums) / math.sqrt(len(sums))
    assert abs(np.mean(sums) - x.sum()) < 4 * error


def test_the_default_keeps_all_and_corrects_nothing():
    impressions, items, clicked = rows(1_000, 0.1)
    assert KEEP_ALL.keep(impressions, items, clicked).all()
    assert KEEP_ALL.offset == 0.0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        Sampling(rate)
