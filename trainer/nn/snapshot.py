"""A module's whole state as named Arrow tensors in one file: no pickle, and nothing in it is executed.

    module                              JSON: format, kind, sizes, update rule, seed, event time
    <store>/keys values state …         the table's rows with their optimizer state, sorted by key
    <store>/admission/<name>            its admission sketch, where it has one
    digest                              blake2b-256 over all of the above

Reading checks everything before it changes anything; the file is replaced in one step.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.embedding import EmbeddingTable, Rows
from infra.errors import CorruptStateError, InputError
from infra.paramstore.files import fsync_folder, retryable
from infra.paramstore.tensors import decode_tensors, write_tensors

if TYPE_CHECKING:
    from trainer.nn.modules import SparseEmbedding
    from trainer.nn.store import Store

FILE = "embedding.arrow"
FORMAT = 1
Tensors = dict[str, NDArray[Any]]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a module must agree with, and what it takes over."""

    format: int
    kind: str
    shape: dict[str, int]
    rule: str
    seed: int
    tick: int


def write(module: "SparseEmbedding", folder: Path) -> Path:
    """Write the file into `folder`, durably; readers see the old one or the new one."""
    path, draft = folder / FILE, folder / f".{FILE}.{os.getpid()}"
    with retryable(f"{path} was not written; what was there stays"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "wb") as sink:
                write_tensors(sink, _tensors(module))
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(draft, path)
            fsync_folder(folder)
        finally:
            draft.unlink(missing_ok=True)
    return path


def read(module: "SparseEmbedding", folder: Path) -> None:
    """Continue what `write` wrote."""
    path = folder / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; name the folder that snapshot() was given") from error
    decode(module, data, str(path))


def encode(module: "SparseEmbedding") -> bytes:
    """The file's bytes."""
    sink = pa.BufferOutputStream()
    write_tensors(sink, _tensors(module))
    return bytes(sink.getvalue().to_pybytes())


def decode(module: "SparseEmbedding", data: bytes, source: str) -> None:
    """Take over what the bytes hold. InputError for another module's, CorruptStateError for damaged ones."""
    try:
        tensors = decode_tensors(data)
    except CorruptStateError as error:
        raise CorruptStateError(f"{source}: {error}") from error
    digest = tensors.pop("digest", None)
    if digest is None or digest.tobytes() != _digest(tensors):
        raise CorruptStateError(f"{source}: the bytes are not those that were written; use an older snapshot")
    try:
        header = msgspec.json.decode(tensors["module"].tobytes(), type=Header)
    except (KeyError, msgspec.DecodeError) as error:
        raise CorruptStateError(f"{source}: no header that this release knows: {error}; written by another?") from error
    _compare(module, header, source)
    try:
        tables = {name: _table(store, header, tensors, f"{name}/") for name, store in module.stores.items()}
    except (KeyError, ValueError) as error:
        raise CorruptStateError(f"{source}: its tensors contradict each other: {error}; use an older one") from error
    for name, store in module.stores.items():
        store.table, store.tick = tables[name], header.tick
        store.options = store.options._replace(seed=header.seed)
        store.forget()
    module.options = module.options._replace(seed=header.seed)


def _header(module: "SparseEmbedding") -> Header:
    tick = max(store.tick for store in module.stores.values())
    rule = type(module.options.rule).__name__
    return Header(FORMAT, type(module).__name__, dict(module.shape()), rule, module.options.seed, tick)


def _compare(module: "SparseEmbedding", header: Header, source: str) -> None:
    own = _header(module)
    for what in ("format", "kind", "shape", "rule"):
        there, here = getattr(header, what), getattr(own, what)
        if there != here:
            raise InputError(f"{source}: its {what} is {there}, this module's is {here}; make the module as it was")


def _tensors(module: "SparseEmbedding") -> Tensors:
    tensors: Tensors = {"module": np.frombuffer(msgspec.json.encode(_header(module)), np.uint8)}
    for name, store in module.stores.items():
        tensors |= {f"{name}/{column}": array for column, array in store.table.export()._asdict().items()}
        if store.table.admission is not None:
            tensors |= {f"{name}/admission/{part}": a for part, a in store.table.admission.export().items()}
    return tensors | {"digest": np.frombuffer(_digest(tensors), np.uint8)}


def _table(store: "Store", header: Header, tensors: Tensors, prefix: str) -> EmbeddingTable:
    table = store.empty(header.seed)
    table.advance(header.tick)
    table.put(*(tensors[f"{prefix}{column}"] for column in Rows._fields))
    inside = f"{prefix}admission/"
    if table.admission is not None:
        table.admission.load({k.removeprefix(inside): t for k, t in tensors.items() if k.startswith(inside)})
    return table


def _digest(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    h = hashlib.blake2b(digest_size=32)
    for name, tensor in tensors.items():
        h.update(f"{name}/{tensor.dtype.str}/{tensor.shape}\n".encode())
        h.update(np.ascontiguousarray(tensor).data)
    return h.digest()
