"""Finds and maps the files of MIND folders; says what is missing and where MIND is offered."""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError

BEHAVIORS = "behaviors.tsv"
NEWS = "news.tsv"
WHERE = (
    "MIND is offered at https://msnews.github.io (unpack each archive into a folder of its own), "
    "and `ouzel generate mind --out DIR` writes a log in the same format"
)


def find_file(folder: Path, name: str) -> Path:
    """The file of a MIND folder. Raises InputError that says what was looked for."""
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; looked for {BEHAVIORS} and {NEWS} in it. {WHERE}")
    if not folder.is_dir():
        raise InputError(f"{folder}: a file; give the folder that holds {BEHAVIORS} and {NEWS}. {WHERE}")
    path = folder / name
    if not path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{BEHAVIORS}"))
        hint = f" Folders below it hold one: {', '.join(inside)}; give these." if inside else ""
        raise InputError(f"{folder}: not a MIND folder, it has no {name}; looked for {path}.{hint} {WHERE}")
    return path


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped: pages come when touched and go when memory is short."""
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty file. {WHERE}")
    with open(path, "rb") as file:
        # A private mapping: writable to numpy (one array type for all kernels), never written to the file.
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)


def folder_names(folders: Sequence[Path]) -> list[str]:
    """The prefix of each folder's impression ids: its name, which has to be unique among them."""
    names = [folder.resolve().name for folder in folders]
    for k, name in enumerate(names):
        if name in names[:k]:
            first = folders[names.index(name)]
            raise InputError(
                f"{first} and {folders[k]} are both named {name}, and impression ids restart in each folder; "
                "rename one of them, or leave it out if it is the same folder"
            )
    return names
