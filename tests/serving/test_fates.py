"""What a post is told of its events is what the join makes of them."""

import random
from collections import Counter

import msgspec
import numpy as np
import pytest

from infra.ticks import Timeline
from serving.fates import Expected, Fates
from serving.requests import PostedEvents, parse_events
from stream.events import EventColumns, heartbeats
from stream.examples import DropReason
from stream.join.core import JoinSettings, PartitionJoiner
from tests.serving.conftest import toy_config
from tests.serving.test_api_http import client, serving, wired  # noqa: F401

T0 = 1_600_000_000_000
PARTITIONS = 2
DROPS = (
    DropReason.FUTURE,
    DropReason.LATE_IMPRESSION,
    DropReason.DUPLICATE_IMPRESSION,
    DropReason.LATE,
    DropReason.DUPLICATE_ENGAGEMENT,
    DropReason.UNKNOWN_ITEM,
)


def post(*events: dict[str, object]) -> PostedEvents:
    return parse_events(msgspec.json.encode({"events": list(events)}), toy_config().wire)


def some_events(rng: random.Random, now_ms: int) -> list[dict[str, object]]:
    """Impressions and engagements of few ids and times around now, many of them wrong."""
    events: list[dict[str, object]] = []
    for _ in range(rng.randint(1, 4)):
        name, user = f"i{rng.randrange(12)}", f"U{rng.randrange(3)}"
        time = {"time_ms": now_ms + rng.randint(-200_000, 30_000)} if rng.random() < 0.4 else {}
        if rng.random() < 0.5:
            events.append({"type": "impression", "id": name, "user": user, "items": ["N1", "N2"], **time})
        else:
            what = {"item": rng.choice(["N1", "N2", "N3"]), "kind": rng.choice(["click", "like"])}
            events.append({"type": "engagement", "impression": name, "user": user, **what, **time})
    return events


@pytest.mark.parametrize("seed", range(4))
def test_a_post_is_told_the_drops_that_the_join_then_makes(seed):
    rng, config = random.Random(seed), toy_config()
    timeline: Timeline = config.time.build()
    settings = JoinSettings(timeline, 60_000, 64)
    joiners = [PartitionJoiner(p, settings) for p in range(PARTITIONS)]
    fates, told, offset = Fates(timeline, 60_000), Counter[object](), 0

    def write(rows: dict[int, EventColumns]) -> None:
        nonlocal offset
        for partition, columns in rows.items():
            joiners[partition].push(offset, columns)
        offset += 1

    def beat(at_ms: int) -> None:
        write({p: heartbeats(np.array([at_ms], dtype=np.int64)) for p in range(PARTITIONS)})
        fates.heartbeat(at_ms)

    now_ms = T0
    for _ in range(900):
        now_ms += rng.randint(0, 20_000)
        if rng.random() < 0.3:
            beat(now_ms)
        posted = post(*some_events(rng, now_ms))
        write(posted.stamped(PARTITIONS, now_ms))
        told.update(fates.of(posted.rows_at(now_ms), posted.homes(PARTITIONS), now_ms))
    beat(now_ms + 3_600_000)
    made = sum((Counter(joiner.counts()) for joiner in joiners), Counter[str]())
    assert all(made[reason] > 0 for reason in DROPS), f"a kind was hardly tried: {made}"
    for reason in (DropReason.FUTURE, DropReason.LATE_IMPRESSION):
        assert told[reason] == made[reason], f"seed {seed}: {reason}"
    # The join may still know an id by a watermark that stands lower than the server can be certain of.
    unsaid = made[DropReason.DUPLICATE_IMPRESSION] - told[DropReason.DUPLICATE_IMPRESSION]
    assert 0 <= unsaid <= 0.05 * made[DropReason.DUPLICATE_IMPRESSION]
    # An engagement may wait for an impression that is posted later: what it was told then is "unknown".
    late = (DropReason.LATE, DropReason.UNKNOWN_ITEM, DropReason.DUPLICATE_ENGAGEMENT)
    dropped = sum(made[reason] for reason in late) + made[DropReason.ORPHAN]
    certain = sum(told[reason] for reason in late)
    assert 0.3 * dropped < certain <= dropped <= certain + told[Expected.UNKNOWN] + unsaid
    assert made["orphan"] > 5


def test_what_a_server_remembers_is_bounded_and_what_it_forgot_it_calls_unknown():
    timeline, fates = toy_config().time.build(), Fates(toy_config().time.build(), most=10, most_items=30)
    homes = np.zeros(1, dtype=np.int64)
    for i in range(40):
        shown = post({"type": "impression", "id": f"i{i}", "user": "U1", "items": [f"N{j}" for j in range(1 + i % 7)]})
        assert fates.of(shown.rows_at(T0), homes, T0) == [Expected.ACCEPTED]
        assert len(fates) <= 10
        assert sum(len(seen.items) for seen in fates._seen.values()) == fates._items <= 30
    click = {"type": "engagement", "user": "U1", "item": "N0", "kind": "click"}
    for name, fate in (("i39", Expected.ACCEPTED), ("i0", Expected.UNKNOWN)):
        assert fates.of(post(click | {"impression": name}).rows_at(T0), homes, T0) == [fate]
    assert timeline.skew_ms > 0


def test_the_answer_to_a_post_says_of_each_event_what_will_become_of_it(serving, client):  # noqa: F811
    now_ms = serving.clock.now_ms()
    show = {"type": "impression", "id": "i1", "user": "U1", "items": ["N1", "N2"]}
    click = {"type": "engagement", "impression": "i1", "user": "U1", "item": "N2", "kind": "click"}
    events = [show, click, show, click, click | {"item": "N9"}, click | {"impression": "i2"}]
    answer = client.post("/v1/events", json={"events": [*events, show | {"id": "i3", "time_ms": now_ms + 10**11}]})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["accepted"], body["unknown"], body["dropped"], body["time_ms"]) == (2, 1, 4, now_ms)
    assert [event["outcome"] for event in body["events"]] == [
        "accepted", "accepted", "duplicate_impression", "duplicate_engagement", "unknown_item", "unknown_impression",
        "future",
    ]  # fmt: skip
    assert ["message" in event for event in body["events"]] == [False, False, True, True, True, True, True]
    assert f"{now_ms}" in body["events"][-1]["message"], "the time of the run is said"
