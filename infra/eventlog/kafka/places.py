"""Where named readers stand: one consumer group a reader and topic, one committed offset a partition.

    group     <topic>/<reader>
    offset    the committed position: where the reader starts again. Any Kafka tool shows it
    metadata  {"read": 17}                       what it has read, for back-pressure
              {"read": 17, "committed": false}   it is registered and has never committed: it starts at the log's start

Both positions are one record of one topic of the broker's, so that neither can be seen without the other; readers on
other machines publish what they have read by the same request that Kafka has for commits, and nobody needs a topic of
our own. A group that nobody writes to is forgotten by the brokers after `offsets.retention.minutes` (7 days).
"""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from infra.errors import ConfigError
from infra.eventlog.kafka.cluster import Cluster

NONE = -1  # no record at or after a time


class _Note(msgspec.Struct, omit_defaults=True):
    """The metadata of a committed offset; unknown fields are ignored."""

    read: int
    committed: bool = True


class Place(NamedTuple):
    """A reader's positions in one partition."""

    committed: int | None  # None before the first commit
    read: int


def encode_place(topic: str, number: int, place: Place, start: int) -> TopicPartition:
    """What the group commits; `start` stands in for a position that was never committed."""
    note = _Note(read=place.read, committed=place.committed is not None)
    offset = start if place.committed is None else place.committed
    return TopicPartition(topic, number, offset, msgspec.json.encode(note).decode())


def decode_place(found: TopicPartition) -> Place | None:
    """None where the group holds nothing. A group that others made counts what they committed as read."""
    if found.offset < 0:
        return None
    try:
        note = msgspec.json.decode((found.metadata or "").encode(), type=_Note)
    except msgspec.DecodeError:
        return Place(found.offset, found.offset)
    return Place(found.offset if note.committed else None, note.read)


def answered(offset: int) -> int:
    """An offset of an answer. librdkafka's for a partition whose broker did not answer in time is one that is none."""
    if offset < NONE:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "a partition's leader does not answer"))
    return offset


FORGOTTEN_S = 3_600.0  # how long librdkafka keeps a question that nobody waits for any more


class GroupRunsError(ConfigError):
    """A group has members, which run, or died less than a session ago."""


class Places:
    """What the brokers know of a topic and its readers, asked through the admin client. Any thread may use it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def offsets(self, topic: str, numbers: Iterable[int], spec: OffsetSpec) -> dict[int, int]:
        """Offset by partition: earliest, latest, or the first at or after a time (-1 for none)."""
        places = {TopicPartition(topic, number): spec for number in numbers}

        def ask(timeout_s: float) -> dict[int, int]:
            answers = self._cluster.admin.list_offsets(
                places, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_s
            )
            return {place.partition: answered(answer.result().offset) for place, answer in answers.items()}

        return self._cluster.call(f"offsets of {topic}", ask)

    def range(self, topic: str, number: int) -> tuple[int, int]:
        """(start, end) offsets of a partition."""
        end = self.offsets(topic, [number], OffsetSpec.latest())[number]
        return self.offsets(topic, [number], OffsetSpec.earliest())[number], end

    def readers(self, topic: str) -> dict[str, dict[int, Place]]:
        """Every registered reader of a topic and where it stands, by name and partition."""
        prefix = f"{topic}/"

        def ask(timeout_s: float) -> list[str]:
            listed = self._cluster.admin.list_consumer_groups(request_timeout=timeout_s).result()
            for error in listed.errors:
                raise error if isinstance(error, KafkaException) else KafkaException(error)
            return [group.group_id for group in listed.valid]

        groups = self._cluster.call("groups", ask)
        names = sorted(group.removeprefix(prefix) for group in groups if group.startswith(prefix))
        found = {name: self._of(topic, prefix + name) for name in names}
        return {name: places for name, places in found.items() if places}

    def _of(self, topic: str, group: str) -> dict[int, Place]:
        def ask(timeout_s: float) -> list[TopicPartition]:
            asked = [ConsumerGroupTopicPartitions(group)]
            # Given up here and not by librdkafka: a request to a coordinator that runs out of time there may find it at
            # that very moment, and then an assertion ends the process (seen in 2 of some 40 outages).
            answers = self._cluster.admin.list_consumer_group_offsets(asked, request_timeout=FORGOTTEN_S)
            try:
                found = list(answers[group].result(timeout=timeout_s).topic_partitions)
            except TimeoutError as error:
                reason = KafkaError(KafkaError._TIMED_OUT, "the coordinator of a group does not answer")
                raise KafkaException(reason) from error
            for each in found:
                if each.error is not None:
                    raise KafkaException(each.error)
            return found

        try:
            found = self._cluster.call(f"positions of {group}", ask)
        except ConfigError as error:
            if _code(error) != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return {}
        places = ((each.partition, decode_place(each)) for each in found if each.topic == topic)
        return {number: place for number, place in places if place is not None}

    def forget(self, group: str) -> None:
        """Delete a group. GroupRunsError where it has members that run."""
        try:
            self._cluster.gather(
                f"forgetting {group}",
                lambda timeout_s: self._cluster.admin.delete_consumer_groups([group], request_timeout=timeout_s),
            )
        except ConfigError as error:
            if _code(error) == KafkaError.NON_EMPTY_GROUP:
                raise GroupRunsError(f"{group}: its members still run; stop them, then forget it") from error
            if _code(error) != KafkaError.GROUP_ID_NOT_FOUND:
                raise


def _code(error: ConfigError) -> int | None:
    cause = error.__cause__
    return int(cause.args[0].code()) if isinstance(cause, KafkaException) else None
