"""`make bench-table`: the collisionless table beside what one would use instead; see `plan` for what is compared.

Every contender is a fresh process with one thread; inputs are made before the timer; ours and a rival take turns
(ABAB) and medians are compared. Writes `build/bench/table.json`, a list with one object a line of the printed table.
In cases of memory `per_s` is the rate of filling.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.embedding.warm import warm
from tests.bench.table.driver import TORCHREC, run
from tests.bench.table.plan import PLAN

OUT = Path("build/bench/table.json")
KEYS = 8_000_000
NOT_SHOWN = """\
What this does not show: the machine is shared and small, so ratios count, rates do not; ids are drawn independently,
while real traffic repeats itself and is kinder to caches; all present keys are found (absent ones cost the same two
cache lines); torch and TorchRec are made for many threads and for GPUs, and have one thread of a CPU here; TorchRec is
in evaluation mode, where it inserts nothing; the dict holds Python's own integers; int8 and float16 rows, policies
and segments are not measured."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=KEYS, help="keys a table holds (the 64-fold case: 8 times as many)")
    parser.add_argument("--case", nargs="+", help="only cases, or rivals, whose name contains one of these")
    parser.add_argument("--rounds", type=int, help="measurements a line; each case has its own number")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 150)
    started = time.monotonic()
    say = lambda text: console.print(f"[dim]{time.monotonic() - started:5.0f} s  {text}[/]", highlight=False)  # noqa: E731
    plan = [c for c in PLAN if not options.case or any(o in f"{c.case} {c.title}" for o in options.case)]
    if any(c.rival.contender == "torchrec" for c in plan) and not TORCHREC.is_dir():
        parser.exit(1, f"{TORCHREC}: no TorchRec there; `make bench-table` installs it, or leave it out with --case\n")
    warm(console.print)
    about = machine()
    records: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for record in run(plan, options.keys, options.rounds, say):
        records.append({**record, **about})
        say(line(record))
        options.out.write_text(json.dumps(records, indent=1))  # as they come: who stops it keeps what there is
    show(console, records)
    console.print(f"{NOT_SHOWN}\n{time.monotonic() - started:.0f} s; written: {options.out}", highlight=False)


def machine() -> dict[str, str]:
    """Where and from what the figures come."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {"command": "make bench-table", "commit": commit, "machine": f"{platform.machine()}, {platform.system()}"}


def line(record: dict[str, Any]) -> str:
    """One record in a line."""
    text = f"  {record['distribution']:<7} {record['batch']:>7,}  "
    if "longest_call_s" in record:
        longest = [1e3 * record[name] for name in ("longest_call_s", "rival_longest_call_s")]
        return f"{text}longest call {longest[0]:.1f} ms against {longest[1]:.1f}"
    if "bytes_per_key" in record:
        return (
            f"{text}{record['bytes_per_key']:.1f} bytes a key ({record['bytes_per_key_by_own_account']:.1f} by its own "
            f"account) at load {record['load']:.2f}, rival {record['rival_bytes_per_key']:.1f}"
        )
    text += f"{record['per_s'] / 1e6:7.2f} M/s against {record['rival_per_s'] / 1e6:7.2f}: {record['ratio']:.2f} "
    text += f"({record['ratio_least']:.2f} to {record['ratio_most']:.2f}; of the best rounds {record['ratio_best']:.2f}"
    return text + (f"; by CPU seconds {record['ratio_cpu']:.2f})" if "ratio_cpu" in record else ")")


def passed(record: dict[str, Any]) -> str:
    """Whether the bar is met, in a word; nothing where there is none."""
    if record.get("bytes_bar") is not None:
        return "yes" if record["bytes_per_key"] <= record["bytes_bar"] else "NO"
    return "" if record["bar"] is None else "yes" if record["ratio"] >= record["bar"] else "NO"


def show(console: Console, records: list[dict[str, Any]]) -> None:
    """All records as one table."""
    title = "millions a second; one thread, one process each; ratio: of medians, best: of the best rounds"
    table = Table(title=title, title_justify="left")
    for name in ("case", "ids", "batch", "ours", "rival", "rival's", "ratio", "best", "bar", "met"):
        table.add_column(name, justify="left" if name in ("case", "ids", "rival", "met") else "right")
    for r in records:
        ratio, bar = f"{r['ratio']:.2f}", "" if r["bar"] is None else f"{r['bar']:g}"
        if "bytes_bar" in r:
            ours, theirs = f"{r['bytes_per_key']:.1f} B", f"{r['rival_bytes_per_key']:.1f} B"
            ratio, bar = f"load {r['load']:.2f}", "" if r["bytes_bar"] is None else f"≤ {r['bytes_bar']:.0f} B"
        elif "longest_call_s" in r:
            ours, theirs = f"{1e3 * r['longest_call_s']:.1f} ms", f"{1e3 * r['rival_longest_call_s']:.1f} ms"
        else:
            ours, theirs = f"{r['per_s'] / 1e6:.2f}", f"{r['rival_per_s'] / 1e6:.2f}"
        rates = (ours, r["rival"], theirs)
        best = f"{r['ratio_best']:.2f}" if "ratio_best" in r else ""
        table.add_row(r["case"], r["distribution"], f"{r['batch']:,}", *rates, ratio, best, bar, passed(r))
    console.print(table)


if __name__ == "__main__":
    main()
