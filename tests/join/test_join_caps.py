"""Caps: one user's many impressions are dropped beyond a number, the same after a restart; who posts less is kept."""

import dataclasses
from collections import defaultdict

import numpy as np
import pytest

from infra.config import load_config
from stream.examples import DropReason, ExampleColumns
from stream.join import core
from stream.join.caps import Caps, beyond
from stream.join.core import JoinSettings, PartitionJoiner
from tests.join import scenes
from tests.join.scenes import Row

SEEDS = (1, 2, 3, 4)
CAPPED = dataclasses.replace(scenes.settings(core), caps=Caps(3, 2))
TARGET = 77


def attack(user: int, posts: int, *, clicks: bool, at_ms: int) -> list[Row]:
    """What one client posts in 28 s: the target shown again and again, each time under a new id."""
    rows: list[Row] = []
    for n in range(posts):
        now = at_ms + n * 28_000 // posts
        rows.append(Row(0, now, now, 10_000 + n, user, items=(TARGET, n % 20 + 1)))
        if clicks:
            rows.append(Row(1, now + 5, now + 5, 10_000 + n, user, TARGET, 0))
    return rows


def others(at_ms: int) -> list[Row]:
    """Forty users in the same minute, three impressions each; every fifth is clicked."""
    rows: list[Row] = []
    for n in range(120):
        now = at_ms + n * 450
        item = n % 20 + 1
        rows.append(Row(0, now, now, n + 1, 100 + n % 40, items=(item, TARGET)))
        if n % 5 == 0:
            rows.append(Row(1, now + 9, now + 9, n + 1, 100 + n % 40, item, 0))
    return rows


def shares(capped: bool, *, clicks: bool) -> tuple[float, dict[str, int]]:
    """The target's share of clicks among its shows, of what is learned; and what the join counted."""
    config = load_config(env={})
    settings = JoinSettings.of(config)
    if not capped:
        settings = dataclasses.replace(settings, caps=Caps())
    start = 1_000_000 * 60_000
    rows = sorted(
        [*others(start), *attack(7, 600, clicks=clicks, at_ms=start + 100)], key=lambda row: (row.ingested_ms, row.kind)
    )
    joiner = PartitionJoiner(0, settings)
    outputs = scenes.feed(joiner, [rows, [Row(2, start + 600_000, start + 600_000)]])
    examples = ExampleColumns.concat([output.examples for output in outputs if len(output.examples)])
    of_target = examples.items.values == TARGET
    return float(examples.clicks[of_target].sum() / of_target.sum()), outputs[-1].meta.counts


def test_one_user_who_posts_600_clicks_in_half_a_minute_no_longer_decides_what_an_item_looks_like() -> None:
    free, _ = shares(False, clicks=True)
    left, counts = shares(True, clicks=True)
    assert free > 0.8  # 600 of 720
    assert left < 0.08  # 10 of 130
    assert counts[DropReason.OVER_USER_CAP] + counts[DropReason.OVER_ITEM_CAP] == 2 * (600 - 10)
    assert counts["joined_impressions"] == 120 + 10


def test_one_user_who_shows_an_item_600_times_without_a_click_no_longer_buries_it() -> None:
    _, counts = shares(True, clicks=False)
    assert counts["joined_impressions"] == 120 + 10


@pytest.mark.parametrize("seed", SEEDS)
def test_caps_drop_the_later_impressions_of_a_user_and_tick_and_nothing_else(seed: int) -> None:
    log = scenes.random_log(seed, per_second=30)
    free = scenes.feed(PartitionJoiner(0, dataclasses.replace(CAPPED, caps=Caps())), log)
    capped = scenes.feed(PartitionJoiner(0, CAPPED), log)
    seen: dict[tuple[int, ...], int] = defaultdict(int)
    wanted: list[tuple[int, int]] = []
    for meta, examples in free:
        for n in range(len(examples)):
            user, items = int(examples.user[n]), examples.items[n].tolist()
            over_user = seen[meta.tick, user] >= 3
            seen[meta.tick, user] += 1
            over_item = False
            for item in set(items):
                over_item |= seen[meta.tick, user, item] >= 2
                seen[meta.tick, user, item] += 1
            if not over_user and not over_item:
                wanted.append((int(examples.offset[n]), int(examples.row[n])))
    got = [(int(o), int(r)) for _, e in capped for o, r in zip(e.offset, e.row, strict=True)]
    assert got == wanted
    assert len(got) < sum(len(e) for _, e in free)
    counts = capped[-1].meta.counts
    ends = counts["joined_impressions"] + counts["joined_engagements"] + sum(counts[reason] for reason in DropReason)
    assert counts["events_in"] == ends


@pytest.mark.parametrize("seed", SEEDS)
def test_a_restart_at_any_record_caps_and_counts_the_same(seed: int) -> None:
    log = scenes.random_log(seed, per_second=30)
    outputs = scenes.feed(PartitionJoiner(0, CAPPED), log)
    for at in range(0, len(outputs), 5):
        again = PartitionJoiner(0, CAPPED, last=outputs[at].meta)
        assert scenes.as_bytes(scenes.feed(again, log)) == scenes.as_bytes(outputs[at + 1 :])


def test_no_cap_and_no_row_are_no_case_of_their_own() -> None:
    log = scenes.feed(PartitionJoiner(0, CAPPED), scenes.random_log(1))
    examples = next(e for _, e in log if len(e))
    ticks = np.zeros(len(examples), np.int64)
    assert not np.any(beyond(ticks, examples, Caps()))
    assert not np.any(beyond(ticks[:0], examples.slice(0, 0), Caps(1, 1)))
