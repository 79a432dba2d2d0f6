"""Clears away what killed processes left half written: files named `.<name>.<process id>`, perhaps with `.tmp` behind.

Only regular files of that form, in folders that the caller alone writes, and whose process is gone. One that bears the
id of this process is an earlier life's (a container gives out the same ids again), or a neighbour's in another
container: it goes once it has not been touched for a while.
"""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

UNTOUCHED_S = 600.0
_OURS = re.compile(r"\..+\.(\d+)(\.tmp)?")


def sweep(folders: Iterable[Path], start: str = ".") -> list[Path]:
    """Remove such files, whose names start so, from these folders, where they exist; what was removed."""
    swept = []
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            owner = _OURS.fullmatch(path.name)
            if owner is None or not path.name.startswith(start) or path.is_symlink() or not path.is_file():
                continue
            with suppress(OSError):  # read-only, or another sweep was quicker: it is only in the way
                if is_left_behind(path, int(owner[1])):
                    path.unlink()
                    swept.append(path)
    return swept


def is_left_behind(path: Path, pid: int) -> bool:
    """Whether the process that made this is gone. Raises OSError."""
    if pid == os.getpid():
        return time.time() - path.stat().st_mtime > UNTOUCHED_S
    return is_gone(pid)


def is_gone(pid: int) -> bool:
    """Whether no process of this id runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False
