"""A tenth of what independent producers send over a real broker is malformed, in every way that we know of."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.config import Config, KafkaConfig, LogConfig, WireConfig
from infra.eventlog import EventLog, Record, create_topics, open_log
from infra.metrics import PORTS, PROCESSES
from infra.process import RunFolder
from infra.supervisor.broker import free_ports
from serving.report import write_report
from stream.deadletters import NOTE_PREFIX, decode_letter_meta, letter_key, records
from stream.deadreplay import DeadReplay
from stream.events import ItemColumns
from stream.examples import decode_example_meta, decode_examples, follows
from stream.inspector import ItemsInspector
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker
from stream.wire.dead import Reason
from stream.wire.formats import decode_wire_meta
from stream.wire.items import read_items
from stream.wire.limits import Rules
from tests.wire import poison
from tests.wire.poison import Sent

PARTITIONS = 4
PATIENCE_S = 60.0
GOOD = 2_600
CONFIG = Config(log=LogConfig(partitions=PARTITIONS, kafka=KafkaConfig(append_time=False)))  # times are the messages'
WIDE = WireConfig(
    max_record_bytes=1 << 22, max_batch_events=20_000, max_id_bytes=500, max_items=5_000, max_history=5_000,
    max_text_bytes=10_000, max_depth=400,
)  # fmt: skip
MENDED = {"id_too_long", "list_too_long", "text_too_long", "wrong_partition"}  # by WIDE, all of them


@pytest.fixture(scope="module")
def sent() -> dict[int, list[Sent]]:
    return poison.traffic(GOOD, PARTITIONS, seed=4)


@pytest.fixture(scope="module")
def items() -> list[Sent]:
    return list(poison.of_items())


@pytest.fixture(scope="module")
def truth(sent: dict[int, list[Sent]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What is joined of the same traffic without its dead events, on the embedded log."""
    log = open_log(tmp_path_factory.mktemp("clean") / "log", CONFIG.log)
    create_topics(log, PARTITIONS)
    writer = log.writer("events")
    for p, messages in sent.items():
        for one in messages:
            if one.alive:
                writer.append(p, one.alive, timestamp_ms=one.timestamp_ms)
    writer.close()
    join(log)
    made = {p: joined(log, p) for p in range(PARTITIONS)}
    assert not dict(letters(log))
    log.close()
    return made


@pytest.fixture
def url(kafka: str) -> str:
    return f"kafka://{kafka}/poison-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def log(url: str) -> Iterator[EventLog]:
    log = open_log(url, CONFIG.log)
    create_topics(log, PARTITIONS)
    yield log
    log.close()


def join(log: EventLog, wire: WireConfig = CONFIG.wire) -> JoinWorker:
    """Join all that is there, in this process."""
    worker = JoinWorker(log, JoinSettings.of(CONFIG), wire=wire)
    while worker.step():
        pass
    worker.close()
    return worker


def inspect(log: EventLog, wire: WireConfig = CONFIG.wire) -> ItemsInspector:
    inspector = ItemsInspector(log, wire, skew_ms=CONFIG.time.build().skew_ms)
    while inspector.step():
        pass
    inspector.close()
    return inspector


def joined(log: EventLog, p: int) -> list[Any]:
    """Every example of a partition in order, without its place in the log."""
    found, last, at = list[Any](), None, log.start_offset("examples", p)
    while batch := log.read("examples", p, at, 500):
        at = batch[-1].offset + 1
        for record in batch:
            meta, rows = decode_example_meta(record.meta), decode_examples(record.value)
            if not follows(meta, last, 0):
                continue
            last = meta.seq
            for i in range(len(rows)):
                lists = (tuple(part[i].tolist()) for part in (rows.items, rows.history, rows.labels))
                fixed = (rows.impression[i], rows.user[i], rows.shown_ms[i], rows.first_engaged_ms[i])
                found.append((meta.tick, *(int(number) for number in fixed), *lists))
    return found


def letters(log: EventLog) -> Iterator[tuple[bytes, Any]]:
    """(key, letter) as they lie, repeats included."""
    for record in records(log):
        if not record.key.startswith(NOTE_PREFIX):
            yield record.key, (record, decode_letter_meta(record))


def expected(topic: str, sent: dict[int, list[Sent]]) -> dict[bytes, tuple[str, bytes]]:
    """Key -> (reason, bytes) of every letter that there must be."""
    found = {}
    for p, messages in sent.items():
        for offset, one in enumerate(messages):
            found |= {letter_key(topic, p, offset, dead.row): (dead.reason, dead.raw) for dead in one.dead}
    return found


