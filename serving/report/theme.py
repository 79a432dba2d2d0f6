"""One palette and one type for the page and its plots, in light and dark.

Plots are drawn once, in stand-in colors that no figure uses otherwise; afterwards each stand-in becomes a CSS variable
of the page, so that the same SVG follows the reader's light or dark setting. No font, script or image is fetched.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Ink(NamedTuple):
    """A color by its role: the stand-in that plots are drawn in, and what it becomes on a light and a dark page."""

    stand_in: str
    light: str
    dark: str


INKS: dict[str, Ink] = {
    "online": Ink("#0a0b01", "#0b7a8f", "#4fd1e3"),
    "nightly": Ink("#0a0b02", "#d9620b", "#ff9f4a"),
    "frozen": Ink("#0a0b03", "#8a54c7", "#c3a1f5"),
    "popularity": Ink("#0a0b04", "#7d8790", "#99a4ad"),
    "oracle": Ink("#0a0b05", "#20262b", "#eef2f4"),
    "ink": Ink("#0a0b06", "#1b2328", "#e9eef0"),
    "muted": Ink("#0a0b07", "#5f6b73", "#9aa7ae"),
    "rule": Ink("#0a0b08", "#dfe4e6", "#2c363b"),
    "paper": Ink("#0a0b09", "#fcfcfa", "#12181b"),
    "card": Ink("#0a0b0a", "#ffffff", "#192125"),
    "band": Ink("#0a0b0b", "#e4f1ee", "#1d3030"),
    "soft": Ink("#0a0b0c", "#b9dde3", "#24505a"),
    "good": Ink("#0a0b0d", "#2b8a5e", "#63c795"),
    "bad": Ink("#0a0b0e", "#c0392b", "#ff8276"),
}
ARMS = ("online", "nightly", "frozen", "popularity", "oracle")
FONT = 'system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif'


def color(role: str) -> str:
    """Stand-in color of a role (an arm's name is a role; an unknown arm is muted)."""
    return INKS.get(role, INKS["muted"]).stand_in


def css_variables() -> str:
    """The palette as CSS, light by default, dark where the reader's system asks for it."""
    light = "".join(f"--{name}:{ink.light};" for name, ink in INKS.items())
    dark = "".join(f"--{name}:{ink.dark};" for name, ink in INKS.items())
    return f":root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": color("rule"),
    "axes.labelcolor": color("muted"),
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": color("rule"),
    "grid.linewidth": 0.8,
    "axes.grid.axis": "y",
    "xtick.color": color("rule"),
    "xtick.labelcolor": color("muted"),
    "ytick.color": color("rule"),
    "ytick.labelcolor": color("muted"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "text.color": color("ink"),
    "lines.solid_capstyle": "round",
    "lines.linewidth": 2.0,
    "path.simplify": True,
}


SLIM_WIDTH = 4.6  # inches: on a phone a point of such a figure is about a pixel


@contextmanager
def drawing(name: str, width: float, height: float, *, slim: bool) -> Iterator[Figure]:
    """A figure in the house style, inches at 72 points; `slim`: as wide as a phone, and as high as `height` says."""
    name = f"{name}-slim" if slim else name
    settings: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(SLIM_WIDTH if slim else width, height), layout="constrained")
        figure.set_label(name)
        yield figure


def axes(figure: Figure) -> Axes:
    """The one plot of a figure."""
    return figure.add_subplot()


def svg(figure: Figure, description: str) -> str:
    """The figure as an inline `<svg>` in the page's variables, with ids of its own and a text for screen readers."""
    name = str(figure.get_label())
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r'font-family: [^;"]*', f"font-family: {FONT.replace(chr(34), chr(39))}", text)
    for role, ink in INKS.items():
        text = text.replace(ink.stand_in, f"var(--{role})")
    text = re.sub(r'<svg [^>]*?width="[^"]*"', lambda m: re.sub(r'\swidth="[^"]*"', "", m.group()), text, count=1)
    text = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    return text.strip().replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
