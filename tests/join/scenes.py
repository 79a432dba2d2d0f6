"""Random logs for the joiner, and the join by brute force: quantifiers over all rows instead of a state machine."""

from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from infra.ticks import Timeline
from stream.columns import Lists
from stream.events import EventColumns, encode_events
from stream.examples import encode_example_meta, encode_examples

NEVER = -(2**62)


class Row(NamedTuple):
    kind: int
    ingested_ms: int
    time_ms: int
    impression: int = 0
    user: int = 0
    item: int = 0
    action: int = 0
    items: tuple[int, ...] = ()


def settings(module: Any) -> Any:
    """A joiner's settings with short times: T = 1 s, a = 2, bound 300 ms, skew 200 ms, late 2.5 s."""
    return module.JoinSettings(Timeline(1_000, 2, 2, 300, 200), 2_500, 3)


def columns(rows: list[Row]) -> EventColumns:
    def ints(name: str, dtype: Any = np.int64) -> Any:
        return np.array([getattr(row, name) for row in rows], dtype=dtype)

    return EventColumns(
        kind=ints("kind", np.uint8),
        ingested_ms=ints("ingested_ms"),
        time_ms=ints("time_ms"),
        impression=ints("impression"),
        user=ints("user"),
        item=ints("item"),
        action=ints("action", np.uint8),
        source=np.full(len(rows), -1, dtype=np.int64),
        history=Lists.of([row.items[:2] for row in rows]),
        items=Lists.of([row.items for row in rows]),
    )


