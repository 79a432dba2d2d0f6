"""`dead-letters`: what could not be used, with its reason, its bytes and where it lay.

A letter's key says what is dead: `events/<partition>/<offset>` a record (or the rows of a columnar record that its
meta names), `events/<partition>/<offset>/<row>` one event of a batch, `mind/<file>:<line>` a row of a data set. A crash
may make a process write a letter again: the same key is the same letter. What has a letter stays dead, also under
other limits: a joiner that reads it again drops it again, and only `stream.deadreplay` brings it back. So no restart
and no change of the configuration makes an event count twice.

A letter must fit where its record did, and its meta comes on top: where bytes and meta are too much for a record of
the log, the letter holds the first of them, says so (`cut`), and the rest is read where the record lies.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import NamedTuple

import msgspec

from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record, Writer
from stream.wire.dead import DeadRow
from stream.wire.schema import TIME_LIMIT

TOPIC = "dead-letters"
NOTE_PREFIX = b"replay/"  # keys of the notes that a replay leaves; all other records are letters
MAX_DETAIL = 500  # characters: a message may quote what a producer sent, whatever its size
MAX_META_BYTES = 4_096  # of a record's meta that cannot be read; a larger one is not kept
_READ = 256


class LetterMeta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Meta of a letter. Unknown fields are ignored."""

    reason: str
    detail: str = ""
    topic: str = ""  # where it lay
    partition: int = -1
    offset: int = -1
    rows: tuple[int, ...] = ()  # which events of the record; none: all of it, as one
    form: str = ""  # how its bytes are to be read, where that was known
    timestamp_ms: int = -1  # of the record
    meta: bytes = b""  # of the record, where that is what could not be read
    cut: int = 0  # how many bytes the event has, where the letter does not hold them all
    file: str = ""  # of a data set
    line: int = 0

    @property
    def events(self) -> int:
        """How many events the letter holds: a record that cannot be taken apart is one."""
        return max(len(self.rows), 1)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(LetterMeta)


def letter_key(topic: str, partition: int, offset: int, row: int = -1) -> bytes:
    """The key of a letter."""
    place = f"{topic}/{partition}/{offset}"
    return (place if row < 0 else f"{place}/{row}").encode()


class Letter(NamedTuple):
    """A letter to append."""

    key: bytes
    value: bytes
    meta: LetterMeta

    def append_to(self, writer: Writer) -> None:
        """Buffer it. Raises as `Writer.append`."""
        when = min(max(self.meta.timestamp_ms, 0), TIME_LIMIT)
        writer.append(0, self.value, timestamp_ms=when, key=self.key, meta=_ENCODER.encode(self.meta))


def letter_of(dead: DeadRow, topic: str, partition: int, timestamp_ms: int, *, most_bytes: int) -> Letter:
    """The letter of dead events. `timestamp_ms`: of their record; `most_bytes`: of a record of the log."""
    detail = dead.fault.detail
    meta = LetterMeta(
        reason=dead.fault.reason.value,
        detail=detail if len(detail) <= MAX_DETAIL else detail[: MAX_DETAIL - 1] + "…",
        topic=topic,
        partition=partition,
        offset=dead.offset,
        rows=dead.events,
        form=dead.form,
        timestamp_ms=timestamp_ms,
        meta=dead.meta if len(dead.meta) <= MAX_META_BYTES else b"",
    )
    key, value = letter_key(topic, partition, dead.offset, dead.row), dead.raw
    meta = msgspec.structs.replace(meta, cut=len(value))
    room = max(most_bytes - len(key) - len(_ENCODER.encode(meta)), 0)
    if len(value) <= room:
        return Letter(key, value, msgspec.structs.replace(meta, cut=0))
    return Letter(key, value[:room], meta)


def decode_letter_meta(record: Record) -> LetterMeta:
    """Meta of a letter. Raises CorruptStateError: only ouzel writes this topic."""
    try:
        return _DECODER.decode(record.meta)
    except msgspec.DecodeError as error:
        raise CorruptStateError(
            f"dead-letters, offset {record.offset}: its meta cannot be read ({error}); another program has written "
            "here: drop the topic and let the run write it again, or name the writer's topic otherwise"
        ) from error


def records(log: EventLog, start: int | None = None) -> Iterator[Record]:
    """Letters and notes from an offset (or the oldest) on, as they lie."""
    at = log.start_offset(TOPIC, 0) if start is None else start
    while at < log.end_offset(TOPIC, 0) and (found := log.read(TOPIC, 0, at, _READ)):
        yield from found
        at = found[-1].offset + 1


def letters(log: EventLog) -> dict[bytes, tuple[Record, LetterMeta]]:
    """Every letter once, by key, in order of their first appearance."""
    found: dict[bytes, tuple[Record, LetterMeta]] = {}
    for record in records(log):
        if not record.key.startswith(NOTE_PREFIX):
            found.setdefault(record.key or str(record.offset).encode(), (record, decode_letter_meta(record)))
    return found


def count_dead(log: EventLog) -> dict[str, dict[str, int]]:
    """Dead events by where they lay (a data set's file, a topic) and by reason, both sorted by name.

    A letter that was written twice counts once.
    """
    counts: dict[str, Counter[str]] = {}
    for _, meta in letters(log).values():
        place = PurePath(meta.file).name if meta.file else meta.topic
        counts.setdefault(place, Counter())[meta.reason] += meta.events
    return {place: dict(sorted(reasons.items())) for place, reasons in sorted(counts.items())}


def by_reason(dead: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """What `count_dead` found, summed over places, sorted by reason."""
    total: Counter[str] = Counter()
    for reasons in dead.values():
        total.update(reasons)
    return dict(sorted(total.items()))


def count_by_reason(log: EventLog) -> dict[str, int]:
    """Dead events by reason, wherever they lay."""
    return by_reason(count_dead(log))


class Buried:
    """Which events of `events` and `items` have a letter. `update()` reads what is new; memory follows their number."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next = log.start_offset(TOPIC, 0)
        self._rows: dict[tuple[str, int], dict[int, frozenset[int]]] = {}

    def update(self) -> None:
        """Read the letters that came since."""
        for record in records(self._log, self._next):
            self._next = record.offset + 1
            topic, _, place = record.key.decode("ascii", "replace").partition("/")
            numbers = place.split("/")
            if topic in ("events", "items") and len(numbers) >= 2 and all(n.isdigit() for n in numbers):
                meta = decode_letter_meta(record)
                at = self._rows.setdefault((topic, int(numbers[0])), {})
                offset = int(numbers[1])
                at[offset] = at.get(offset, frozenset()) | frozenset(meta.rows or (-1,))

    def rows(self, topic: str, partition: int, offset: int) -> frozenset[int] | None:
        """Rows of a record that are buried; -1 for the record itself; None where none is."""
        return self._rows.get((topic, partition), {}).get(offset)

    def forget(self, topic: str, partition: int, below: int) -> None:
        """Records before this offset are not read again."""
        kept = self._rows.get((topic, partition), {})
        self._rows[topic, partition] = {offset: rows for offset, rows in kept.items() if offset >= below}
