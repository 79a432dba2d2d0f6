"""The event log on Kafka: topics, partitions, consumer groups, nothing of our own between them."""

from infra.eventlog.kafka.log import KafkaLog

__all__ = ["KafkaLog"]
