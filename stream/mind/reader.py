"""Impressions of MIND folders in time order, from an index of rows; never the rows.

Opening scans every file once and keeps about 40 bytes a row; `rows(lo, hi)` parses a window of the time order from the
mapped bytes. Impression ids restart in each folder: the key of an impression is hash64 of "<folder name>/<id>". Times
are read as UTC. A line that cannot be used never stops the run: it is in `dead` with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.errors import InputError
from stream.columns import Lists, offsets_of
from stream.mind import hints, kernels
from stream.mind.dead import DeadRows
from stream.mind.folders import BEHAVIORS, WHERE, find_file, folder_names, map_file

# Rows cut off from all others by more than the gap are a wrong clock, not a second log, while they are one row or
# fewer than this share of the largest stretch. A second log that far away is refused: every minute between the two
# would become records.
STRAY_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class ImpressionRows:
    """A window of the time order, parsed; n rows."""

    impression: NDArray[np.int64]
    user: NDArray[np.int64]
    partition: NDArray[np.int64]  # of the user id, as Kafka's default partitioner
    time_ms: NDArray[np.int64]
    history: Lists  # keys, oldest first
    items: Lists  # keys, in shown order
    labels: NDArray[np.uint8]  # flat, beside items.values: 1 is clicked

    def __len__(self) -> int:
        return len(self.impression)


class _Lines(NamedTuple):
    """What `kernels.scan` says about each line of a file."""

    reason: NDArray[np.uint8]
    time_ms: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    key: NDArray[np.int64]
    history: NDArray[np.int32]
    items: NDArray[np.int32]


class MindIndex:
    """Usable rows of some folders, sorted by (time, folder, line). Made by `open_mind`."""

    def __init__(
        self, files: Sequence[Path], names: Sequence[str], data: Sequence[NDArray[np.uint8]], max_gap_ms: int
    ) -> None:
        lines = [_scan(path, bytes_) for path, bytes_ in zip(files, data, strict=True)]
        self._data = tuple(data)
        self._prefixes = [np.frombuffer(f"{name}/".encode(), dtype=np.uint8).copy() for name in names]
        counts = [len(part.reason) for part in lines]
        folder = np.repeat(np.arange(len(files), dtype=np.int16), counts)
        number = np.concatenate([np.arange(1, n + 1, dtype=np.int32) for n in counts])
        reason, time_ms, offset, length, _, history, items = (
            np.concatenate(column) for column in zip(*lines, strict=True)
        )
        order = np.flatnonzero(reason == kernels.OK)
        order = order[np.argsort(time_ms[order], kind="stable")]
        stray = find_strays(time_ms[order], max_gap_ms)
        reason[order[stray]] = kernels.TIME_GAP
        order = order[~stray]
        self.folder, self.line, self.time_ms = folder[order], number[order], time_ms[order]
        self.offset, self.length = offset[order], length[order].astype(np.int32)
        self.history_count, self.item_count = history[order], items[order]
        bad = np.flatnonzero(reason != kernels.OK)
        self.dead = DeadRows(files, data, folder[bad], offset[bad], length[bad], number[bad], reason[bad] - 1)
        self.lines = len(reason)

    @property
    def n(self) -> int:
        """Usable rows."""
        return len(self.time_ms)

    def __len__(self) -> int:
        return self.n

    @property
    def shown_items(self) -> int:
        return int(self.item_count.sum(dtype=np.int64))

    def rows(self, lo: int, hi: int, *, partitions: int = 1) -> ImpressionRows:
        """Parse rows lo:hi of the time order; hi is cut to n."""
        hi = min(hi, self.n)
        n = max(hi - lo, 0)
        history = offsets_of(self.history_count[lo:hi].astype(np.int64))
        items = offsets_of(self.item_count[lo:hi].astype(np.int64))
        impression, user, partition = (np.empty(n, np.int64) for _ in range(3))
        history_keys, item_keys = np.empty(history[-1], np.int64), np.empty(items[-1], np.int64)
        labels = np.empty(items[-1], np.uint8)
        folder = self.folder[lo:hi]
        for k in np.unique(folder).tolist():
            kernels.parse(
                self._data[k], self._prefixes[k], np.flatnonzero(folder == k), self.offset[lo:hi],
                self.length[lo:hi], partitions, impression, user, partition, history, history_keys, items, item_keys,
                labels,
            )  # fmt: skip
        return ImpressionRows(
            impression=impression,
            user=user,
            partition=partition,
            time_ms=self.time_ms[lo:hi].copy(),
            history=Lists(history, history_keys),
            items=Lists(items, item_keys),
            labels=labels,
        )


def open_mind(folders: Sequence[Path], *, max_gap_s: float = 7 * 86_400.0) -> MindIndex:
    """Index the impressions of MIND folders, in the order given.

    A row further than `max_gap_s` from the rows around it is dead (see `find_strays`). Raises InputError where a folder
    is not MIND, a file is empty, has no labels (MIND's test split), or no row of it can be used, and where a longer
    stretch without rows lies between two logs.
    """
    if not folders:
        raise InputError(f"no MIND folder given. {WHERE}")
    names = folder_names(folders)
    files = [find_file(folder, BEHAVIORS) for folder in folders]
    index = MindIndex(files, names, [map_file(path) for path in files], round(max_gap_s * 1000))
    if index.n == 0:
        first = index.dead[0]
        raise InputError(
            f"{first.file}: none of {index.lines} lines is an impression; line {first.line}: {first.reason}. "
            f"{hints.of_impressions(first.raw)}. {WHERE}".replace(". . ", ". ")
        )
    _refuse_gap(index, max_gap_s)
    return index


def _refuse_gap(index: MindIndex, max_gap_s: float) -> None:
    """Raises InputError where the replay would have to fill more than `max_gap_s` without rows."""
    gaps = np.diff(index.time_ms)
    if not len(gaps) or gaps.max() <= max_gap_s * 1000:
        return
    at = int(gaps.argmax()) + 1
    files = sorted({str(index.dead.file_of(int(folder))) for folder in index.folder[[at - 1, at]]})
    raise InputError(
        f"{', '.join(files)}: {at:,} rows until {_date(index.time_ms[at - 1])} and {index.n - at:,} from "
        f"{_date(index.time_ms[at])} on are {gaps.max() / 86_400_000:,.0f} days apart, more than replay.max_gap_s "
        f"({max_gap_s:,.0f} s): replay them apart, leave one of them out, or set replay.max_gap_s to "
        f"{gaps.max() / 1000:.0f}, which fills every tick between them"
    )


def _date(ms: int) -> str:
    return str(np.datetime64(int(ms), "ms").astype("datetime64[s]")).replace("T", " ")


def find_strays(time_ms: NDArray[np.int64], max_gap_ms: int) -> NDArray[np.bool_]:
    """Which rows (n,) of sorted times are cut off: True is dead.

    Gaps over `max_gap_ms` cut the times into stretches. The largest (the earliest of equals) stays; another stays
    if it has at least two rows and STRAY_SHARE of the largest.
    """
    cut = np.flatnonzero(np.diff(time_ms) > max_gap_ms) + 1
    edges = np.concatenate([[0], cut, [len(time_ms)]])
    size = np.diff(edges)
    keep = (size >= 2) & (size >= STRAY_SHARE * size.max())
    keep[np.argmax(size)] = True
    return np.repeat(~keep, size)


def _scan(path: Path, data: NDArray[np.uint8]) -> _Lines:
    n = kernels.count_lines(data)
    lines = _Lines(
        np.empty(n, np.uint8), np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64),
        np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.int32),
    )  # fmt: skip
    kernels.scan(data, *lines)
    unlabelled = lines.reason == kernels.UNLABELLED
    if unlabelled.any() and not (lines.reason == kernels.OK).any() and unlabelled.mean() > 0.5:
        raise InputError(
            f"{path}: its {n} rows carry no labels (N123 instead of N123-0 or N123-1), as in MIND's test split; "
            f"use the train or dev split. {WHERE}"
        )
    lines.reason[unlabelled] = kernels.LABEL_MISSING
    good = np.flatnonzero(lines.reason == kernels.OK)
    first = np.unique(lines.key[good], return_index=True)[1]
    again = np.ones(len(good), dtype=np.bool_)
    again[first] = False
    lines.reason[good[again]] = kernels.DUPLICATE
    return lines
