"""The embedded named reader: one cursor a partition, one shared file of positions."""

import time
from collections.abc import Mapping

from infra.errors import CorruptStateError, RetryableError
from infra.eventlog.base import Record
from infra.eventlog.cursor import Cursor
from infra.eventlog.partition import Partition
from infra.eventlog.positions import Positions

POLL_S = 0.001  # how often an empty log is looked at: a fraction of what a flush takes


class EmbeddedReader:
    """See `base.Reader`."""

    def __init__(self, partitions: Mapping[int, Partition], positions: Positions) -> None:
        self.closed = False
        self._partitions = dict(partitions)
        self._positions = positions
        self._cursors: dict[int, Cursor] = {}
        for number, partition in self._partitions.items():
            committed = positions.committed(number)
            offset = partition.start_offset() if committed is None else committed
            if offset > partition.highwater.next_offset():
                raise CorruptStateError(
                    f"{partition.path}: the reader has committed offset {offset}, but the log ends at "
                    f"{partition.highwater.next_offset()}: it was replaced; forget the reader, or restore the log"
                )
            self._cursors[number] = Cursor(partition, number, offset)
            positions.set_read(number, offset)
        self._turn = list(self._cursors.values())

    def poll(self, max_records: int = 256, timeout_s: float = 0.0) -> list[tuple[int, Record]]:
        if self.closed:
            raise ValueError("the reader is closed")
        out = self._poll_now(max_records)
        if out or timeout_s <= 0:
            return out
        deadline = time.monotonic() + timeout_s
        while not out and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left_s))
            out = self._poll_now(max_records)
        return out

    def _poll_now(self, max_records: int) -> list[tuple[int, Record]]:
        out: list[tuple[int, Record]] = []
        try:
            # Fair: everyone gets an equal share of what is left, whoever was first goes last next time.
            for index, cursor in enumerate(self._turn):
                cursor.take(-(-(max_records - len(out)) // (len(self._turn) - index)), out)
            for cursor in self._turn:
                cursor.take(max_records - len(out), out)
        except (CorruptStateError, RetryableError):
            if not out:  # else what came before is delivered first, and the next poll meets the error again
                raise
        if out:
            self._turn.append(self._turn.pop(0))
            for number in {number for number, _ in out}:
                self._positions.set_read(number, self._cursors[number].offset)
        return out

    def position(self, partition: int) -> int:
        return self._cursor(partition).offset

    def seek(self, partition: int, offset: int) -> None:
        self._check(partition, offset)
        self._cursor(partition).seek(offset)
        self._positions.set_read(partition, offset)

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        if positions is None:
            positions = {number: cursor.offset for number, cursor in self._cursors.items()}
        for partition, offset in positions.items():
            self._check(partition, offset)
        try:
            self._positions.commit(positions)
        except OSError as error:
            raise RetryableError(
                f"committing positions: {error.strerror}; mend the disk, then commit again", after_s=1.0
            ) from error

    def _cursor(self, partition: int) -> Cursor:
        if partition not in self._cursors:
            raise ValueError(f"partition {partition}; this reader reads {sorted(self._cursors)}")
        return self._cursors[partition]

    def _check(self, partition: int, offset: int) -> None:
        self._cursor(partition)
        source = self._partitions[partition]
        start, end = source.start_offset(), source.highwater.next_offset()
        if not start <= offset <= end:
            raise ValueError(f"offset {offset} of partition {partition}; the log holds {start} to {end}")

    def close(self) -> None:
        self.closed = True
        for cursor in self._cursors.values():
            cursor.close()
        for partition in self._partitions.values():
            partition.close()
        self._positions.close()
