"""Faust's side of the join: an app with one agent that hands batches of events on, and acknowledges none of them.

    Faust (threads of its own)                        the worker's thread (`engine`)
    consumer ─▶ stream ─▶ agent ─▶ inbox (bounded) ──▶ check positions, join, append to `examples`
                     group's committed offset ◀── acknowledge ◀── L, the low watermark of what was appended

No table, no changelog, no reply topic, no web server, no leader election, no exactly-once: the output is the commit,
and an event is acknowledged when no rebuild will need it again. Faust's sensors count into our metrics.
"""

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import faust
from faust.types import TP
from yarl import URL

from infra.config import KafkaConfig
from infra.eventlog import Record
from infra.eventlog.kafka.address import Address
from infra.eventlog.kafka.records import record_from
from infra.metrics import Metrics
from stream.join.faust.security import credentials
from stream.join.faust.told import Assigned, Batch, Failed, Revoked, Told
from stream.join.faust.unreadable import leave_out_unreadable

TAKE_RECORDS = 512  # a batch
TAKE_WITHIN_S = 0.02
MAX_WAITING = 4  # batches in the inbox
BUFFER_RECORDS = 1_024  # between Faust's consumer and its agent
SESSION_S = 10.0  # until a killed worker's partitions go to another
COMMIT_EVERY_S = 1.0
APPEND_TIME = 1  # Kafka's timestamp type


class Acknowledged:
    """What Faust's consumer looks at when a message is acknowledged; the message itself is long gone."""

    __slots__ = ("__weakref__", "acked", "offset", "topic", "tp")

    def __init__(self, tp: TP, offset: int) -> None:
        self.tp, self.topic, self.offset, self.acked = tp, tp.topic, offset, False


