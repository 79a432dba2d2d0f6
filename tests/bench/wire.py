"""What a format costs the joiner: the same impressions as single JSON, single msgpack, batches of both, and columns.

`python -m tests.bench.wire` prints events/s and CPU microseconds an event over the embedded log and writes
`build/bench/wire.json`. `records` and `measure` take any event log. What is timed is the joiner alone: it reads a log
that is written before, joins, and appends `examples`; each format runs once before, small, so that all is compiled.
Impressions have 37 shown items and a history of 32, as MIND's do; ids are strings of 6 characters.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from infra.config import Config, LogConfig, WireConfig
from infra.eventlog import EventLog, create_topics, open_log
from infra.hashing import keys_of
from stream.columns import Lists
from stream.events import RecordMeta, encode_events, encode_meta, impressions
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker

FORMS = ("json", "msgpack", "json-batch", "msgpack-batch", "columns")
BATCH = 256  # events of a batched record
ITEMS, HISTORY = 37, 32
START_MS = 1_573_520_000_000
STEP_MS = 2  # between impressions: 30,000 a tick


class Cost(NamedTuple):
    """The joiner over one log."""

    form: str
    events: int
    record_bytes: float  # an event
    wall_s: float
    cpu_s: float

    @property
    def events_per_s(self) -> float:
        return self.events / self.wall_s

    @property
    def cpu_us_per_event(self) -> float:
        return self.cpu_s / self.events * 1e6


def records(form: str, events: int, *, seed: int = 1) -> Iterator[tuple[bytes, int, int]]:
    """(value, timestamp, events) of records that hold `events` impressions in a format."""
    rng = np.random.default_rng(seed)
    for first in range(0, events, BATCH):
        n = min(BATCH, events - first)
        users, items = rng.integers(100_000, 150_000, n), rng.integers(100_000, 160_000, (n, HISTORY + ITEMS))
        items += np.arange(HISTORY + ITEMS) * 60_000  # no item twice
        when = START_MS + STEP_MS * np.arange(first, first + n)
        names = [[f"N{k:x}" for k in row] for row in items.tolist()]
        if form == "columns":
            yield _columns(first, when, users.tolist(), names), int(when[-1]), n
            continue
        rows = [
            {
                "type": "impression",
                "id": f"i{first + i}",
                "user": f"U{users[i]}",
                "items": names[i][HISTORY:],
                "history": names[i][:HISTORY],
                "time_ms": int(when[i]),
            }
            for i in range(n)
        ]
        encode = msgspec.msgpack.encode if form.startswith("msgpack") else msgspec.json.encode
        if form.endswith("-batch"):
            yield encode(rows), int(when[-1]), n
        else:
            yield from ((encode(row), row["time_ms"], 1) for row in rows)


def _columns(first: int, when: Any, users: list[int], names: list[list[str]]) -> bytes:
    rows = impressions(
        ingested_ms=when,
        time_ms=when,
        impression=keys_of([f"i{first + i}" for i in range(len(users))]),
        user=keys_of([f"U{user}" for user in users]),
        history=Lists.of([keys_of(row[:HISTORY]) for row in names]),
        items=Lists.of([keys_of(row[HISTORY:]) for row in names]),
    )
    return encode_events(rows)


def write(log: EventLog, form: str, events: int) -> tuple[int, int]:
    """Append the records of `events` impressions to partition 0, and an end; how many records, and their bytes."""
    writer, size, count, when = log.writer("events"), 0, 0, START_MS
    for value, when, _ in records(form, events):
        writer.append(0, value, timestamp_ms=when)
        size, count = size + len(value), count + 1
    end = encode_meta(RecordMeta(end=True))
    writer.append(0, b'{"type":"heartbeat"}', timestamp_ms=when + 600_000, meta=end)
    writer.close()
    return count + 1, size


def measure(log: EventLog, form: str, events: int) -> Cost:
    """Write the records into an empty log of one partition, join them, and say what the join cost.

    The first call for a format compiles: let a small one go before.
    """
    count, size = write(log, form, events)
    worker = JoinWorker(log, JoinSettings.of(Config()), wire=WireConfig())
    read, wall, cpu = 0, time.perf_counter(), time.process_time()
    while read < count:
        read += worker.step()
    cost = Cost(form, events, size / events, time.perf_counter() - wall, time.process_time() - cpu)
    counts = worker.counts()
    worker.close()
    if counts["joined_impressions"] != events:
        raise RuntimeError(f"{form}: {counts} of {events} impressions")
    return cost


def main() -> None:
    """Every format in turn, some rounds; of each the least CPU counts, for others may use this machine too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    best = compare(options.events, options.rounds)
    for form, cost in best.items():
        speed, micros = f"{cost.events_per_s:>10,.0f} events/s", f"{cost.cpu_us_per_event:>7.2f} us CPU an event"
        print(f"{form:<14} {speed} {micros} {cost.record_bytes:>7,.0f} bytes an event")
    out = Path("build/bench/wire.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {form: {**cost._asdict(), "events_per_s": cost.events_per_s} for form, cost in best.items()}
    out.write_text(json.dumps({"machine": platform.processor(), "formats": kept}, indent=2), encoding="utf-8")


def compare(events: int, rounds: int) -> dict[str, Cost]:
    """The cheapest round of each format."""
    costs: dict[str, list[Cost]] = {form: [] for form in FORMS}
    for turn in range(rounds + 1):
        for form in FORMS:
            with tempfile.TemporaryDirectory(prefix="ouzel-bench-wire-") as folder:
                log = open_log(folder, LogConfig(partitions=1))
                create_topics(log, 1)
                cost = measure(log, form, events if turn else BATCH)
                log.close()
            if turn:
                costs[form].append(cost)
    return {form: min(found, key=lambda cost: cost.cpu_s) for form, found in costs.items()}


if __name__ == "__main__":
    main()
