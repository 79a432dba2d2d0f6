"""The only place where the log meets the operating system.

Everything the log does to a disk goes through one `FileSystem`, so that tests can fail any call (disk full, EIO) and
can lose power at any call: drop, tear or reorder whatever was written and not yet synced. Paths are strings: this is
the hot path.
"""

import fcntl
import mmap
import os
from collections.abc import Callable

# macOS has no fdatasync, and its fsync stops at the drive's cache.
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
_FDATASYNC: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def _sync_data(fd: int) -> None:
    if _FULL_SYNC is None:
        _FDATASYNC(fd)
    else:
        fcntl.fcntl(fd, _FULL_SYNC)


class FileSystem:
    """POSIX files, one method a system call; every method may raise OSError."""

    def open(self, path: str, *, write: bool = False, create: bool = False) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0) | os.O_CLOEXEC
        return os.open(path, flags, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pread(self, fd: int, size: int, position: int) -> bytes:
        return os.pread(fd, size, position)

    def pwrite(self, fd: int, data: bytes | memoryview, position: int) -> int:
        return os.pwrite(fd, data, position)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """The file's bytes and size are durable afterwards; its name is so after `sync_folder`."""
        _sync_data(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def list(self, path: str) -> list[str]:
        return os.listdir(path)

    def make_folder(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_folder(self, path: str) -> None:
        """The names in a folder are durable afterwards."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def map(self, fd: int, size: int) -> mmap.mmap:
        """Shared, writable view of the first `size` bytes."""
        return mmap.mmap(fd, size)

    def sync_map(self, mapped: mmap.mmap) -> None:
        mapped.flush()

    def try_lock(self, fd: int) -> bool:
        """Take the exclusive lock of an open file, if nobody else holds it; it ends with the process."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def write_all(fs: FileSystem, fd: int, data: bytes, position: int) -> None:
    """Write every byte: the system may take fewer at a time."""
    done = fs.pwrite(fd, data, position)
    view = memoryview(data)
    while done < len(data):
        done += fs.pwrite(fd, view[done:], position + done)


def write_new_file(fs: FileSystem, folder: str, name: str, data: bytes) -> None:
    """A durable new file that appears whole or not at all."""
    temporary = f"{folder}/.{name}.tmp"
    fd = fs.open(temporary, write=True, create=True)
    try:
        fs.truncate(fd, 0)
        write_all(fs, fd, data, 0)
        fs.sync(fd)
    finally:
        fs.close(fd)
    fs.rename(temporary, f"{folder}/{name}")
    fs.sync_folder(folder)
