"""The loop over Kafka while others write malformed records into its topics: it ends by itself, with its result."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from infra.eventlog import EventLog, create_topics
from infra.process import RunFolder
from infra.supervisor.crew import Crew
from infra.supervisor.runlog import drop_log
from infra.supervisor.runs import run_loop, write_report
from stream.deadletters import count_by_reason, letters
from tests.wire import poison
from tests.wire.poison import Sent

from .conftest import Run

UNTIL = 0.9  # of the replay's records: what comes behind its end may find nobody who buries it
AGAINST = 0.125  # malformed records beside one of the replay, until then: a tenth of all at the end
LARGE = 100_000  # bytes: what is larger is sent once


class Injector(threading.Thread):
    """Writes malformed records of every kind into `events`, and some into `items`, beside the replay's `total`."""

    def __init__(self, brokers: str, prefix: str, log: EventLog, total: int) -> None:
        super().__init__()
        self._total = total
        self._producers, self._prefix, self._log = poison.Producers(brokers), prefix, log
        self._kinds = [one for one in poison.of_records() if not one.alive]
        self._items = [one for one in poison.of_items() if not one.alive]
        self._ended = threading.Event()
        self.records = {"events": 0, "items": 0}
        self.sent: list[tuple[str, Sent]] = []

    def run(self) -> None:
        partitions = self._log.partitions("events")
        replayed = 0
        while replayed < UNTIL * self._total and not self._ended.wait(0.02):
            replayed = ends(self._log) - self.records["events"]
            while self.records["events"] < AGAINST * min(replayed, UNTIL * self._total):
                for p in range(partitions):
                    self._send("events", p, self._kinds[p::partitions])
                self._kinds = [one for one in self._kinds if len(one.value or b"") < LARGE]
                self._send("items", 0, self._items)

    def _send(self, topic: str, p: int, kinds: list[Sent]) -> None:
        self._producers.send(f"{self._prefix}.{topic}", p, kinds)
        self.records[topic] += len(kinds)
        self.sent += [(topic, one) for one in kinds]

    def stop(self) -> None:
        self._ended.set()
        self.join()
        self._producers.close()


def ends(log: EventLog) -> int:
    return sum(log.end_offset("events", p) for p in range(log.partitions("events")))


@pytest.mark.slow
def test_a_tenth_of_malformed_records_changes_no_digest_and_the_loop_ends_by_itself(
    straight: Run, new_run: Callable[..., RunFolder], kafka: str
) -> None:
    folder = new_run(f"log.url='kafka://{kafka}'", "log.kafka.append_time=false")  # times are the messages'
    config = folder.load_config()
    log = folder.open_log(config)
    create_topics(log, config.log.partitions)
    undisturbed = straight.folder.open_log(straight.folder.load_config())
    injector = Injector(kafka, config.log.url.rpartition("/")[2], log, ends(undisturbed))
    undisturbed.close()
    injector.start()
    try:
        run_loop(folder, Console(quiet=True), Crew(workers=2, replicas=2))
    finally:
        injector.stop()
    write_report(folder)
    report = json.loads((folder.path / "report.json").read_bytes())
    check(report, straight.report, injector, log)
    log.close()
    drop_log(folder, Console(quiet=True))


def check(report: Any, straight: Any, injector: Injector, log: EventLog) -> None:
    """The run's result is that of the undisturbed one; what came on top is dead, counted, and has its letters."""
    for figure in ("digest", "arms", "examples_out"):
        assert report[figure] == straight[figure], figure
    dead = [(topic, sent.dead[0].reason) for topic, sent in injector.sent]
    print(f"{injector.records} malformed records beside {ends(log):,} of events")
    assert 0.08 < injector.records["events"] / ends(log) < 0.15
    found = [meta for _, meta in letters(log).values() if meta.topic]
    assert len(found) == len(dead)
    assert sorted((meta.topic, meta.reason) for meta in found) == sorted(dead)
    in_events = sum(meta.events for meta in found if meta.topic == "events")
    assert report["dropped"]["malformed"] == in_events
    assert report["events_in"] == straight["events_in"] + in_events
    assert report["accounted"]
    rest = count_by_reason(log)
    assert sum(rest.values()) == sum(straight["dead_letters"].values()) + sum(meta.events for meta in found)
