"""The positions of a named reader: a small file per topic and reader, mapped by the reader, the writers that wait for
it, and retention.

    0   8  magic "OUZREADR"          then per partition, 64 bytes:
    8   4  partitions                0   8  word: read position; empty where the reader does not read this partition
    12  4  CRC-32 of the above       8   8  word: committed position, synced; where a reader starts again
                                     16  8  word: committed position that retention may act on

A commit goes 1. synced word, 2. sync, 3. retention's word: retention never acts on a commit that a power loss can undo.
A commit backward lowers retention's word first.
"""

import struct
import zlib
from collections.abc import Mapping
from mmap import mmap

from infra.errors import CorruptStateError
from infra.eventlog.filesystem import FileSystem, write_new_file
from infra.eventlog.marks import pack_word, unpack_word

_HEADER_BYTES = 64
_SLOT_WORDS = 8
_HEAD = struct.Struct("<8sI")
_READ, _COMMITTED, _RELEASED = 0, 1, 2


def positions_bytes(partitions: int) -> int:
    return _HEADER_BYTES + 64 * partitions


def create_positions(fs: FileSystem, folder: str, name: str, partitions: int) -> None:
    """Make the file of a reader that has read nothing."""
    head = _HEAD.pack(b"OUZREADR", partitions)
    head += struct.pack("<I", zlib.crc32(head))
    write_new_file(fs, folder, name, head.ljust(positions_bytes(partitions), b"\0"))


def forget_positions(fs: FileSystem, folder: str, name: str) -> None:
    """Remove the file of a reader; whoever has it mapped sees its empty header."""
    path = f"{folder}/{name}"
    fd = fs.open(path, write=True)
    try:
        fs.unlink(path)
        fs.sync_folder(folder)
        fs.pwrite(fd, bytes(_HEAD.size), 0)
    finally:
        fs.close(fd)


class Positions:
    """The open file of one reader."""

    def __init__(self, fs: FileSystem, path: str, partitions: int) -> None:
        self._fs = fs
        self._path = path
        fd = fs.open(path, write=True)
        try:
            if fs.size(fd) != positions_bytes(partitions):
                raise self._damaged(f"it has {fs.size(fd)} bytes")
            self._map: mmap = fs.map(fd, positions_bytes(partitions))
        finally:
            fs.close(fd)
        head = _HEAD.pack(b"OUZREADR", partitions)
        if self._map[: _HEAD.size + 4] != head + struct.pack("<I", zlib.crc32(head)):
            self._map.close()
            raise self._damaged("its header is wrong")
        self._bytes = memoryview(self._map)
        self._words = self._bytes[_HEADER_BYTES:].cast("Q")

    @property
    def forgotten(self) -> bool:
        """Whether the reader was removed since the file was opened."""
        return self._bytes[0] == 0

    def read_position(self, partition: int) -> int | None:
        """The next offset that the reader will read; None where it does not read this partition."""
        return self._get(partition, _READ)

    def set_read(self, partition: int, offset: int) -> None:
        self._words[partition * _SLOT_WORDS + _READ] = pack_word(offset)

    def committed(self, partition: int) -> int | None:
        """Where the reader starts again; None before its first commit."""
        return self._get(partition, _COMMITTED)

    def released(self, partition: int) -> int:
        """Everything before this offset may be dropped as far as this reader goes."""
        return self._get(partition, _RELEASED) or 0

    def commit(self, positions: Mapping[int, int]) -> None:
        words = self._words
        for partition, offset in positions.items():
            if offset < self.released(partition):
                words[partition * _SLOT_WORDS + _RELEASED] = pack_word(offset)
            words[partition * _SLOT_WORDS + _COMMITTED] = pack_word(offset)
        self._fs.sync_map(self._map)
        for partition, offset in positions.items():
            words[partition * _SLOT_WORDS + _RELEASED] = pack_word(offset)

    def _get(self, partition: int, slot: int) -> int | None:
        word = self._words[partition * _SLOT_WORDS + slot]
        offset = unpack_word(word)
        if offset is None and word:
            raise self._damaged(f"position {slot} of partition {partition} is {word:016x}")
        return offset

    def _damaged(self, what: str) -> CorruptStateError:
        return CorruptStateError(
            f"{self._path}: damaged: {what}; delete the file: the reader then begins at the start of the log"
        )

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._map.close()
