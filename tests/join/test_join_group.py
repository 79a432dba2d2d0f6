"""Several joiners share a topic on a real broker: whatever happens to them, no example is lost or doubled."""

import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError
from infra.eventlog import EventLog, create_topics
from stream.events import RecordMeta, encode_events, encode_meta
from stream.examples import decode_example_meta, decode_examples, follows
from tests.join import logs, scenes
from tests.join.group_worker import PARTITIONS, SESSION_MS, open_it

ROUND_S = 8  # event seconds a round brings
PATIENCE_S = 60.0
Records = dict[int, list[list[scenes.Row]]]


class Group:
    """Workers over a log, and what is done to them."""

    def __init__(self, url: str) -> None:
        self.url, self.log = url, open_it(url)
        create_topics(self.log, PARTITIONS)
        self.running: list[subprocess.Popen[str]] = []
        self.hits = 0  # faults that met unfinished work

    def add(self) -> None:
        command = [sys.executable, "-m", "tests.join.group_worker", self.url]
        self.running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

    def wait_started(self) -> None:
        """Return once every worker runs: Python needs a moment."""
        for worker in self.running:
            if worker.stdout is not None and not worker.stdout.closed:
                assert worker.stdout.readline() == "started\n"
                worker.stdout.close()

    def kill(self, rng: random.Random) -> None:
        """A crash: nothing is handed over; another takes its place."""
        victim = self.running.pop(rng.randrange(len(self.running)))
        end(victim)
        self.add()

    def stop_and_continue(self, rng: random.Random) -> None:
        """Long enough to be replaced: it comes back and believes that it still owns its partitions."""
        victim = self.running[rng.randrange(len(self.running))]
        victim.send_signal(signal.SIGSTOP)
        time.sleep(SESSION_MS / 1000 + rng.random())
        victim.send_signal(signal.SIGCONT)

    def enlarge(self, rng: random.Random) -> None:
        """One more; where there are four, one leaves in order first."""
        if len(self.running) >= 4:
            leaver = self.running.pop(rng.randrange(len(self.running)))
            leaver.send_signal(signal.SIGTERM)
            assert leaver.wait(PATIENCE_S) == 0
            end(leaver)
        self.add()

    def close(self) -> None:
        for worker in self.running:
            end(worker)
        self.log.close()


def end(worker: "subprocess.Popen[str]") -> None:
    """SIGKILL, whatever it does."""
    worker.kill()
    worker.wait()
    if worker.stdout is not None:
        worker.stdout.close()


@pytest.fixture
def group(kafka: str) -> Iterator[Group]:
    group = Group(f"kafka://{kafka}/g{uuid.uuid4().hex}")
    yield group
    group.close()


def random_logs(seed: int, seconds: int) -> Records:
    """Records by partition, the last of each an end."""
    found = {}
    for p in range(PARTITIONS):
        records = scenes.random_log(seed * 10 + p, seconds=seconds)
        records[-1] = [*records[-1], scenes.Row(2, 1_000_000 + seconds * 1_000 + 60_000, 0)]
        found[p] = records
    return found


def append(log: EventLog, records: Records, part: tuple[int, int]) -> None:
    """Write the i-th of n slices of every partition."""
    writer = log.writer("events")
    i, n = part
    for p, rows in records.items():
        lo, hi = len(rows) * i // n, len(rows) * (i + 1) // n
        for at in range(lo, hi):
            meta = encode_meta(RecordMeta(source=at, end=at == len(rows) - 1))
            value = encode_events(scenes.columns(rows[at]))
            writer.append(p, value, timestamp_ms=max(row.ingested_ms for row in rows[at]), meta=meta)
    writer.close()


