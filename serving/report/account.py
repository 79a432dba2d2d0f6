"""What became of every event and of every row of the source, in sentences: for the terminal and for the page.

events in = joined + dropped + waiting, exactly. Rows that could not be read as an event never came in: they are dead
letters, counted apart, by file and reason.
"""

from collections.abc import Mapping
from typing import Any

from serving.report.words import DEAD_MEANING

MOST_REASONS = 3  # of a file that the terminal explains; the command lists them all

Dead = Mapping[str, Mapping[str, int]]  # by file or topic, by reason


def account(report: Mapping[str, Any], dead: Dead, place: str) -> list[str]:
    """The sentences. `place` is the run folder as the reader would name it."""
    return [
        _events(report),
        *left_out_of(report),
        *(_dead(name, reasons, report["rows"], place) for name, reasons in dead.items()),
    ]


def _events(report: Mapping[str, Any]) -> str:
    joined, waiting, dropped = (report[key] for key in ("joined", "waiting", "dropped"))
    reasons = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in dropped.items() if n)
    lost = sum(dropped.values())
    parts = [f"{sum(joined.values()):,} in examples", f"{lost:,} dropped" + (f" ({reasons})" if reasons else "")]
    if sum(waiting.values()):
        parts.append(
            f"{sum(waiting.values()):,} waiting: their window is open, and they are learned once it has closed"
        )
    text = f"{report['events_in']:,} events: {'; '.join(parts)}."
    missing = report["events_in"] - sum(joined.values()) - lost - sum(waiting.values())
    return text if not missing else f"{text} These do not add up: {abs(missing):,} events are lost or counted twice."


def left_out_of(report: Mapping[str, Any]) -> list[str]:
    """Shown items that were answered, but by no kind of engagement that is learned."""
    n = report["scored"].get("left_out_items", 0)
    if not n:
        return []
    kinds = ", ".join(report["config"]["positive"])
    return [
        f"{n:,} shown items have engagements other than {kinds} only: neither positive nor negative, they are left out "
        "of learning and of every figure (train.positive says what is learned)."
    ]


def _dead(name: str, reasons: Mapping[str, int], usable: int, place: str) -> str:
    """One file or topic with dead rows: how many, why, and how to see them."""
    n = sum(reasons.values())
    of = f" of {n + usable:,}" if name.startswith("behaviors.tsv") else ""
    by_size = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    why = "; ".join(f"{reason} {k:,}{_meaning(reason)}" for reason, k in by_size[:MOST_REASONS])
    why += f"; and {len(by_size) - MOST_REASONS} more reasons" if len(by_size) > MOST_REASONS else ""
    shown = f"ouzel dead-letters show --run {place} --reason {by_size[0][0]}"
    return f"{n:,}{of} rows of {name} could not be used: {why}. See them: {shown}"


def _meaning(reason: str) -> str:
    return f" ({DEAD_MEANING[reason]})" if reason in DEAD_MEANING else ""
