"""What Faust's side tells the worker, in order, and what the worker asks of it."""

import queue
from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeAlias

from infra.eventlog import Record


class Batch(NamedTuple):
    """Records as Faust handed them to its agent."""

    records: list[tuple[int, Record]]


class Assigned(NamedTuple):
    """All partitions that are this worker's from now on."""

    partitions: frozenset[int]


class Revoked(NamedTuple):
    """Partitions that are not this worker's any more."""

    partitions: frozenset[int]


class Failed(NamedTuple):
    """Faust has ended by itself."""

    why: str


Told: TypeAlias = Batch | Assigned | Revoked | Failed


class Bringer(Protocol):
    """Who brings records: Faust, or in tests somebody worse."""

    @property
    def inbox(self) -> "queue.SimpleQueue[Told]":
        """What there is to tell, in order."""

    def acknowledge(self, low: Mapping[int, int]) -> None:
        """Nothing before these offsets is needed again."""

    def stop(self) -> None:
        """Bring nothing more."""
