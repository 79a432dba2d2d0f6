"""Columns of a record: plain numpy arrays, list columns included, and their Arrow IPC form.

A record's value is one Arrow IPC stream with one record batch, self-describing, so that any Arrow reader opens it.
What this build writes begins with a constant schema message and is read by its layout (`stream.layout`); a record that
looks otherwise (an older or newer writer, another producer) takes the slower way through the full reader: columns are
found by name, unknown ones are ignored, a missing one makes the record malformed. So does whatever would be lost
unseen: a second batch, bytes behind the end. A compressed body is refused: a few bytes could ask for any memory, and
Kafka compresses by itself. Decoded arrays are writable, aligned and contiguous views of one private copy of the record,
so that kernels see one array type and no caller can reach the log's own memory.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from stream.layout import EOS, Layout, column_of, is_compressed

I64: TypeAlias = NDArray[np.int64]
U8: TypeAlias = NDArray[np.uint8]


class MalformedRecordError(ValueError):
    """The bytes of a record cannot be read by any rule; the record belongs into `dead-letters`."""


@dataclass(frozen=True, slots=True)
class Lists:
    """A list column: row i holds values[offsets[i]:offsets[i + 1]]; offsets (n + 1,) int64 begin at 0."""

    offsets: I64
    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> I64:
        """Length of each row's list (n,)."""
        return np.diff(self.offsets)

    def slice(self, lo: int, hi: int) -> "Lists":
        """Rows lo:hi; the values are a view."""
        start, end = self.offsets[lo], self.offsets[hi]
        return Lists(self.offsets[lo : hi + 1] - start, self.values[start:end])

    def take(self, rows: I64) -> "Lists":
        """The given rows, in that order."""
        offsets, values = _take_lists(self.offsets, self.values, rows)
        return Lists(offsets, values)

    @classmethod
    def concat(cls, parts: Sequence["Lists"]) -> "Lists":
        """All rows of all parts, in order; there is at least one part."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.zeros(sum(len(part.offsets) for part in parts) - len(parts) + 1, dtype=np.int64)
        row, base = 1, 0
        for part in parts:
            n = len(part.offsets) - 1
            np.add(part.offsets[1:], base, out=offsets[row : row + n])
            row, base = row + n, base + len(part.values)
        return cls(offsets, np.concatenate([part.values for part in parts]))

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | NDArray[Any]], dtype: Any = np.int64) -> "Lists":
        """From one sequence a row."""
        values = [np.asarray(row, dtype=dtype) for row in rows]
        flat = np.concatenate(values) if values else np.empty(0, dtype=dtype)
        return cls(offsets_of(np.array([len(v) for v in values], dtype=np.int64)), flat)

    @classmethod
    def empty(cls, rows: int, dtype: Any = np.int64) -> "Lists":
        """`rows` empty lists."""
        return cls(np.zeros(rows + 1, dtype=np.int64), np.empty(0, dtype=dtype))


def offsets_of(lengths: I64) -> I64:
    """Offsets (n + 1,) from lengths (n,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@njit(cache=True, nogil=True)
def _take_lists(offsets, values, rows):  # type: ignore[no-untyped-def]
    n = len(rows)
    out_offsets = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        out_offsets[i + 1] = out_offsets[i] + offsets[rows[i] + 1] - offsets[rows[i]]
    out = np.empty(out_offsets[n], dtype=values.dtype)
    for i in range(n):
        at = out_offsets[i]
        start = offsets[rows[i]]
        for j in range(out_offsets[i + 1] - at):
            out[at + j] = values[start + j]
    return out_offsets, out


class Codec:
    """Encodes and decodes records of one schema.

    Columns come as numpy arrays (fixed width), `Lists` (list columns) or lists of str (string columns), by name.
    """

    def __init__(self, fields: Mapping[str, pa.DataType]) -> None:
        self.schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])
        self._fields = tuple(fields.items())
        self._prefix = self.schema.serialize().to_pybytes()
        assert len(self._prefix) % 8 == 0
        self._layout = self._learn_layout()

    def _learn_layout(self) -> Layout | None:
        """None for a schema with string columns: those records are few."""
        columns = [column_of(kind, _DTYPES) for _, kind in self._fields]
        if None in columns:
            return None
        one = {n: Lists.of([[0]]) if isinstance(k, pa.ListType) else np.zeros(1, np.int64) for n, k in self._fields}
        return Layout([c for c in columns if c is not None], self.batch(one).serialize().to_pybytes())

    def batch(self, columns: Mapping[str, Any]) -> pa.RecordBatch:
        """The columns as an Arrow record batch."""
        arrays = [_to_arrow(columns[name], kind) for name, kind in self._fields]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def encode(self, columns: Mapping[str, Any]) -> bytes:
        """The record's value: schema message, batch message, end of stream."""
        return b"".join((self._prefix, memoryview(self.batch(columns).serialize()), EOS))

    def decode(self, value: bytes | memoryview) -> dict[str, Any]:
        """Columns by name. Raises MalformedRecordError."""
        raw = np.frombuffer(bytearray(value), dtype=np.uint8)
        own = raw[: len(self._prefix)].tobytes() == self._prefix
        if own and self._layout is not None:
            found = self._layout.read(raw[len(self._prefix) :])
            if found is not None:
                names = (name for name, _ in self._fields)
                return {n: v if o is None else Lists(o, v) for n, (o, v) in zip(names, found, strict=True)}
        buffer = pa.py_buffer(raw)
        return self.columns(self._read(buffer, own), _Home(raw, buffer.address), named=not own)

    def decode_batch(self, value: bytes) -> pa.RecordBatch:
        """The record's batch as Arrow holds it, for readers that go on in Arrow. Raises MalformedRecordError."""
        own = value.startswith(self._prefix)
        batch = self._read(pa.py_buffer(value), own)
        return batch if own else self.batch(self.columns(batch))

    def _read(self, buffer: pa.Buffer, own: bool) -> pa.RecordBatch:
        try:
            _check_stream(buffer)
            if own:
                batch = pa.ipc.read_record_batch(buffer.slice(len(self._prefix)), self.schema)
            else:
                batch = pa.ipc.open_stream(buffer).read_next_batch()
            batch.validate(full=True)
        except MalformedRecordError:
            raise
        except (pa.ArrowException, StopIteration, EOFError, OSError, ValueError, IndexError, struct.error) as error:
            raise MalformedRecordError(f"not an Arrow IPC stream with a record batch: {error}") from error
        return batch

    def columns(self, batch: pa.RecordBatch, home: "_Home | None" = None, *, named: bool = True) -> dict[str, Any]:
        """Numpy columns of a batch, views of `home` where the batch lies in it. Raises MalformedRecordError.

        `named`: the batch has another writer's schema, so columns are found by name and checked.
        """
        return {
            name: _from_arrow(_find(batch, name, kind) if named else batch.column(at), kind, home)
            for at, (name, kind) in enumerate(self._fields)
        }


