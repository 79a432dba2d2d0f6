"""Vowpal Wabbit over the very examples of a run: features exported once, then its own progressive pass over the file.

Its lines hold what ouzel's net sees: user, item, category, subcategory, title words, hour, position, history, and the
counters as of live(s); user and history are crossed with category and subcategory. It learns each label as soon as it
has predicted it: no attribution window, no versions, no replica.
"""

import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from infra.eventlog import open_log
from infra.process import RunFolder
from serving.evaluator.metrics import BINS, COLUMNS, add_scores, figures, pooled_auc
from stream.archive import complete_through, read_ticks
from stream.examples import ExampleColumns
from stream.features.batch import Batch, build_batch
from stream.features.catalogue import Catalogue
from stream.features.counters import LaggedCounters
from trainer.items import ItemsFollower

HISTORY = 10  # most recent history items a line
# The best of four settings tried on one log by its own progressive AUC; crossing user and item (-q ui) lowered it.
OPTIONS = "--loss_function logistic --link logistic -b 24 -q uc -q us -q hc -q hs -l 0.2 --holdout_off --quiet"


def progressive(run: Path, out: Path) -> dict[str, Any]:
    """Export the run's examples, run Vowpal Wabbit over the file, and measure its progressive predictions."""
    out.mkdir(parents=True, exist_ok=True)
    features, predictions = out / "examples.vw", out / "predictions.txt"
    started = time.monotonic()
    lengths, clicks = export(RunFolder(run), features)
    exported_s = time.monotonic() - started
    command = [sys.executable, "-m", "vowpalwabbit", "-d", str(features), "-p", str(predictions), *OPTIONS.split()]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - started
    scores = np.loadtxt(predictions, dtype=np.float64)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    odds = np.clip(scores, 1e-9, 1 - 1e-9)
    f = np.log(odds / (1 - odds)).astype(np.float32)[None]
    sums, histogram = np.zeros((1, COLUMNS)), np.zeros((1, 2, BINS), np.int64)
    add_scores(offsets, clicks, f, f, sums, histogram)
    measured = figures(sums[0], pooled_auc(histogram[0]))
    version = subprocess.run(
        [sys.executable, "-m", "vowpalwabbit", "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"\d+\.\d+\.\d+", version.stdout + version.stderr)
    features.unlink()
    return {
        "version": found.group() if found else "",
        "options": OPTIONS,
        "examples": len(scores),
        "seconds": seconds,
        "examples_per_s": len(scores) / seconds,
        "export_seconds": exported_s,
        "auc_impression": measured.auc_impression,
        "auc": measured.auc,
        "log_loss": measured.log_loss,
    }


def export(folder: RunFolder, path: Path) -> tuple[Any, Any]:
    """One line a shown item, in the order in which the trainer learned; returns items per impression and clicks."""
    config = folder.load_config()
    timeline = config.time.build()
    log = open_log(folder.log, config.log)
    catalogue, counters = Catalogue(), LaggedCounters.build(config.model, timeline)
    last = complete_through(folder.archive)
    ItemsFollower(log, catalogue, timeline).reach(last)
    log.close()
    examples, close = read_ticks(folder.archive, 0, last)
    with open(path, "w", encoding="ascii", buffering=1 << 20) as file:
        edges = np.flatnonzero(np.diff(close, prepend=-1, append=-1)).tolist()
        for lo, hi in pairwise(edges):
            tick, rows = int(close[lo]), examples.slice(lo, hi)
            known = counters.as_shown(tick)
            batch = build_batch(rows, known, catalogue, timeline.live_at_close(tick), config.model)
            file.write(_lines(batch))
            counters.learn(tick, rows.items.values, rows.labels.values, catalogue)
    return _lengths(examples), examples.clicks


def _lengths(examples: ExampleColumns) -> Any:
    return np.diff(examples.items.offsets)


def _short(keys: Any) -> list[str]:
    return [f"{k & 0xFFFFFFFFFF:x}" for k in keys.tolist()]


def _lines(batch: Batch) -> str:
    names = {slot: _short(keys) for slot, keys in batch.keys.items()}
    users = []
    for i in range(batch.n_impressions):
        history = batch.history[batch.history_offsets[i] : batch.history_offsets[i + 1]][-HISTORY:]
        read = " ".join(names["history"][h] for h in history)
        users.append(f"|u {names['user'][batch.user[i]]} |t h{names['hour'][batch.hour[i]]} |h {read}")
    items = []
    for v in range(batch.n_items):
        words = batch.words[batch.word_offsets[v] : batch.word_offsets[v + 1]]
        ctx = " ".join(f"f{j}:{x:.3f}" for j, x in enumerate(batch.ctx[v].tolist()) if x)
        title = " ".join(names["words"][w] for w in words)
        category = names["category"][batch.category[v]] if batch.category[v] >= 0 else ""
        subcategory = names["subcategory"][batch.subcategory[v]] if batch.subcategory[v] >= 0 else ""
        items.append(f"|i {names['item'][batch.item[v]]} |c {category} |s {subcategory} |w {title} |x b {ctx}")
    rows = zip(
        batch.label.tolist(),
        batch.imp_of_row.tolist(),
        batch.item_of_row.tolist(),
        batch.position.tolist(),
        strict=True,
    )
    return "".join(f"{1 if y else -1} {users[i]} {items[v]} |p p{p}\n" for y, i, v, p in rows)
