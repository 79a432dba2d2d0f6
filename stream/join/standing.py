"""Where every event of a log stands: in an example, dropped for a reason, or still waiting.

The last record of `examples` counts what the joiner had read and written by then. Events after it, impressions whose
window is open, and the clicks on them belong to neither. The report asks here: the joiner's own code is rebuilt from
that record as after a restart, fed to the end of `events`, and its state is counted. Nothing is written.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.config import Config
from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record
from stream.deadletters import Buried
from stream.examples import ExampleMeta, decode_example_meta
from stream.join.core import JoinSettings, PartitionJoiner
from stream.join.held import rules_of
from stream.join.intake import Intake

_READ = 256
WRITTEN = ("joined_impressions", "joined_engagements")


@dataclass(frozen=True, slots=True)
class Standing:
    """Sums over all partitions: `events_in` = joined + drops + waiting, exactly."""

    counts: Mapping[str, int]  # of every event that the log holds; joined: what is written to `examples`
    waiting: Mapping[str, int]  # impressions and engagements whose window is open, or that no joiner has read yet


def standing_of(log: EventLog, config: Config) -> Standing:
    """Where the events of every partition stand. Reads what a restarted joiner would, and nothing where all is closed.

    A partition whose rows are gone from the log, so that it cannot be rebuilt, counts what its last record says.
    """
    settings = JoinSettings.of(config)
    buried = Buried(log)
    buried.update()
    counts: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for p in range(log.partitions("examples")):
        record = log.last_record("examples", p)
        last = decode_example_meta(record.meta) if record is not None else None
        if last is not None and (_is_whole(log, p, last) or log.start_offset("events", p) > last.low_offset):
            counts.update(last.counts)
            continue
        start = log.start_offset("events", p)
        joiner = PartitionJoiner(p, settings, start_offset=start, last=last)
        intake = Intake(joiner, rules_of(log, settings, config.wire, p), buried, lambda dead: None)
        try:
            for records in _read(log, p, joiner.next_offset):
                intake.feed(records)
        except CorruptStateError:  # the joiner stops at it and says why; the report shows that events are missing
            counts.update(last.counts if last is not None else {})
            continue
        _add(joiner, last, counts, waiting)
    return Standing(dict(counts), dict(waiting))


def _is_whole(log: EventLog, p: int, last: ExampleMeta) -> bool:
    """Whether a partition's last record ends a replay and nothing follows what it has read."""
    return last.end and last.read_offset + 1 == log.end_offset("events", p)


def _add(joiner: PartitionJoiner, last: ExampleMeta | None, counts: Counter[str], waiting: Counter[str]) -> None:
    """What is due and not yet written waits too."""
    found, written = joiner.counts(), last.counts if last is not None else {}
    for kind, n in joiner.waiting().items():
        joined = f"joined_{kind}"
        waiting[kind] += n + found[joined] - written.get(joined, 0)
        found[joined] = written.get(joined, 0)
    counts.update(found)


def _read(log: EventLog, p: int, at: int) -> Iterator[list[Record]]:
    end = log.end_offset("events", p)
    while at < end and (records := log.read("events", p, at, _READ)):
        yield [record for record in records if record.offset < end]
        at = records[-1].offset + 1
