"""`make bench-loop`: the whole loop over a generated small-scale week, and Vowpal Wabbit over the same examples.

Prints rows/s, shown items/s, seconds and CPU by process, peak memory and the arms; writes `build/bench/loop.json`.
The rival reads a file that is exported once, before its timer; it learns each label at once (no attribution window,
no sync, no replica), so its figures are an upper bound for what its model would do in a live loop.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUILD = Path("build/bench")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--no-rival", action="store_true", help="leave Vowpal Wabbit out (it runs for the first seed)")
    options = parser.parse_args()
    console = Console()
    results = []
    for seed in options.seeds:
        data = BUILD / f"mind-{options.scale}-{seed}"
        generated_s = generate(data, options.scale, seed)
        run = BUILD / f"run-{options.scale}-{seed}"
        report = run_loop(data, run)
        rival = None
        if not options.no_rival and seed == options.seeds[0]:
            from tests.bench.rival_vw import progressive

            rival = progressive(run, BUILD / "vw")
        results.append({"seed": seed, "generated_s": generated_s, "loop": summary(report), "vowpal_wabbit": rival})
        show(console, results[-1])
    out = {
        "command": "make bench-loop",
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "results": results,
    }
    (BUILD / "loop.json").write_text(json.dumps(out, indent=2))
    console.print(f"written: {BUILD / 'loop.json'}")


def generate(data: Path, scale: str, seed: int) -> float:
    """Make the log where it is not there; returns the seconds it took, 0 where it was."""
    if (data / "truth.parquet").is_file():
        return 0.0
    started = time.monotonic()
    ouzel("generate", "mind", "--out", str(data), "--scale", scale, "--seed", str(seed))
    return time.monotonic() - started


def run_loop(data: Path, run: Path) -> dict[str, Any]:
    """The loop, in processes of its own, from nothing."""
    shutil.rmtree(run, ignore_errors=True)
    ouzel("run", "--mind", str(data), "--out", str(run), "--speed", "max")
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


def ouzel(*arguments: str) -> None:
    """Call the command as a user would."""
    subprocess.run([sys.executable, "-m", "infra.cli", *arguments], check=True)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report that a benchmark is about."""
    seconds = report["seconds"]
    kept = (
        "seconds",
        "rows",
        "shown_items",
        "stage_seconds",
        "stage_cpu_seconds",
        "peak_rss_bytes",
        "sync_s",
        "digest",
    )
    arms = {
        name: {key: value for key, value in arm.items() if key not in ("by_hour", "by_day")}
        | {"auc_by_day": [day["auc_impression"] for day in arm["by_day"]]}
        for name, arm in report["arms"].items()
    }
    return {
        **{key: report[key] for key in kept},
        "rows_per_s": report["rows"] / seconds,
        "shown_items_per_s": report["shown_items"] / seconds,
        "arms": arms,
    }


def show(console: Console, result: dict[str, Any]) -> None:
    """Print one seed's table."""
    loop, rival = result["loop"], result["vowpal_wabbit"]
    table = Table(title=f"seed {result['seed']}", title_justify="left")
    for name in ("process", "wall s", "CPU s"):
        table.add_column(name, justify="left" if name == "process" else "right")
    for name, cpu in loop["stage_cpu_seconds"].items():
        table.add_row(name, f"{loop['stage_seconds'].get(name, 0.0):.1f}", f"{cpu:.1f}")
    console.print(table)
    console.print(
        f"{loop['rows_per_s']:,.0f} rows/s, {loop['shown_items_per_s']:,.0f} shown items/s, {loop['seconds']:.1f} s, "
        f"peak {loop['peak_rss_bytes'] / 1e9:.2f} GB (proportional set size, all processes)"
    )
    for name, arm in loop["arms"].items():
        console.print(
            f"  {name:<11} AUC {arm['auc_impression']:.4f}  by day {[round(a, 4) for a in arm['auc_by_day']]}"
        )
    if rival is not None:
        console.print(
            f"  Vowpal Wabbit {rival['auc_impression']:.4f} mean impression AUC, {rival['seconds']:.1f} s for "
            f"{rival['examples']:,} examples: {rival['examples_per_s']:,.0f} examples/s (file mode, one process)"
        )


if __name__ == "__main__":
    main()
