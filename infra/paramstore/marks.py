"""Aliases and pins: small names for versions, each a file replaced in one step.

`live` is what is served, `last-good` what a rollback returns to, `generation` the newest generation's record. A pin
holds a version, its snapshot and what follows it against pruning, until its holder lets go.
"""

import re
from pathlib import Path

import msgspec

from infra import checked
from infra.paramstore.files import replace_durably
from infra.paramstore.version import VersionId

MARK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
MAX_MARKS = 256


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Which version a name stands for; `offset` is that of its record, `digest` proves it is the same one."""

    generation: int
    tick: int
    digest: str
    offset: int
    through: int = -1  # alias `generation`: the tick in whose end it was opened (a rollback's own tick lies before)

    @property
    def id(self) -> VersionId:
        return VersionId(self.generation, self.tick)


class Marks:
    """A folder of marks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, name: str, mark: Mark) -> None:
        """Raises ValueError for a bad name or too many names, RetryableError when the disk refuses."""
        path = self._path(name)
        if not path.exists() and len(self.names()) >= MAX_MARKS:
            raise ValueError(f"{self.folder} holds {MAX_MARKS} marks; remove some first")
        replace_durably(path, checked.to_json(mark) + b"\n")

    def get(self, name: str) -> Mark | None:
        path = self._path(name)
        try:
            return checked.from_json(path, Mark, "delete the file: readers start from a snapshot, a pin is set again")
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        if not self.folder.exists():
            return []
        return sorted(p.name for p in self.folder.iterdir() if MARK_NAME.fullmatch(p.name))

    def all(self) -> dict[str, Mark]:
        return {name: mark for name in self.names() if (mark := self.get(name)) is not None}

    def _path(self, name: str) -> Path:
        if not MARK_NAME.fullmatch(name):
            raise ValueError(f"mark {name!r} does not match {MARK_NAME.pattern}")
        return self.folder / name
