"""Replay of dead letters: what can be read now is appended to its topic again, each letter once.

An event comes back as a new record whose meta names the letter (`origin`) and the timestamp of the record that it was,
which stays its time where it says none. It is ingested now: if its tick is closed, the join counts it as late. An event
that lay in a partition where its user does not belong goes into the one where he does.

Order, for batches of letters, so that a crash anywhere appends nothing twice:
1. a note in `dead-letters`: these keys are being replayed, and where the topics ended before;
2. the records, durable;
3. a note: they were.
On start, a first note without its second is finished: what it names and the topics do not hold since is appended.
Two replays at once are the caller's to prevent (`ouzel dead-letters replay` locks the run folder).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from infra.config import Config
from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record
from infra.hashing import partition_of
from stream import deadletters
from stream.columns import MalformedRecordError
from stream.deadletters import LetterMeta, letters
from stream.events import decode_events, decode_items
from stream.join.core import FIXED_BYTES
from stream.join.intake import list_bytes
from stream.join.state import malformed_rows
from stream.wire.dead import Fault, Reason
from stream.wire.formats import CONTENT_TYPES, Form, UnknownVersionError, WireMeta, decode_wire_meta, form_of
from stream.wire.items import read_items, unusable_items
from stream.wire.limits import Rules
from stream.wire.parse import EVENT_PARSERS
from stream.wire.records import Incoming, read_events
from stream.wire.schema import Engagement, Impression

BATCH = 1_000  # letters between two notes
_READ = 256
_TYPES = {form: name for name, form in reversed(CONTENT_TYPES.items())}


class Note(msgspec.Struct, frozen=True):
    """Value of a note: letters that are being replayed; `done` once they are."""

    keys: tuple[str, ...]
    ends: dict[str, int]  # "topic/partition" -> end offset before
    done: bool = False


@dataclass(slots=True)
class Replayed:
    """What became of the letters."""

    replayed: int = 0
    before: int = 0  # were replayed earlier
    still_dead: dict[str, int] = field(default_factory=dict)  # letters by the reason that they have now
    foreign: int = 0  # letters of data sets and other topics: their source is mended, not they


def read_notes(log: EventLog) -> dict[str, Note]:
    """Notes by name, each as it was written last. Raises CorruptStateError."""
    notes: dict[str, Note] = {}
    for record in deadletters.records(log):
        if record.key.startswith(deadletters.NOTE_PREFIX):
            name = record.key.removeprefix(deadletters.NOTE_PREFIX).decode("ascii", "replace")
            try:
                notes[name] = msgspec.msgpack.decode(record.value, type=Note)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise CorruptStateError(
                    f"dead-letters, offset {record.offset}: a replay's note cannot be read ({error}); what it "
                    "replayed is unknown, so replaying again could double events: use a newer release"
                ) from error
    return notes


def replayed_keys(log: EventLog) -> set[bytes]:
    """Keys of the letters whose replay has begun: none of them is replayed again."""
    return {key.encode() for note in read_notes(log).values() for key in note.keys}


class _Place(NamedTuple):
    """Where a letter's bytes go, and how they are to be read there."""

    key: str
    topic: str
    partition: int
    value: bytes
    meta: bytes
    stamp_ms: int  # of the record that the letter was


