"""Serving pinned to live(s) and the trainer compute the same features of an impression, bit for bit."""

import dataclasses

import numpy as np

from serving.replica import Replica
from serving.scorer import Scorer
from stream.features.batch import build_batch, request


def bits(batch) -> dict[str, bytes]:
    """Everything of a batch but labels and positions."""
    out = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray) and field.name not in ("position", "label"):
            out[field.name] = value.tobytes() + str(value.dtype).encode()
    return out | {f"keys/{slot}": keys.tobytes() for slot, keys in batch.keys.items()}


def test_features_pinned_to_live_equal_the_trainers_bit_for_bit(store, trainer, config):
    timeline = config.time.build()
    trainer.open()
    for _ in range(12):
        trainer.learn(new_items=True)
    trainer.skip(30)
    trainer.flush()
    scorer, replica = Scorer(config.model, timeline), Replica(store, config)
    # The trainer's side again, from the same examples: what it reads when it learns the tick.
    from stream.features.counters import LaggedCounters

    lagged = LaggedCounters.build(config.model, timeline)
    compared = 0
    for close, (items, labels) in sorted(trainer.shown.items()):
        shown = close - timeline.attribution_ticks
        live = timeline.live(shown)
        user = int(trainer.state["slot/user/keys"][close % 5])
        asked = request(user=user, time_ms=timeline.start_ms(shown) + 123, history=items[:4], items=items)
        trained = build_batch(asked, lagged.as_shown(close), trainer.catalogue, live, config.model)
        assert replica.advance(live)
        if (view := replica.view()) is not None:
            served = scorer.features(view, asked, live)
            assert bits(served) == bits(trained)
            compared += 1
        lagged.learn(close, items, labels, trainer.catalogue)
    assert compared >= 8


def test_a_replica_one_tick_too_new_is_refused_and_not_scored(store, trainer, config):
    import pytest

    timeline = config.time.build()
    trainer.open()
    for _ in range(3):
        trainer.learn()
    trainer.flush()
    replica = Replica(store, config)
    replica.advance_to_newest()
    items = trainer.state["slot/item/keys"][:3]
    asked = request(user=1, time_ms=timeline.start_ms(trainer.tick), history=items, items=items)
    with pytest.raises(ValueError, match="leak"):
        Scorer(config.model, timeline).score(replica.view(), asked, read_tick=timeline.live(trainer.tick))


def test_ranking_is_by_f_and_ties_keep_the_requests_order(store, trainer, config):
    timeline = config.time.build()
    trainer.open()
    trainer.flush()
    replica = Replica(store, config)
    replica.advance_to_newest()
    items = np.concatenate([np.array([-5, -6, -7]), trainer.state["slot/item/keys"][:5]])  # three unknown ones tie
    now = timeline.end_ms(trainer.tick + 5)
    ranking = Scorer(config.model, timeline).rank(replica.view(), user=3, items=items, history=items[:0], time_ms=now)
    assert np.all(np.diff(ranking.f[ranking.order]) <= 0)
    unknown = [i for i in ranking.order.tolist() if i < 3]
    assert unknown == sorted(unknown)
    assert np.all((ranking.probability >= 0) & (ranking.probability <= 1))


def test_scoring_never_inserts(store, trainer, config):
    trainer.open()
    trainer.flush()
    replica = Replica(store, config)
    replica.advance_to_newest()
    before = replica.model.table_rows
    items = np.arange(-50, 0)
    now = config.time.build().end_ms(trainer.tick + 5)
    Scorer(config.model, config.time.build()).rank(replica.view(), user=-1, items=items, history=items, time_ms=now)
    assert replica.model.table_rows == before
    assert len(replica.view().counters.item) == 0
