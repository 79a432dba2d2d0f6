"""Compilation is announced when it happens, is cached, and is not met again."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numba import njit

from infra.compiling import announced

ROOT = Path(__file__).resolve().parents[2]
WARM_LIMIT_S = 2.0  # of processor, which others cannot take; it needs 0.6 to 0.8 where the clock says as much

FIRST_USE = """
import time
import numpy as np
from infra.embedding import EmbeddingTable
table = EmbeddingTable(slot="item", dim=8, init_scale=0.1)
table.assign(np.arange(1000), 1)
assert table.lookup(np.arange(2000))[1].sum() == 1000
print(time.process_time())
import sys
from numba.core.registry import CPUDispatcher
kernels = {id(k): k for name, m in list(sys.modules.items()) if name.startswith("infra.")
           for k in vars(m).values() if isinstance(k, CPUDispatcher)}
print(len(kernels), sum(sum(k.stats.cache_hits.values()) for k in kernels.values()),
      sum(sum(k.stats.cache_misses.values()) for k in kernels.values()))
"""


def python(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )


def test_a_cold_cache_is_announced_and_a_warm_one_compiles_nothing(tmp_path: Path) -> None:
    cold = python(tmp_path, "-m", "infra.embedding.warm")
    assert cold.stderr.startswith("compiling kernels (once, cached)")
    assert "compiled" in cold.stderr.splitlines()[-1]
    warm = python(tmp_path, "-m", "infra.embedding.warm")
    assert warm.stderr == ""
    assert warm.stdout.startswith("0 compiled")

    seconds, counts = python(tmp_path, "-c", FIRST_USE).stdout.splitlines()
    kernels, hits, misses = map(int, counts.split())
    assert kernels > 10
    assert hits > 1
    assert misses == 0
    assert float(seconds) < WARM_LIMIT_S, f"import and first use of a warm table took {seconds} s of processor"


def test_what_is_compiled_within_is_said_once_and_counted() -> None:
    @njit
    def inner(x):  # type: ignore[no-untyped-def]
        return x + 1

    @njit
    def outer(x):  # type: ignore[no-untyped-def]
        return inner(x) * 2

    said: list[str] = []
    with announced(said.append) as compiling:
        assert outer(np.int64(3)) == 8
    assert sorted(compiling.kernels) == ["inner", "outer"]
    assert compiling.seconds > 0
    assert len(said) == 2
    assert said[0].startswith("compiling kernels")
    assert said[1].startswith("compiled 2 kernels in")

    with announced(said.append) as compiling:
        assert outer(np.int64(4)) == 10
    assert not compiling.kernels
    assert len(said) == 2
