"""Records as Faust hands them on, made into what the core needs: every record, once, in order.

Faust reads records that it never hands to the agent (its issue 596; after every second restart with a backlog, in our
trials), hands on others twice, and may fall silent. So nothing is believed: positions are compared with the one that
the core takes next, and what is missing is read from the log itself, by another client.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record


def stretches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """The records cut where one does not follow the one before it."""
    for _, part in groupby(enumerate(records), key=lambda pair: pair[1].offset - pair[0]):
        yield [record for _, record in part]


def by_partition(batch: Iterable[tuple[int, Record]]) -> dict[int, list[Record]]:
    """The records of each partition, in the order in which they came."""
    found: dict[int, list[Record]] = {}
    for p, record in batch:
        found.setdefault(p, []).append(record)
    return found


def missing(log: EventLog, p: int, start: int, stop: int, most: int) -> list[Record]:
    """At most so many records of events/p from `start` on and below `stop`; none where the log has none there.

    Raises CorruptStateError where retention has taken what was missing.
    """
    first = log.start_offset("events", p)
    if start < first:
        raise CorruptStateError(
            f"events/{p} begins at {first}, but record {start} is not joined yet: retention overtook the joiner. Stop "
            "the run, delete the topic `examples` and what was made from it, and start the joiner again"
        )
    stop = min(stop, log.end_offset("events", p))
    if start >= stop:
        return []
    return [record for record in log.read("events", p, start, min(most, stop - start)) if record.offset < stop]
