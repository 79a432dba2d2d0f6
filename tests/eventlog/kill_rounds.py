"""Kills writers of one log at random instants, round after round, and judges what is left; run as a program.

`kill_rounds.py FOLDER SEED ROUNDS [no-lock]` prints one JSON object. A process of its own, because it forks: each round
forks writers that append, flush and note what was acknowledged, kills them together, and starts the next ones on what
they left. A reader polls all the while and outlives every writer. `no-lock` plants a bug: writers do not exclude each
other.
"""

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

from infra.config import LogConfig
from infra.eventlog.filesystem import FileSystem
from infra.eventlog.log import EmbeddedLog

CONFIG = LogConfig(segment_bytes=4_000)
WRITERS = 3
NOTE = struct.Struct("<qq")  # acknowledged records, 1 while a flush runs


class NoLock(FileSystem):
    """Wrong on purpose."""

    def try_lock(self, fd):
        return True


def open_log(folder, config):
    return EmbeddedLog(str(folder), config, NoLock() if "no-lock" in sys.argv else FileSystem())


def write(folder, name, seed, note):
    """Append numbered records until killed."""
    rng = random.Random(seed)
    writer = open_log(folder, CONFIG).writer("t")
    number = 0
    while True:
        for _ in range(rng.randrange(1, 6)):
            value = b"%s:%d:" % (name, number) + bytes(rng.choice([0, 100, 900]))
            writer.append(0, value, timestamp_ms=number)
            number += 1
        NOTE.pack_into(note, 0, NOTE.unpack_from(note)[0], 1)
        writer.flush()
        NOTE.pack_into(note, 0, number, 0)


def fork_writer(folder, name, seed):
    """(process id, its note): the note is shared memory and outlives the process."""
    note = mmap.mmap(-1, NOTE.size)
    pid = os.fork()
    if pid == 0:
        try:
            write(folder, name, seed, note)
        finally:
            os._exit(1)
    return pid, note


def play(folder, seed, rounds):
    """All rounds; (acknowledged by writer name, kills within a flush)."""
    rng = random.Random(seed)
    acknowledged, hits, children = {}, 0, []
    for number in range(rounds):
        for index in range(WRITERS):
            name = b"%d-%d" % (number, index)
            children.append((name, *fork_writer(folder, name, rng.random())))
        time.sleep(0.004 + rng.random() * 0.02)
        for _, pid, _ in children:
            os.kill(pid, signal.SIGKILL)
        for name, pid, note in children:
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"seed {seed}: writer {name!r} ended by itself"
            acknowledged[name], in_flush = NOTE.unpack_from(note)
            hits += in_flush
        children.clear()
    return acknowledged, hits


def follow(folder, seen):
    """A reader in a process of its own, alive through all kills; notes how many records it got, in `seen`."""
    reader = open_log(folder, CONFIG).reader("t", "r")
    next_offset = 0
    while True:
        for _, record in reader.poll(64, timeout_s=0.005):
            assert record.offset == next_offset
            next_offset += 1
        NOTE.pack_into(seen, 0, next_offset, 0)


def judge(folder, acknowledged):
    """Problems found: every acknowledged record once, each writer's in order, none twice, none torn."""
    log = open_log(folder, CONFIG)
    offset, found = 0, {}
    while records := log.read("t", 0, offset, 1_000):
        for record in records:
            assert record.offset == offset
            offset += 1
            name, number, _ = bytes(record.value).split(b":", 2)
            found.setdefault(name, []).append(int(number))
    problems = []
    for name, count in acknowledged.items():
        numbers = found.get(name, [])
        if numbers != list(range(len(numbers))) or len(numbers) < count:
            problems.append(f"{name!r}: {count} acknowledged, found {len(numbers)}: {numbers[:20]}")
    return offset, problems


def main(folder, seed, rounds):
    log = open_log(folder, CONFIG)
    log.create_topic("t", 1)
    log.close()
    seen = mmap.mmap(-1, NOTE.size)
    reader = os.fork()
    if reader == 0:
        try:
            follow(folder, seen)
        finally:
            os._exit(1)
    acknowledged, hits = play(folder, seed, rounds)
    total, problems = judge(folder, acknowledged)
    deadline = time.monotonic() + 5
    while NOTE.unpack_from(seen)[0] < total and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(reader, signal.SIGKILL)
    _, status = os.waitpid(reader, 0)
    if not os.WIFSIGNALED(status) or NOTE.unpack_from(seen)[0] != total:
        problems.append(f"the reader saw {NOTE.unpack_from(seen)[0]} of {total}, status {status}")
    print(json.dumps({"records": total, "kills": rounds * WRITERS, "in_flush": hits, "problems": problems}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
