"""Arrow 1: the event log. `open_log` is the only place that knows which implementations exist."""

from pathlib import Path

from infra.config import LogConfig, refuse_credentials
from infra.errors import ConfigError
from infra.eventlog.base import (
    KEYED_TOPICS,
    TOPICS,
    UNREADABLE_META,
    EventLog,
    Reader,
    Record,
    Writer,
    create_topics,
    wait_for_readers,
)
from infra.eventlog.groups import GroupLog, Member
from infra.eventlog.log import EmbeddedLog

__all__ = [
    "KEYED_TOPICS",
    "TOPICS",
    "UNREADABLE_META",
    "EventLog",
    "GroupLog",
    "Member",
    "Reader",
    "Record",
    "Writer",
    "create_topics",
    "open_log",
    "remove_log",
    "wait_for_readers",
]


def open_log(url_or_path: str | Path, config: LogConfig) -> EventLog:
    """Open (or make) the log at a folder of this machine, or at `kafka://host:port/prefix`.

    ConfigError for another kind of address, or one that is written wrongly; RetryableError where nobody answers.
    """
    where = str(url_or_path)
    refuse_credentials(where, "the log's address")
    if where.startswith("kafka://"):
        from infra.eventlog.kafka import KafkaLog  # the client library is loaded only where it is used

        return KafkaLog(where, config)
    if "://" in where:
        raise ConfigError(f"{where}: a log lies in a folder, or at kafka://host:port/prefix")
    return EmbeddedLog(where, config)


def remove_log(url: str, config: LogConfig) -> list[str]:
    """Remove the topics and readers of a log on Kafka; their names. Raises as `kafka.remove.remove_topics`."""
    from infra.eventlog.kafka.remove import remove_topics

    return remove_topics(url, config)