class DeadReplay:
    """`run()` once. For one process at a time."""

    def __init__(self, log: EventLog, config: Config) -> None:
        self._log, self._config = log, config
        self._skew_ms = config.time.build().skew_ms
        self._partitions = log.partitions("events")
        self._writers = {topic: log.writer(topic) for topic in ("events", "items", deadletters.TOPIC)}

    def run(self) -> Replayed:
        """Append what can be read. Raises RetryableError where the log does not take it: run again."""
        found, result = letters(self._log), Replayed()
        notes = read_notes(self._log)
        begun = {key for note in notes.values() for key in note.keys}
        for name, note in notes.items():
            if not note.done:
                self._finish(name, note, found)
        places = []
        for raw_key, (record, meta) in found.items():
            key = raw_key.decode("utf-8", "replace")
            if meta.topic not in ("events", "items"):
                result.foreign += 1
            elif key in begun:
                result.before += 1
            elif isinstance(place := self._place(key, record, meta), Fault):
                result.still_dead[place.reason] = result.still_dead.get(place.reason, 0) + 1
            else:
                places.append(place)
        for batch in (places[at : at + BATCH] for at in range(0, len(places), BATCH)):
            name = f"{len(notes)}"
            note = Note(tuple(place.key for place in batch), self._ends())
            notes[name] = note
            self._write_note(name, note)
            self._append(batch)
            self._write_note(name, msgspec.structs.replace(note, done=True))
            result.replayed += len(batch)
        return result

    def close(self) -> None:
        """Let go of the log."""
        for writer in self._writers.values():
            writer.close()

    def _write_note(self, name: str, note: Note) -> None:
        writer, value = self._writers[deadletters.TOPIC], msgspec.msgpack.encode(note)
        writer.append(0, value, timestamp_ms=self._now_ms("events", 0), key=deadletters.NOTE_PREFIX + name.encode())
        writer.flush()

    def _ends(self) -> dict[str, int]:
        places = [("items", 0), *(("events", p) for p in range(self._partitions))]
        return {f"{topic}/{p}": self._log.end_offset(topic, p) for topic, p in places}

    def _finish(self, name: str, note: Note, found: dict[bytes, tuple[Record, LetterMeta]]) -> None:
        """An earlier replay died between its notes: append what is missing, then say so."""
        there = set(self._origins_since(note.ends))
        missing = [key for key in note.keys if key not in there and key.encode() in found]
        places = [self._place(key, *found[key.encode()]) for key in missing]
        self._append([place for place in places if isinstance(place, _Place)])
        self._write_note(name, msgspec.structs.replace(note, done=True))

    def _origins_since(self, ends: dict[str, int]) -> Iterator[str]:
        """Letters that records from these offsets on come from."""
        for place, end in ends.items():
            topic, _, partition = place.partition("/")
            at = max(end, self._log.start_offset(topic, int(partition)))
            while at < self._log.end_offset(topic, int(partition)):
                for record in self._log.read(topic, int(partition), at, _READ):
                    at = record.offset + 1
                    try:
                        yield decode_wire_meta(record.meta).origin
                    except MalformedRecordError:
                        continue  # another producer's: it comes from no letter

    def _place(self, key: str, record: Record, meta: LetterMeta) -> _Place | Fault:
        """Where the letter's bytes can go now, or why they are still dead."""
        value = self._bytes_of(record, meta)
        if isinstance(value, Fault):
            return value
        form = next((form for form in Form if form.value == meta.form), None) or form_of(value)
        stamp = meta.timestamp_ms
        about = WireMeta(content_type=_TYPES[form] if form else "", origin=key, origin_ms=stamp)
        place = _Place(key, meta.topic, max(meta.partition, 0), value, msgspec.msgpack.encode(about), stamp)
        if fault := _version_fault(meta.meta) or self._size_fault(place):
            return fault
        list_bytes = self._config.join.bytes_per_record - FIXED_BYTES
        rules = Rules(self._config.wire, self._skew_ms, list_bytes=list_bytes)
        if form is Form.ARROW:
            return _columns_fault(meta, value, rules) or place
        if meta.topic == "items":
            items = read_items(Record(record.offset, stamp, b"", place.meta, value), rules)
            return place if len(items.items) or not items.dead else items.dead[0].fault
        rows = read_events([Incoming(record.offset, stamp, value, form)], rules)
        alive = len(rows.events) - len(rows.dead)
        if not alive and rows.dead:
            return rows.dead[0].fault
        return place._replace(partition=self._home(value, form, place.partition))

    def _bytes_of(self, record: Record, meta: LetterMeta) -> bytes | Fault:
        """All bytes of the event; of a letter that is cut, those of the record that it was, if that is still there."""
        if not meta.cut:
            return bytes(record.value)
        place = f"{meta.topic}/{meta.partition}/{meta.offset}"
        if not meta.rows and meta.offset >= self._log.start_offset(meta.topic, meta.partition):
            found = self._log.read(meta.topic, meta.partition, meta.offset, 1)
            if found and found[0].offset == meta.offset:
                return bytes(found[0].value)
        return Fault(Reason.TOO_LARGE, f"{meta.cut} bytes, of which the letter holds {len(record.value)}: see {place}")

    def _size_fault(self, place: _Place) -> Fault | None:
        """A record that only just fitted where it lay has no room for the name of its letter."""
        size, most = len(place.value) + len(place.meta), self._log.max_record_bytes
        if size <= most:
            return None
        return Fault(Reason.TOO_LARGE, f"{size} bytes with the name of its letter; the log takes {most} a record")

    def _home(self, value: bytes, form: Form | None, partition: int) -> int:
        """The partition where all users of a letter's events belong; where that is none, the one it lay in."""
        if self._config.wire.any_partition or form is None:
            return partition
        events = EVENT_PARSERS[form].records([value], self._config.wire)[0].events
        users = {str(one.user) for one in events if isinstance(one, Impression | Engagement)}
        homes = {partition_of(user, self._partitions) for user in users}
        return homes.pop() if len(homes) == 1 else partition

    def _append(self, places: Sequence[_Place]) -> None:
        now_ms = {where: self._now_ms(*where) for where in {(place.topic, place.partition) for place in places}}
        for _, topic, partition, value, meta, stamp_ms in places:
            when = max(now_ms[topic, partition], stamp_ms)
            self._writers[topic].append(partition, value, timestamp_ms=when, meta=meta)
        for topic in ("items", "events"):
            self._writers[topic].flush()

    def _now_ms(self, topic: str, partition: int) -> int:
        """A partition's time: its newest record's, for a wall clock would close the ticks of a replayed log."""
        last = self._log.last_record(topic, partition)
        return last.timestamp_ms if last is not None else 0


def _version_fault(meta: bytes) -> Fault | None:
    """Whether a newer release wrote the record, and this one does not know what its meta says."""
    try:
        decode_wire_meta(meta)
    except UnknownVersionError as error:
        return Fault(Reason.VERSION, str(error))
    except MalformedRecordError:
        return None  # it is replaced
    return None


def _columns_fault(meta: LetterMeta, value: bytes, rules: Rules) -> Fault | None:
    """What is still wrong with a columnar letter."""
    latest_ms = meta.timestamp_ms + rules.skew_ms
    try:
        if meta.topic == "items":
            bad = int(unusable_items(decode_items(value), latest_ms).sum())
        else:
            events = decode_events(value)
            beyond = (events.ingested_ms > latest_ms) | (list_bytes(events) > rules.list_bytes)
            bad = len(np.union1d(malformed_rows(events), np.flatnonzero(beyond)))
    except MalformedRecordError as error:
        return Fault(Reason.SYNTAX, str(error))
    return Fault(Reason.ROW, f"{bad} rows") if bad else None
