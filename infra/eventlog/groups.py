"""Readers that share a topic: partitions come and go by the log's own group protocol.

Only a log on a cluster has it (`GroupLog`). An embedded log lies on one machine, where one process reads them all.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from infra.eventlog.base import EventLog, Reader


class Member(NamedTuple):
    """What a member of a group is told, inside `poll`."""

    # Partitions that are its own from now on; where to go on in each, None or absent for the committed position.
    assigned: Callable[[list[int]], Mapping[int, int] | None]
    # Partitions that it gives back: its last chance to flush and commit what it made of them.
    revoked: Callable[[list[int]], None]
    # Partitions that were taken from it while it did not answer: another may have gone on already. Write nothing.
    lost: Callable[[list[int]], None]


@runtime_checkable
class GroupLog(EventLog, Protocol):
    """A log whose readers can share a topic."""

    def member(self, topic: str, name: str, told: Member) -> Reader:
        """A reader under a shared name. A name is used by members, or by readers with given partitions: never both."""
