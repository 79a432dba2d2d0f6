"""The plots of the report, each a function from report.json's numbers to inline SVG.

What is plotted is in report.json, so that anyone can draw it otherwise. A value that the run does not have is left out.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from serving.report.theme import ARMS, axes, color, drawing, svg

Report = Mapping[str, Any]
Floats = NDArray[np.float64]
SMOOTH_H = 5  # hours averaged, centered, by impressions
DAY_MS = 86_400_000
LONG_RUN_DAYS = 3  # from here on the time axis shows days


def arms_of(report: Report) -> list[str]:
    """Arms with scored rows, in the order of the legend."""
    arms = report["arms"]
    return [a for a in ARMS if a in arms and arms[a]["by_hour"]]


def series(
    report: Report, arm: str, metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Times (days since the epoch, hour centers), values and impressions of an arm by hour."""
    hours = [h for h in report["arms"][arm]["by_hour"] if h[metric] is not None]
    x = np.array([(h["start_ms"] + 1_800_000) / DAY_MS for h in hours])
    return x, np.array([h[metric] for h in hours], float), np.array([h["impressions"] for h in hours], float)


def smooth(values: Floats, weights: Floats, window: int = SMOOTH_H) -> Floats:
    """Centered mean over `window` values, weighted."""
    kernel = np.ones(min(window, 2 * len(values) - 1))
    top = np.convolve(values * weights, kernel, mode="full")
    bottom = np.convolve(weights, kernel, mode="full")
    cut = slice((len(kernel) - 1) // 2, (len(kernel) - 1) // 2 + len(values))
    smoothed: Floats = top[cut] / np.maximum(bottom[cut], 1e-12)
    return smoothed


def auc_over_time(report: Report, *, slim: bool = False) -> str:
    """Mean impression AUC by hour and arm, named at the line's end, over the traffic that it averages."""
    with drawing("auc", 11.2, 4.9, slim=slim) as figure:
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
        ends: list[tuple[float, str, str]] = []
        right, low, high = 0.0, 1.0, 0.0
        for arm in arms_of(report)[::-1]:
            x, y, n = series(report, arm, "auc_impression")
            if not len(x):
                continue
            line = smooth(y, n)
            if arm == "online":
                top.scatter(x, y, s=7, color=color(arm), alpha=0.28, linewidths=0)
            style = (0, (4, 3)) if arm == "oracle" else "solid"
            top.plot(x, line, color=color(arm), linewidth=2.6 if arm == "online" else 1.7, linestyle=style)
            ends.append((float(line[-1]), arm, color(arm)))
            right = max(right, float(x[-1]))
            low, high = min(low, float(np.percentile(line, 0.5))), max(high, float(line.max()))
        margin = 0.06 * max(high - low, 0.02)
        top.set_ylim(low - margin, high + margin)
        _label_ends(top, ends, right)
        _mark_promotions(top, report)
        _traffic(strip, report)
        _time_axis(strip, report, days="%a" if slim else "%a %d %b", wide=not slim)
        top.tick_params(axis="x", labelbottom=False)
        top.set_ylabel("mean impression AUC")
        return svg(figure, "Mean impression AUC by hour for every arm")


def _traffic(strip: Axes, report: Report) -> None:
    arm = arms_of(report)[0]
    x, _, n = series(report, arm, "log_loss")
    strip.fill_between(x, n, step="mid", color=color("soft"), linewidth=0)
    strip.set_ylim(0, max(float(n.max()) * 1.15, 1.0))
    strip.set_yticks([])
    strip.grid(False)
    strip.set_ylabel("shown", rotation=0, ha="right", va="center")


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], x: float) -> None:
    """Write names beside the line ends, in their order, at least a line of text apart, each joined to its own end."""
    low, high = ax.get_ylim()
    figure = ax.get_figure(root=True)
    assert figure is not None
    points = figure.get_figheight() * 72 * 0.8  # of the axes, about
    gap = (high - low) * 14 / points
    ends = sorted(ends)
    at = [min(max(y, low), high) for y, _, _ in ends]
    for _ in range(100):  # push neighbours apart until none overlap
        for i in range(len(at) - 1):
            short = gap - (at[i + 1] - at[i])
            if short > 1e-12:
                at[i], at[i + 1] = at[i] - short / 2, at[i + 1] + short / 2
    for (y, text, ink), place in zip(ends, at, strict=True):
        ax.annotate(
            text, (x, y), xytext=(x, place), textcoords=offset_copy(ax.transData, fig=figure, x=16, units="points"),
            va="center", color=ink, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip


def _mark_promotions(ax: Axes, report: Report) -> None:
    first, last = _span(report)
    for i, ms in enumerate(t for t in report["promotions_ms"] if first < t / DAY_MS < last):
        ax.axvline(ms / DAY_MS, color=color("muted"), linewidth=0.8, linestyle=(0, (1, 3)))
        if i == 0:
            note = "nightly generation opens"
            ax.annotate(
                note, (ms / DAY_MS, 0.015), xycoords=("data", "axes fraction"), xytext=(4, 0),
                textcoords="offset points", color=color("muted"), va="bottom",
            )  # fmt: skip


def _span(report: Report) -> tuple[float, float]:
    hours = report["arms"][arms_of(report)[0]]["by_hour"]
    return hours[0]["start_ms"] / DAY_MS, hours[-1]["start_ms"] / DAY_MS + 1 / 24


def _time_axis(ax: Axes, report: Report, days: str = "%a %d %b", *, wide: bool = True) -> None:
    first, last = _span(report)
    long = last - first > LONG_RUN_DAYS
    hours = 24 if long else 6 if wide else 12
    at = [t / 24 for t in range(math.ceil(first * 24), int(last * 24) + 1) if t % hours == 0]
    ax.set_xticks(at, [datetime.fromtimestamp(t * 86_400, UTC).strftime(days if long else "%a %H:%M") for t in at])
    ax.set_xlim(first, last)


def auc_by_day(report: Report, *, slim: bool = False) -> str:
    """Mean impression AUC by day and arm, as bars above chance (0.5)."""
    arms = arms_of(report)
    days = [d["start_ms"] for d in report["arms"][arms[0]]["by_day"]]
    with drawing("days", 5.6, 3.7, slim=slim) as figure:
        ax = axes(figure)
        width = 0.82 / len(arms)
        values = [v["auc_impression"] for a in arms for v in report["arms"][a]["by_day"] if v["auc_impression"]]
        base = 0.5 if min(values, default=0.5) >= 0.5 else min(values)
        for k, arm in enumerate(arms):
            by_day = {d["start_ms"]: d["auc_impression"] for d in report["arms"][arm]["by_day"]}
            y = np.array([by_day.get(d) or math.nan for d in days])
            x = np.arange(len(days)) + (k - (len(arms) - 1) / 2) * width
            hollow = arm == "oracle"
            ax.bar(
                x, y - base, width * 0.86, bottom=base, color="none" if hollow else color(arm),
                edgecolor=color(arm), linewidth=1.0 if hollow else 0.0,
            )  # fmt: skip
        ax.set_xticks(range(len(days)), [datetime.fromtimestamp(d / 1000, UTC).strftime("%a %d") for d in days])
        ax.set_ylim(base, max(values, default=0.6) + 0.012)
        ax.set_ylabel("mean impression AUC" + (" (chance is 0.5)" if base == 0.5 else ""))
        return svg(figure, "Mean impression AUC by day for every arm")


def calibration_over_time(report: Report, *, slim: bool = False) -> str:
    """Predicted over observed clicks by hour, for the arms that are trained; the promised band shaded."""
    arms = [a for a in arms_of(report) if a in ("online", "nightly", "frozen")]
    with drawing("calibration", 5.6, 3.7, slim=slim) as figure:
        ax = axes(figure)
        ax.axhspan(0.9, 1.1, color=color("band"), linewidth=0)
        ax.axhline(1.0, color=color("muted"), linewidth=0.9)
        ends: list[tuple[float, str, str]] = []
        right = 0.0
        for arm in arms[::-1]:
            x, y, n = series(report, arm, "calibration")
            if not len(x):
                continue
            line = smooth(y, n)
            ax.plot(x, line, color=color(arm), linewidth=2.2 if arm == "online" else 1.5)
            ends.append((float(np.clip(line[-1], 0.5, 1.6)), arm, color(arm)))
            right = max(right, float(x[-1]))
        low, high = ax.get_ylim()
        ax.set_ylim(min(max(low, 0.5), 0.85), max(min(high, 1.6), 1.15))
        _label_ends(ax, ends, right)
        _time_axis(ax, report, days="%a" if slim else "%a %d", wide=False)
        ax.set_ylabel("predicted ÷ observed clicks")
        return svg(figure, "Predicted over observed clicks by hour; 1 is calibrated")


def label_wait(report: Report, *, slim: bool = False) -> str | None:
    """How long an engagement waits until its tick closes, as a distribution; None where nothing was engaged."""
    edges, counts = report["label_wait_s"].get("edges"), report["label_wait_s"].get("counts")
    if not counts or not sum(counts):
        return None
    x, share = np.array(edges[:-1], float), np.array(counts, float) / sum(counts)
    with drawing("wait", 5.6, 3.1, slim=slim) as figure:
        ax = axes(figure)
        ax.bar(x, 100 * share, np.diff(edges) * 0.92, align="edge", color=color("online"))
        ax.set_ylim(0, float(share.max()) * 125)
        for name, ha in (("p50", "right"), ("p99", "left")):
            value = report["label_wait_s"][name]
            ax.axvline(value, color=color("ink"), linewidth=1.0, linestyle=(0, (2, 2)))
            ax.annotate(
                f"{name} {value:.0f} s", (value, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
                textcoords="offset points", ha=ha, va="bottom",
            )  # fmt: skip
        ax.set_xlabel("seconds from engagement to the close of its tick (event time)")
        ax.set_ylabel("% of engaged impressions")
        return svg(figure, "Distribution of the wait from engagement to closed tick")


def sync_time(report: Report, *, slim: bool = False) -> str | None:
    """How long a closed tick takes until it is served, as a distribution over versions; until it is durable where the
    replica left percentiles alone."""
    name = "sync_s" if report["sync_s"].get("counts") else "publish_s"
    edges, counts = report[name].get("edges"), report[name].get("counts")
    if not counts or not sum(counts):
        return None
    share = np.array(counts, float) / sum(counts)
    with drawing("sync", 5.6, 3.1, slim=slim) as figure:
        ax = axes(figure)
        ax.bar(range(len(share)), 100 * share, 0.92, align="edge", color=color("nightly"))
        inside = [v for d in range(-4, 5) for v in (10.0**d, 3 * 10.0**d) if edges[0] <= v <= edges[-1]]
        ax.set_xticks(list(np.interp(np.log(inside), np.log(edges), range(len(edges)))), [_seconds(v) for v in inside])
        ax.set_ylim(0, float(share.max()) * 125)
        for percentile, ha in (("p50", "right"), ("p99", "left")):
            value = report[name][percentile]
            at = float(np.interp(math.log(max(value, 1e-9)), np.log(np.maximum(edges, 1e-9)), range(len(edges))))
            ax.axvline(at, color=color("ink"), linewidth=1.0, linestyle=(0, (2, 2)))
            ax.annotate(
                f"{percentile} {_seconds(value)}", (at, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
                textcoords="offset points", ha=ha, va="bottom",
            )  # fmt: skip
        until = "served" if name == "sync_s" else "durable"
        ax.set_xlabel(f"from a closed tick to a {until} version (wall time, log scale)")
        ax.set_ylabel("% of versions")
        return svg(figure, "Distribution of the time from closed tick to served version")


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s"


def stages(report: Report, *, slim: bool = False) -> str:
    """Seconds of each process: the span it ran, and the CPU it used within it."""
    names = [n for n in report["stage_seconds"] if n != "run"]
    with drawing("stages", 5.6, 0.62 * len(names) + 0.9, slim=slim) as figure:
        ax = axes(figure)
        y = np.arange(len(names))[::-1]
        wall = np.array([report["stage_seconds"][n] for n in names])
        cpu = np.array([report["stage_cpu_seconds"].get(n, 0.0) for n in names])
        ax.barh(y, wall, 0.62, color=color("rule"))
        ax.barh(y, cpu, 0.62, color=color("online"))
        for at, w, c in zip(y, wall, cpu, strict=True):
            ax.annotate(
                f"{c:.1f} s of {w:.1f} s", (max(w, c), at), xytext=(6, 0), textcoords="offset points",
                va="center", color=color("muted"),
            )  # fmt: skip
        ax.set_yticks(y, names)
        ax.tick_params(axis="y", labelcolor=color("ink"))
        ax.set_xlim(0, float(max(wall.max(), cpu.max(), 0.01)) * 1.32)
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        return svg(figure, "Wall and CPU seconds of each process")


def tables(report: Report, *, slim: bool = False) -> str | None:
    """Rows of each embedding table; None where the run reports none."""
    rows = sorted(report["table_rows"].items(), key=lambda item: item[1])
    if not rows:
        return None
    with drawing("tables", 5.6, 0.5 * len(rows) + 0.9, slim=slim) as figure:
        ax = axes(figure)
        ax.barh(range(len(rows)), [n for _, n in rows], 0.62, color=color("frozen"))
        for i, (_, n) in enumerate(rows):
            ax.annotate(
                f"{n:,}", (n, i), xytext=(6, 0), textcoords="offset points", va="center",
                color=color("muted"),
            )  # fmt: skip
        ax.set_yticks(range(len(rows)), [name for name, _ in rows])
        ax.tick_params(axis="y", labelcolor=color("ink"))
        ax.set_xlim(0, max(n for _, n in rows) * 1.2)
        ax.grid(False)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        return svg(figure, "Rows of each embedding table")
