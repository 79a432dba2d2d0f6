"""Writes a generated log as a MIND folder: behaviors.tsv, news.tsv, truth.parquet.

Same (scale, seed, parameters), same bytes: draws are either numpy's PCG64 in a fixed order (the world) or hashes of
(seed, row) (the rows). Rows stream in chunks; memory holds the world and one chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.errors import ConfigError
from stream.generate.parameters import SCALES, Parameters
from stream.generate.render import render_rows
from stream.generate.rows import Chunk, RowSource
from stream.generate.text import news_lines
from stream.generate.world import World, build_world

MONTH, FIRST_DAY = 11, 9  # the window starts on 9 November 2019, as MIND's does
START_MS = 1_573_257_600_000  # 2019-11-09 00:00 UTC

TRUTH_SCHEMA = pa.schema(
    [
        ("impression", pa.int64()),  # impression id as in the file
        ("item", pa.dictionary(pa.int32(), pa.string())),
        ("position", pa.int16()),
        ("p", pa.float32()),  # true click probability at this position
        ("p_ref", pa.float32()),  # the same at position 0
        ("click", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written."""

    folder: Path
    rows: int
    shown_items: int
    clicks: int
    users: int
    news: int


def generate_mind(
    out: Path,
    *,
    scale: str = "small",
    seed: int = 1,
    rows: int | None = None,
    parameters: Parameters | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generated:
    """Write a log of `scale` into folder `out` (made if missing), or only its first `rows` rows.

    `progress(rows_written, rows)` is called after each chunk. Raises ConfigError for an unknown scale.
    """
    if scale not in SCALES:
        raise ConfigError(f"--scale {scale}: no such scale; choose one of {', '.join(SCALES)}")
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, len(scale), SCALES[scale].rows]))
    world = build_world(SCALES[scale], parameters or Parameters(), rng)
    with open(out / "news.tsv", "w", encoding="utf-8", newline="\n") as news:
        news.writelines(news_lines(world, rng))
    source = RowSource(world, seed, rng)
    total = world.scale.rows if rows is None else min(rows, world.scale.rows)
    shown, clicks = _write_rows(out, source, total, progress)
    return Generated(out, total, shown, clicks, world.scale.users, world.scale.news)


def _write_rows(
    out: Path, source: RowSource, total: int, progress: Callable[[int, int], None] | None
) -> tuple[int, int]:
    names = pa.array([f"N{k}" for k in source.world.items.number[: source.world.scale.candidates].tolist()])
    shown = clicks = done = 0
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["item"]}
    with (
        open(out / "behaviors.tsv", "wb") as behaviors,
        pq.ParquetWriter(out / "truth.parquet", TRUTH_SCHEMA, **options) as truth,
    ):
        for chunk in source.chunks(total):
            behaviors.write(_render(source, chunk))
            truth.write_batch(_truth(chunk, names))
            shown += len(chunk.items)
            clicks += int(chunk.click.sum())
            done += len(chunk.rows)
            if progress is not None:
                progress(done, total)
    return shown, clicks


def _render(source: RowSource, chunk: Chunk) -> bytes:
    world: World = source.world
    history = source.histories
    items = int(np.diff(history.offsets)[chunk.user].sum()) + len(chunk.items)
    # An item takes at most 11 bytes ("N1234567-0 "), the head of a row at most 64.
    buffer: NDArray[np.uint8] = np.empty(64 * len(chunk.rows) + 11 * items, dtype=np.uint8)
    size = render_rows(
        buffer, chunk.rows, chunk.user, chunk.time_s, FIRST_DAY, MONTH, world.users.number, world.items.number,
        history.offsets, history.items, chunk.offsets, chunk.items, chunk.click,
    )  # fmt: skip
    return buffer[:size].tobytes()


def _truth(chunk: Chunk, names: pa.Array) -> pa.RecordBatch:
    count = np.diff(chunk.offsets)
    position = np.arange(len(chunk.items)) - np.repeat(chunk.offsets[:-1], count)
    columns = [
        pa.array(np.repeat(chunk.rows + 1, count)),
        pa.DictionaryArray.from_arrays(pa.array(chunk.items), names),
        pa.array(position.astype(np.int16)),
        pa.array(chunk.p),
        pa.array(chunk.p_ref),
        pa.array(chunk.click.astype(np.bool_)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=TRUTH_SCHEMA)
