"""The event log on a Kafka cluster: see `base` for the law, `address` for names, `places` for readers' positions.

What holds as on the embedded log: order, durability before visibility, dense offsets (nobody writes transactions to our
topics), explicit positions, back-pressure by what was read. What differs:
- A flush that raised may become visible later, by itself (`writer`).
- `retain` cuts at a record, not at a segment; Kafka frees the disk a segment at a time.
- A reader that was forgotten while it polls registers itself again.
- A cluster's own retention may drop what a reader still needs, who then says so; `topics` has how long each is kept.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import ConfigResource, NewTopic, OffsetSpec, ResourceType

from infra.config import LogConfig
from infra.errors import ConfigError
from infra.eventlog.base import Record
from infra.eventlog.groups import Member
from infra.eventlog.kafka.address import parse_address
from infra.eventlog.kafka.cluster import APPEAR_S, Cluster
from infra.eventlog.kafka.fetch import Fetcher
from infra.eventlog.kafka.link import to_stderr
from infra.eventlog.kafka.places import Places
from infra.eventlog.kafka.reader import KafkaReader
from infra.eventlog.kafka.records import FRAME_BYTES, MAX_TIME_MS
from infra.eventlog.kafka.topics import APPENDED, advice, wanted
from infra.eventlog.kafka.writer import KafkaWriter
from infra.eventlog.topics import MAX_PARTITIONS, check_name

CONNECT_S = 15.0  # the first contact: an address may be wrong
TURN_S = 2.0  # ... or a password, which is known soon
MIN_SEGMENT_BYTES = 1 << 20  # Kafka 4 accepts no smaller
OURS_ALONE = frozenset({"versions"})  # topics that nobody else reads: a codec may need an extra package
SCAN_RECORDS = 1_000
CURSORS = 4  # partitions that `read` keeps a place in


class KafkaLog:
    """See `base.EventLog`. One per process; threads may share it, not its writers and readers."""

    def __init__(self, url: str, config: LogConfig) -> None:
        self.address = parse_address(url)
        self._config = config
        self._cluster = Cluster(self.address, config.kafka)
        self._places = Places(self._cluster)
        self._counts: dict[str, int] = {}
        self._writers: list[KafkaWriter] = []
        self._readers: list[KafkaReader] = []
        self._cursors: dict[tuple[str, int], Fetcher] = {}  # oldest use first
        self._lock = threading.Lock()
        self._cluster.call(
            "opening the log",
            lambda t: self._cluster.admin.describe_cluster(request_timeout=min(t, TURN_S)).result(),
            patience_s=CONNECT_S,
        )

    @property
    def max_record_bytes(self) -> int:
        return self._config.kafka.max_record_bytes - FRAME_BYTES

    @property
    def waiting_s(self) -> float:
        return self._cluster.link.waiting_s

    def create_topic(self, topic: str, partitions: int) -> None:
        check_name("topic", topic)
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"topic {topic}: {partitions} partitions; choose 1 to {MAX_PARTITIONS}")
        if self._count(topic) is None:
            self._create(topic, partitions)
        else:
            self._look_at(topic)
        self._cluster.appears()
        found = self._wait_for(topic)
        if found != partitions:
            raise ConfigError(
                f"topic {topic} in {self.address} has {found} partitions, the configuration says {partitions}: set "
                "log.partitions back, or choose another prefix (keys would change their partition)"
            )

    def _create(self, topic: str, partitions: int) -> None:
        copies = self._config.kafka.replication
        settings = {
            "cleanup.policy": "delete",
            "retention.bytes": "-1",
            "segment.bytes": str(max(self._config.segment_bytes, MIN_SEGMENT_BYTES)),
            "max.message.bytes": str(self._config.kafka.max_record_bytes),
            **wanted(topic, self._config.kafka),
            "message.timestamp.after.max.ms": str((1 << 63) - 1),
            **({"min.insync.replicas": "2"} if copies >= 3 else {}),
        }
        new = NewTopic(self.address.topic(topic), partitions, copies or -1, config=settings)
        try:
            self._cluster.gather(
                f"creating topic {topic}",
                lambda t: self._cluster.admin.create_topics([new], operation_timeout=t, request_timeout=t),
            )
        except ConfigError as error:
            if not _is(error, KafkaError.TOPIC_ALREADY_EXISTS):
                raise

    def _look_at(self, topic: str) -> None:
        """Say what the settings of a topic that is there may do; nothing where this client may not see them."""
        name = self.address.topic(topic)
        resource = ConfigResource(ResourceType.TOPIC, name)
        try:
            entries: Any = self._cluster.gather(
                f"settings of topic {topic}",
                lambda t: self._cluster.admin.describe_configs([resource], request_timeout=t),
            )[resource]
        except ConfigError:
            return
        found = {key: entry.value for key, entry in entries.items() if entry.value is not None}
        for text in advice(topic, name, self.address.brokers, found, self._config.kafka):
            to_stderr(text)

    def _wait_for(self, topic: str) -> int:
        """The partitions of a topic that was just made, by us or by another process: the next broker may not know."""
        deadline = time.monotonic() + APPEAR_S
        while (count := self._count(topic)) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if count is not None:
            self._counts[topic] = count
        return self.partitions(topic)

    def partitions(self, topic: str) -> int:
        if topic not in self._counts:
            check_name("topic", topic)
            count = self._count(topic)
            if count is None:
                raise ConfigError(
                    f"{self.address}: no topic {topic} in this log ({self.address.topic(topic)}); create it first, or "
                    "check the prefix"
                )
            self._counts[topic] = count
        return self._counts[topic]

    def _count(self, topic: str) -> int | None:
        name = self.address.topic(topic)
        try:
            found: dict[Any, Any] = self._cluster.gather(
                f"topic {topic}",
                lambda t: self._cluster.admin.describe_topics(TopicCollection([name]), request_timeout=t),
                missing=True,
            )
        except ConfigError as error:
            if _is(error, KafkaError.UNKNOWN_TOPIC_OR_PART):
                return None
            raise
        return len(found[name].partitions)

    def writer(self, topic: str) -> KafkaWriter:
        config = self._config
        writer = KafkaWriter(
            self._cluster,
            self.address.topic(topic),
            self.partitions(topic),
            flush_bytes=config.flush_bytes,
            flush_s=config.flush_s,
            compression="lz4" if topic in OURS_ALONE else config.kafka.compression,
            appended=topic in APPENDED,
        )
        self._writers = [*(w for w in self._writers if not w.closed), writer]
        return writer

    def reader(self, topic: str, name: str, partitions: Sequence[int] | None = None) -> KafkaReader:
        check_name("reader", name)
        numbers = range(self.partitions(topic)) if partitions is None else partitions
        for number in numbers:
            self._check_partition(topic, number)
        return self._reader(topic, name, numbers, None)

    def member(self, topic: str, name: str, told: Member) -> KafkaReader:
        """A reader whose partitions come and go by Kafka's group protocol: see `groups.Member`.

        A name is used either by readers with given partitions or by members, never by both.
        """
        check_name("reader", name)
        self.partitions(topic)
        return self._reader(topic, name, (), told)

    def _reader(self, topic: str, name: str, numbers: Sequence[int], told: Member | None) -> KafkaReader:
        group = self.address.group(topic, name)
        reader = KafkaReader(self._cluster, self._places, self.address.topic(topic), group, numbers, told)
        self._readers = [*(r for r in self._readers if not r.closed), reader]
        return reader

    def start_offset(self, topic: str, partition: int) -> int:
        return self._offset(topic, partition, OffsetSpec.earliest())

    def end_offset(self, topic: str, partition: int) -> int:
        return self._offset(topic, partition, OffsetSpec.latest())

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int:
        return self._offset_at(topic, partition, timestamp_ms, self.end_offset(topic, partition))

    def _offset_at(self, topic: str, partition: int, timestamp_ms: int, stop: int) -> int:
        """First offset below `stop` at or after a time, else `stop`.

        No message is older than its record (`records`), so that the brokers' index says where to begin to look: at once
        the place when live, the start in a replay.
        """
        offset = self._offset(topic, partition, OffsetSpec.for_timestamp(min(max(timestamp_ms, 0), MAX_TIME_MS)))
        while 0 <= offset < stop:
            for record in self._fetched(topic, partition, offset, SCAN_RECORDS, stop):
                if record.timestamp_ms >= timestamp_ms:
                    return min(record.offset, stop)
                offset = record.offset + 1
        return stop

    def _offset(self, topic: str, partition: int, spec: OffsetSpec) -> int:
        self._check_partition(topic, partition)
        return self._places.offsets(self.address.topic(topic), [partition], spec)[partition]

    def last_record(self, topic: str, partition: int) -> Record | None:
        self._check_partition(topic, partition)
        start, end = self._places.range(self.address.topic(topic), partition)
        back = 1
        while start < end:  # one step, unless somebody's transaction ended here: its marker takes an offset
            first = max(start, end - back)
            if records := self._fetched(topic, partition, first, back, end):
                return records[-1]
            if first == start:
                break
            back *= 16
        return None

    def read(self, topic: str, partition: int, offset: int, max_records: int = 256) -> list[Record]:
        self._check_partition(topic, partition)
        start, end = self._places.range(self.address.topic(topic), partition)
        if not start <= offset <= end:
            raise ValueError(f"offset {offset} of {topic}/{partition}; the log holds {start} to {end}")
        return self._fetched(topic, partition, offset, max_records, end) if offset < end else []

    def _fetched(self, topic: str, partition: int, offset: int, max_records: int, end: int) -> list[Record]:
        """Records from `offset` up to `end`. A cursor stays where the last read ended; taken out while in use."""
        with self._lock:
            cursor = self._cursors.pop((topic, partition), None)
        if cursor is not None and cursor.next[partition] != offset:
            cursor.seek(partition, offset)
        if cursor is None:
            cursor = Fetcher(self._cluster, self.address.topic(topic), {})
            cursor.add({partition: offset})
            cursor.assign()
        out: list[Record] = []
        started = time.monotonic()
        while len(out) < max_records and cursor.next[partition] < end:
            got = cursor.poll(max_records - len(out), 0.1)
            out += [record for _, record in got]
            if not got and (waited := time.monotonic() - started) > self._config.kafka.patience_s:
                raise self._cluster.no_answer(f"reading {topic}/{partition}", waited, "records do not come")
        self._keep(topic, partition, cursor)
        return out

    def _keep(self, topic: str, partition: int, cursor: Fetcher) -> None:
        with self._lock:
            spare = [self._cursors.setdefault((topic, partition), cursor)]
            spare = [] if spare[0] is cursor else [cursor]
            while len(self._cursors) > CURSORS:
                spare.append(self._cursors.pop(next(iter(self._cursors))))
        for each in spare:
            each.close()

    def reader_lag(self, topic: str) -> dict[str, int]:
        name = self.address.topic(topic)
        ends = self._places.offsets(name, range(self.partitions(topic)), OffsetSpec.latest())
        lags = {}
        for reader, places in self._places.readers(name).items():
            reads = {number: place.read for number, place in places.items()}
            for mine in self._readers:  # what is open here is known exactly, before it is published
                if not mine.closed and mine.group == f"{name}/{reader}":
                    reads.update({n: read for n in reads if (read := mine.place(n)) is not None})
            lags[reader] = max((ends[n] - read for n, read in reads.items() if n in ends), default=0)
        return lags

    def read_positions(self, topic: str, name: str) -> dict[int, int]:
        places = self._places.readers(self.address.topic(topic)).get(name, {})
        return {number: place.read for number, place in sorted(places.items())}

    def forget_reader(self, topic: str, name: str) -> None:
        self.partitions(topic)
        self._places.forget(self.address.group(topic, name))

    def retain(self, topic: str, *, before_ms: int) -> int:
        name = self.address.topic(topic)
        numbers = range(self.partitions(topic))
        readers = self._places.readers(name).values()
        starts = self._places.offsets(name, numbers, OffsetSpec.earliest())
        ends = self._places.offsets(name, numbers, OffsetSpec.latest())
        cuts = []
        dropped = 0
        for n in numbers:
            released = [places[n].committed or 0 for places in readers if n in places]
            upto = min([*released, ends[n] - 1])
            if upto > starts[n]:
                upto = self._offset_at(topic, n, before_ms, upto)
            if upto > starts[n]:
                cuts.append(TopicPartition(name, n, upto))
                dropped += upto - starts[n]
        if cuts:
            self._cluster.gather(
                f"dropping records of {topic}",
                lambda t: self._cluster.admin.delete_records(cuts, request_timeout=t),
            )
        return dropped

    def close(self) -> None:
        for writer in self._writers:
            writer.abandon()
        for reader in self._readers:
            reader.close()
        with self._lock:
            cursors, self._cursors = list(self._cursors.values()), {}
        for cursor in cursors:
            cursor.close()
        self._writers, self._readers = [], []

    def _check_partition(self, topic: str, number: int) -> None:
        if not 0 <= number < self.partitions(topic):
            raise ValueError(f"partition {number} of topic {topic}, which has {self.partitions(topic)}")


def _is(error: ConfigError, code: int) -> bool:
    cause = error.__cause__
    return isinstance(cause, KafkaException) and cause.args[0].code() == code
