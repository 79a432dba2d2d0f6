"""The collision experiment as one picture: the epochs of the modulus sweep, and what each budget of rows reaches."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1b2328", "#5f6b73", "#e3e7e9", "#fdfdfb"
COLORS = {
    "collisionless": "#0b7a8f",
    "modulo": "#d9620b",
    "quotient-remainder": "#8a54c7",
    "multi-hash": "#2b8a5e",
}
MARKERS = {"modulo": "o", "quotient-remainder": "s", "multi-hash": "D"}
SWEEP = ("#8c3a00", "#f0a56e")  # darkest for the largest modulus
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
Report = Mapping[str, Any]


def draw(report: Report) -> bytes:
    """A PNG of 1160 × 560 pixels."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11.6, 5.6), dpi=100)
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.06, right=0.985, top=0.79, bottom=0.165, wspace=0.24)
        _title(figure, report)
        _epochs(left, report)
        _budgets(right, report)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
        return out.getvalue()


def _title(figure: Figure, report: Report) -> None:
    data, settings = report["data"], report["settings"]
    figure.text(0.06, 0.935, "What it costs that ids share embedding rows", fontsize=16, weight="bold")
    figure.text(
        0.06, 0.888,
        f"{data['folder']}: {data['ratings']:,} ratings, {data['users']:,} users, {data['movies']:,} movies. DeepFM, "
        f"{settings['dim']} factors, {settings['epochs']} epochs; mean of {len(report['seeds'])} seeds ± "
        "standard deviation.",
        color=MUTED,
    )  # fmt: skip


def _epochs(ax: Axes, report: Report) -> None:
    """Test AUC by epoch of the collisionless arm and of every modulus, named at the line's end."""
    arms = [a for a in report["arms"].items() if a[1]["kind"] in ("collisionless", "modulo")]
    shades = _shades(len(arms) - 1)
    ends: list[tuple[float, str, str]] = []
    for name, arm in arms[::-1]:
        over = arm["rows"] == max(a["rows"] for _, a in arms)  # it may lie on the collisionless line: dashed, above it
        mean, sd = (np.array([e[k] for e in arm["auc_by_epoch"]]) for k in ("mean", "sd"))
        own = arm["kind"] == "collisionless"
        ink = COLORS["collisionless"] if own else shades[[a for a, _ in arms[1:]].index(name)]
        x = np.arange(1, len(mean) + 1)
        if own or not over:
            ax.fill_between(x, mean - sd, mean + sd, color=ink, alpha=0.12, linewidth=0)
        style: Any = {"linewidth": 3.4} if own else {"linewidth": 1.4, "linestyle": (0, (3, 2))} if over else {}
        ax.plot(x, mean, color=ink, **{"linewidth": 1.8, "zorder": 4 if over and not own else 3, **style})
        ends.append((float(mean[-1]), "collisionless" if own else f"mod {_power(arm['rows'])}", ink))
    epochs = report["settings"]["epochs"]
    ax.set_xlim(0.8, epochs + 0.2)
    ax.set_xticks(sorted({1, *range(2, epochs + 1, 2), epochs} if epochs > 2 else {1, epochs}))
    ax.set_xlabel("epoch")
    ax.set_title("Test AUC, epoch by epoch", loc="left", fontsize=11, color=INK, pad=10)
    _label_ends(ax, ends, epochs + 0.2)


def _budgets(ax: Axes, report: Report) -> None:
    """Best epoch's test AUC by rows a field, for each way to share; the collisionless arm as a line across."""
    arms = report["arms"]
    mean, sd = (arms["collisionless"]["auc_best"][k] for k in ("mean", "sd"))
    ink = COLORS["collisionless"]
    ax.axhspan(mean - sd, mean + sd, color=ink, alpha=0.12, linewidth=0)
    ax.axhline(mean, color=ink, linewidth=3.4, label=f"collisionless: {_rows_of(report):,} rows, one an id")
    for k, (kind, marker) in enumerate(MARKERS.items()):
        mine = sorted(
            (a["rows"], a["auc_best"]["mean"], a["auc_best"]["sd"]) for a in arms.values() if a["kind"] == kind
        )
        if mine:
            x, y, error = np.array(mine).T
            ax.errorbar(
                x * 1.045 ** (k - 1), y, error, color=COLORS[kind], marker=marker, markersize=5.5, linewidth=1.8,
                elinewidth=1.2, zorder=4, label=kind,
            )  # fmt: skip  # beside each other, so that no bar hides another
    _budget_axis(ax, [a for a in arms.values() if a["kind"] == "modulo"])
    ax.set_title("Test AUC at the best epoch, by rows a field", loc="left", fontsize=11, color=INK, pad=10)
    ax.legend(
        loc="lower right",
        facecolor=PAPER,
        edgecolor=PAPER,
        framealpha=1,
        fontsize=9.5,
        handlelength=2.2,
        labelspacing=0.55,
    )


def _rows_of(report: Report) -> int:
    """Rows of both fields in the collisionless arm."""
    return int(sum(report["arms"]["collisionless"]["floats"]) / (1 + report["settings"]["dim"]))


def _budget_axis(ax: Axes, moduli: Sequence[Mapping[str, Any]]) -> None:
    ax.set_xscale("log")
    rows = sorted((a["rows"], a["ids_sharing"][1]) for a in moduli)
    ax.set_xticks([r for r, _ in rows], [f"{_power(r)}\n{_percent(share)}" for r, share in rows])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("rows a field, and the share of movies that modulo puts beside others")
    ax.set_xlim(rows[0][0] / 1.7, rows[-1][0] * 1.7)


def _label_ends(ax: Axes, ends: list[tuple[float, str, str]], x: float) -> None:
    """Write names at the right edge, apart by at least a line of text, joined to their ends where they had to move."""
    low, high = ax.get_ylim()
    gap = (high - low) * 0.052
    placed: list[float] = []
    for y, _, _ in sorted(ends):
        placed.append(max(y, placed[-1] + gap) if placed else y)
    shift = max(0.0, placed[-1] - high)
    for (y, text, ink), at in zip(sorted(ends), placed, strict=True):
        ax.annotate(
            text, (x, y), xytext=(12, (at - shift - y) * _points_per_unit(ax)), textcoords="offset points", color=ink,
            va="center", fontsize=9.5, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": ink, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip


def _points_per_unit(ax: Axes) -> float:
    low, high = ax.get_ylim()
    figure = ax.figure
    return float(ax.get_position().height * figure.get_figheight() * 72 / (high - low))  # type: ignore[union-attr]


def _shades(n: int) -> list[str]:
    """n colors from the largest modulus to the smallest."""
    ends = [np.array(matplotlib.colors.to_rgb(c)) for c in SWEEP]
    mixed = [ends[0] + (ends[1] - ends[0]) * (i / max(1, n - 1)) for i in range(n)]
    return [matplotlib.colors.to_hex(c) for c in mixed]


def _power(rows: int) -> str:
    """1000000 → 10⁶; anything else with commas."""
    exponent = round(math.log10(rows))
    return f"10{'⁰¹²³⁴⁵⁶⁷⁸⁹'[exponent]}" if exponent > 3 and 10**exponent == rows else f"{rows:,}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share > 0.0995 else f"{100 * share:.1f} %"
