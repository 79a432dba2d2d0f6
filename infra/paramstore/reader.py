"""Reads whole versions from the `versions` log, in order: parts are put together, half a version never appears.

A publisher that died between two parts leaves an incomplete version behind; its successor writes the version again from
part 0, and the incomplete one is dropped here. Nothing is judged here: see `infra.paramstore.chain`.
"""

import time
from collections.abc import Iterator

from infra.errors import CorruptStateError
from infra.eventlog.base import EventLog, Reader, Record
from infra.paramstore.version import TOPIC, Version, VersionMeta, decode_meta

BATCH = 64  # records fetched at a time
REST = 5
REST_MOST_S = 0.5  # a look that took an outage long is no reason to rest: what was missed is there now


class VersionReader:
    """A position in the versions log. With a `name`, retention waits for what it has committed."""

    def __init__(self, log: EventLog, *, offset: int = 0, name: str | None = None) -> None:
        self._log = log
        self._named: Reader | None = log.reader(TOPIC, name) if name else None
        self._ahead: list[Record] = []  # fetched, not yet looked at; at most BATCH
        self._parts: list[tuple[VersionMeta, Record]] = []
        self._rest_until = 0.0
        self.seek(max(offset, log.start_offset(TOPIC, 0)))

    @property
    def position(self) -> int:
        """Offset of the first record not yet returned as part of a version."""
        return self._first_part

    def seek(self, offset: int) -> None:
        self._next = self._first_part = offset
        self._rest_until = 0.0
        self._ahead.clear()
        self._parts.clear()
        if self._named is not None:
            self._named.seek(0, offset)

    def poll(self, timeout_s: float = 0.0) -> Version | None:
        """The next whole version, or None when the log has none within the time."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._fill():
                if (version := self._add(self._ahead.pop(0))) is not None:
                    return version
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.001)

    def commit(self, offset: int) -> None:
        """Let retention pass what lies before `offset`; without a name, nothing."""
        if self._named is not None:
            self._named.commit({0: offset})

    def close(self) -> None:
        if self._named is not None:
            self._named.close()

    def __iter__(self) -> Iterator[Version]:
        """The versions that are durable now."""
        self._rest_until = 0.0
        while (version := self.poll()) is not None:
            yield version

    def _fill(self) -> bool:
        """Fetch more. After a look in vain it rests `REST` times as long as that took, for on a cluster it costs
        requests, and `REST_MOST_S` at most."""
        if self._ahead:
            return True
        started = time.perf_counter()
        if started < self._rest_until:
            return False
        if self._named is not None:
            self._ahead = [record for _, record in self._named.poll(BATCH)]
        elif self._next < self._log.end_offset(TOPIC, 0):
            self._ahead = self._log.read(TOPIC, 0, self._next, BATCH)
        if not self._ahead:
            now = time.perf_counter()
            self._rest_until = now + min(REST * (now - started), REST_MOST_S)
            return False
        self._next = self._ahead[-1].offset + 1
        return True

    def _add(self, record: Record) -> Version | None:
        meta = decode_meta(record.meta)
        if meta.part == 0:
            self._parts.clear()
            self._first_part = record.offset
        if not 0 <= meta.part < meta.parts or meta.part != len(self._parts):
            if not self._parts and meta.part > 0:  # retention, or a seek, cut the version's head off
                self._first_part = record.offset + 1
                return None
            raise CorruptStateError(
                f"versions, offset {record.offset}: part {meta.part} of {meta.parts} of version {meta.generation}."
                f"{meta.tick} does not follow part {len(self._parts) - 1}; restore the log or derive it again"
            )
        if self._parts and self._parts[0][0].digest != meta.digest:
            raise CorruptStateError(
                f"versions, offset {record.offset}: parts of two versions are mixed; two publishers wrote to this log"
            )
        self._parts.append((meta, record))
        if meta.part < meta.parts - 1:
            return None
        values = [bytes(r.value) if len(self._parts) > 1 else r.value for _, r in self._parts]
        self._parts = []
        self._first_part = record.offset + 1
        return Version(meta, values[0] if len(values) == 1 else b"".join(values), record.offset)
