"""SIGKILL at any instant of publishing and snapshotting: what is visible is whole, and the next life continues it.

The publisher never stops working, so every kill hits unfinished work. The state after each kill must be the fold of
the deltas 1 … head, which is a function of the head alone.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from infra.config import LogConfig
from infra.eventlog import create_topics, open_log
from infra.paramstore.chain import Chain, Verdict
from infra.paramstore.store import ParamStore

KILLS, SEED, MAX_LIFE_S = 25, 11, 0.15

# Imports once, then forks a publisher for every line it reads; `skip` plants the bug that must be caught.
CHILD = """
import os, sys
from pathlib import Path
import numpy as np
from infra.config import LogConfig
from infra.eventlog import open_log
from infra.paramstore.store import ParamStore

def publish(run, skip):
    log = open_log(run / "log", LogConfig())
    store = ParamStore(run, log)
    publisher = store.publisher(part_bytes=2_000)
    state = store.state()
    tensors = {} if state is None else state.tensors
    tick = 0 if state is None else state.id.tick + (1 if skip else 0)
    where = {"positions": {}, "items_offset": 0, "control_offset": 0, "timestamp_ms": 0}
    os.write(1, b"started\\n")
    while True:
        tick += 1
        keys = np.unique(np.array([tick % 7, tick % 5, 100 + tick % 50], dtype=np.int64))
        delta = {"slot/a/keys": keys, "slot/a/values": np.full((len(keys), 200), tick, np.float32)}
        publisher.publish(-1, tick, delta, **where)
        if tick % 3 == 0:
            publisher.flush()
        if tick % 9 == 0:
            store.write_state(publisher, store.state().tensors)
            store.prune(keep=2)

run, skip = Path(sys.argv[1]), sys.argv[2] == "skip"
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        publish(run, skip)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


def expected(head: int) -> dict[int, float]:
    rows: dict[int, float] = {}
    for tick in range(1, head + 1):
        rows |= dict.fromkeys((tick % 7, tick % 5, 100 + tick % 50), float(tick))
    return dict(sorted(rows.items()))


def check(run: Path) -> tuple[int, str | None]:
    """(head tick, what is wrong): versions in the chain, snapshots whole, the state a function of the head."""
    log = open_log(run / "log", LogConfig())
    try:
        store, chain = ParamStore(run, log), Chain()
        for version in store.reader():
            if chain.judge(version.meta, version.value) is not Verdict.APPLY:
                return 0, f"{version.meta.id} does not follow"
            chain.advance(version.meta)
        for name in store.snapshots.names():
            store.snapshots.read(name)
        state = store.state()
        if state is None:
            return 0, None
        rows = dict(
            zip(state.tensors["slot/a/keys"].tolist(), state.tensors["slot/a/values"][:, 0].tolist(), strict=True)
        )
        wrong = None if rows == expected(state.id.tick) else f"state at {state.id} is not its deltas' fold"
        return state.id.tick, wrong
    finally:
        log.close()


def wait_for_a_flush(run: Path) -> None:
    """Return once the publisher at work has made something durable."""
    log = open_log(run / "log", LogConfig())
    try:
        before, deadline = log.end_offset("versions", 0), time.monotonic() + 10
        while log.end_offset("versions", 0) == before and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        log.close()


def kill_again_and_again(run: Path, kills: int, *, bug: str = "none") -> tuple[list[int], str | None]:
    log = open_log(run / "log", LogConfig())
    create_topics(log, 1)
    log.close()
    rng, heads = random.Random(SEED), []
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run), bug], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        for life in range(kills):
            child.stdin.write("go\n")
            child.stdin.flush()
            lines = {child.stdout.readline().strip(), child.stdout.readline().strip()}
            pid = int((lines - {"started"}).pop())
            if life % 2:  # every other life gets somewhere, however slow the disk is
                wait_for_a_flush(run)
            time.sleep(rng.random() * MAX_LIFE_S)
            os.kill(pid, signal.SIGKILL)
            assert child.stdout.readline().strip() == "gone"
            head, wrong = check(run)
            heads.append(head)
            if wrong is not None:
                return heads, wrong
        return heads, None
    finally:
        child.stdin.close()
        child.wait(timeout=10)
        child.stdout.close()


def test_a_killed_publisher_leaves_whole_versions_and_is_continued(tmp_path: Path) -> None:
    heads, wrong = kill_again_and_again(tmp_path, KILLS)
    assert wrong is None, f"seed {SEED}: {wrong}"
    assert heads == sorted(heads), "what was durable stays"
    drafts = [p for p in (tmp_path / "store").iterdir() if p.is_dir() and p.name.startswith(".")]
    assert len(drafts) <= 2, "the next life sweeps the drafts of the last"
    assert len(set(heads)) > 5, f"work went on between the kills: {heads}"


def test_a_publisher_that_forgets_a_tick_after_a_restart_is_caught(tmp_path: Path) -> None:
    _, wrong = kill_again_and_again(tmp_path, 10, bug="skip")
    assert wrong is not None


def test_the_oracle_tells_states_apart() -> None:
    assert expected(30) != expected(31)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(expected(30), expected(29))
