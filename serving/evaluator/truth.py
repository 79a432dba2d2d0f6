"""The oracle of a generated log: the true click probability of every shown item, read from `truth.parquet`.

Rows are matched by impression key, hash64 of "folder/impression id" as the MIND reader makes it, and by position.
`p_ref`, the probability at the reference position, ranks; `p`, at the shown position, is what log-loss and
calibration read. An impression without a truth (posted live, or from a real log) reads as NaN and is not scored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from infra.errors import InputError
from infra.hashing import hash64

TRUTH_FILE = "truth.parquet"
P_FLOOR = 1e-7  # probabilities become logits; the generator stays far from 0 and 1


class Truth:
    """True click logits by impression and position."""

    def __init__(
        self, keys: NDArray[np.int64], starts: NDArray[np.int64], p: NDArray[np.float32], p_ref: NDArray[np.float32]
    ) -> None:
        """keys (n,) any order; impression i owns rows starts[i]:starts[i + 1] of p and p_ref, in shown order."""
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._start = starts[:-1][order]
        self._count = np.diff(starts)[order]
        self._logit = _logit(p)
        self._logit_ref = _logit(p_ref)

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
    counts = np.concatenate([count for _, count, _, _ in parts])
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return Truth(
        np.concatenate([keys for keys, _, _, _ in parts]),
        starts,
        np.concatenate([p for _, _, p, _ in parts]),
        np.concatenate([p_ref for _, _, _, p_ref in parts]),
    )


def _read(
    path: Path,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Impression keys, items an impression, p, p_ref of one file."""
    columns = ["impression", "position", "p", "p_ref"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a truth file of the generator ({error}); generate the folder again") from error
    position = table["position"].to_numpy().astype(np.int64)
    first = np.flatnonzero(position == 0)
    counts = np.diff(np.append(first, len(position)))
    if len(position) and (len(first) == 0 or first[0] != 0 or not _in_shown_order(position, first, counts)):
        raise InputError(f"{path}: rows are not grouped by impression in shown order; generate the folder again")
    folder = path.parent.resolve().name
    ids = table["impression"].take(first).to_pylist()
    keys = np.array([hash64(f"{folder}/{i}") for i in ids], np.int64)
    return keys, counts, table["p"].to_numpy().astype(np.float32), table["p_ref"].to_numpy().astype(np.float32)


def _in_shown_order(position: NDArray[np.int64], first: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
    return bool(np.array_equal(position, np.arange(len(position)) - np.repeat(first, counts)))