class Sensor(faust.Sensor):
    """Faust's sensors, counted into our metrics."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics

    def on_message_in(self, tp: Any, offset: int, message: Any) -> None:
        self._metrics.add("ouzel_faust_messages_total")

    def on_topic_buffer_full(self, tp: Any) -> None:
        self._metrics.add("ouzel_faust_buffer_full_total")

    def on_rebalance_start(self, app: Any) -> dict[str, float]:
        self._metrics.add("ouzel_faust_rebalances_total")
        return {"started": time.monotonic()}

    def on_rebalance_end(self, app: Any, state: dict[str, float]) -> None:
        if "started" in state:
            self._metrics.observe("ouzel_faust_rebalance_seconds", time.monotonic() - state["started"])

    def on_commit_initiated(self, consumer: Any) -> float:
        return time.monotonic()

    def on_commit_completed(self, consumer: Any, state: float) -> None:
        self._metrics.observe("ouzel_faust_commit_seconds", time.monotonic() - state)


class FaustThread(threading.Thread):
    """Runs the app until `stop`; what it has to tell lies in `inbox`, in order."""

    def __init__(self, settings: Mapping[str, Any], topic: str, metrics: Metrics | None) -> None:
        """`settings`: of `app_settings`; `topic`: Kafka's name of `events`."""
        super().__init__(name="faust", daemon=True)
        self.inbox: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._settings, self._topic, self._metrics = settings, topic, metrics
        self._asked_to_stop = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app: Any = None
        self._acknowledged: dict[int, int] = {}
        self._taken: list[tuple[int, Record]] = []

    def acknowledge(self, low: Mapping[int, int]) -> None:
        """Let Faust commit these offsets: nothing before them is needed again. From any thread."""
        if self._loop is not None and self.is_alive() and not self._asked_to_stop.is_set():
            self._loop.call_soon_threadsafe(self._acknowledge, dict(low))

    def stop(self) -> None:
        """End Faust in order."""
        self._asked_to_stop.set()
        self.join()

    def run(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._app = app = self._build()
        try:
            await app.start()
            while not self._asked_to_stop.is_set() and not app.should_stop:
                self._give()
                await asyncio.sleep(TAKE_WITHIN_S)
        finally:
            if not self._asked_to_stop.is_set():
                self.inbox.put(Failed(repr(sys.exc_info()[1] or app.crash_reason or "it stopped")))
            await app.stop()

    def _build(self) -> Any:
        leave_out_unreadable()
        app = faust.App(**self._settings)
        if self._metrics is not None:
            app.sensors.add(Sensor(self._metrics))
        topic = app.topic(self._topic, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def hand_on(stream: Any) -> None:
            async for event in stream.noack().events():
                self._taken.append((event.message.partition, _record(event.message)))
                while len(self._taken) >= TAKE_RECORDS and not self._give():
                    await asyncio.sleep(0.002)

        app.agent(topic, name="ouzel-join")(hand_on)
        assigned: Any = app.on_partitions_assigned
        revoked: Any = app.on_partitions_revoked
        assigned.connect(self._on_assigned)
        revoked.connect(self._on_revoked)
        app.finalize()
        return app

    def _give(self) -> bool:
        """Pass on what was taken; False where the inbox is full."""
        if self._taken and self.inbox.qsize() >= MAX_WAITING:
            return False
        if self._taken:
            self.inbox.put(Batch(self._taken))
            self._taken = []
        return True

    async def _on_assigned(self, _app: Any, *given: Any, **_: Any) -> None:
        self._acknowledged.clear()
        self.inbox.put(Assigned(self._numbers(given[0])))

    async def _on_revoked(self, _app: Any, *given: Any, **_: Any) -> None:
        self.inbox.put(Revoked(self._numbers(given[0])))

    def _numbers(self, places: Iterable[TP]) -> frozenset[int]:
        return frozenset(tp.partition for tp in places if tp.topic == self._topic)

    def _acknowledge(self, low: Mapping[int, int]) -> None:
        """Faust commits through the first offset that lacks its acknowledgement: also what it lost needs one."""
        consumer = self._app.consumer
        for p, offset in low.items():
            tp = TP(self._topic, p)
            # Not in Faust's interface; without it, a first record that Faust lost would stop its commits.
            committed = consumer._committed_offset.get(tp)
            start = self._acknowledged.get(p, offset - 1 if committed is None else committed)
            for at in range(max(start, 0), offset):
                consumer.ack(Acknowledged(tp, at))
            self._acknowledged[p] = max(start, offset)


def app_settings(
    address: Address, config: KafkaConfig, name: str, datadir: Path, instance: str | None = None
) -> dict[str, Any]:
    """Settings of the app. `name` is its consumer group's; a member with an `instance` keeps its place at a restart.

    Raises ConfigError for a security setting that Faust does not have.
    """
    brokers = [URL(f"kafka://{broker}") for broker in address.brokers.split(",")]
    return {
        "id": f"{address.prefix}-{name}" if address.prefix else name,
        "broker": brokers,
        "broker_credentials": credentials(config.client),
        "broker_session_timeout": SESSION_S,
        "broker_heartbeat_interval": SESSION_S / 5,
        "broker_commit_interval": COMMIT_EVERY_S,
        "consumer_auto_offset_reset": "earliest",
        "consumer_group_instance_id": instance,
        "consumer_max_fetch_size": config.max_record_bytes,
        "stream_buffer_maxsize": BUFFER_RECORDS,
        "stream_wait_empty": False,
        "processing_guarantee": "at_least_once",
        "store": "memory://",
        "datadir": str(datadir),
        "web_enabled": False,
        "autodiscover": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
    }


def _record(message: Any) -> Record:
    """A message of Faust's, whose time is in seconds, as a record."""
    when, appended = round(message.timestamp * 1000), message.timestamp_type == APPEND_TIME
    headers = message.headers.items() if isinstance(message.headers, Mapping) else message.headers
    return record_from(message.offset, when, message.key, headers, message.value, appended=appended)
