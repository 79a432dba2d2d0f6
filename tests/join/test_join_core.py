"""The joiner's core against the join by brute force, and against itself across restarts."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import load_config
from infra.errors import ConfigError, CorruptStateError
from stream.examples import MARKER_OFFSET, DropReason
from stream.join import core
from tests.join import scenes

SEEDS = st.integers(0, 2**32)
LATE_MS = 30_000
RUNS = settings(max_examples=60, deadline=None, derandomize=True)


def agrees_with_brute_force(module: Any, seed: int) -> bool:
    log = scenes.random_log(seed)
    joiner = module.PartitionJoiner(0, scenes.settings(module))
    outputs, truth = scenes.feed(joiner, log), scenes.brute_force(log)
    counts = {name: n for name, n in outputs[-1].meta.counts.items() if n}
    return scenes.joined(outputs) == truth.ticks and counts == {name: n for name, n in truth.counts.items() if n}


def restarts_repeat(module: Any, seed: int) -> bool:
    return log_restarts_repeat(module, scenes.random_log(seed))


def restarts_after_a_repeat(module: Any, seed: int) -> bool:
    return log_restarts_repeat(module, scenes.repeat_of_a_known_id())


def restarts_long_after(module: Any, seed: int) -> bool:
    """An id is known for much longer than its window and all bounds together, as by the default of an hour."""
    return log_restarts_repeat(module, scenes.repeat_long_after(LATE_MS), late_ms=LATE_MS)


def log_restarts_repeat(module: Any, log: list[list[scenes.Row]], late_ms: int = 2_500) -> bool:
    settings = dataclasses.replace(scenes.settings(module), late_ms=late_ms)
    outputs = scenes.feed(module.PartitionJoiner(0, settings), log)
    whole = scenes.as_bytes(outputs)
    for at in range(0, len(outputs), 1 + len(outputs) // 25):
        again = module.PartitionJoiner(0, settings, last=outputs[at].meta)
        try:
            if scenes.as_bytes(scenes.feed(again, log)) != whole[at + 1 :]:
                return False
        except CorruptStateError:
            return False
    return True


@RUNS
@given(SEEDS)
def test_the_join_equals_a_brute_force_join_of_the_log(seed: int) -> None:
    assert agrees_with_brute_force(core, seed)


@RUNS
@given(SEEDS)
def test_a_restart_at_any_record_writes_the_same_bytes_after_it(seed: int) -> None:
    assert restarts_repeat(core, seed)


def test_a_restart_still_knows_the_id_that_a_pending_row_would_repeat() -> None:
    assert restarts_after_a_repeat(core, 0)
    assert restarts_long_after(core, 0)


@RUNS
@given(SEEDS)
def test_every_event_is_in_an_example_or_has_one_drop_reason(seed: int) -> None:
    outputs = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), scenes.random_log(seed))
    counts = outputs[-1].meta.counts
    ends = counts["joined_impressions"] + counts["joined_engagements"] + sum(counts[reason] for reason in DropReason)
    assert outputs[-1].meta.end
    assert counts["events_in"] == ends


@RUNS
@given(SEEDS, st.floats(0, 1))
def test_wherever_a_log_is_cut_its_events_are_joined_dropped_or_waiting(seed: int, share: float) -> None:
    log = scenes.random_log(seed)
    joiner = core.PartitionJoiner(0, scenes.settings(core))
    scenes.feed(joiner, log[: int(share * len(log))])
    counts, waiting = joiner.counts(), joiner.waiting()
    ends = counts["joined_impressions"] + counts["joined_engagements"] + sum(counts[reason] for reason in DropReason)
    assert counts["events_in"] == ends + sum(waiting.values())


@RUNS
@given(SEEDS)
def test_outputs_are_in_order_cut_by_tick_and_number_and_every_tick_is_closed_once(seed: int) -> None:
    outputs = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), scenes.random_log(seed))
    metas = [meta for meta, _ in outputs]
    assert [meta.seq for meta in metas] == list(range(len(metas)))
    keys = [(meta.last_tick, meta.last_offset, meta.last_row) for meta in metas]
    assert keys == sorted(keys)
    assert all(len(examples) <= 3 for _, examples in outputs)
    assert [m.closed_through for m in metas] == sorted(m.closed_through for m in metas)
    assert all(m.closed_through == m.tick for m in metas if m.last_offset == MARKER_OFFSET)
    assert all((m.low_offset, m.low_row) <= (m.read_offset, m.read_row) for m in metas)


@pytest.mark.parametrize("seed", [1, 2])
def test_outputs_are_cut_by_bytes_too_and_a_restart_cuts_them_there_again(seed: int) -> None:
    log, most = scenes.random_log(seed), 250
    small = dataclasses.replace(scenes.settings(core), bytes_per_record=most)
    outputs = scenes.feed(core.PartitionJoiner(0, small), log)
    whole = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), log)
    assert scenes.joined(outputs) == scenes.joined(whole)
    assert len(outputs) > len(whole)
    for _, examples in outputs:
        size = 64 * len(examples) + 8 * len(examples.history.values) + 9 * len(examples.items.values)
        assert size <= most or len(examples) == 1
    for at in range(0, len(outputs), 7):
        again = core.PartitionJoiner(0, small, last=outputs[at].meta)
        assert scenes.as_bytes(scenes.feed(again, log)) == scenes.as_bytes(outputs[at + 1 :])


def test_a_long_log_is_rebuilt_from_a_bounded_stretch() -> None:
    log = scenes.random_log(1, seconds=120)
    outputs = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), log)
    assert outputs[-2].meta.low_offset > len(log) // 2


def test_a_log_that_lost_rows_is_refused_on_restart() -> None:
    log = scenes.random_log(2)
    outputs = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), log)
    last = outputs[len(outputs) // 2].meta
    shifted = [[row._replace(ingested_ms=row.ingested_ms - 5) for row in record] for record in log]
    with pytest.raises(CorruptStateError, match="stop the run"):
        scenes.feed(core.PartitionJoiner(0, scenes.settings(core), last=last), shifted)


def test_attribution_that_is_no_whole_number_of_ticks_is_refused() -> None:
    with pytest.raises(ConfigError, match="whole number of ticks"):
        load_config(env={}, overrides=["time.attribution_s=90"])


def test_many_waiting_engagements_and_ids_outgrow_the_first_arrays_and_nothing_is_lost() -> None:
    n = 5_000
    rows = [scenes.Row(1, 1_000_000, 1_000_000, i, 0, 1, 0) for i in range(n)]
    rows += [scenes.Row(0, 1_000_100, 1_000_000, i, 0, items=(2, 1)) for i in range(n)]
    rows += [scenes.Row(2, 1_100_000, 1_100_000)]
    log = [rows[at : at + 700] for at in range(0, len(rows), 700)]
    outputs = scenes.feed(core.PartitionJoiner(0, scenes.settings(core)), log)
    assert outputs[-1].meta.counts["joined_engagements"] == n
    assert sum(int((examples.labels.values == 1).sum()) for _, examples in outputs) == n


# Wrong joiners: each is the shipped source with one law broken, run without the compiler.
MUTANTS = {
    "forgets at restart what was due but not yet written": (
        "core",
        "if written is not None and key <= written:",
        "if written is not None:",
        restarts_repeat,
    ),
    "advances W before the row is applied": (
        "kernels",
        "        if kind[row] == 0:\n",
        "        scalars[S_W] = after\n        if kind[row] == 0:\n",
        agrees_with_brute_force,
    ),
    "measures the window by ingest time": (
        "kernels",
        "_join(pending, records[record, R_PENDING], items, labels, timing, item, action, time_ms)",
        "_join(pending, records[record, R_PENDING], items, labels, timing, item, action, ingested_ms)",
        agrees_with_brute_force,
    ),
    "lets a wrong client clock in": (
        "kernels",
        """    if time_ms > ingested_ms + timing[T_SKEW]:
        counts[C_FUTURE] += 1
        return
    if end""",
        "    if end",
        agrees_with_brute_force,
    ),
    "moves the watermark by the event's own time": (
        "kernels",
        "after = max(watermark, ingested[row] - timing[T_BOUND])",
        "after = max(watermark, time[row] - timing[T_BOUND])",
        agrees_with_brute_force,
    ),
    "rebuilds without the known ids": (
        "core",
        "for back_ms in (h, bound, h):",
        "for back_ms in (h,):",
        restarts_after_a_repeat,
    ),
    "rebuilds from a window without the time that an id is known": (
        "core",
        "(t.attribution_ticks + 1) * t.tick_ms + self.late_ms",
        "(t.attribution_ticks + 1) * t.tick_ms",
        restarts_long_after,
    ),
    "rebuilds from what is pending alone": (
        "core",
        "for back_ms in (h, bound, h):",
        "for back_ms in (h - self.settings.late_ms,):",
        restarts_repeat,
    ),
    "forgets a late engagement's impression at once": (
        "kernels",
        "end + timing[T_LATE])",
        "end)",
        agrees_with_brute_force,
    ),
    "drops an engagement that comes before its impression": (
        "kernels",
        "while number >= 0:",
        "while False:",
        agrees_with_brute_force,
    ),
    "counts a repeated engagement twice": (
        "kernels",
        "if labels[at] & bit:",
        "if False:",
        agrees_with_brute_force,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_joiner_is_caught(name: str, tmp_path: Path) -> None:
    part, right, wrong, check = MUTANTS[name]
    module = _mutant(tmp_path, part, right, wrong)
    with np.errstate(over="ignore"):  # hashes wrap around
        assert not all(check(module, seed) for seed in range(12))


def test_the_shipped_source_run_without_the_compiler_passes(tmp_path: Path) -> None:
    module = _mutant(tmp_path, "core", "", "")
    with np.errstate(over="ignore"):
        assert all(agrees_with_brute_force(module, seed) and restarts_repeat(module, seed) for seed in range(2))


def _mutant(folder: Path, part: str, right: str, wrong: str) -> ModuleType:
    """stream.join from its source, with one line replaced and numba taken out."""
    home = Path(core.__file__).parent
    package = f"mutant_{abs(hash((part, wrong)))}"
    for name in ("kernels", "state", "core"):
        source = (home / f"{name}.py").read_text(encoding="utf-8")
        if name == part and right:
            assert source.count(right) == 1, f"{right!r} is not once in {name}.py"
            source = source.replace(right, wrong)
        source = source.replace("@njit(cache=True, nogil=True)\n", "").replace("from numba import njit\n", "")
        source = source.replace("from stream.join import kernels as k", f"import {package}_kernels as k")
        source = source.replace("from stream.join.state import", f"from {package}_state import")
        (folder / f"{package}_{name}.py").write_text(source, encoding="utf-8")
    for name in ("kernels", "state", "core"):
        spec = importlib.util.spec_from_file_location(f"{package}_{name}", folder / f"{package}_{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[f"{package}_{name}"] = module
        spec.loader.exec_module(module)
    return module
