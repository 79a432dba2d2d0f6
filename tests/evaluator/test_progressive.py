"""The evaluator's rule on a toy log where a leak shows, with the leaky evaluators that it must catch."""

from types import SimpleNamespace

import numpy as np
import pytest

from infra.config import TimeConfig, TrainConfig
from infra.errors import CorruptStateError
from infra.paramstore.version import VersionId
from serving.evaluator.arms import ArmScores
from serving.evaluator.progressive import Evaluation
from stream.columns import Lists
from stream.examples import EMPTY, ExampleColumns
from stream.ticks_in import TickExamples

TIMELINE = TimeConfig().build()
A, K = TIMELINE.attribution_ticks, TIMELINE.publish_ticks
FIRST = 26_220_000
ITEMS = 12
BLOCK = (
    A + 1
)  # a hot item stays hot this long: what tick s closes (shown s - a) tells what is clicked in s, live(s) does not


HOT = np.random.default_rng(5).integers(ITEMS, size=1_000)


def hot_item(shown_tick):
    return int(HOT[shown_tick // BLOCK % len(HOT)])


def examples_of(shown_tick, users=4):
    items = np.tile(np.arange(ITEMS), users)
    labels = (items == hot_item(shown_tick)).astype(np.uint8)
    offsets = np.arange(0, ITEMS * users + 1, ITEMS, dtype=np.int64)
    shown = np.full(users, TIMELINE.start_ms(shown_tick) + 500, np.int64)
    ids = np.arange(users, dtype=np.int64) + shown_tick * users
    return ExampleColumns(
        ids, ids, shown, ids, np.arange(users, dtype=np.int32), shown + 20_000, Lists.empty(users),
        Lists(offsets, items), Lists(offsets, labels),
    )  # fmt: skip


def toy_log(ticks=240):
    """Ticks with examples, and now and then a stretch without."""
    for tick in range(FIRST, FIRST + ticks):
        examples = EMPTY if tick % 50 == 7 else examples_of(tick - A)
        yield TickExamples(
            tick=tick, examples=examples, positions={0: tick - FIRST + 1, 1: tick - FIRST + 1},
            end=tick == FIRST + ticks - 1, watermark_ms=TIMELINE.end_ms(tick), events_in=0,
        )  # fmt: skip


class ToyReplica:
    """Version v knows which item was hot among the impressions that closed in v."""

    def __init__(self, first_version=FIRST + 10):
        self.first_version = first_version
        self.through = -1
        self.asked = []

    def advance(self, max_tick, *, timeout_s=0.0):
        self.asked.append(max_tick)
        self.through = max(self.through, max_tick)
        return True

    def view(self):
        if self.through < self.first_version:
            return None
        return SimpleNamespace(version=VersionId(0, self.through), hot=hot_item(self.through - A))


class ToyArms:
    """`online` ranks what was hot first; `blind` knows nothing."""

    names = ("online", "blind")

    def score(self, view, examples, live):
        items = examples.items.values
        f = np.zeros((2, len(items)), np.float32)
        f[0] = items == view.hot
        return ArmScores(f, f - np.float32(2))


def auc(evaluation, arm="online"):
    return evaluation.report()["arms"][arm]["auc_impression"]


def run(kind=Evaluation, replica=None, ticks=None):
    evaluation = kind(replica or ToyReplica(), ToyArms(), TIMELINE, TrainConfig())
    for tick in ticks or toy_log():
        assert evaluation.take(tick)
    return evaluation


class OneTickTooNew(Evaluation):
    """Planted: the delta of tick s, in which the impressions were shown, is applied before they are scored."""

    def _bound(self, close_tick):
        return close_tick - self._timeline.attribution_ticks


class OneTickTooNewUnchecked(OneTickTooNew):
    """The same, by someone who also took the guard out."""

    def _refuse_to_leak(self, close_tick):
        pass


def test_scores_come_from_exactly_the_versions_through_live():
    replica = ToyReplica()
    run(replica=replica)
    assert replica.asked == [t.tick - A - 1 - K for t in toy_log() if len(t.examples)]


def test_honest_evaluation_finds_nothing_to_know_on_the_toy_log():
    assert auc(run()) == pytest.approx(0.5, abs=0.05)


def test_delta_of_the_shown_tick_applied_before_scoring_is_refused():
    with pytest.raises(CorruptStateError, match="scored by versions through"):
        run(OneTickTooNew)


def test_the_leak_would_have_shown_in_the_figures():
    """So the toy log is one where it matters: an unchecked leak reads labels it could not have."""
    assert auc(run(OneTickTooNewUnchecked)) > auc(run()) + 0.1


def test_a_replica_that_ran_ahead_by_itself_is_refused():
    class Eager(ToyReplica):
        def advance(self, max_tick, *, timeout_s=0.0):
            return super().advance(max_tick + 1)

    with pytest.raises(CorruptStateError):
        run(replica=Eager())


def test_all_arms_score_the_same_impressions_from_the_first_version_on():
    evaluation = run()
    report = evaluation.report()
    ticks = [t for t in toy_log() if len(t.examples)]
    unserved = [t for t in ticks if t.tick - A - 1 - K < FIRST + 10]
    assert report["impressions"] == 4 * len(ticks)
    assert report["before_first_version"] == 4 * len(unserved)
    assert {arm["impressions"] for arm in report["arms"].values()} == {4 * (len(ticks) - len(unserved))}
    assert report["first_version"] == (0, FIRST + 10)


def test_hours_are_those_in_which_impressions_were_shown():
    by_hour = run().report()["arms"]["online"]["by_hour"]
    assert by_hour[0]["start_ms"] == TIMELINE.start_ms(FIRST + 10 + 1 + K) // 3_600_000 * 3_600_000
    assert sum(h["impressions"] for h in by_hour) == run().report()["arms"]["online"]["impressions"]


@pytest.mark.parametrize("kill_after", [1, 12, 13, 60, 100, 239])
@pytest.mark.parametrize("saved_before", [0, 1, 9])
def test_killed_evaluator_ends_with_the_same_bits(kill_after, saved_before):
    ticks = list(toy_log())
    whole = run()
    first = Evaluation(ToyReplica(), ToyArms(), TIMELINE, TrainConfig())
    keep = max(kill_after - saved_before, 0)
    saved = first.save()
    for n, tick in enumerate(ticks[:kill_after], start=1):
        first.take(tick)  # those after `keep` are counted, and lost with the process
        if n == keep:
            saved = first.save()
    again = Evaluation(ToyReplica(), ToyArms(), TIMELINE, TrainConfig())
    again.restore(saved)
    for tick in ticks:
        if tick.tick > again.tick:
            again.take(tick)
    np.testing.assert_equal(again.report(), whole.report())
    assert {k: v.tobytes() for k, v in again.save().items()} == {k: v.tobytes() for k, v in whole.save().items()}


def test_stopped_while_waiting_for_the_trainer_counts_nothing():
    class Stuck(ToyReplica):
        def advance(self, max_tick, *, timeout_s=0.0):
            return False

    evaluation = Evaluation(Stuck(), ToyArms(), TIMELINE, TrainConfig())
    tick = next(iter(toy_log()))
    assert not evaluation.take(tick, stop=lambda: True)
    assert evaluation.impressions == 0
    assert evaluation.positions == {}


def test_label_wait_runs_from_the_engagement_to_the_close_of_its_tick():
    wait = run().report()["label_wait_s"]
    closed_after_shown_s = (A + 1) * 60 - 0.5 + TIMELINE.disorder_bound_ms / 1000
    assert wait["p50"] == pytest.approx(closed_after_shown_s - 20, abs=0.1)
    assert wait["p99"] == pytest.approx(wait["p50"])
    assert sum(wait["counts"]) == run().impressions
    assert len(wait["edges"]) == len(wait["counts"]) + 1


def test_nothing_seen_reports_nothing():
    report = Evaluation(ToyReplica(), ToyArms(), TIMELINE, TrainConfig()).report()
    assert report["arms"] == {}
    assert report["label_wait_s"]["p50"] is None
