"""The oracle of a generated log: the true click probability of every shown item, read from `truth.parquet`.

Rows are matched by impression key, hash64 of "folder/impression id" as the MIND reader makes it, and by position.
`p_ref`, the probability at the reference position, ranks; `p`, at the shown position, is what log-loss and
calibration read. An impression without a truth (posted live, or from a real log) reads as NaN and is not scored.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from infra.errors import InputError
from infra.hashing import hash64

TRUTH_FILE = "truth.parquet"
BATCH_ROWS = 1 << 18
P_FLOOR = 1e-7  # probabilities become logits; the generator stays far from 0 and 1


class Truth:
    """True click logits by impression and position."""

    def __init__(
        self,
        keys: NDArray[np.int64],
        starts: NDArray[np.int64],
        logit: NDArray[np.float32],
        logit_ref: NDArray[np.float32],
    ) -> None:
        """keys (n,) any order; impression i owns rows starts[i]:starts[i + 1] of both logits, in shown order."""
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._start = starts[:-1][order]
        self._count = np.diff(starts)[order]
        self._logit, self._logit_ref = logit, logit_ref

    def __len__(self) -> int:
        return len(self._keys)

    def logits(
        self,
        impressions: NDArray[np.int64],
        offsets: NDArray[np.int64],
        f: NDArray[np.float32],
        logit: NDArray[np.float32],
    ) -> None:
        """Fill f (at the reference position) and logit (at the shown one), (rows,) each; NaN where unknown."""
        at = np.minimum(np.searchsorted(self._keys, impressions), len(self._keys) - 1)
        known = (self._keys[at] == impressions) & (self._count[at] == np.diff(offsets))
        start = np.where(known, self._start[at], -1)
        _fill(start, offsets, self._logit_ref, f)
        _fill(start, offsets, self._logit, logit)


@njit(cache=True, nogil=True)
def _fill(
    start: NDArray[np.int64], offsets: NDArray[np.int64], source: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    for i in range(len(start)):
        for row in range(offsets[i], offsets[i + 1]):
            out[row] = source[start[i] + row - offsets[i]] if start[i] >= 0 else np.nan


def _logit(p: NDArray[np.float32]) -> NDArray[np.float32]:
    clipped = np.clip(p.astype(np.float64), P_FLOOR, 1.0 - P_FLOOR)
    return (np.log(clipped) - np.log1p(-clipped)).astype(np.float32)


def load_truth(folders: Sequence[Path]) -> Truth | None:
    """The truth of these MIND folders; None where none of them was generated.

    Raises InputError where a truth file is not what the generator writes.
    """
    files = [folder / TRUTH_FILE for folder in folders if (folder / TRUTH_FILE).is_file()]
    if not files:
        return None
    parts = [_read(path) for path in files]
    counts = np.concatenate([part.counts for part in parts])
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return Truth(
        np.concatenate([part.keys for part in parts]),
        starts,
        parts[0].logit if len(parts) == 1 else np.concatenate([part.logit for part in parts]),
        parts[0].logit_ref if len(parts) == 1 else np.concatenate([part.logit_ref for part in parts]),
    )


class _Part(NamedTuple):
    """One file: impression keys, items an impression, and the logits of all its rows."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    logit: NDArray[np.float32]
    logit_ref: NDArray[np.float32]


def _read(path: Path) -> _Part:
    columns = ["impression", "position", "p", "p_ref"]
    try:
        with pq.ParquetFile(path) as file:
            return _read_batches(path, file.metadata.num_rows, file.iter_batches(BATCH_ROWS, columns=columns))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a truth file of the generator ({error}); generate the folder again") from error


def _read_batches(path: Path, rows: int, batches: Iterable[pa.RecordBatch]) -> _Part:
    """Batch by batch: a week of a large log has a hundred million rows, and only the logits of them are kept."""
    logit, logit_ref = np.empty(rows, np.float32), np.empty(rows, np.float32)
    folder = path.parent.resolve().name
    firsts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    keys: list[int] = []
    at, before = 0, -1
    for batch in batches:
        position = batch.column("position").to_numpy().astype(np.int64)
        first = np.flatnonzero(position == 0)
        if not _in_shown_order(position, before):
            raise InputError(f"{path}: rows are not grouped by impression in shown order; generate the folder again")
        keys += [hash64(f"{folder}/{i}") for i in batch.column("impression").take(pa.array(first)).to_pylist()]
        firsts.append(first + at)
        end = at + len(position)
        logit[at:end] = _logit(batch.column("p").to_numpy())
        logit_ref[at:end] = _logit(batch.column("p_ref").to_numpy())
        at, before = end, int(position[-1]) if len(position) else before
    counts = np.diff(np.append(np.concatenate(firsts), rows))
    return _Part(np.array(keys, np.int64), counts, logit, logit_ref)


def _in_shown_order(position: NDArray[np.int64], before: int) -> bool:
    """Each row is the first of an impression, or follows the row before it; `before` is that before the first row."""
    follows = np.diff(position, prepend=before) == 1
    return bool((follows | (position == 0)).all())
