"""Files of a data set as people have them: plain, compressed (.gz), or members of a .zip download.

`open_input` gives the bytes of one as a stream, whatever it lies in; nothing is unpacked beside it. What is plainly
something else (a Git LFS pointer, UTF-16 text, a web page) is refused with what to do. What comes out of a compressed
file is counted: one that grows out of all proportion is refused instead of filling the disk.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ZIP, GZ = ".zip", ".gz"
# Ids and titles compress 3 to 20 times, a bomb of zeros a thousand times; any file may grow to FREE_BYTES.
MAX_RATIO = 200
FREE_BYTES = 64 << 20
_GZIP = b"\x1f\x8b"
_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_UTF16 = "is UTF-16 text or binary: text is read as UTF-8, so convert it: `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
_FOREIGN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file: `git lfs pull` in its repository fetches it"),
    (b"\xff\xfe", _UTF16),
    (b"\xfe\xff", _UTF16),
    (b"PK\x03\x04", "is a zip archive: give it itself, with a name that ends in .zip, or unpack it"),
    (b"PAR1", "is a Parquet file; tab-separated text is read here"),
    (b"<!doctype", "is a web page, not the file: the download was answered with a page"),
    (b"<html", "is a web page, not the file: the download was answered with a page"),
)
_HEAD = 64  # bytes that are looked at


def is_source(place: Path) -> bool:
    """Whether a place can hold the files of a data set: a folder or a .zip."""
    return place.is_dir() or (place.suffix.lower() == ZIP and place.is_file())


def source_name(place: Path) -> str:
    """The name of a source: a .zip has that of the folder that it unpacks to."""
    resolved = place.resolve()
    return resolved.stem if resolved.suffix.lower() == ZIP and resolved.is_file() else resolved.name


def find_input(place: Path, name: str) -> Path | None:
    """A file of a source by name: itself or with .gz, in a .zip below whatever folder; None where it has none.

    Raises InputError where a zip cannot be read or holds several.
    """
    if place.is_dir():
        return next((path for path in (place / name, place / f"{name}{GZ}") if path.is_file()), None)
    try:
        with zipfile.ZipFile(place) as archive:
            members = archive.namelist()
    except (*_BROKEN, OSError) as error:
        raise _broken(place, error) from error
    found = [m for m in members if m.rpartition("/")[2] in (name, f"{name}{GZ}") and not m.startswith("__MACOSX")]
    if len(found) > 1:
        raise InputError(f"{place}: holds {len(found)} of {name}: {', '.join(sorted(found)[:4])}; unpack it")
    return place / found[0] if found else None


@contextmanager
def open_input(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of what `find_input` found. Raises InputError, also while they are read: something else, or broken."""
    with ExitStack() as held:
        try:
            raw, packed = _raw(path, held)
            size = raw.seek(0, io.SEEK_END) if packed is None else packed
            raw.seek(0)
            stream, compressed = raw, packed is not None
            if raw.peek(2)[:2] == _GZIP:
                stream, compressed = held.enter_context(gzip.GzipFile(fileobj=raw)), True
            head = stream.peek(_HEAD)[:_HEAD]
        except (*_BROKEN, OSError) as error:
            raise _broken(path, error) from error
        _refuse_foreign(path, head)
        yield io.BufferedReader(_Counted(path, stream, max(FREE_BYTES, MAX_RATIO * size))) if compressed else stream


def is_plain(stream: io.BufferedIOBase) -> bool:
    """Whether a stream of `open_input` is a file as it lies, which can be mapped and sought in at no cost."""
    return isinstance(stream, io.BufferedReader) and isinstance(stream.raw, io.FileIO)


def _raw(path: Path, held: ExitStack) -> tuple[Any, int | None]:
    """The stored bytes, and what they take in their .zip; None outside of one."""
    place = next((parent for parent in path.parents if parent.suffix.lower() == ZIP and parent.is_file()), None)
    if place is None:
        return held.enter_context(open(path, "rb")), None
    archive = held.enter_context(zipfile.ZipFile(place))
    member = archive.getinfo(path.relative_to(place).as_posix())
    return held.enter_context(archive.open(member)), member.compress_size


def _refuse_foreign(path: Path, head: bytes) -> None:
    for begin, what in _FOREIGN:
        if head[: len(begin)].lower() == begin.lower():
            raise InputError(f"{path}: {what}")
    if b"\0" in head:
        raise InputError(f"{path}: {_UTF16}")


def _broken(path: Path, error: Exception) -> InputError:
    if isinstance(error, _BROKEN):
        return InputError(f"{path}: cannot be unpacked ({error}): a torn download? Fetch it again")
    return InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")


class _Counted(io.RawIOBase):
    """A compressed stream that gives `most` bytes and no more."""

    def __init__(self, path: Path, stream: io.BufferedIOBase, most: int) -> None:
        self._path, self._stream, self._left, self._most = path, stream, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        try:
            n = self._stream.readinto(buffer)
        except (*_BROKEN, OSError) as error:
            raise _broken(self._path, error) from error
        self._left -= n
        if self._left < 0:
            raise InputError(
                f"{self._path}: more than {self._most:,} bytes come out of it, {MAX_RATIO} times what it takes: unpack "
                "it yourself if you trust it"
            )
        return n
