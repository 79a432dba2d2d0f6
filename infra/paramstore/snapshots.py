"""Snapshots: the whole state at a version, as a folder that is either whole and verified, or absent.

    RUN/store/<name>/tensors.arrow    the tensors (`infra.paramstore.tensors`), one batch each
    RUN/store/<name>/manifest.json    what it is, and the digest of every file; its own digest last

Written into a draft folder, every file fsynced, the folder renamed, its parent fsynced. The manifest is read by
encoding it again and comparing bytes, so that every flipped bit in either file is found before a number is used.
A name is written once: the same content again is a no-op, other content is refused.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import CorruptStateError
from infra.paramstore.files import fsync_folder, whole_folder
from infra.paramstore.tensors import Tensors, decode_tensors, write_tensors
from infra.paramstore.version import VersionId
from infra.temporary import is_left_behind

SNAPSHOT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DRAFT_NAME = re.compile(r"\.[a-z0-9-]+\.(\d+)")  # see `files.whole_folder` and `delete`: the process that makes it
TENSORS_FILE = "tensors.arrow"
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20


class SnapshotMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot says of itself. `state` snapshots are the chain's; `nightly` and `candidate` the retrain's."""

    v: int = 1
    name: str
    kind: str  # "state", "nightly", "candidate", "rollback"
    generation: int
    tick: int
    version_digest: str = ""  # kind state: the version whose state this is
    through: int = -1  # kind state: last tick known to be in it (progress included)
    next_offset: int = 0  # kind state: offset in `versions` of the first record after it
    positions: dict[int, int] = {}
    items_offset: int = 0
    control_offset: int = 0
    end: bool = False
    content_digest: str = ""  # blake2b-256 of tensors.arrow, hex
    content_bytes: int = 0

    @property
    def id(self) -> VersionId:
        return VersionId(self.generation, self.tick)


class Snapshot(NamedTuple):
    meta: SnapshotMeta
    tensors: Tensors


class SnapshotStore:
    """The folder of snapshots. One process may write while others read: a folder appears whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Raises ValueError for a name that is none: no user's text becomes a path."""
        if not SNAPSHOT_NAME.fullmatch(name):
            raise ValueError(f"snapshot name {name!r} does not match {SNAPSHOT_NAME.pattern}")
        return self.folder / name

    def write(self, meta: SnapshotMeta, tensors: Mapping[str, NDArray[Any]]) -> SnapshotMeta:
        """Write a whole snapshot; returns its meta with the content digest filled in.

        Raises RetryableError when the disk refuses (nothing changed), CorruptStateError when the name holds
        other content.
        """
        final = self.path(meta.name)
        if final.exists():
            return self._same(meta, tensors)
        with whole_folder(final) as draft:
            file = draft / TENSORS_FILE
            with open(file, "wb") as sink:
                write_tensors(sink, tensors)
                sink.flush()
                os.fsync(sink.fileno())
            meta = _with_content(meta, file)
            with open(draft / MANIFEST_FILE, "wb") as sink:
                sink.write(_manifest_bytes(meta))
                sink.flush()
                os.fsync(sink.fileno())
        return meta

    def _same(self, meta: SnapshotMeta, tensors: Mapping[str, NDArray[Any]]) -> SnapshotMeta:
        held = self.meta(meta.name)
        sink = pa.BufferOutputStream()
        write_tensors(sink, tensors)
        if hashlib.blake2b(sink.getvalue(), digest_size=32).hexdigest() != held.content_digest:
            raise CorruptStateError(
                f"{self.path(meta.name)} already holds other content; a snapshot is written once: delete the folder "
                f"if no version names it (grep the control log), otherwise restore it"
            )
        return held

    def meta(self, name: str) -> SnapshotMeta:
        """The manifest, verified. Raises CorruptStateError if it is missing or changed."""
        path = self.path(name) / MANIFEST_FILE
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise CorruptStateError(f"{path}: {error.strerror}; the snapshot is gone: {_ADVICE}") from error
        return _read_manifest(path, raw, name)

    def read(self, name: str, select: Callable[[str], bool] | None = None) -> Snapshot:
        """The snapshot, every byte verified before it is decoded. Raises CorruptStateError and says what to do."""
        meta = self.meta(name)
        path = self.path(name) / TENSORS_FILE
        try:
            with pa.memory_map(str(path), "r") as file:
                buffer = file.read_buffer()
                got = hashlib.blake2b(buffer, digest_size=32).hexdigest()
                if got != meta.content_digest or buffer.size != meta.content_bytes:
                    raise CorruptStateError(
                        f"{path}: digest {got[:16]}, manifest says {meta.content_digest[:16]}; {_ADVICE}"
                    )
                return Snapshot(meta, decode_tensors(buffer, select))
        except OSError as error:
            raise CorruptStateError(f"{path}: {error}; {_ADVICE}") from error

    def names(self) -> list[str]:
        """Names of the whole snapshots, sorted."""
        if not self.folder.exists():
            return []
        return sorted(
            p.name for p in self.folder.iterdir() if SNAPSHOT_NAME.fullmatch(p.name) and (p / MANIFEST_FILE).exists()
        )

    def exists(self, name: str) -> bool:
        return (self.path(name) / MANIFEST_FILE).exists()

    def delete(self, name: str) -> None:
        """Drop a snapshot: renamed away first, so that a reader never sees half of one."""
        path = self.path(name)
        gone = path.with_name(f".gone-{name}.{os.getpid()}")
        os.rename(path, gone)
        fsync_folder(self.folder)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> list[str]:
        """Remove drafts that a killed process left behind; returns their names."""
        swept: list[str] = []
        for path in self.folder.iterdir() if self.folder.exists() else ():
            owner = DRAFT_NAME.fullmatch(path.name)
            if owner is not None and path.is_dir() and is_left_behind(path, int(owner[1])):
                shutil.rmtree(path, ignore_errors=True)
                swept.append(path.name)
        return swept


_ADVICE = "it is not served; delete the folder: readers take an older snapshot, or derive the state from the logs"


def _with_content(meta: SnapshotMeta, file: Path) -> SnapshotMeta:
    with open(file, "rb") as source:
        digest = hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=32))
    return msgspec.structs.replace(meta, content_digest=digest.hexdigest(), content_bytes=file.stat().st_size)


def _manifest_bytes(meta: SnapshotMeta) -> bytes:
    body = msgspec.json.encode(meta)
    digest = hashlib.blake2b(body, digest_size=32).hexdigest()
    return b'{"snapshot":' + body + b',"digest":"' + digest.encode() + b'"}\n'


def _read_manifest(path: Path, raw: bytes, name: str) -> SnapshotMeta:
    head, sep, tail = raw.rpartition(b',"digest":"')
    prefix = b'{"snapshot":'
    body = head.removeprefix(prefix)
    digest = hashlib.blake2b(body, digest_size=32).hexdigest()
    if not sep or not head.startswith(prefix) or tail != digest.encode() + b'"}\n':
        raise CorruptStateError(f"{path}: the manifest does not match its own digest; {_ADVICE}")
    try:
        meta = msgspec.json.decode(body, type=SnapshotMeta)
    except msgspec.MsgspecError as error:
        raise CorruptStateError(f"{path}: {error}; written by another release? {_ADVICE}") from error
    if meta.v > 1 or meta.name != name:
        raise CorruptStateError(f"{path}: holds snapshot {meta.name} of schema {meta.v}; {_ADVICE}")
    return meta
