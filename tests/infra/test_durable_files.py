"""What is renamed into place is on the disk: synced after its last byte, and its name, and its folder's name, after it.

The real code runs over real files; what it syncs and renames is noted on the way. Each law is broken on purpose, too.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.paramstore.marks import Mark, Marks
from infra.paramstore.snapshots import SnapshotMeta, SnapshotStore
from infra.process import write_atomically
from stream.archive import write_file

Skips = Callable[[Path], bool]


class Watched:
    """Notes fsyncs, renames and new folders, and what is wrong about their order; `skips` swallows syncs of a path."""

    def __init__(self, patch: pytest.MonkeyPatch, skips: Skips = lambda path: False) -> None:
        self.wrong: list[str] = []
        self._skips = skips
        self._synced: dict[int, tuple[int, int]] = {}  # inode -> size and time of its content when it was synced
        self._names: set[Path] = set()  # new names whose folder is not synced since
        self._real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir")}
        for name in self._real:
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def _fsync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self._real["fsync"](fd)
        if self._skips(path):
            return
        found = os.fstat(fd)
        self._synced[found.st_ino] = (found.st_size, found.st_mtime_ns)
        if stat.S_ISDIR(found.st_mode):
            self._names = {name for name in self._names if name.parent != path}

    def _mkdir(self, path: Any, *arguments: Any, **more: Any) -> None:
        self._real["mkdir"](path, *arguments, **more)
        self._names.add(Path(path))

    def _rename(self, source: Any, target: Any) -> None:
        source, target = Path(source), Path(target)
        for path in [source, *source.rglob("*")]:
            found = path.stat()
            if self._synced.get(found.st_ino) != (found.st_size, found.st_mtime_ns):
                self.wrong.append(f"{path.name} was renamed to {target.name} before it was synced")
        self._real["rename"](source, target)
        self._names = {name for name in self._names if name != source} | {target}

    _replace = _rename

    def after(self) -> list[str]:
        """Everything that a power loss could have undone now."""
        return [*self.wrong, *(f"the name of {path.name} was not synced" for path in sorted(self._names))]


def snapshot(folder: Path) -> None:
    meta = SnapshotMeta(name="state-1", kind="state", generation=0, tick=1)
    SnapshotStore(folder / "run" / "store").write(meta, {"slot/a/values": np.ones((2_000, 4), np.float32)})


def alias(folder: Path) -> None:
    Marks(folder / "run" / "store" / ".aliases").set("live", Mark(generation=0, tick=1, digest="d", offset=2))


def hour(folder: Path) -> None:
    write_file(folder / "archive" / "day=2019-11-09" / "hour=07" / "part-0.parquet", b"columns" * 2_000)


def books(folder: Path) -> None:
    write_atomically(folder / "progress.arrow", b"books" * 2_000)


WRITERS = {"snapshot": snapshot, "alias": alias, "archive": hour, "small file": books}


@pytest.mark.parametrize("name", WRITERS)
def test_a_power_loss_after_a_write_undoes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    WRITERS[name](tmp_path)
    assert watched.after() == []


MISSING: dict[str, tuple[str, Skips]] = {
    "a snapshot's tensors": ("snapshot", lambda path: path.name == "tensors.arrow"),
    "a snapshot's manifest": ("snapshot", lambda path: path.name == "manifest.json"),
    "a snapshot's own folder": ("snapshot", lambda path: path.name.startswith(".state-1")),
    "the store's folder": ("snapshot", lambda path: path.name == "store"),
    "the run's folder, where the store is new": ("snapshot", lambda path: path.name == "run"),
    "an archive file": ("archive", lambda path: "part-0" in path.name),
    "its hour's folder": ("archive", lambda path: path.name == "hour=07"),
    "its day's folder": ("archive", lambda path: path.name.startswith("day=")),
    "an alias": ("alias", lambda path: "live" in path.name),
    "the aliases' folder": ("alias", lambda path: path.name == ".aliases"),
    "a small file": ("small file", lambda path: "progress" in path.name),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_missing_sync_is_caught(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, skips = MISSING[what]
    watched = Watched(monkeypatch, skips)
    WRITERS[name](tmp_path)
    assert watched.after() != []
