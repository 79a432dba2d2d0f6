"""Keeps what recovery cuts off the end of a segment: nobody was told that it is durable, but it may help to understand.

<partition>/torn-<base offset of the segment>-<byte position>     the bytes from there on
"""

import sys

from infra.eventlog.filesystem import FileSystem, write_new_file
from infra.eventlog.marks import Tail

MAX_BYTES = 16 << 20  # of a file; the rest of a longer tail is not kept
MAX_FILES = 8  # per partition; the one of the lowest offset goes first


def keep_aside(fs: FileSystem, folder: str, tail: Tail, data: bytes) -> None:
    """Write what lies behind `tail` to a file of its own, durably. Zeros say nothing and are not kept."""
    if not any(data):
        return
    kept = sorted(name for name in fs.list(folder) if name.startswith("torn-"))
    for name in kept[: len(kept) - MAX_FILES + 1] if len(kept) >= MAX_FILES else []:
        fs.unlink(f"{folder}/{name}")
    name = f"torn-{tail.base:020d}-{tail.end:012d}"
    write_new_file(fs, folder, name, data[:MAX_BYTES])
    print(
        f"{folder}: an unfinished write of {len(data):,} bytes, from record {tail.next_offset} on, was cut off; they "
        f"are kept in {name}",
        file=sys.stderr,
        flush=True,
    )
