"""Where the columns lie in a record of this build, read without Arrow's reader.

The batch message of a schema always looks the same but for a few numbers: how many rows, where each buffer lies, how
long the body is. Where these stand is learned once, from a sample that Arrow has written. A record that differs from
the sample in any other byte, or whose numbers do not add up, is left to Arrow's reader, which knows what is wrong with
it; so nothing is read here that has not been checked to lie inside the record.

    0xffffffff | metadata bytes i32 | flatbuffer: … rows i64 … (values, nulls) i64 × nodes … (at, bytes) i64 × buffers …
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
_HEAD_BYTES = 8  # continuation mark and size of the metadata
EOS = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # what may end a stream
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3  # fields of Message
_ROWS, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3  # of RecordBatch
_DICTIONARY_BATCH, _DATA = 2, 1  # a header type, and the RecordBatch in it


class Column(NamedTuple):
    """A fixed-width column, or a list column of such values."""

    dtype: np.dtype[Any]
    is_list: bool


class Layout:
    """The batch message of one schema of fixed-width and list columns."""

    def __init__(self, columns: Sequence[Column], sample: bytes) -> None:
        """`sample`: the batch message (metadata and body) of any rows of this schema, at least one."""
        self._columns = tuple(columns)
        self._nodes = sum(1 + c.is_list for c in columns)
        self._buffers = sum(2 + 2 * c.is_list for c in columns)
        places = _places(sample)
        if places is None or places.nodes != self._nodes or places.buffers != self._buffers:
            raise ValueError("a batch message of another form than Arrow has written so far")
        size = _HEAD_BYTES + struct.unpack_from("<i", sample, 4)[0]
        self.body = size  # of the message: where the buffers are counted from
        numbers = {places.length_at, places.body_at}
        numbers |= {places.nodes_at + 8 * i for i in range(2 * self._nodes)}
        numbers |= {places.buffers_at + 8 * i for i in range(2 * self._buffers)}
        self._changes = np.array(sorted(numbers), np.int64) // 8
        self._template = _blank(np.frombuffer(sample[:size], np.int64).copy(), self._changes).tobytes()
        self._length, self._body_length = places.length_at // 8, places.body_at // 8
        self._first_node, self._first_buffer = places.nodes_at // 8, places.buffers_at // 8

    def read(self, message: U8) -> list[tuple[I64 | None, NDArray[Any]]] | None:
        """(offsets or None, values) of each column, views of `message` but for offsets; None: ask Arrow's reader.

        `message`: the batch message and what follows it, writable, beginning at a multiple of 8.
        """
        if len(message) < self.body:
            return None
        words = message[: self.body].view(np.int64)
        if _blank(words.copy(), self._changes).tobytes() != self._template:
            return None
        n, body = int(words[self._length]), int(words[self._body_length])
        nodes = words[self._first_node : self._first_node + 2 * self._nodes].tolist()
        buffers = words[self._first_buffer : self._first_buffer + 2 * self._buffers].tolist()
        if n < 1 or not 0 <= body <= len(message) - self.body or any(nodes[1::2]):
            return None
        if message[self.body + body :].tobytes() not in (b"", EOS):
            return None
        for at, size in zip(buffers[::2], buffers[1::2], strict=True):
            if at < 0 or size < 0 or at + size > body or at & 7:
                return None
        return self._columns_of(message[self.body :], n, nodes[::2], buffers)

    def _columns_of(
        self, body: U8, n: int, lengths: list[int], buffers: list[int]
    ) -> list[tuple[I64 | None, NDArray[Any]]] | None:
        out: list[tuple[I64 | None, NDArray[Any]]] = []
        node = buffer = 0
        for dtype, is_list in self._columns:
            if lengths[node] != n:
                return None
            offsets, count = None, n
            if is_list:
                at, size = buffers[buffer + 2], buffers[buffer + 3]
                node, buffer = node + 1, buffer + 4
                count = lengths[node]
                if size < 4 * (n + 1) or count < 0:
                    return None
                offsets, ends = _offsets(body[at : at + 4 * (n + 1)].view(np.int32))
                if ends != count:
                    return None
            at, size = buffers[buffer + 2], buffers[buffer + 3]
            if size < count * dtype.itemsize:
                return None
            out.append((offsets, body[at : at + count * dtype.itemsize].view(dtype)))
            node, buffer = node + 1, buffer + 4
        return out


class _Places(NamedTuple):
    """Byte positions in a batch message, and how many nodes and buffers it has."""

    length_at: int
    body_at: int
    nodes_at: int
    nodes: int
    buffers_at: int
    buffers: int


def _places(message: bytes) -> _Places | None:
    root = _HEAD_BYTES + _u32(message, _HEAD_BYTES)
    header = _follow(message, _field(message, root, _HEADER))
    body_at = _field(message, root, _BODY_LENGTH)
    length_at = _field(message, header, _ROWS)
    nodes, buffers = (_follow(message, _field(message, header, i)) for i in (_NODES, _BUFFERS))
    if 0 in (body_at, length_at) or _field(message, header, _COMPRESSION):
        return None
    found = _Places(length_at, body_at, nodes + 4, _u32(message, nodes), buffers + 4, _u32(message, buffers))
    aligned = all(at % 8 == 0 for at in (found.length_at, found.body_at, found.nodes_at, found.buffers_at))
    return found if aligned else None


def is_compressed(metadata: bytes) -> bool:
    """Whether the body of an Arrow message is compressed; `metadata` is its flatbuffer, which Arrow has verified."""
    root = _u32(metadata, 0)
    header = _follow(metadata, _field(metadata, root, _HEADER))
    kind_at = _field(metadata, root, _HEADER_TYPE)
    if kind_at and metadata[kind_at] == _DICTIONARY_BATCH:
        header = _follow(metadata, _field(metadata, header, _DATA))
    elif not _field(metadata, root, _BODY_LENGTH):
        return False  # a schema has no body
    return bool(_field(metadata, header, _COMPRESSION))


def _u32(message: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", message, at)[0])


def _field(message: bytes, table: int, number: int) -> int:
    """Where a table's field stands, 0 where it is left out."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", message, vtable)[0]:
        return 0
    offset = int(struct.unpack_from("<H", message, vtable + entry)[0])
    return table + offset if offset else 0


def _follow(message: bytes, at: int) -> int:
    return at + _u32(message, at)


def _blank(words: I64, at: I64) -> I64:
    words[at] = 0
    return words


@njit(cache=True, nogil=True)
def _offsets(stored: NDArray[np.int32]) -> tuple[I64, np.int64]:
    """The offsets as int64, and the last one; -1 in its place where they do not begin at 0 and ascend."""
    out = np.empty(len(stored), np.int64)
    ends = np.int64(stored[0] - 1)
    if stored[0] == 0:
        ends = np.int64(stored[len(stored) - 1])
        for i in range(1, len(stored)):
            if stored[i] < stored[i - 1]:
                ends = np.int64(-1)
    for i in range(len(stored)):
        out[i] = stored[i]
    return out, ends


def column_of(kind: pa.DataType, dtypes: dict[Any, np.dtype[Any]]) -> Column | None:
    """The column of an Arrow type; None where it has another form (strings)."""
    is_list = isinstance(kind, pa.ListType)
    dtype = dtypes.get(kind.value_type if is_list else kind)
    return None if dtype is None else Column(dtype, is_list)
