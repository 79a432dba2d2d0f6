"""Rows that cannot be used, each with the file, the line and the reason.

Only numbers are kept per dead row; its bytes are read again from the file when somebody asks, so that a file of
nothing but bad rows costs no more memory than one of good rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

RAW_LIMIT = 4_096  # bytes of a dead row that are shown


class DeadReason(StrEnum):
    """Why a row is dead. The order is that of the checks: the first that fails names the row."""

    TOO_LONG = "too_long"  # longer than kernels.MAX_LINE_BYTES
    NOT_UTF8 = "not_utf8"
    COLUMNS = "columns"  # not as many tab-separated columns as MIND has
    EMPTY_ID = "empty_id"
    ID_TOO_LONG = "id_too_long"
    BAD_TIME = "bad_time"
    NO_CANDIDATES = "no_candidates"
    LABEL_MISSING = "label_missing"
    BAD_LABEL = "bad_label"  # neither 0 nor 1
    DUPLICATE = "duplicate_impression"  # an earlier line of the folder has this id
    TIME_GAP = "time_gap"  # further than replay.max_gap_s from all but a few rows
    DUPLICATE_ITEM = "duplicate_item"  # of news.tsv: an earlier line of the file has this id
    REPEATED_ITEM = "repeated_item"  # an item is shown twice in one impression: a label could not say which


REASONS = tuple(DeadReason)


@dataclass(frozen=True, slots=True)
class DeadRow:
    folder: int  # index into the folders that were opened
    file: Path
    line: int  # from 1
    reason: DeadReason
    raw: bytes  # its first RAW_LIMIT bytes


class DeadRows(Sequence[DeadRow]):
    """Dead rows of some files in the order of (folder, line)."""

    def __init__(
        self,
        files: Sequence[Path],
        data: Sequence[NDArray[np.uint8]],
        folder: NDArray[np.int16],
        offset: NDArray[np.int64],
        length: NDArray[np.int64],
        line: NDArray[np.int32],
        reason: NDArray[np.uint8],  # index into REASONS
    ) -> None:
        self._files = tuple(files)
        self._data = tuple(data)
        order = np.lexsort((line, folder))
        self._folder, self._offset, self._length = folder[order], offset[order], length[order]
        self._line, self._reason = line[order], reason[order]

    def __len__(self) -> int:
        return len(self._line)

    @overload
    def __getitem__(self, at: int) -> DeadRow: ...

    @overload
    def __getitem__(self, at: slice) -> list[DeadRow]: ...

    def __getitem__(self, at: int | slice) -> DeadRow | list[DeadRow]:
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        folder, offset = int(self._folder[at]), int(self._offset[at])
        end = offset + min(int(self._length[at]), RAW_LIMIT)
        return DeadRow(
            folder=folder,
            file=self._files[folder],
            line=int(self._line[at]),
            reason=REASONS[self._reason[at]],
            raw=self._data[folder][offset:end].tobytes(),
        )

    def file_of(self, folder: int) -> Path:
        """The file of a folder that was opened, by its number."""
        return self._files[folder]

    def counts(self) -> dict[DeadReason, int]:
        """How many rows died of what; reasons that did not occur are left out."""
        counts = np.bincount(self._reason, minlength=len(REASONS))
        return {reason: int(n) for reason, n in zip(REASONS, counts, strict=True) if n}
