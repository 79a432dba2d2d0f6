"""Removes a log from a cluster: its topics, and the groups that hold its readers' positions."""

import time

from infra.config import LogConfig
from infra.errors import ConfigError
from infra.eventlog.base import TOPICS
from infra.eventlog.kafka.address import parse_address
from infra.eventlog.kafka.cluster import Cluster
from infra.eventlog.kafka.places import GroupRunsError, Places

CONNECT_S = 15.0
SESSION_S = 15.0  # by then a member that died, or was told to leave before it had quite come, is missed


def remove_topics(url: str, config: LogConfig) -> list[str]:
    """Names of the topics that were there. Topics that are none of ours are never touched.

    Raises ConfigError without a prefix (plain names may be anybody's) and where a reader still runs, RetryableError
    where nobody answers.
    """
    address = parse_address(url)
    if not address.prefix:
        raise ConfigError(f"{url}: topics without a prefix may be somebody else's; remove them by Kafka's own tools")
    cluster = Cluster(address, config.kafka)
    admin = cluster.admin
    known = cluster.call("listing topics", lambda t: admin.list_topics(timeout=t).topics, patience_s=CONNECT_S)
    names = [address.topic(topic) for topic in TOPICS if address.topic(topic) in known]
    places = Places(cluster)
    for name in names:
        for reader in places.readers(name):
            _forget(places, f"{name}/{reader}")
    if names:
        cluster.gather("removing topics", lambda t: admin.delete_topics(names, operation_timeout=t, request_timeout=t))
    return names


def _forget(places: Places, group: str) -> None:
    deadline = time.monotonic() + SESSION_S
    while True:
        try:
            return places.forget(group)
        except GroupRunsError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.5)
