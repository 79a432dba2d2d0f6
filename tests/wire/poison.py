"""Traffic of independent producers of which a tenth is malformed, of every kind; and what must become of it.

A `Sent` is one Kafka message as it is produced, and what is dead of it. The same traffic without its dead events is
what an undisturbed join is fed with.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import kafka as other
import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from infra.config import WireConfig
from infra.hashing import partition_of
from stream.events import ItemColumns, encode_events, encode_items, item_heartbeats
from stream.wire.dead import Reason
from stream.wire.formats import Form
from stream.wire.limits import Rules
from stream.wire.records import Incoming, read_events
from tests.join import scenes
from tests.wire import samples
from tests.wire.samples import NOW, engagement, pack

Headers = Sequence[tuple[str, bytes | None]]
USERS = 50
FAR_MS = NOW + 10_000_000
LARGEST = (8 << 20) - 128  # of a message's value under the topic's max.message.bytes


class NoUtf8(str):
    """The name of a header, as a producer in another language may write it."""

    def encode(self, *_args: Any, **_kwargs: Any) -> bytes:
        return b"\xff\xfe"


class Dead(NamedTuple):
    """A dead event: why, its own bytes, and its number in the record; -1 for all of the record."""

    reason: str
    raw: bytes
    row: int = -1


class Sent(NamedTuple):
    """A message, and what of it is alive and dead."""

    value: bytes | None
    timestamp_ms: int = NOW
    headers: Headers = ()
    key: bytes | None = None
    dead: tuple[Dead, ...] = ()
    alive: bytes = b""  # the record without what is dead; nothing where no event is left


def whole(
    reason: Reason, value: bytes | None, headers: Headers = (), *, at_ms: int = NOW, key: bytes | None = None
) -> Sent:
    return Sent(value, at_ms, headers, key, (Dead(reason.value, value or b""),))


def columns_of(*rows: scenes.Row) -> bytes:
    return encode_events(scenes.columns(list(rows)))


def shown(user: int, **changes: Any) -> scenes.Row:
    return scenes.Row(0, NOW, NOW, 7, user, items=(1, 2))._replace(**changes)


def some_rows(reason: Reason, rows: list[scenes.Row], bad: list[int]) -> Sent:
    """A columnar record of which some rows are dead."""
    dead = Dead(reason.value, columns_of(*(rows[i] for i in bad)))
    alive = [row for i, row in enumerate(rows) if i not in bad]
    return Sent(columns_of(*rows), dead=(dead,), alive=columns_of(*alive) if alive else b"")


def of_records() -> Iterator[Sent]:
    """Messages that die as a whole, whatever partition they lie in."""
    for reason, value in samples.RECORDS:
        yield whole(reason, value)
    yield whole(Reason.FORMAT, None, key=b"u1")  # a tombstone
    yield whole(Reason.TOO_LARGE, b"{" + b" " * (LARGEST - 1))  # as large as the broker takes: its letter is cut
    yield whole(Reason.VALUE, pack({"type": "x" * 100_000}, "json"))  # quoted by what refuses it
    yield whole(Reason.FORMAT, b'{"type": "heartbeat"}', [("content-type", b"text/plain")])
    yield whole(Reason.SYNTAX, b'{"type": "heartbeat"}', [("content-type", b"application/msgpack")])
    yield whole(Reason.NOT_UTF8, samples.MAP, [("content-type", b"application/json")])
    yield whole(Reason.SYNTAX, b"", [("content-type", b"application/vnd.apache.arrow.stream")])
    yield whole(Reason.SYNTAX, b'{"type": "heartbeat"}', [("ouzel-meta", b"\xff")])
    yield whole(Reason.VERSION, b'{"type": "heartbeat"}', [("ouzel-meta", msgspec.msgpack.encode({"v": 2}))])
    yield whole(Reason.SYNTAX, b'{"type": "heartbeat"}', [("a", b"b"), (NoUtf8("x"), b"y"), ("c", b"d")])
    yield whole(Reason.TIME, b'{"type": "heartbeat"}', at_ms=NOW * 1_000)  # a timestamp in microseconds
    good = columns_of(shown(1))
    batch = pa.ipc.open_stream(good).read_next_batch()
    without = batch.select([name for name in batch.schema.names if name != "user"])
    wrong = batch.set_column(2, "time_ms", pa.array([1.5]))
    nulls = batch.set_column(2, "time_ms", pa.array([None], pa.int64()))
    for value in (good[:-20], good + good, good + b"\0", good[:-9], arrow([batch], compression="zstd")):
        yield whole(Reason.SYNTAX, value)
    for batches in ([batch, batch], [without], [wrong], [nulls]):
        yield whole(Reason.SYNTAX, arrow(batches))
    yield some_rows(Reason.ROW, [shown(1, kind=9)], [0])
    yield some_rows(Reason.ROW, [shown(1, items=()), shown(2, ingested_ms=FAR_MS), shown(3, time_ms=2**60)], [0, 1, 2])
    yield some_rows(Reason.ROW, [scenes.Row(1, -5, NOW, 1, 1, 1), scenes.Row(1, NOW, NOW, 1, 1, 1, 9)], [0, 1])
    yield some_rows(Reason.ROW, [scenes.Row(2, NOW - 5, 0), scenes.Row(2, FAR_MS, 0)], [1])


def arrow(batches: list[Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    value: bytes = sink.getvalue().to_pybytes()
    return value


def of_events(form: str) -> list[tuple[Reason, bytes]]:
    """Events that die alone, in a format."""
    return [(bad.reason, raw) for bad in samples.EVENTS if (raw := bad.raw(form))]


def of_items() -> Iterator[Sent]:
    """Malformed records of `items`, and good ones between them."""
    good = pack({"type": "item", "id": "N1", "title": "a"}, "json")
    yield Sent(good, alive=good)
    for bad, reason in (
        ({"id": 1.5}, Reason.TYPE),
        ({"title": "x" * 5_000}, Reason.TEXT_LENGTH),
        ({"id": ""}, Reason.EMPTY_ID),
        ({"published": "?"}, Reason.TIME),
        ({"type": "impression"}, Reason.VALUE),
        ({"v": 7}, Reason.VERSION),
    ):
        for form in samples.FORMS:
            raw, fine = pack({"type": "item", "id": "N2"} | bad, form), pack({"type": "item", "id": "N3"}, form)
            yield whole(reason, raw)
            yield Sent(as_batch([raw, fine], form), dead=(Dead(reason.value, raw, 0),), alive=as_batch([fine], form))
    yield whole(Reason.FORMAT, None, key=b"N1")
    yield whole(Reason.SYNTAX, good, [(NoUtf8("x"), b"")])
    beats = item_heartbeats(np.array([NOW - 3, NOW - 2, NOW - 1]))
    for name, wrong in (("kind", 7), ("ingested_ms", FAR_MS), ("ingested_ms", -1), ("published_ms", 2**60)):
        rows = changed(beats, name, wrong)
        dead = Dead(Reason.ROW.value, encode_items(rows.take(np.array([1]))))
        yield Sent(encode_items(rows), dead=(dead,), alive=encode_items(beats.take(np.array([0, 2]))))
    yield whole(Reason.SYNTAX, encode_items(beats)[:-30])
    last = pack({"type": "heartbeat"}, "json")
    yield Sent(last, alive=last)


def changed(items: ItemColumns, name: str, second: int) -> ItemColumns:
    column = getattr(items, name).copy()
    column[1] = second
    parts = {field: getattr(items, field) for field in items.__dataclass_fields__}
    return ItemColumns(**{**parts, name: column})


def as_batch(raws: list[bytes], form: str) -> bytes:
    if form == "json":
        return b"[" + b",".join(raws) + b"]"
    return bytes([0x90 + len(raws)]) + b"".join(raws)


def traffic(good: int, partitions: int, seed: int) -> dict[int, list[Sent]]:
    """Messages by partition: `good` events of singles, arrays and columns, every kind of dead one, then heartbeats."""
    rng, found = np.random.default_rng(seed), dict[int, list[Sent]]({p: [] for p in range(partitions)})
    home = {f"u{i}": partition_of(f"u{i}", partitions) for i in range(USERS)}
    records, singles = list(of_records()), {form: of_events(form) for form in samples.FORMS}
    poison = [*records, *(whole(r, raw) for form in samples.FORMS for r, raw in singles[form] if alone(raw))]
    events = samples.some_impressions(good, seed=seed)
    share = good // len(poison)
    while events:
        form = ("json", "msgpack", "arrow")[int(rng.integers(3))]
        size = int(rng.integers(1, 6))
        taken, events = events[:size], events[size:]
        for p in range(partitions):
            mine = [event for event in taken if home[event["user"]] == p]
            if mine:
                found[p].append(columns_record(mine) if form == "arrow" else record_of(mine, form, singles[form], rng))
        while poison and len(events) < share * len(poison):
            found[int(rng.integers(partitions))].append(poison.pop(int(rng.integers(len(poison)))))
    stranger = next(user for user in home if home[user] != 0)
    found[0].insert(5, whole(Reason.PARTITION, pack(engagement(user=stranger), "json")))
    for p in range(partitions):
        value = pack({"type": "heartbeat"}, "json")
        found[p].append(Sent(value, FAR_MS, alive=value))
    return found


def alone(raw: bytes) -> bool:
    """Whether the bytes of an event are a record of the format that they are in."""
    return raw[:1] in (b"{", b"\x82") or 0x80 <= raw[0] <= 0x8F or raw[0] == 0xDE


def record_of(events: list[Any], form: str, bad: list[tuple[Reason, bytes]], rng: np.random.Generator) -> Sent:
    """One message of these events, now and then with a dead one among them."""
    raws, when = [pack(event, form) for event in events], max(event["time_ms"] for event in events)
    if len(raws) == 1:
        return Sent(raws[0], when, [("trace", b"x"), ("nothing", None)], alive=raws[0])
    fine, dead = as_batch(raws, form), ()
    if rng.random() < 0.3:
        reason, raw = bad[int(rng.integers(len(bad)))]
        row = int(rng.integers(len(raws) + 1))
        raws.insert(row, raw)
        dead = (Dead(reason.value, raw, row),)
    return Sent(as_batch(raws, form), when, dead=dead, alive=fine)


def columns_record(events: list[Any]) -> Sent:
    """The events as one record in columns."""
    when = max(event["time_ms"] for event in events)
    rules = Rules(WireConfig(), 0)
    value = encode_events(read_events([Incoming(0, when, pack(events, "json"), Form.JSON)], rules).events)
    return Sent(value, when, alive=value)


class Producers:
    """kafka-python and librdkafka, in turns; one waits for all of its messages before the other goes on."""

    def __init__(self, brokers: str) -> None:
        self._other = other.KafkaProducer(bootstrap_servers=brokers, max_request_size=16 << 20)
        self._ours = Producer({"bootstrap.servers": brokers, "message.max.bytes": 16 << 20})
        self._sent: list[Any] = []
        self._refused: list[Any] = []

    def _told(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._refused.append(error)

    def send(self, topic: str, partition: int, messages: list[Sent]) -> None:
        for at in range(0, len(messages), 20):
            for sent in messages[at : at + 20]:
                if self._by_other(sent, at):
                    self._flush_ours()
                    headers = list(sent.headers)
                    waits = self._other.send(topic, sent.value, sent.key, headers, partition, sent.timestamp_ms)
                    self._sent.append(waits)
                else:
                    self._flush_other()
                    about = {"timestamp": sent.timestamp_ms, "headers": list(sent.headers), "on_delivery": self._told}
                    self._ours.produce(topic, sent.value, sent.key, partition, **about)
        self.flush()

    def _by_other(self, sent: Sent, at: int) -> bool:
        """kafka-python writes no null headers, librdkafka no names that are no text."""
        if any(isinstance(name, NoUtf8) for name, _ in sent.headers):
            return True
        return bool(at // 20 % 2) and all(value is not None for _, value in sent.headers)

    def _flush_ours(self) -> None:
        assert not self._ours.flush(30)
        assert not self._refused

    def _flush_other(self) -> None:
        for each in self._sent:
            each.get(30)
        self._sent.clear()

    def flush(self) -> None:
        self._flush_other()
        self._flush_ours()

    def close(self) -> None:
        self.flush()
        self._other.close()