def check_letters(log: EventLog, want: dict[bytes, tuple[str, bytes]]) -> int:
    """Each dead event has one letter, with its reason, bytes and place; the number of dead events."""
    found = list(letters(log))
    assert {key: n for key, n in Counter(key for key, _ in found).items() if n > 1} == {}
    assert {key: meta.reason for key, (_, meta) in found} == {key: reason for key, (reason, _) in want.items()}
    for key, (record, meta) in found:
        raw = want[key][1]
        place = [meta.topic, str(meta.partition), str(meta.offset)]
        assert key.decode().split("/")[:3] == place
        assert meta.detail
        assert len(record.meta) < 8_192
        assert bytes(record.value) == raw[: len(record.value)]
        assert len(record.value) == len(raw) or meta.cut == len(raw)
    return sum(meta.events for _, (_, meta) in found)


def replay(log: EventLog, wire: WireConfig) -> Any:
    machine = DeadReplay(log, Config(log=CONFIG.log, wire=wire))
    try:
        return machine.run()
    finally:
        machine.close()


def test_the_good_join_as_if_nothing_else_were_there_and_the_dead_come_back_once_after_a_fix(
    kafka: str, url: str, log: EventLog, sent: dict[int, list[Sent]], truth: dict[int, list[Any]], items: list[Sent]
) -> None:
    prefix, producers = url.rpartition("/")[2], poison.Producers(kafka)
    for p, messages in sent.items():
        producers.send(f"{prefix}.events", p, messages)
    producers.send(f"{prefix}.items", 0, items)
    producers.close()
    worker, inspector = join(log), inspect(log)
    want = expected("events", sent) | expected("items", {0: items})
    dead = check_letters(log, want)
    in_items = sum(inspector.dead.values())
    counts = worker.counts()
    assert counts["malformed"] == sum(worker.dead.values()) == dead - in_items
    assert counts["events_in"] == GOOD + counts["malformed"]
    assert 0.08 < counts["malformed"] / counts["events_in"] < 0.16
    assert {reason for reason, _ in want.values()} == {reason.value for reason in Reason}
    assert {p: joined(log, p) for p in range(PARTITIONS)} == truth
    assert sum(len(rows) for rows in truth.values()) == counts["joined_impressions"] > GOOD // 2
    kept = [read_items(record, Rules(CONFIG.wire, 0)).items for record in log.read("items", 0, 0)]
    assert sum(len(rows) for rows in kept) == sum(len(items_of(one.alive)) for one in items if one.alive)

    done = replay(log, WIDE)
    mended = {key for key, (reason, _) in want.items() if reason in MENDED}
    back = origins(log)
    assert len(back) == len(set(back)) == done.replayed
    assert mended <= set(back)
    assert sum(done.still_dead.values()) == len(want) - done.replayed
    again = replay(log, WIDE)
    assert (again.replayed, again.before) == (0, done.replayed)
    assert origins(log) == back
    after = join(log, WIDE)
    inspect(log, WIDE)
    assert after.counts()["malformed"] == counts["malformed"]
    check_letters(log, want)


