"""A broker's folder: one launcher at a time, the same number of nodes for its life, nobody left over from before.

Kafka itself looks for a second process too late: it has then cut the metadata that the first one is writing.
"""

import fcntl
import os
import time
from pathlib import Path

import psutil

from infra.errors import ConfigError

GONE_TIMEOUT_S = 10.0  # a watch looks every half second whether its broker's owner lives


class Held:
    """The right to run a broker over a folder, until `release`, or until this process has gone."""

    def __init__(self, folder: Path, nodes: int) -> None:
        """Raises ConfigError where another process has it, or the folder holds another number of nodes."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check_nodes(folder, nodes)
            wait_for_the_last(folder)
        except BlockingIOError:
            self.release()
            raise ConfigError(f"{folder}: a broker runs over this folder already; stop it, or choose another") from None
        except ConfigError:
            self.release()
            raise

    def release(self) -> None:
        os.close(self._lock)


def check_nodes(folder: Path, nodes: int) -> None:
    """Raises ConfigError where the folder was made for another number of nodes."""
    found = len(list(folder.glob("node-*/data/meta.properties")))
    if found not in (0, nodes):
        raise ConfigError(
            f"{folder} holds a broker of {found} nodes, and {nodes} were asked for; choose another folder"
        )


def wait_for_the_last(folder: Path) -> None:
    """Return once what a killed launcher left running has gone: its watch ends its nodes, and then itself.

    Raises ConfigError where something stays.
    """
    deadline = time.monotonic() + GONE_TIMEOUT_S
    for note in [folder / "watch", *sorted(folder.glob("node-*/pid"))]:
        while runs(note):
            if time.monotonic() > deadline:
                pid = note.read_text(encoding="ascii").strip()
                raise ConfigError(f"{folder}: process {pid} of an earlier broker still runs; end it, then start again")
            time.sleep(0.05)
        note.unlink(missing_ok=True)


def runs(note: Path) -> bool:
    """Whether the process whose id a file holds runs, and is a broker's: numbers are used again."""
    folder = note.parent.name  # node-1, or the broker's own
    try:
        process = psutil.Process(int(note.read_text(encoding="ascii")))
        ours = any(folder in part for part in process.cmdline())
    except (OSError, ValueError, psutil.Error):
        return False
    return ours and process.status() != psutil.STATUS_ZOMBIE
