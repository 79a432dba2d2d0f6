"""What the broker is told about each topic that ouzel makes, and what is wrong with one that somebody else made.

    topic                     timestamps      kept
    events                    the broker's    log.kafka.events_days
    items                     the broker's    for ever: the catalogue is read from its start
    examples, versions        the writer's    log.kafka.derived_days
    control                   the writer's    for ever: decisions
    dead-letters              the writer's    log.kafka.events_days

Clients write `events` and `items`, and their clocks must not move event time: one stamp ten days ahead would close
every tick until then. `records` says how a replay's simulated times pass through such a topic.
"""

from collections.abc import Iterator, Mapping

from infra.config import KAFKA_LEAST_DAYS, KafkaConfig

APPENDED = frozenset({"events", "items"})
FOR_EVER = frozenset({"items", "control"})
DERIVED = frozenset({"examples", "versions"})
DAY_MS = 86_400_000
TIME_TYPE, KEPT = "message.timestamp.type", "retention.ms"


def wanted(topic: str, config: KafkaConfig) -> dict[str, str]:
    """The settings of a topic that differ from topic to topic, by Kafka's names."""
    return {TIME_TYPE: _time_type(topic, config), KEPT: str(_kept_ms(topic, config))}


def advice(topic: str, name: str, brokers: str, found: Mapping[str, str], config: KafkaConfig) -> Iterator[str]:
    """What a topic that is there already may do to a live log, each with the command that mends it."""
    change = f"`kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {name}"
    kind = found.get(TIME_TYPE, "")
    if kind == "CreateTime" and _time_type(topic, config) != kind:
        yield (
            f"topic {name} keeps its producers' timestamps ({TIME_TYPE}={kind}): no matter in a replay, but on a live "
            f"log one wrong clock drops everybody's events; {change} --add-config {TIME_TYPE}=LogAppendTime`"
        )
    kept_ms = int(found.get(KEPT, "-1"))
    if kept_ms >= 0 and (topic in FOR_EVER or kept_ms < KAFKA_LEAST_DAYS * DAY_MS):
        yield (
            f"topic {name} keeps records for {kept_ms / DAY_MS:.1f} days ({KEPT}={kept_ms}), less than a restart "
            f"needs; {change} --add-config {KEPT}={_kept_ms(topic, config)}`"
        )


def _time_type(topic: str, config: KafkaConfig) -> str:
    return "LogAppendTime" if topic in APPENDED and config.append_time else "CreateTime"


def _kept_ms(topic: str, config: KafkaConfig) -> int:
    days = config.derived_days if topic in DERIVED else config.events_days
    return -1 if topic in FOR_EVER or not days else round(days * DAY_MS)
