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
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import CorruptStateError

Tensors = dict[str, NDArray[Any]]

ALIGN = 64
NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_./-]{0,127}")
_NAMES = ("bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64")
DTYPES = {name: np.dtype(name) for name in _NAMES}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}  # `dtype.name` costs more than copying a small tensor
MAX_DIMS = 8

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("data", pa.large_binary()),
    ]
)


def encode_tensors(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """One stream with one batch. Raises ValueError for a name or a dtype that does not travel."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        if tensors:
            writer.write_batch(_batch(tensors))
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


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
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            if reader.schema != SCHEMA:
                raise CorruptStateError(f"tensors of another schema ({reader.schema}); written by another release?")
            for batch in reader:
                batch.validate(full=True)
                for name, array in _rows(batch, select):
                    if name in tensors:
                        raise CorruptStateError(f"tensor {name} appears twice; the record must be written again")
                    tensors[name] = array
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"not a stream of tensors: {error}; fetch or write it again") from error
    return tensors


def _batch(tensors: Mapping[str, NDArray[Any]]) -> pa.RecordBatch:
    names = list(tensors)
    arrays = [np.ascontiguousarray(tensors[name]) for name in names]
    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    for i, (name, array) in enumerate(zip(names, arrays, strict=True)):
        if not NAME.fullmatch(name) or array.dtype not in NAME_OF:
            raise ValueError(f"tensor {name!r} of {array.dtype}: name or dtype does not travel")
        offsets[i + 1] = offsets[i] + -(-array.nbytes // ALIGN) * ALIGN
    data = np.zeros(int(offsets[-1]), dtype=np.uint8)
    for array, at in zip(arrays, offsets, strict=False):
        data[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
    shapes = [[len(tensors[n])] if tensors[n].ndim == 1 else list(tensors[n].shape) for n in names]
    column = pa.Array.from_buffers(pa.large_binary(), len(names), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return pa.record_batch(
        [
            pa.array(names, pa.string()),
            pa.array([NAME_OF[a.dtype] for a in arrays], pa.string()),
            pa.array(shapes, pa.list_(pa.int64())),
            column,
        ],
        schema=SCHEMA,
    )


def _rows(batch: pa.RecordBatch, select: Callable[[str], bool] | None) -> Iterator[tuple[str, NDArray[Any]]]:
    names, dtypes, shapes = (batch.column(i).to_pylist() for i in range(3))
    column = batch.column(3)
    _, offsets_buffer, data = column.buffers()
    if batch.num_rows == 0:
        return
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[column.offset :]
    for i, (name, dtype, shape) in enumerate(zip(names, dtypes, shapes, strict=True)):
        if select is not None and not (isinstance(name, str) and select(name)):
            continue
        room = int(offsets[i + 1] - offsets[i])
        yield _checked(name), _array(name, dtype, shape, data, int(offsets[i]), room)


def _checked(name: object) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise CorruptStateError(f"tensor name {name!r} does not match {NAME.pattern}; written by another program?")
    return name


def _array(name: str, dtype: object, shape: object, data: pa.Buffer | None, at: int, room: int) -> NDArray[Any]:
    if dtype not in DTYPES or not isinstance(shape, list) or len(shape) > MAX_DIMS or min(shape, default=0) < 0:
        raise CorruptStateError(f"tensor {name}: dtype {dtype!r} or shape {shape!r} is not known")
    kind = DTYPES[str(dtype)]
    count = 1
    for n in shape:
        count *= n
    if count * kind.itemsize > room:
        raise CorruptStateError(f"tensor {name}: {shape} of {dtype} needs {count * kind.itemsize} bytes, has {room}")
    array: NDArray[Any] = np.empty(shape, dtype=kind)
    if count:
        array.reshape(-1)[:] = np.frombuffer(data or b"", dtype=kind, count=count, offset=at)
    return array
