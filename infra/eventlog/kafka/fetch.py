"""Fetching: one librdkafka consumer, and a buffer per partition that makes its polls fair and complete.

librdkafka hands over messages of all partitions in the order in which they arrive. The log's law asks for more: equal
shares, and an empty poll only where nothing was there. So messages go into a buffer per partition first; a partition is
*hungry* while its buffer is empty and the log is known to go on, or nothing was heard of the partition yet; and before
a poll comes back empty, the ends of the partitions are asked for, on another connection (a fetch that waits at the
broker would hold the question up).
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from infra.errors import CorruptStateError
from infra.eventlog.base import Record
from infra.eventlog.kafka.cluster import FIX, TRY_S, Cluster
from infra.eventlog.kafka.link import SAY_AFTER_S
from infra.eventlog.kafka.places import answered
from infra.eventlog.kafka.records import record_of

BUFFER_BYTES = 16 << 20  # in the buffers here; as much again waits in librdkafka
BUFFER_RECORDS = 20_000
SHARE_WAIT_S = 0.05  # how long a hungry partition is waited for when others have something
FIRST_WAIT_S = 1.0  # ... when nobody has, and something is known to be there
NEW_WAIT_S = 3.0  # ... for the first word of a partition; librdkafka may look for its leader once a second
ASK_AGAIN_S = 1.0  # ends are asked for at least this often by a reader that gets nothing
# A batch whose checksum, compression or form is wrong: librdkafka says so, and would go on behind it.
DAMAGED = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError._NOT_IMPLEMENTED})
# A broker weighs a batch as it comes, compressed. What it unpacks to, librdkafka holds to the size of an answer (zstd
# alone; of other codecs, to nothing) and calls damaged beyond: room for a record that is too large, to be told so.
UNPACKED_BYTES = 256 << 20
PARKED_S = 0.02  # a poll that waited this long would have got what was there


def consumer_settings(group: str, max_record_bytes: int) -> dict[str, Any]:
    """Of every consumer: explicit offsets, an error instead of a silent jump, bounded queues."""
    return {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "check.crcs": True,
        "fetch.message.max.bytes": min(max_record_bytes, 1 << 20),
        "fetch.max.bytes": max(max_record_bytes, 16 << 20),
        "receive.message.max.bytes": max(max_record_bytes + (1 << 20), UNPACKED_BYTES),
        "queued.max.messages.kbytes": BUFFER_BYTES >> 10,
        "queued.min.messages": BUFFER_RECORDS,
        "fetch.wait.max.ms": 100,  # also how long a seek or a new partition waits for the fetch that is under way
        "fetch.queue.backoff.ms": 10,
        "fetch.error.backoff.ms": 50,
    }


class Fetcher:
    """Messages of some partitions of a topic, from given offsets on. For one thread."""

    def __init__(self, cluster: Cluster, topic: str, settings: Mapping[str, Any]) -> None:
        self._cluster, self._topic = cluster, topic
        self.consumer = cluster.consumer({**consumer_settings("ouzel", cluster.config.max_record_bytes), **settings})
        self.next: dict[int, int] = {}  # what `take` returns next
        self._fetched: dict[int, int] = {}  # what the consumer fetches next
        self._ends: dict[int, int] = {}  # as last heard
        self._new: dict[int, float] = {}  # nothing heard yet: not waited for any longer from then on (monotonic s)
        self._buffers: dict[int, deque[Record]] = {}
        self._buffered = self._buffered_bytes = 0
        self._turn: list[int] = []
        self._error: Exception | None = None
        self._asked: dict[int, Future[Any]] = {}
        self._asked_at = 0.0
        self._heard_at = 0.0

    def add(self, positions: Mapping[int, int]) -> None:
        """Fetch these partitions too, from these offsets on; the consumer is told by the caller."""
        for number, offset in positions.items():
            self.next[number] = self._fetched[number] = offset
            self._buffers[number] = deque()
            self._new[number] = time.monotonic() + NEW_WAIT_S
            self._turn.append(number)

    def remove(self, numbers: Iterable[int]) -> None:
        """Forget these partitions and what was fetched of them."""
        for number in numbers:
            self._drop_buffer(number)
            for table in (self.next, self._fetched, self._ends, self._new, self._buffers):
                table.pop(number, None)
            self._turn.remove(number)

    def assign(self) -> None:
        """Tell the consumer to fetch what was added, from where it stands."""
        self.consumer.assign([TopicPartition(self._topic, n, offset) for n, offset in self._fetched.items()])
        self._new = dict.fromkeys(self._fetched, time.monotonic() + NEW_WAIT_S)
        with suppress(KafkaException):  # asks for the leaders now; librdkafka would look for them within a second
            self.consumer.list_topics(self._topic, timeout=1.0)

    def seek(self, number: int, offset: int) -> None:
        """Go on from `offset`."""
        self._drop_buffer(number)
        self.next[number] = self._fetched[number] = offset
        place = TopicPartition(self._topic, number, offset)
        self._cluster.call(f"seeking in {self._topic}/{number}", lambda timeout_s: self._seek(place))
        self._error = None

    def _seek(self, place: TopicPartition) -> None:
        try:
            self.consumer.seek(place)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:  # the assignment is not through yet
                raise
            self.consumer.incremental_unassign([place])
            self.consumer.incremental_assign([place])

    def poll(self, max_records: int, timeout_s: float) -> list[tuple[int, Record]]:
        """As `base.Reader.poll`. Raises what a partition met, once everything before it was returned."""
        deadline = time.monotonic() + timeout_s
        self.pump(0.0)
        self._feed_hungry(SHARE_WAIT_S if self._buffered else FIRST_WAIT_S)
        out = self._take(max_records)
        brief = timeout_s < PARKED_S
        while not out and self._error is None:
            left_s = deadline - time.monotonic()
            if left_s > 0:
                self.pump(min(left_s, ASK_AGAIN_S))
            if (
                not self._buffered
                and (brief or self.silent_s > ASK_AGAIN_S)
                and self._hear_ends(wait_s=FIRST_WAIT_S if brief else SHARE_WAIT_S)
            ):
                self._feed_hungry(FIRST_WAIT_S)
            out = self._take(max_records)
            if time.monotonic() >= deadline:
                break
        if not out and self._error is not None:
            raise self._error
        return out

    def pump(self, timeout_s: float) -> None:
        """Take over what has arrived, waiting up to `timeout_s` for something; the consumer's callbacks run here."""
        if not self._full() and self.serve(timeout_s):
            for message in self.consumer.consume(1_000, 0):
                self._accept(message)

    def serve(self, timeout_s: float) -> bool:
        """Run the consumer's callbacks, and take over one message, if one comes in time; whether one did."""
        message = self.consumer.poll(timeout_s)
        if message is not None:
            self._accept(message)
        return message is not None

    def _accept(self, message: Any) -> None:
        number, error = message.partition(), message.error()
        self._new.pop(number, None)
        if error is not None:
            self._meet(number, message.offset(), error)
        elif self._error is not None:
            return  # librdkafka goes on behind what it could not read: nobody may see that
        elif number in self._fetched and message.offset() >= self._fetched[number]:
            record = record_of(message)
            self._fetched[number] = record.offset + 1
            self._buffers[number].append(record)
            self._buffered += 1
            self._buffered_bytes += len(record.value)
            self._heard_at = time.monotonic()
            self._cluster.link.answered()

    def _meet(self, number: int, offset: int, error: Any) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            if number in self._fetched and offset >= self._fetched[number]:
                self._fetched[number] = offset  # beyond what carries no record
            self._cluster.link.answered()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._error = CorruptStateError(
                f"{self._topic}/{number}: offset {self._fetched.get(number)} is not in the log any more: retention, or "
                f"another's delete, overtook this reader; forget it and rebuild what it made ({error.str()})"
            )
        elif code in DAMAGED:
            self._error = CorruptStateError(
                f"{self._topic}/{number}: the broker's bytes from offset {self._fetched.get(number)} on are damaged "
                f"({error.str()}): stop that broker, delete its folder of this partition and let it copy another "
                "replica; where there is none, restore the topic from a backup. (A batch of zstd that unpacks to more "
                f"than {UNPACKED_BYTES >> 20} MiB looks the same.)"
            )
        elif code in FIX or error.fatal():
            self._error = self._cluster.verdict(f"reading {self._topic}", error)
        elif code == KafkaError._ALL_BROKERS_DOWN:
            self._cluster.link.reported(error.str())

    def _feed_hungry(self, wait_s: float) -> None:
        """Wait a little for the partitions that are known to have more, and for the first word of new ones."""
        deadline = time.monotonic() + wait_s
        while self._error is None and self._hungry() and not self._full() and not self._cluster.link.waiting_s:
            left_s = max((deadline, *self._new.values())) - time.monotonic()
            if left_s <= 0:
                return
            self.pump(min(left_s, 0.01))
            if self._buffered:
                deadline = min(deadline, time.monotonic() + SHARE_WAIT_S)

    def _hungry(self) -> bool:
        now = time.monotonic()
        return any(
            not self._buffers[n] and (self._new.get(n, now) > now or self._end(n) > self._fetched[n])
            for n in self._turn
        )

    def _full(self) -> bool:
        return self._buffered >= BUFFER_RECORDS or self._buffered_bytes >= BUFFER_BYTES

    def _end(self, number: int) -> int:
        _, high = self.consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
        return max(self._ends.get(number, 0), int(high))

    @property
    def silent_s(self) -> float:
        """How long no records and no ends of partitions have come."""
        return time.monotonic() - self._heard_at

    def _hear_ends(self, *, wait_s: float) -> bool:
        """Ask for the ends, or hear what was asked before; whether an answer came in time."""
        if not self._turn:
            return False
        now = time.monotonic()
        if not self._asked:
            places = {TopicPartition(self._topic, n): OffsetSpec.latest() for n in self._turn}
            answers = self._cluster.admin.list_offsets(
                places, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=TRY_S
            )
            self._asked, self._asked_at = {place.partition: answer for place, answer in answers.items()}, now
        try:
            for number, answer in self._asked.items():
                end = answer.result(timeout=max(0.0, now + wait_s - time.monotonic())).offset
                self._ends[number] = answered(end)
        except TimeoutError:
            waited = time.monotonic() - self._asked_at
            if self._heard_at > self._asked_at:  # records have come since: a broker that has gone was asked
                self._asked = {}
            elif waited >= SAY_AFTER_S:
                self._cluster.link.lost(f"reading {self._topic}", for_s=waited)
            return False
        except KafkaException as error:
            self._asked = {}
            if error.args[0].code() == KafkaError._TIMED_OUT and self._heard_at < self._asked_at:
                self._cluster.link.lost(error.args[0].str(), for_s=time.monotonic() - self._asked_at)
            self._cluster.look_again()
            return False
        self._asked, self._heard_at = {}, time.monotonic()
        self._cluster.link.answered()
        return True

    def _take(self, max_records: int) -> list[tuple[int, Record]]:
        """Fair: everyone gets an equal share of what is left, whoever was first goes last next time."""
        out: list[tuple[int, Record]] = []
        for index, number in enumerate(self._turn):
            self._move(number, -(-(max_records - len(out)) // (len(self._turn) - index)), out)
        for number in self._turn:
            self._move(number, max_records - len(out), out)
        for number in self._turn:
            if not self._buffers[number]:
                self.next[number] = self._fetched[number]
        if out:
            self._turn.append(self._turn.pop(0))
        return out

    def _move(self, number: int, count: int, out: list[tuple[int, Record]]) -> None:
        buffer = self._buffers[number]
        for _ in range(min(count, len(buffer))):
            record = buffer.popleft()
            self._buffered -= 1
            self._buffered_bytes -= len(record.value)
            self.next[number] = record.offset + 1
            out.append((number, record))

    def _drop_buffer(self, number: int) -> None:
        for record in self._buffers[number]:
            self._buffered -= 1
            self._buffered_bytes -= len(record.value)
        self._buffers[number].clear()

    def close(self) -> None:
        """Leave the group, if any; let go of the connections."""
        self.consumer.close()
