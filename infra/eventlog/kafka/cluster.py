"""One Kafka cluster as one log sees it: client settings, one admin client, calls that wait out an outage.

A call tries again while the trouble is one that passes (a leader moves, a broker restarts, the network is cut), for
`log.kafka.patience_s` at most, and says so; what no waiting mends is a ConfigError at once.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from infra.config import KafkaConfig
from infra.errors import ConfigError, CorruptStateError, OuzelError, RetryableError
from infra.eventlog.kafka.address import Address
from infra.eventlog.kafka.link import SAY_AFTER_S, Link
from infra.eventlog.kafka.producers import PRODUCERS, Lent

T = TypeVar("T")
TRY_S = 5.0  # one request's share of the patience
PAUSE_S = 0.2
APPEAR_S = 30.0  # until every broker knows a new topic
MIN_RECORD_BYTES = 64 << 10

# What the log's laws stand on; a configuration cannot change it.
OWN = frozenset(
    {
        "bootstrap.servers", "metadata.broker.list", "group.id", "group.protocol", "group.instance.id",
        "enable.idempotence", "acks",
        "request.required.acks", "message.timeout.ms", "delivery.timeout.ms", "transactional.id", "partitioner",
        "max.in.flight", "max.in.flight.requests.per.connection",
        "compression.type", "compression.codec", "message.max.bytes", "enable.auto.commit", "auto.commit.enable",
        "enable.auto.offset.store", "auto.offset.reset", "enable.partition.eof", "isolation.level",
        "delivery.report.only.error",
    }
)  # fmt: skip

# While a broker starts, the cluster does not name it, and librdkafka gives its connection up, but goes on asking that
# very one for the groups that it coordinated, without end, until nobody has asked for this long: less than a try.
ADMIN = {"metadata.max.age.ms": 2_000}

# Trouble that only a person mends, and what to look at.
FIX = {
    KafkaError._AUTHENTICATION: "check security.protocol, sasl.* and the password",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check sasl.* in log.kafka.client, and the password",
    KafkaError._SSL: "check ssl.* in log.kafka.client",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "allow this user Create, Read, Write, Describe and Delete on the topics",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "allow this user Read, Describe and Delete on the groups",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "allow this user Describe and IdempotentWrite on the cluster",
    KafkaError.MSG_SIZE_TOO_LARGE: "log.kafka.max_record_bytes is above the topic's max.message.bytes: raise the one, "
    "or lower the other",
    KafkaError.POLICY_VIOLATION: "the cluster's policy refuses a setting of the topic; make the topic by hand",
    KafkaError.INVALID_REPLICATION_FACTOR: "log.kafka.replication is more than the cluster has brokers",
    KafkaError.INVALID_CONFIG: "the cluster refuses a setting of the topic; is log.kafka.max_record_bytes too large?",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "no such topic in this cluster: create it first, or check the prefix",
    KafkaError._UNKNOWN_TOPIC: "no such topic in this cluster: create it first, or check the prefix",
    KafkaError._UNKNOWN_PARTITION: "the topic has fewer partitions than log.partitions says",
    KafkaError._INVALID_ARG: "check log.kafka.client",
}  # fmt: skip

MISSING = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
REFUSALS = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError._SSL)

# Waiting mends none of these; some are answers rather than trouble.
FINAL = FIX.keys() | {
    KafkaError._FATAL,
    KafkaError.TOPIC_ALREADY_EXISTS,
    KafkaError.GROUP_ID_NOT_FOUND,
    KafkaError.NON_EMPTY_GROUP,
    KafkaError.INVALID_REQUEST,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_RECORD,
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
}


class Cluster:
    """Settings and calls for one address. Any thread may use it."""

    def __init__(self, address: Address, config: KafkaConfig, link: Link | None = None) -> None:
        self.address, self.config = address, config
        self.link = link or Link(str(address))
        self._extra = config.client
        self._refused: Any = None  # why a broker turned this client away
        if config.max_record_bytes < MIN_RECORD_BYTES:
            raise ConfigError(f"log.kafka.max_record_bytes is {config.max_record_bytes}; {MIN_RECORD_BYTES} or more")
        for name in self._extra.keys() & OWN:
            raise ConfigError(f'log.kafka.client."{name}": the event log sets this itself; leave it out')
        self._appears_until = 0.0  # a topic was made, or first seen: some broker may not know it yet
        self.admin: Any = self._make(AdminClient, {**self._settings(ADMIN), "error_cb": self._on_error})

    def _settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        common = {
            "bootstrap.servers": self.address.brokers,
            "client.id": "ouzel",
            "log_level": 2,  # what passes is said by `link`, once
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "topic.metadata.refresh.interval.ms": 30_000,
        }
        return {**common, **settings, **self._extra}

    def _make(self, kind: type, settings: Mapping[str, Any]) -> Any:
        """A client of confluent_kafka. ConfigError for a setting that librdkafka does not know."""
        try:
            return kind(dict(settings))
        except KafkaException as error:
            raise ConfigError(f"log.kafka: {error.args[0].str()}") from error

    def producer(self, settings: Mapping[str, Any], on_delivery: Callable[[Any], None]) -> Lent:
        """A producer, which the caller gives back when everything is acknowledged."""
        lent = PRODUCERS.take(self._settings(settings), partial(self._make, Producer))
        lent.on_delivery, lent.on_error = on_delivery, self._on_error
        return lent

    def consumer(self, settings: Mapping[str, Any]) -> Any:
        return self._make(Consumer, {**self._settings(settings), "error_cb": self._on_error})

    def call(
        self, what: str, ask: Callable[[float], T], *, patience_s: float | None = None, missing: bool = False
    ) -> T:
        """The answer of `ask(timeout_s)`, asked again while that helps.

        `missing`: that there is no such topic is an answer, also where one was just made.

        Raises RetryableError after the patience, ConfigError where a person must act.
        """
        started = time.monotonic()
        patience = self.config.patience_s if patience_s is None else patience_s
        while True:
            waited = time.monotonic() - started
            try:
                answer = ask(min(TRY_S, max(0.5, patience - waited)))
            except KafkaException as error:
                self._refused = None
                self.admin.poll(0)  # what the connections met, for `_on_error`
                reason = self._refused or error.args[0]
                if not passes(reason) and (missing or not self._appearing(reason)):
                    raise self.verdict(what, reason) from error
                waited = time.monotonic() - started
                if waited >= min(SAY_AFTER_S, patience):
                    self.link.lost(reason.str(), for_s=waited)
                if waited >= patience:
                    raise self.no_answer(what, waited, reason.str()) from error
                time.sleep(PAUSE_S)
                self.look_again()
            else:
                self.link.answered()
                return answer

    def gather(
        self, what: str, ask: Callable[[float], Mapping[Any, "Future[T]"]], *, missing: bool = False
    ) -> dict[Any, T]:
        """As `call`, for the admin calls that answer with futures by key."""

        def answers(timeout_s: float) -> dict[Any, T]:
            return {key: future.result() for key, future in ask(timeout_s).items()}

        return self.call(what, answers, missing=missing)

    def appears(self) -> None:
        """A topic was made: for a while, "no such topic" may be the answer of a broker that has not heard of it."""
        self._appears_until = time.monotonic() + APPEAR_S

    def _appearing(self, reason: Any) -> bool:
        return reason.code() in MISSING and time.monotonic() < self._appears_until

    def look_again(self) -> None:
        """Ask who leads what: the admin client would go on with the leaders from before a restart, refused for ever."""
        with suppress(KafkaException):
            self.admin.list_topics(timeout=1.0)

    def no_answer(self, what: str, seconds: float, why: str) -> RetryableError:
        """The error of a call that ran out of patience."""
        last = f"; last heard: {self.link.last_error}" if self.link.last_error else ""
        return RetryableError(
            f"{self.address}: {what}: no answer for {seconds:.0f} s ({why}{last}); check that the brokers run and that "
            "the address is right, then try again",
            after_s=1.0,
        )

    def verdict(self, what: str, reason: Any) -> OuzelError:
        """The error to raise for what no waiting mends."""
        if reason.fatal() or reason.code() == KafkaError._FATAL:
            return CorruptStateError(
                f"{self.address}: {what}: {reason.str()}: the brokers lost or refused records of this writer; restart "
                "the process, it goes on from what the log holds"
            )
        hint = FIX.get(reason.code(), "see the broker's log")
        return ConfigError(f"{self.address}: {what}: {reason.str()}; {hint}")

    def _on_error(self, error: Any) -> None:
        """librdkafka's background trouble; from whichever thread polls."""
        self.link.last_error = error.str()
        if error.code() in REFUSALS:
            self._refused = error
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.link.reported(error.str())


def passes(reason: Any) -> bool:
    """Whether an error is one that goes away by itself."""
    return not reason.fatal() and reason.code() not in FINAL
