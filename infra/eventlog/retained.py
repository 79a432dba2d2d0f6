"""Tells what retention dropped from what went missing: the segments of a partition, checked when it is opened.

    <partition>/retained     a word (`marks`): everything before this offset was given up, and a segment begins there

Retention writes it before it drops a segment. So the oldest segment begins there, or before where a crash came between;
and each segment's header names the one before it (format 2 on: a hole behind an older one is found by its readers).
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from infra.errors import CorruptStateError
from infra.eventlog import frames
from infra.eventlog.filesystem import FileSystem, write_new_file
from infra.eventlog.frames import SEGMENT_HEADER_BYTES, FrameError
from infra.eventlog.marks import pack_word, unpack_word

NAME = "retained"
ANEW = "or delete this log and replay its source (derived logs are made again)"  # what to do without a copy


def segment_name(base: int) -> str:
    return f"{base:020d}.log"


def write_retained(fs: FileSystem, path: str, start: int) -> None:
    """Note durably that retention takes everything before offset `start`, where a segment begins."""
    write_new_file(fs, path, NAME, pack_word(start).to_bytes(8, "little"))


def read_retained(fs: FileSystem, path: str) -> int:
    """Where retention left the log: 0 where it never took anything. CorruptStateError where the note is damaged."""
    if NAME not in fs.list(path):
        return 0
    fd = fs.open(f"{path}/{NAME}")
    try:
        raw = fs.pread(fd, 9, 0)
    finally:
        fs.close(fd)
    start = unpack_word(int.from_bytes(raw, "little")) if len(raw) == 8 else None
    if start is None:
        raise CorruptStateError(f"{path}/{NAME}: damaged; restore it from a copy of this folder")
    return start


def check_whole(fs: FileSystem, path: str, bases: Sequence[int]) -> None:
    """Raise CorruptStateError where one of the segments, named by their base offsets, is missing.

    For the holder of the partition's lock; retention may go on meanwhile, so `bases` were listed before.
    """
    start = read_retained(fs, path)
    kept = [base for base in bases if base >= start]
    if bases and start not in bases:
        raise CorruptStateError(
            f"{path}: begins with record {kept[0] if kept else bases[-1]}, and retention took only what lies before "
            f"record {start}: segments were lost; restore {segment_name(start)} and what follows it from a copy, {ANEW}"
        )
    for last, base in pairwise(kept):
        with suppress(FrameError, FileNotFoundError):  # a broken header: recovery judges it, and every reader
            before = _names_before(fs, path, base)
            if before is not None and before != last:
                raise CorruptStateError(
                    f"{path}/{segment_name(before)}: missing, with records {before} to {base - 1}: restore it from a "
                    f"copy, {ANEW}"
                )


def _names_before(fs: FileSystem, path: str, base: int) -> int | None:
    fd = fs.open(f"{path}/{segment_name(base)}")
    try:
        return frames.check_segment_header(fs.pread(fd, SEGMENT_HEADER_BYTES, 0), base)
    finally:
        fs.close(fd)
