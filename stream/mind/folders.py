"""Finds and maps the files of MIND folders and downloads; says what is missing and where MIND is offered."""

import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from infra.inputs import find_input, is_plain, is_source, open_input, source_name

BEHAVIORS = "behaviors.tsv"
NEWS = "news.tsv"
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it; it belongs to no id
WHERE = (
    "MIND is offered at https://msnews.github.io (each archive as it comes, or unpacked into a folder of its own), "
    "and `ouzel generate mind --out DIR` writes a log in the same format"
)


def find_file(folder: Path, name: str) -> Path:
    """The file of a MIND folder or .zip. Raises InputError that says what was looked for."""
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; looked for {BEHAVIORS} and {NEWS} in it. {WHERE}")
    if not is_source(folder):
        raise InputError(f"{folder}: a file; give the folder or .zip that holds {BEHAVIORS} and {NEWS}. {WHERE}")
    path = find_input(folder, name)
    if path is None:
        inside = sorted(
            {p.parent.name for p in folder.glob(f"*/{BEHAVIORS}*")} | {p.name for p in folder.glob("*.zip")}
        )
        hint = f" Below it lie {', '.join(inside)}; give these." if inside else ""
        raise InputError(
            f"{folder}: not a MIND folder, it has no {name}; looked for {folder / name}, also with .gz.{hint} {WHERE}"
        )
    return path


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped: pages come when touched and go when memory is short.

    What is compressed is unpacked, as a stream, into a temporary file that has no name (TMPDIR says where).
    """
    with open_input(path) as stream:
        if is_plain(stream):
            data = _map(stream.fileno(), path)
        else:
            with tempfile.TemporaryFile() as file:
                try:
                    shutil.copyfileobj(stream, file, 1 << 20)
                    file.flush()
                except OSError as error:
                    raise InputError(
                        f"{path}: cannot be unpacked into {tempfile.gettempdir()} ({error.strerror}): make room there, "
                        "or set TMPDIR to a folder that has it"
                    ) from error
                data = _map(file.fileno(), path)
    return data[len(BOM) :] if bytes(data[: len(BOM)]) == BOM else data


def _map(number: int, path: Path) -> NDArray[np.uint8]:
    if os.fstat(number).st_size == 0:
        raise InputError(f"{path}: empty file. {WHERE}")
    # A private mapping: writable to numpy (one array type for all kernels), never written to the file.
    return np.frombuffer(mmap.mmap(number, 0, access=mmap.ACCESS_COPY), dtype=np.uint8)


def folder_names(folders: Sequence[Path]) -> list[str]:
    """The prefix of each folder's impression ids: its name, which has to be unique among them."""
    names = [source_name(folder) for folder in folders]
    for k, name in enumerate(names):
        if name in names[:k]:
            first = folders[names.index(name)]
            raise InputError(
                f"{first} and {folders[k]} are both named {name}, and impression ids restart in each folder; "
                "rename one of them, or leave it out if it is the same folder"
            )
    return names