def distinct(log: EventLog) -> list[tuple[int, bytes, bytes]]:
    """(partition, meta, value) of the records of `examples` as a reader takes them: repeats dropped, a gap refused."""
    found: list[tuple[int, bytes, bytes]] = []
    last: dict[int, int] = {}
    for p, _, meta, value, _ in logs.contents(log):
        seq = decode_example_meta(meta).seq
        if follows(decode_example_meta(meta), last.get(p), 0):
            last[p] = seq
            found.append((p, meta, value))
    return found


def joined(records: list[tuple[int, bytes, bytes]], p: int) -> dict[int, list[scenes.Joined]]:
    pairs = [(decode_example_meta(meta), decode_examples(value)) for q, meta, value in records if q == p]
    return scenes.joined(pairs)


def by_one_worker(folder: Path, records: Records) -> list[tuple[int, bytes, bytes]]:
    """What one undisturbed worker makes of the same events on the embedded log."""
    log = logs.open_log(folder, logs.LogConfig(partitions=PARTITIONS))
    create_topics(log, PARTITIONS)
    append(log, records, (0, 1))
    logs.join_all(log)
    made = distinct(log)
    log.close()
    return made


def disturb(group: Group, records: Records, seed: int, rounds: int) -> None:
    """Rounds: events come, and while they are not all joined, something happens to a worker."""
    rng = random.Random(seed)
    for _ in range(2):
        group.add()
    what = [group.kill, group.stop_and_continue, group.enlarge]
    todo = [what[i % 3] for i in range(rounds)]
    rng.shuffle(todo)
    for i, happens in enumerate(todo):
        group.wait_started()
        append(group.log, records, (i, rounds))
        time.sleep(rng.random() * 0.3)
        group.hits += max(group.log.reader_lag("events").values(), default=1) > 0
        happens(rng)
    assert group.hits > rounds // 2, f"seed {seed}: most faults came when nothing was left to do"
    wait_until(lambda: ended(group.log), f"all joined (seed {seed})")


def ended(log: EventLog) -> bool:
    last = [log.last_record("examples", p) for p in range(PARTITIONS)]
    return all(record is not None and decode_example_meta(record.meta).end for record in last)


def wait_until(true: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.05)


def check(made: list[tuple[int, bytes, bytes]], records: Records, folder: Path) -> None:
    """Equal to the join by definition, and byte for byte to what one worker makes."""
    for p, rows in records.items():
        truth = scenes.brute_force(rows)
        assert joined(made, p) == truth.ticks, f"partition {p}"
    assert sorted(made, key=lambda record: record[0]) == sorted(
        by_one_worker(folder, records), key=lambda record: record[0]
    )


@pytest.mark.parametrize("seed", [3])
def test_workers_that_are_killed_stopped_and_added_lose_and_double_nothing(
    group: Group, tmp_path: Path, seed: int
) -> None:
    records = random_logs(seed, seconds=3 * ROUND_S)
    disturb(group, records, seed, rounds=3)
    check(distinct(group.log), records, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11])
def test_fifty_rounds_of_kills_stops_and_joins_lose_and_double_nothing(group: Group, tmp_path: Path, seed: int) -> None:
    records = random_logs(seed, seconds=50 * ROUND_S // 4)
    disturb(group, records, seed, rounds=50)
    check(distinct(group.log), records, tmp_path / "one")


def test_the_check_catches_an_example_lost_and_one_doubled(tmp_path: Path) -> None:
    records = random_logs(5, seconds=6)
    made = by_one_worker(tmp_path / "made", records)
    check(made, records, tmp_path / "good")
    full = next(i for i, (_, _, value) in enumerate(made) if value)
    with pytest.raises(AssertionError):
        check(made[:full] + made[full + 1 :], records, tmp_path / "lost")
    with pytest.raises(AssertionError):
        check([*made, made[full]], records, tmp_path / "doubled")


def test_workers_cannot_share_an_embedded_log(tmp_path: Path) -> None:
    log = logs.open_here(tmp_path)
    with pytest.raises(ConfigError, match="only a log on Kafka"):
        logs.worker(log, grouped=True)
    log.close()