class _Home(NamedTuple):
    """The private copy of a record, and its address."""

    raw: U8
    address: int


def _check_stream(buffer: pa.Buffer) -> None:
    """One batch, nothing behind it, nothing compressed. Raises MalformedRecordError, and what Arrow raises."""
    source = pa.BufferReader(buffer)
    messages = list(pa.ipc.MessageReader.open_stream(source))
    batches = sum(message.type == "record batch" for message in messages)
    if batches != 1:
        raise MalformedRecordError(f"{batches} record batches in a record; write one, or a record for each")
    if left := buffer.size - source.tell():
        raise MalformedRecordError(f"{left} bytes follow the end of the Arrow stream")
    if any(is_compressed(message.metadata.to_pybytes()) for message in messages):
        raise MalformedRecordError("its body is compressed: write it uncompressed, Kafka compresses by itself")


def _find(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    at = batch.schema.get_field_index(name)
    if at < 0:
        raise MalformedRecordError(f"column {name} is missing")
    column = batch.column(at)
    if column.type != kind:
        raise MalformedRecordError(f"column {name} is {column.type}, not {kind}")
    return column


def _to_arrow(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Lists):
        values = pa.array(column.values, type=kind.value_type)
        return pa.ListArray.from_arrays(column.offsets.astype(np.int32), values, type=kind)
    return pa.array(column, type=kind)


_STRING = pa.string()


def _from_arrow(column: pa.Array, kind: pa.DataType, home: _Home | None) -> Any:
    if column.null_count:
        raise MalformedRecordError("a column holds nulls")
    if kind == _STRING:
        return column.to_pylist()
    if not isinstance(column, pa.ListArray):
        return _fixed(column, home)
    child = column.values
    if child.null_count:
        raise MalformedRecordError("a list holds nulls")
    if len(column) == 0:
        return Lists(np.zeros(1, dtype=np.int64), _fixed(child, home)[:0])
    offsets = _view(column.buffers()[1], _INT32, column.offset, len(column) + 1, home)
    start, end = int(offsets[0]), int(offsets[-1])
    return Lists(offsets.astype(np.int64) - start, _fixed(child, home)[start:end])


_INT32 = np.dtype(np.int32)
_DTYPES: dict[Any, np.dtype[Any]] = {pa.int64(): np.dtype(np.int64), pa.int32(): _INT32, pa.uint8(): np.dtype(np.uint8)}


def _fixed(column: pa.Array, home: _Home | None) -> NDArray[Any]:
    return _view(column.buffers()[-1], _DTYPES[column.type], column.offset, len(column), home)


def _view(buffer: pa.Buffer | None, dtype: np.dtype[Any], offset: int, n: int, home: _Home | None) -> NDArray[Any]:
    """n values of an Arrow buffer: a writable view where it lies aligned in `home`, else a copy."""
    if n == 0 or buffer is None:
        return np.zeros(n, dtype=dtype)
    size = dtype.itemsize
    if home is not None:
        at = buffer.address - home.address + offset * size
        if at >= 0 and at + n * size <= len(home.raw) and (home.address + at) % size == 0:
            return home.raw[at : at + n * size].view(dtype)
    return np.frombuffer(buffer, dtype=dtype, count=n, offset=offset * size).copy()
