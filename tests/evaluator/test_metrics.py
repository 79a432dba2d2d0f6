"""Metrics against plain references, on random impressions with ties, one-class impressions and unscored rows."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.evaluator import metrics as m
from stream.outcomes import LEFT_OUT, outcome_of_bits

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def official_auc(y, s):
    pairs = [(a, b) for a, ya in zip(s, y, strict=True) if ya for b, yb in zip(s, y, strict=True) if not yb]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


def official_mrr(ranked):
    return sum(y / (i + 1) for i, y in enumerate(ranked)) / sum(ranked)


def official_ndcg(ranked, k):
    def dcg(labels):
        return sum((2**y - 1) / math.log2(i + 2) for i, y in enumerate(labels[:k]))

    return dcg(ranked) / dcg(sorted(ranked, reverse=True))


def orders(y, s):
    """All orders, best first, that an unstable sort may give."""
    groups = [[y[i] for i in range(len(s)) if s[i] == value] for value in sorted(set(s), reverse=True)]
    for parts in itertools.product(*(list(itertools.permutations(g)) for g in groups)):
        yield [label for part in parts for label in part]


def mean_over_orders(metric, y, s):
    values = [metric(order) for order in orders(y, s)]
    return sum(values) / len(values)


def add(impressions, scores, logits=None):
    """Sums and histogram of one arm; `impressions` are label lists, `scores` one list each."""
    offsets = np.cumsum([0] + [len(y) for y in impressions]).astype(np.int64)
    labels = np.array([v for y in impressions for v in y], np.uint8)
    f = np.array([[v for s in scores for v in s]], np.float32)
    logit = f if logits is None else np.array([[v for s in logits for v in s]], np.float32)
    sums = np.zeros((1, m.COLUMNS))
    histogram = np.zeros((1, 2, m.BINS), np.int64)
    m.add_scores(offsets, labels, f, logit, sums, histogram)
    return sums[0], histogram[0]


impression = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=6)


@SETTINGS
@given(st.lists(impression, min_size=1, max_size=6))
def test_ranking_sums_equal_the_official_metrics_averaged_over_tie_orders(data):
    labels = [[y for y, _ in rows] for rows in data]
    scores = [[s / 2 for _, s in rows] for rows in data]
    sums, _ = add(labels, scores)
    mixed = [(y, s) for y, s in zip(labels, scores, strict=True) if 0 < sum(y) < len(y)]
    assert sums[m.RANKED] == len(mixed)
    assert sums[m.IMPRESSIONS] == len(data)
    assert sums[m.AUC] == pytest.approx(sum(official_auc(y, s) for y, s in mixed))
    assert sums[m.MRR] == pytest.approx(sum(mean_over_orders(official_mrr, y, s) for y, s in mixed))
    for column, k in ((m.NDCG5, 5), (m.NDCG10, 10)):
        want = sum(mean_over_orders(lambda order, k=k: official_ndcg(order, k), y, s) for y, s in mixed)
        assert sums[column] == pytest.approx(want)


outcomes = st.lists(st.tuples(st.sampled_from([0, 1, LEFT_OUT]), st.integers(-3, 3)), min_size=1, max_size=6)


@SETTINGS
@given(st.lists(outcomes, min_size=1, max_size=6))
def test_shown_items_that_are_left_out_are_as_if_they_had_not_been_shown(data):
    kept = [[row for row in rows if row[0] != LEFT_OUT] for rows in data]
    with_them, without = (
        add([[y for y, _ in rows] for rows in log], [[s / 2 for _, s in rows] for rows in log]) for log in (data, kept)
    )
    assert with_them[0] == pytest.approx(without[0])
    assert np.array_equal(with_them[1], without[1])


@SETTINGS
@given(st.integers(0, 2**32 - 1))
def test_long_impressions_without_ties_equal_the_official_metrics(seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(60) < 0.2).astype(int).tolist()
    y[0], y[1] = 0, 1
    s = rng.permutation(60).astype(float).tolist()
    sums, _ = add([y], [s])
    ranked = [label for _, label in sorted(zip(s, y, strict=True), reverse=True)]
    assert sums[m.AUC] == pytest.approx(official_auc(y, s))
    assert sums[m.MRR] == pytest.approx(official_mrr(ranked))
    assert sums[m.NDCG5] == pytest.approx(official_ndcg(ranked, 5))
    assert sums[m.NDCG10] == pytest.approx(official_ndcg(ranked, 10))


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(-80, 80, width=32)), min_size=2, max_size=40),
)
def test_probability_figures_equal_their_definitions(rows):
    y = [label for label, _ in rows]
    z = [logit for _, logit in rows]
    sums, _ = add([y], [[0.0] * len(z)], [z])
    p = [1 / (1 + math.exp(-v)) for v in z]
    loss = sum(math.log1p(math.exp(-v)) if label else math.log1p(math.exp(v)) for label, v in rows) / len(y)
    got = m.figures(sums, 0.5)
    assert got.log_loss == pytest.approx(loss, rel=1e-9, abs=1e-12)
    if 0 < sum(y) < len(y):
        rate = sum(y) / len(y)
        assert got.calibration == pytest.approx(sum(p) / sum(y), rel=1e-9)
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert got.ne == pytest.approx(loss / entropy, rel=1e-9, abs=1e-12)


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-40, 40)), min_size=2, max_size=60))
def test_pooled_auc_is_exact_where_scores_are_bins_apart(rows):
    y = [label for label, _ in rows]
    s = [value / 4 for _, value in rows]
    _, histogram = add([[label] for label in y], [[value] for value in s])
    got = m.pooled_auc(histogram)
    if 0 < sum(y) < len(y):
        assert got == pytest.approx(official_auc(y, s))
    else:
        assert math.isnan(got)


def test_pooled_auc_of_continuous_scores_is_within_a_bin_of_exact():
    rng = np.random.default_rng(7)
    y = (rng.random(1500) < 0.1).astype(int).tolist()
    s = (rng.normal(-3, 0.7, 1500) + 0.8 * np.array(y)).tolist()
    _, histogram = add([y], [s])
    assert m.pooled_auc(histogram) == pytest.approx(official_auc(y, s), abs=2e-4)


@SETTINGS
@given(st.lists(impression, min_size=2, max_size=6), st.data())
def test_sums_add_up_whatever_the_cut(data, draw):
    labels = [[y for y, _ in rows] for rows in data]
    scores = [[float(s) for _, s in rows] for rows in data]
    cut = draw.draw(st.integers(0, len(data)))
    whole, whole_histogram = add(labels, scores)
    a, b = add(labels[:cut], scores[:cut]), add(labels[cut:], scores[cut:])
    np.testing.assert_allclose(a[0] + b[0], whole)
    np.testing.assert_array_equal(a[1] + b[1], whole_histogram)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_impression_with_a_score_that_is_not_finite_is_left_out_and_counted(bad):
    sums, histogram = add([[0, 1], [1, 0]], [[bad, 0.0], [1.0, 0.0]])
    assert sums[m.UNSCORED] == 1
    assert sums[m.IMPRESSIONS] == 1
    assert sums[m.ROWS] == 2
    assert sums[m.AUC] == 1.0
    assert histogram.sum() == 2


@pytest.mark.parametrize(("others", "auc"), [("left-out", 1.0), ("negative", 0.5)])
def test_an_item_that_was_only_liked_is_no_click_and_no_miss_unless_told_otherwise(others, auc):
    bits = np.array([[2, 3, 0]], np.uint8)  # liked, clicked and liked, passed over
    sums, _ = add(outcome_of_bits(("click",), others)[bits].tolist(), [[5.0, 1.0, 0.0]])
    assert sums[m.CLICKS] == 1
    assert sums[m.AUC] == pytest.approx(auc)


def test_constant_scores_earn_nothing_from_shown_order():
    """The planted mistake: ties broken by shown position would read the position effect as skill."""
    first_clicked = [[1, 0, 0, 0]] * 50
    sums, _ = add(first_clicked, [[0.0] * 4] * 50)
    assert sums[m.AUC] / sums[m.RANKED] == 0.5
    assert sums[m.MRR] / sums[m.RANKED] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_empty_scope_has_no_figures():
    assert all(math.isnan(v) for v in m.figures(np.zeros(m.COLUMNS), math.nan))
