"""Tells whether the files that a run replays are still those that it began with.

A replay writes its place in the source into each record, and goes on from there: over another file it would skip or
repeat rows, and no one would notice. So a run keeps size, modification time and digest of each file. A file that was
only touched or copied is the same; one whose content differs is refused, also where rows were only appended: rows are
replayed in the order of their times, so later ones may belong before what was already replayed.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

NAMES = ("behaviors", "news")  # of the files in a source's folder, whatever follows the dot
_CHUNK_BYTES = 4 << 20


class FileMark(msgspec.Struct, frozen=True):
    """What a file was when the run began."""

    size: int  # bytes
    mtime_ns: int
    digest: str  # blake2b-256


def marks_of(places: Iterable[Path]) -> dict[str, FileMark]:
    """The files of these folders, by path, read whole once."""
    return {str(path): _mark(path) for place in places for path in _files(place)}


def changed(marks: Mapping[str, FileMark], places: Iterable[Path]) -> str:
    """What is no longer as it was, in words; "" where nothing is. Reads a file only where its size or time differs."""
    there = {str(path): path for place in places for path in _files(place)}
    said = [f"{name} is gone" for name in marks if name not in there]
    said += [f"{name} was not there" for name in there if name not in marks]
    said += [text for name, path in there.items() if name in marks and (text := _difference(path, marks[name]))]
    return "; ".join(said)


def _difference(path: Path, before: FileMark) -> str:
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) == (before.size, before.mtime_ns):
        return ""
    if now.st_size >= before.size and _digest(path, before.size) == before.digest:
        more = now.st_size - before.size
        return f"{path}: {more:,} bytes were appended since the run began" if more else ""
    return f"{path} was changed since the run began: {before.size:,} bytes then, {now.st_size:,} now"


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for name in NAMES for path in place.glob(f"{name}.*") if path.is_file())


def _mark(path: Path) -> FileMark:
    found = path.stat()
    return FileMark(found.st_size, found.st_mtime_ns, _digest(path, found.st_size))


def _digest(path: Path, size: int) -> str:
    digest, left = hashlib.blake2b(digest_size=32), size
    with open(path, "rb") as file:
        while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest()
