"""Small durable files: written beside, fsynced, renamed, and the folder fsynced. Whole or absent, never torn."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from infra.errors import RetryableError


def fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def durable_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power loss leaves their names."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync_folder(made.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and fsync it; its folder is the caller's."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a small file in one step: readers see the old or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with retryable(f"{path} was not written"):
        durable_folder(path.parent)
        try:
            write_durably(fresh, data)
            os.replace(fresh, path)
            fsync_folder(path.parent)
        finally:
            fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends, and vanishes when it raises."""
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    with retryable(f"{final} was not written; what was there stays"):
        durable_folder(final.parent)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            fsync_folder(draft)
            os.rename(draft, final)
            fsync_folder(final.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def retryable(what: str) -> Iterator[None]:
    """The disk's errors as RetryableError: nothing was lost, free space or mend the disk, then try again."""
    try:
        yield
    except OSError as error:
        raise RetryableError(f"{what}: {error}; free space or mend the disk, then try again", after_s=5.0) from error