def random_log(seed: int, *, seconds: int = 40, per_second: int = 8) -> list[list[Row]]:
    """Records of rows: disorder, repeats with the same and other times, strangers, wrong clocks, gaps, bad rows."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    shown: list[Row] = []
    now, start = 1_000_000, 1_000_000
    while now < start + seconds * 1_000:
        jump = 1 if rng.random() > 0.004 else 20
        now += int(rng.exponential(1_000 / per_second)) * jump
        ingested = now + int(rng.integers(-150, 150))
        at = ingested - int(rng.integers(0, 600 if rng.random() < 0.1 else 250))
        what = rng.random()
        if what < 0.35 or not shown:
            items = tuple(rng.integers(1, 9, size=rng.integers(1, 6)).tolist())
            row = Row(0, ingested, at, int(rng.integers(0, 40)), int(rng.integers(0, 2)), items=items)
            if what < 0.30:
                row = row._replace(impression=len(rows) + 100)
            shown.append(row)
            if rng.random() < 0.15:  # its engagement comes first
                rows.append(_engagement(rng, row, ingested))
            rows.append(row)
        elif what < 0.85:
            old = shown[-1 - int(rng.integers(0, min(len(shown), 4 if rng.random() < 0.8 else 40)))]
            rows.append(_engagement(rng, old, ingested))
        elif what < 0.9:
            old = shown[-1 - int(rng.integers(0, min(len(shown), 20)))]
            rows.append(old._replace(ingested_ms=ingested, time_ms=old.time_ms + int(rng.integers(-1, 2)) * 900))
        elif what < 0.92:
            rows.append(Row(int(rng.integers(0, 4)), ingested, ingested + 201 + int(rng.integers(0, 9_999)), 7, 1))
        elif what < 0.94:
            rows.append(Row(0, ingested, at - 20_000, len(rows) + 100, 1, items=(1,)))
        elif what < 0.95:
            rows.append(Row(1, ingested, 2**60, 3, 1, 1, 0))
        else:
            rows.append(Row(2, ingested, ingested))
    rows.append(Row(2, now + 10_000, now + 10_000))
    cuts = np.flatnonzero(rng.random(len(rows)) < 0.2).tolist()
    bounds = sorted({0, *cuts, len(rows)})
    return [rows[lo:hi] for lo, hi in pairwise(bounds)]


def repeat_long_after(late_ms: int) -> list[list[Row]]:
    """An id shown, forgotten but known, and shown again near the end of its being known; then time goes on."""
    start = 1_000_000
    beats = [[Row(2, at, at)] for at in range(start, start + 4 * late_ms, 250)]
    first = [Row(0, start, start, 5, 0, items=(1, 2))]
    again = [Row(0, start + late_ms + 2_000, start + late_ms + 1_900, 5, 0, items=(1, 2))]
    return sorted([*beats, first, again], key=lambda record: record[0].ingested_ms)


def repeat_of_a_known_id() -> list[list[Row]]:
    """An id shown, forgotten but known, and shown again just before it would be unknown: one example, not two."""
    beats = [[Row(2, at, at)] for at in range(1_000_000, 1_012_000, 250)]
    first = [Row(0, 1_000_000, 1_000_000, 5, 0, items=(1, 2))]
    again = [Row(0, 1_005_799, 1_005_700, 5, 0, items=(1, 2))]
    return sorted([*beats, first, again], key=lambda record: record[0].ingested_ms)


def _engagement(rng: np.random.Generator, row: Row, ingested: int) -> Row:
    item = int(rng.choice(row.items)) if row.items and rng.random() < 0.8 else 99
    action = int(rng.integers(0, 2)) if rng.random() < 0.95 else 9
    user = row.user if rng.random() < 0.95 else 1 - row.user
    return Row(1, ingested, ingested - int(rng.integers(0, 200)), row.impression, user, item, action)


class Joined(NamedTuple):
    offset: int
    row: int
    close: int
    labels: tuple[int, ...]
    first_ms: int


class Truth(NamedTuple):
    ticks: dict[int, list[Joined]]  # close tick -> impressions in input order
    counts: dict[str, int]


def brute_force(log: list[list[Row]]) -> Truth:
    """The join by definition. Quadratic, and shares nothing with the joiner but the settings' numbers."""
    tick, a, bound, skew, late = 1_000, 2, 300, 200, 2_500
    rows = [(offset, at, row) for offset, record in enumerate(log) for at, row in enumerate(record)]
    counts: dict[str, int] = defaultdict(int)
    usable = [_usable(row) for _, _, row in rows]
    before, after, w = [], [], NEVER
    for (_, _, row), good in zip(rows, usable, strict=True):
        before.append(w)
        w = max(w, row.ingested_ms - bound) if good else w
        after.append(w)
    n = len(rows)
    ids = [(row.impression, row.user) for _, _, row in rows]
    close = [row.time_ms // tick + a for _, _, row in rows]
    future = [row.time_ms > row.ingested_ms + skew for _, _, row in rows]
    ends = [(c + 1) * tick for c in close]
    valid = [usable[i] and rows[i][2].kind == 0 and not future[i] and ends[i] > before[i] for i in range(n)]

    def known(i: int) -> bool:
        return any(valid[j] and ids[j] == ids[i] and ends[j] + late > before[i] for j in range(i))

    accepted = [valid[i] and not known(i) for i in range(n)]
    tries: dict[int, list[tuple[int, int]]] = defaultdict(list)  # impression row -> (row of the try, engagement row)
    for i, (_, _, row) in enumerate(rows):
        if row.kind != 2 or not usable[i]:
            counts["events_in"] += 1
        if not usable[i]:
            counts["malformed"] += 1
        elif row.kind == 0:
            counts["impressions"] += 1
            counts["future"] += future[i]
            counts["late_impression"] += not future[i] and not valid[i]
            counts["duplicate_impression"] += valid[i] and not accepted[i]
        elif row.kind == 1:
            counts["engagements"] += 1
            if future[i]:
                counts["future"] += 1
                continue
            open_now = [j for j in range(i) if accepted[j] and ids[j] == ids[i] and before[i] < ends[j]]
            if open_now:
                tries[open_now[-1]].append((i, i))
            elif known(i):
                counts["late"] += 1
            else:
                deadline = after[i] + bound
                here = [j for j in range(i, n) if accepted[j] and ids[j] == ids[i] and before[j] < deadline]
                if here:
                    tries[here[0]].append((here[0], i))
                elif after[-1] >= deadline:
                    counts["orphan"] += 1
    ticks: dict[int, list[Joined]] = defaultdict(list)
    for i, (offset, at, row) in enumerate(rows):
        if not accepted[i]:
            continue
        labels, first = [0] * len(row.items), -1
        for _, j in sorted(tries[i]):
            engagement = rows[j][2]
            if engagement.item not in row.items:
                counts["unknown_item"] += 1
            elif engagement.time_ms > row.time_ms + a * tick:
                counts["late"] += 1
            elif labels[row.items.index(engagement.item)] >> engagement.action & 1:
                counts["duplicate_engagement"] += 1
            else:
                labels[row.items.index(engagement.item)] |= 1 << engagement.action
                first = max(engagement.time_ms, 0) if first < 0 else first
                counts["joined_engagements"] += 1
        counts["joined_impressions"] += 1
        ticks[close[i]].append(Joined(offset, at, close[i], tuple(labels), first))
    return Truth(dict(ticks), dict(counts))


def _usable(row: Row) -> bool:
    if row.kind > 2 or abs(row.time_ms) > 2**52:
        return False
    return not (row.kind == 1 and row.action > 7) and not (row.kind == 0 and not row.items)


def feed(joiner: Any, log: list[list[Row]]) -> list[Any]:
    """Outputs of a joiner that reads the whole log from where it has to."""
    outputs = []
    for offset in range(joiner.next_offset, len(log)):
        outputs += joiner.push(offset, columns(log[offset]), end=offset == len(log) - 1)
    return outputs


def joined(outputs: list[Any]) -> dict[int, list[Joined]]:
    """Close tick -> impressions, in output order."""
    ticks: dict[int, list[Joined]] = defaultdict(list)
    for meta, examples in outputs:
        for i in range(len(examples)):
            ticks[meta.tick].append(
                Joined(
                    int(examples.offset[i]),
                    int(examples.row[i]),
                    meta.tick,
                    tuple(examples.labels[i].tolist()),
                    int(examples.first_engaged_ms[i]),
                )
            )
    return dict(ticks)


def as_bytes(outputs: list[Any]) -> list[tuple[bytes, bytes]]:
    return [(encode_example_meta(meta), encode_examples(examples)) for meta, examples in outputs]


def encode(rows: list[Row]) -> bytes:
    return encode_events(columns(rows))
