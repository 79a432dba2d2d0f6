"""MovieLens ratings from the reader's own download: ml-latest-small, ml-25m (ratings.csv), ml-1m (ratings.dat).

A rating becomes (user id, movie id, label), label = rating ≥ 3.5. The licence forbids distribution, so the
project holds no row of it: https://grouplens.org/datasets/movielens/.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from numpy.typing import NDArray

from infra.errors import InputError

LIKED = 3.5  # a rating from here on is a positive label
COLUMNS = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
Ints = NDArray[np.int64]


class Ratings(NamedTuple):
    """n ratings, in the order of the file."""

    users: Ints  # (n,)
    movies: Ints  # (n,)
    labels: NDArray[np.float32]  # (n,) 1 where liked

    def take(self, rows: Ints) -> "Ratings":
        """Those ratings."""
        return Ratings(self.users[rows], self.movies[rows], self.labels[rows])

    def numbered(self) -> "Ratings":
        """The same ratings with the ids of each field numbered from 0, in their order."""
        users, movies = (np.unique(column, return_inverse=True)[1] for column in (self.users, self.movies))
        return Ratings(users, movies, self.labels)


def read_ratings(folder: Path) -> Ratings:
    """All ratings of a MovieLens folder. Raises InputError where there is none, or it has another form."""
    for name in ("ratings.csv", "ratings.dat"):
        path = folder / name
        if path.is_file():
            return _parse(path)
    raise InputError(
        f"{folder} holds neither ratings.csv nor ratings.dat; download a MovieLens set "
        "(https://grouplens.org/datasets/movielens/), unpack it, and name its folder"
    )


def _parse(path: Path) -> Ratings:
    if path.suffix == ".dat":  # 1::1193::5::978300760, no header
        source: object = io.BytesIO(path.read_bytes().replace(b"::", b","))
        read = csv.ReadOptions(column_names=list(COLUMNS))
    else:
        source, read = path, csv.ReadOptions()
    convert = csv.ConvertOptions(column_types=COLUMNS, include_columns=list(COLUMNS)[:3], null_values=[])
    try:
        table = csv.read_csv(source, read_options=read, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"{path} is no MovieLens ratings file ({', '.join(COLUMNS)}): {error}") from error
    users, movies, rating = (table.column(name).to_numpy() for name in list(COLUMNS)[:3])
    labels = (rating >= LIKED).astype(np.float32)
    if len(labels) == 0 or labels.min() == labels.max():
        raise InputError(f"{path}: {len(labels)} ratings, all on one side of {LIKED}; there is nothing to learn")
    return Ratings(users.astype(np.int64), movies.astype(np.int64), labels)


def split(n: int, test_share: float, seed: int) -> tuple[Ints, Ints]:
    """Rows to train on and rows to test on: at random, a function of (n, share, seed)."""
    order = np.random.default_rng([seed, n]).permutation(n)
    cut = round(n * test_share)
    return order[cut:], np.sort(order[:cut])
