"""Named arrays as one Arrow IPC stream: what versions, snapshots and candidates are made of.

    name    dtype     shape        data (padded to 64 bytes)
    string  string    list<int64>  large_binary, C order, little endian

One row a tensor, so the schema never changes with the model. The bytes are a function of the names, their order and
the values: digests are taken over them. What comes back is aligned and writable, because numba compiles another
kernel for read-only arrays. Rejected: one column a tensor (a schema per version, 10 x the metadata), safetensors
(no stream of batches), pickle (executes what it reads).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import CorruptStateError

Tensors = dict[str, NDArray[Any]]

ALIGN = 64
NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_./-]{0,127}")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_NAMES = ("bool", *_INTEGERS, "float16", "float32", "float64")
DTYPES = {name: np.dtype(name) for name in _NAMES}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}  # `dtype.name` costs more than copying a small tensor
MAX_DIMS = 8
REMEMBERED = 256  # lists of names or dtypes whose columns are kept: versions repeat a few of them

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("data", pa.large_binary()),
    ]
)


_PREFIX = SCHEMA.serialize().to_pybytes()
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def encode_tensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """One stream with one batch. Raises ValueError for a name or a dtype that does not travel."""
    batch = _batch(tensors).serialize() if tensors else b""
    return b"".join((_PREFIX, memoryview(batch), _END))


def write_tensors(sink: Any, tensors: Mapping[str, NDArray[Any]]) -> None:
    """The same stream into a file, one batch a tensor, so that no more than one tensor is held twice."""
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for name, array in tensors.items():
            writer.write_batch(_batch({name: array}))


def decode_tensors(data: bytes | memoryview | pa.Buffer, select: Callable[[str], bool] | None = None) -> Tensors:
    """The arrays by name, in order; `select` skips what the reader does not need (a replica: optimizer state).

    Raises CorruptStateError where the bytes are no stream of tensors.
    """
    tensors: Tensors = {}
    try:
        for batch in _batches(pa.py_buffer(data)):
            batch.validate(full=True)
            for name, array in _rows(batch, select):
                if name in tensors:
                    raise CorruptStateError(f"tensor {name} appears twice; the record must be written again")
                tensors[name] = array
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"not a stream of tensors: {error}; fetch or write it again") from error
    return tensors


def _batches(data: pa.Buffer) -> Iterator[pa.RecordBatch]:
    """The batches of a stream. One that begins and ends as ours do needs no reader of schemas."""
    view, head = memoryview(data), len(_PREFIX)
    if view[:head] == _PREFIX and view[-len(_END) :] == _END:
        source = pa.BufferReader(data.slice(head, len(view) - head - len(_END)))
        while source.tell() < source.size():
            yield pa.ipc.read_record_batch(pa.ipc.read_message(source), SCHEMA)
        return
    with pa.ipc.open_stream(data) as reader:
        if reader.schema != SCHEMA:
            raise CorruptStateError(f"tensors of another schema ({reader.schema}); written by another release?")
        yield from reader


def _batch(tensors: Mapping[str, NDArray[Any]]) -> pa.RecordBatch:
    arrays = [np.ascontiguousarray(array) for array in tensors.values()]
    names = _name_column(tuple(tensors))
    dtypes = _dtype_column(tuple(array.dtype for array in arrays))
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    at = 0
    for i, array in enumerate(arrays):
        at += -(-array.nbytes // ALIGN) * ALIGN
        offsets[i + 1] = at
    data = np.empty(at, dtype=np.uint8)
    at = 0
    for array in arrays:
        end = at + array.nbytes
        data[at:end] = array.reshape(-1).view(np.uint8)
        at = -(-end // ALIGN) * ALIGN
        data[end:at] = 0
    shapes = pa.array([tensor.shape for tensor in tensors.values()], pa.list_(pa.int64()))
    column = pa.Array.from_buffers(pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return pa.RecordBatch.from_arrays([names, dtypes, shapes, column], schema=SCHEMA)


@lru_cache(REMEMBERED)
def _name_column(names: tuple[str, ...]) -> pa.Array:
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"tensor {name!r}: the name does not travel")
    return pa.array(names, pa.string())


@lru_cache(REMEMBERED)
def _dtype_column(dtypes: tuple[np.dtype[Any], ...]) -> pa.Array:
    for dtype in dtypes:
        if dtype not in NAME_OF:
            raise ValueError(f"a tensor of {dtype}: the dtype does not travel")
    return pa.array([NAME_OF[dtype] for dtype in dtypes], pa.string())


def _rows(batch: pa.RecordBatch, select: Callable[[str], bool] | None) -> Iterator[tuple[str, NDArray[Any]]]:
    names, dtypes = _strings(batch.column(0)), _strings(batch.column(1))
    shapes = batch.column(2).to_pylist()
    column = batch.column(3)
    _, offsets_buffer, data = column.buffers()
    if batch.num_rows == 0:
        return
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset : column.offset + batch.num_rows + 1].tolist()
    raw = np.frombuffer(b"" if data is None else data, dtype=np.uint8)
    for i, (name, dtype, shape) in enumerate(zip(names, dtypes, shapes, strict=True)):
        if select is not None and not (isinstance(name, str) and select(name)):
            continue
        known = _checked(name)
        yield known, _array(known, dtype, shape, raw, offsets[i], offsets[i + 1] - offsets[i])


def _strings(column: pa.Array) -> tuple[object, ...]:
    """The strings of a column, remembered by their bytes: versions repeat a few lists of names."""
    if column.null_count or column.offset or not len(column):
        return tuple(column.to_pylist())
    _, offsets, data = column.buffers()
    ends = offsets.slice(0, 4 * (len(column) + 1)).to_pybytes()
    return _split(ends, b"" if data is None else data.to_pybytes())


@lru_cache(REMEMBERED)
def _split(offsets: bytes, data: bytes) -> tuple[object, ...]:
    ends = np.frombuffer(offsets, np.int32).tolist()
    return tuple(data[lo:hi].decode() for lo, hi in pairwise(ends))


def _checked(name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise CorruptStateError(f"tensor name {name!r} does not match {NAME.pattern}; written by another program?")
    return name


def _array(name: str, dtype: object, shape: object, raw: NDArray[np.uint8], at: int, room: int) -> NDArray[Any]:
    if dtype not in DTYPES or not isinstance(shape, list) or len(shape) > MAX_DIMS or min(shape, default=0) < 0:
        raise CorruptStateError(f"tensor {name}: dtype {dtype!r} or shape {shape!r} is not known")
    kind = DTYPES[str(dtype)]
    count = 1
    for n in shape:
        count *= n
    if count * kind.itemsize > room:
        raise CorruptStateError(f"tensor {name}: {shape} of {dtype} needs {count * kind.itemsize} bytes, has {room}")
    array: NDArray[Any] = raw[at : at + count * kind.itemsize].copy().view(kind).reshape(shape)
    return array
