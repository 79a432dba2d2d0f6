"""The evaluator's books: hours and days add up, and a restart continues them to the bit."""

import math

import numpy as np
import pytest

from serving.evaluator.ledger import DAY_MS, HOUR_MS, Ledger

ARMS = ("online", "popularity")
FIRST = 18_000 * DAY_MS + 5 * HOUR_MS


def some_ticks(seed, hours):
    """(shown_ms, offsets, labels, f, logit) of a few impressions each, in time order."""
    rng = np.random.default_rng(seed)
    for hour in hours:
        for minute in (1, 30, 59):
            n = int(rng.integers(2, 6))
            offsets = np.arange(0, 5 * n + 1, 5, dtype=np.int64)
            labels = (rng.random(5 * n) < 0.3).astype(np.uint8)
            f = rng.normal(-1, 1, (2, 5 * n)).astype(np.float32)
            yield FIRST + hour * HOUR_MS + minute * 60_000, offsets, labels, f, f - np.float32(0.1)


def filled(ticks):
    ledger = Ledger(ARMS, first_ms=FIRST)
    for tick in ticks:
        ledger.add(*tick)
    return ledger


def test_days_and_the_whole_are_the_sums_of_their_hours():
    report = filled(some_ticks(1, [0, 1, 2, 18, 19, 30, 45])).report()["online"]
    assert [e["start_ms"] for e in report["by_day"]] == [18_000 * DAY_MS, 18_001 * DAY_MS, 18_002 * DAY_MS]
    for name in ("impressions", "ranked", "shown_items", "clicks"):
        assert report[name] == sum(e[name] for e in report["by_day"]) == sum(e[name] for e in report["by_hour"])
    weights = [e["ranked"] for e in report["by_hour"]]
    mean = np.average([e["auc_impression"] for e in report["by_hour"]], weights=weights)
    assert report["auc_impression"] == pytest.approx(mean)


def test_later_leaves_out_the_first_day():
    ticks = list(some_ticks(2, [0, 3, 20, 22, 44]))
    whole = filled(ticks).report()["popularity"]
    rest = Ledger(ARMS, first_ms=FIRST)
    for tick in ticks[6:]:
        rest.add(*tick)
    want = rest.report()["popularity"]
    for name in ("auc_impression", "auc", "log_loss", "ne", "calibration", "clicks"):
        assert whole["later"][name] == pytest.approx(want[name])


def test_pooled_auc_of_a_day_pools_its_hours():
    ticks = list(some_ticks(3, [0, 1, 2]))
    report = filled(ticks).report()["online"]
    f = np.concatenate([t[3][0] for t in ticks])
    y = np.concatenate([t[2] for t in ticks]).astype(bool)
    exact = (f[y][:, None] > f[~y][None, :]).mean()
    assert report["auc"] == report["by_day"][0]["auc"] == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 12, 20])
def test_saved_and_restored_books_continue_to_the_same_bits(cut):
    ticks = list(some_ticks(4, [0, 1, 2, 18, 19, 30, 45]))
    ledger = filled(ticks[:cut])
    saved = ledger.save()
    for tick in ticks[cut:]:
        ledger.add(*tick)  # must not reach what was saved
    again = Ledger.restore(ARMS, saved)
    for tick in ticks[cut:]:
        again.add(*tick)
    np.testing.assert_equal(again.report(), ledger.report())
    assert {k: v.tobytes() for k, v in again.save().items()} == {k: v.tobytes() for k, v in ledger.save().items()}


def test_hours_backwards_are_refused():
    ledger = filled(some_ticks(5, [3]))
    with pytest.raises(ValueError, match="closed"):
        ledger.add(*next(some_ticks(5, [1])))


def test_empty_books_report_nothing_but_say_so():
    report = Ledger(ARMS, first_ms=FIRST).report()["online"]
    assert report["by_day"] == report["by_hour"] == []
    assert report["impressions"] == 0
    assert math.isnan(report["auc_impression"])
