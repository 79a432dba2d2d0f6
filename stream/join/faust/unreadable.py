"""Records that Faust's client cannot read: it leaves out the rest of their batch instead of ending.

aiokafka decodes the names of headers as UTF-8, and whoever writes another name ends every reader. What is left out
here is a gap like any that Faust makes: the engine reads it from the log by our own client, which makes the record a
dead letter. This is not in aiokafka's interface; where it changes, Faust ends at such a record, as it did before.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher


class _Batch:
    """A batch of records, read up to the first that cannot be."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            return


class _Batches:
    """The batches of a fetch."""

    def __init__(self, records: Any) -> None:
        self.has_next = records.has_next
        self._records = records

    def next_batch(self) -> _Batch:
        return _Batch(self._records.next_batch())


class ReadablePart(fetcher.PartitionRecords):  # type: ignore[misc]
    """As aiokafka's, over batches that end before what cannot be read."""

    def __init__(self, tp: Any, records: Any, *more: Any, **named: Any) -> None:
        super().__init__(tp, _Batches(records), *more, **named)


def leave_out_unreadable() -> None:
    """From now on, in this process."""
    fetcher.PartitionRecords = ReadablePart
