"""Names on Kafka. `kafka://host:port[,host:port]/prefix`: a run's prefix keeps its topics and groups apart.

Topic `events` under prefix `run1` is Kafka's `run1.events`; the group of its reader `joiner` is `run1.events/joiner`. A
prefix has no dot and a name has no slash, so no two runs, topics or readers can mean the same. Without a prefix, topics
carry their own names.
"""

import re
from typing import NamedTuple

from infra.config import refuse_credentials
from infra.errors import ConfigError

SCHEME = "kafka://"
_BROKER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_PREFIX = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Address(NamedTuple):
    """Where a log lies: its brokers, and the prefix of its names ("" for none)."""

    brokers: str
    prefix: str

    def topic(self, name: str) -> str:
        """Kafka's name of a topic."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def group(self, topic: str, reader: str) -> str:
        """Kafka's name of the group that holds a reader's positions."""
        return f"{self.topic(topic)}/{reader}"

    def __str__(self) -> str:
        return f"{SCHEME}{self.brokers}/{self.prefix}" if self.prefix else f"{SCHEME}{self.brokers}"


def parse_address(text: str) -> Address:
    """Raises ConfigError that shows how to write it."""
    refuse_credentials(text, "the log's address")
    brokers, _, prefix = text.removeprefix(SCHEME).partition("/")
    parts = brokers.split(",")
    good = text.startswith(SCHEME) and all(
        (match := _BROKER.fullmatch(part)) and 0 < int(match[2]) < 65_536 for part in parts
    )
    if not good:
        raise ConfigError(f"{text}: write the log's address as kafka://host:port/prefix, more brokers after commas")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"{text}: prefix {prefix!r}: lower-case letters, digits, dash and underscore, at most 64; it begins the "
            "name of every topic"
        )
    return Address(brokers, prefix)