class Workers:
    """`ouzel join` over a run folder, as processes to stop and kill."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, (self.port,) = RunFolder(folder), free_ports(1)
        folder.mkdir()
        self.folder.config_file.write_text(
            f'[log]\nurl = "{url}"\npartitions = {PARTITIONS}\n[metrics]\nbase_port = {self.base_port}\n'
            '[log.kafka.client]\n"session.timeout.ms" = 1500\n"heartbeat.interval.ms" = 300\n'
        )
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def base_port(self) -> int:
        return self.port - PROCESSES.index("joiner")

    def start(self, number: int, *more: str) -> None:
        command = [sys.executable, "-m", "infra.cli", "join", "--run", str(self.folder.path), "--number", str(number)]
        self.running[number] = subprocess.Popen([*command, *more])

    def signal(self, what: signal.Signals) -> None:
        for process in self.running.values():
            process.send_signal(what)

    def ready(self) -> bool:
        """Whether all of them are as far as to answer."""
        try:
            return self.dead_counted() >= 0
        except urllib.error.URLError:
            return False

    def kill(self, number: int) -> None:
        process = self.running.pop(number)
        process.kill()
        process.wait()

    def dead_counted(self) -> int:
        """What `ouzel_dead_letters_total` of all workers says."""
        total = 0.0
        for number in self.running:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port + (number - 1) * PORTS}/metrics") as answer:
                lines = answer.read().decode().splitlines()
            total += sum(float(line.split()[-1]) for line in lines if line.startswith("ouzel_dead_letters_total{"))
        return int(total)

    def close(self) -> None:
        for number in list(self.running):
            self.kill(number)


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[Workers]:
    workers = Workers(tmp_path / "run", url)
    yield workers
    workers.close()


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.005)


def unread(log: EventLog) -> bool:
    """Whether a joiner has not said yet that it has read everything."""
    places = log.read_positions("events", "joiner")
    return any(places.get(p, 0) < log.end_offset("events", p) for p in range(PARTITIONS))


def closed(log: EventLog) -> bool:
    """Whether the last record of every partition is joined."""
    last = [log.last_record("examples", p) for p in range(PARTITIONS)]
    return all(
        r is not None and decode_example_meta(r.meta).read_offset == log.end_offset("events", p) - 1
        for p, r in enumerate(last)
    )


@pytest.mark.slow
def test_of_two_workers_one_is_killed_and_every_dead_event_has_one_letter_and_is_accounted_for(
    kafka: str, url: str, log: EventLog, sent: dict[int, list[Sent]], truth: dict[int, list[Any]], items: list[Sent],
    workers: Workers,
) -> None:  # fmt: skip
    prefix, producers = url.rpartition("/")[2], poison.Producers(kafka)
    halves = [{p: messages[: len(messages) // 2] for p, messages in sent.items()}]
    halves.append({p: messages[len(messages) // 2 :] for p, messages in sent.items()})
    want = expected("events", sent) | expected("items", {0: items})
    for number in (1, 2):
        workers.start(number)
    producers.send(f"{prefix}.items", 0, items)
    for p, messages in halves[0].items():
        producers.send(f"{prefix}.events", p, messages)
    first = expected("events", halves[0]) | expected("items", {0: items})
    wait_until(lambda: len(dict(letters(log))) == len(first), "letters of the first half")
    wait_until(workers.ready, "both answer")
    wait_until(lambda: workers.dead_counted() == sum(m.events for _, (_, m) in letters(log)), "the metric says so")

    workers.signal(signal.SIGSTOP)
    for p, messages in halves[1].items():
        producers.send(f"{prefix}.events", p, messages)
    producers.close()
    workers.signal(signal.SIGCONT)
    wait_until(lambda: log.end_offset("dead-letters", 0) > len(first), "a letter of the second half")
    workers.kill(1)
    assert not closed(log), "the kill came when nothing was left to do"
    workers.start(1)
    wait_until(lambda: closed(log), "all joined")
    wait_until(workers.ready, "the worker that was killed is back")
    workers.signal(signal.SIGTERM)
    for process in workers.running.values():
        assert process.wait(PATIENCE_S) == 0
    workers.running.clear()
    assert {p: joined(log, p) for p in range(PARTITIONS)} == truth
    dead = check_letters(log, want)
    write_report(workers.folder.path)
    report = json.loads((workers.folder.path / "report.json").read_bytes())
    in_items = sum(key.startswith(b"items") for key in want)
    assert report["accounted"]
    assert report["dropped"]["malformed"] + in_items == dead == sum(report["dead_letters"].values())


@pytest.mark.slow
def test_faust_hands_on_the_poison_too_or_it_is_read_without_it(
    kafka: str, url: str, log: EventLog, sent: dict[int, list[Sent]], truth: dict[int, list[Any]], workers: Workers
) -> None:
    prefix, producers = url.rpartition("/")[2], poison.Producers(kafka)
    for p, messages in sent.items():
        producers.send(f"{prefix}.events", p, messages)
    producers.close()
    workers.start(1, "--engine", "faust")
    wait_until(lambda: closed(log), "all joined")
    assert workers.running[1].poll() is None
    assert {p: joined(log, p) for p in range(PARTITIONS)} == truth
    check_letters(log, expected("events", sent))


def items_of(value: bytes) -> ItemColumns:
    return read_items(Record(0, poison.NOW, b"", b"", value), Rules(CONFIG.wire, 0)).items


def origins(log: EventLog) -> list[bytes]:
    """Letters that records of `events` and `items` come from."""
    found = []
    for topic in ("events", "items"):
        for p in range(log.partitions(topic)):
            at = log.start_offset(topic, p)
            while batch := log.read(topic, p, at, 500):
                at = batch[-1].offset + 1
                found += [decode_wire_meta(r.meta).origin.encode() for r in batch if b"origin" in r.meta]
    return [origin for origin in found if origin]
