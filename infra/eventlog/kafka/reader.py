"""The Kafka reader: explicit offsets, positions kept in a consumer group, with or without Kafka's group protocol.

Without (`KafkaLog.reader`): the partitions are given, as with the embedded log; the group only keeps the positions.
With (`KafkaLog.member`): Kafka gives partitions to the members of the group and takes them back, cooperatively: what
stays with a member is not interrupted. The calls of `groups.Member` run inside `poll`.

What was read is published (`places`) at most `PUBLISH_S` late while records come, and before a poll comes back empty.
A member's commit is a hint: one that the brokers refuse because partitions are just moving is dropped and counted.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from infra.errors import CorruptStateError
from infra.eventlog.base import Record
from infra.eventlog.groups import Member
from infra.eventlog.kafka.cluster import PAUSE_S, Cluster, passes
from infra.eventlog.kafka.fetch import Fetcher
from infra.eventlog.kafka.link import SAY_AFTER_S
from infra.eventlog.kafka.places import Place, Places, decode_place, encode_place

# A member that dies is missed after 10 s; one that joins or leaves is heard of within a second.
# No `group.instance.id`: see "Members with names" in infra/docs/experiments.md.
GROUP = {
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 1_000,
}
PUBLISH_S = 0.2  # a commit costs the broker more than a fetch does
PUBLISH_WAIT_S = 0.5  # how long an empty poll waits for its publication
MOVING = frozenset(
    {KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS}
    | {KafkaError.FENCED_INSTANCE_ID, KafkaError._ASSIGNMENT_LOST, KafkaError.STALE_MEMBER_EPOCH}
)


class KafkaReader:
    """See `base.Reader`."""

    def __init__(
        self, cluster: Cluster, places: Places, topic: str, group: str, numbers: Sequence[int], member: Member | None
    ) -> None:
        self.closed = False
        self.refused_commits = 0
        self.topic, self.group = topic, group
        self._cluster, self._places, self._member = cluster, places, member
        self._committed: dict[int, int | None] = {}
        self._start: dict[int, int] = {}
        self._unanswered = 0  # commits that were sent
        self._answer: Any = None  # to the last one: None, or a KafkaError
        self._dirty = False
        self._told = False  # while `Member` is told something
        self._published_at = 0.0
        settings: dict[str, Any] = {"group.id": group, "on_commit": self._on_commit}
        if member is not None:
            settings.update(GROUP)
        self._fetch = Fetcher(cluster, topic, settings)
        self._assigned = False
        if member is None:
            self._fetch.add(self._resume(list(numbers)))
            self._publish()
            self._settle_commit()
        else:
            self._fetch.consumer.subscribe(
                [topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            self._assigned = True

    @property
    def partitions(self) -> list[int]:
        """Partitions that this reader reads now."""
        return sorted(self._fetch.next)

    def poll(self, max_records: int = 256, timeout_s: float = 0.0) -> list[tuple[int, Record]]:
        if self.closed:
            raise ValueError("the reader is closed")
        if not self._assigned:
            self._fetch.assign()
            self._assigned = True
        before = dict(self._fetch.next)
        out = self._fetch.poll(max_records, timeout_s)
        self._dirty = self._dirty or self._fetch.next != before
        if self._dirty and (not out or time.monotonic() - self._published_at >= PUBLISH_S):
            self._publish()
            if not out:
                self._settle(PUBLISH_WAIT_S)
        return out

    def position(self, partition: int) -> int:
        self._own(partition)
        return self._fetch.next[partition]

    def seek(self, partition: int, offset: int) -> None:
        self._check(partition, offset)
        if self._assigned:
            self._fetch.seek(partition, offset)
        else:
            self._fetch.remove([partition])
            self._fetch.add({partition: offset})
        self._publish()

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        given = dict(self._fetch.next) if positions is None else positions
        for partition, offset in given.items():
            self._own(partition)
            if not self._start[partition] <= offset <= self._fetch.next[partition]:  # else it was there: ask nobody
                self._check(partition, offset)
            self._committed[partition] = offset
        if self._told:
            self._commit_now()
        else:
            self._publish()
            self._settle_commit()

    def place(self, partition: int) -> int | None:
        """What this reader has read of a partition; None where it does not read it."""
        return self._fetch.next.get(partition)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._dirty and not self._cluster.link.waiting_s:
            self._publish()
            self._settle(PUBLISH_WAIT_S)
        self._fetch.close()

    def _resume(self, numbers: list[int]) -> dict[int, int]:
        """Where to go on in each partition: what was committed, else the start of the log."""
        asked = [TopicPartition(self.topic, number) for number in numbers]

        def ask(timeout_s: float) -> list[TopicPartition]:
            answers: list[TopicPartition] = self._fetch.consumer.committed(asked, timeout=timeout_s)
            for each in answers:
                if each.error is not None:
                    raise KafkaException(each.error)
            return answers

        found = self._cluster.call(f"positions of {self.group}", ask)
        positions = {}
        for each in found:
            start, end = self._places.range(self.topic, each.partition)
            place = decode_place(each)
            committed = place.committed if place is not None else None
            if committed is not None and not start <= committed <= end:
                raise CorruptStateError(
                    f"{self.group}: committed offset {committed} of partition {each.partition}, but the log holds "
                    f"{start} to {end}: it was replaced, or retention overtook this reader; forget the reader, or "
                    "restore the log"
                )
            self._committed[each.partition], self._start[each.partition] = committed, start
            positions[each.partition] = start if committed is None else committed
        return positions

    def _publish(self) -> None:
        """Send both positions of every partition; the answer comes to `_on_commit`."""
        if not self._fetch.next:
            return
        offsets = self._offsets()
        self._fetch.consumer.commit(offsets=offsets, asynchronous=True)
        self._unanswered += 1
        self._dirty, self._published_at = False, time.monotonic()

    def _offsets(self) -> list[TopicPartition]:
        return [
            encode_place(self.topic, n, Place(self._committed[n], read), self._start[n])
            for n, read in self._fetch.next.items()
        ]

    def _commit_now(self) -> None:
        """Commit from within a callback, where nothing can be polled. A hint, as every commit of a member."""
        try:
            self._fetch.consumer.commit(offsets=self._offsets(), asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in MOVING and not passes(error.args[0]):
                raise self._cluster.verdict(f"committing {self.group}", error.args[0]) from error
            self.refused_commits += 1

    def _settle(self, wait_s: float) -> None:
        """Wait for the answers to everything published; messages that come meanwhile are kept for the next poll."""
        started, said = time.monotonic(), False
        while self._unanswered and (waited := time.monotonic() - started) < wait_s:
            self._fetch.serve(0.01)
            if not said and min(waited, self._fetch.silent_s) >= SAY_AFTER_S:
                self._cluster.link.lost(f"committing {self.group}", for_s=waited)
                said = True  # once: messages may come while the coordinator lets the commit wait for a rebalance

    def _settle_commit(self) -> None:
        """Wait until a commit is through; one that a broker took with it into its end is sent again.

        Raises RetryableError after the patience, and what no waiting mends.
        """
        started, patience = time.monotonic(), self._cluster.config.patience_s
        while True:
            self._settle(started + patience - time.monotonic())
            waited = time.monotonic() - started
            if self._unanswered:
                raise self._cluster.no_answer(f"committing {self.group}", waited, "it may still come through")
            answer, self._answer = self._answer, None
            moving = answer is not None and answer.code() in MOVING and self._member is not None
            if answer is None or moving:
                self.refused_commits += moving
                self._cluster.link.answered()
                return
            if not passes(answer):
                raise self._cluster.verdict(f"committing {self.group}", answer)
            if waited >= patience:
                raise self._cluster.no_answer(f"committing {self.group}", waited, answer.str())
            time.sleep(PAUSE_S)
            self._publish()

    def _on_commit(self, error: Any, places: Sequence[TopicPartition]) -> None:
        self._unanswered -= 1
        self._answer = error or next((each.error for each in places if each.error is not None), None)

    def _on_assign(self, _consumer: Any, given: Sequence[TopicPartition]) -> None:
        if self.closed:  # given while it leaves: nothing is answered any more, and the next rebalance takes it back
            self._fetch.consumer.incremental_assign(list(given))
            return
        numbers = [each.partition for each in given]
        positions = self._resume(numbers)
        if self._member is not None:
            with self._telling():
                chosen = self._member.assigned(numbers) or {}
            positions.update({n: offset for n, offset in chosen.items() if n in positions})
        self._fetch.add(positions)
        self._fetch.consumer.incremental_assign(
            [TopicPartition(self.topic, n, offset) for n, offset in positions.items()]
        )
        self._dirty = bool(numbers)

    def _on_revoke(self, _consumer: Any, taken: Sequence[TopicPartition]) -> None:
        self._give_back(taken, self._member.revoked if self._member is not None else None)

    def _on_lost(self, _consumer: Any, taken: Sequence[TopicPartition]) -> None:
        self._give_back(taken, self._member.lost if self._member is not None else None)

    def _give_back(self, taken: Sequence[TopicPartition], tell: Callable[[list[int]], None] | None) -> None:
        numbers = [each.partition for each in taken if each.partition in self._fetch.next]
        if tell is not None and numbers:
            with self._telling():
                tell(numbers)
        self._fetch.remove(numbers)
        self._fetch.consumer.incremental_unassign(list(taken))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        self._told = True
        try:
            yield
        finally:
            self._told = False

    def _own(self, partition: int) -> None:
        if partition not in self._fetch.next:
            raise ValueError(f"partition {partition}; this reader reads {self.partitions}")

    def _check(self, partition: int, offset: int) -> None:
        self._own(partition)
        start, end = self._places.range(self.topic, partition)
        if not start <= offset <= end:
            raise ValueError(f"offset {offset} of partition {partition}; the log holds {start} to {end}")
