"""`ouzel experiment`: where an experiment's objects are wired, and what a person sees while it runs."""

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.experiments.collisions import Plan
    from trainer.experiments.train import Settings

PLAIN_EVERY_S = 10.0  # between lines where there is no terminal to draw a bar in


class Name(StrEnum):
    """The experiments there are."""

    COLLISIONS = "collisions"


def experiment(
    name: Annotated[Name, typer.Argument(help="collisions: what it costs that ids share embedding rows.")],
    data: Annotated[Path, typer.Option(help="A MovieLens folder: ml-latest-small, ml-1m, ml-25m.")],
    out: Annotated[Path, typer.Option(help="Where JSON, table and plot go.")] = Path("runs/collisions"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 1, 2, …")] = 5,
    moduli: Annotated[str, typer.Option(help="As 1000000,1000; by default 10^6 and a sweep by the data's size.")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training ratings.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Ratings a step; 8192 makes ml-25m bearable.")] = 1024,
    jobs: Annotated[int, typer.Option(min=0, help="Processes, each on one thread; 0: one a core.")] = 0,
) -> None:
    """Train the arms, print what came out, write collisions.json, collisions.md and collisions.png."""
    import msgspec
    from rich.console import Console

    from infra.paramstore.files import replace_durably
    from trainer.experiments.collisions import Plan, run
    from trainer.experiments.plot import draw
    from trainer.experiments.summary import table
    from trainer.experiments.train import Settings

    console = Console()
    settings = Settings(epochs=epochs, batch=batch)
    plan = Plan.of(data, _moduli(moduli), range(1, seeds + 1), jobs or os.cpu_count() or 1)
    report = run(plan, settings, _Display(console, plan, settings).said)
    files = {kind: out / f"{name}.{kind}" for kind in ("json", "md", "png")}
    replace_durably(files["json"], msgspec.json.format(msgspec.json.encode(report), indent=1))
    replace_durably(files["md"], table(report).encode() + b"\n")
    replace_durably(files["png"], draw(report))
    print(f"\n{table(report)}\n\n{files['png']}\n{files['json']}")


def _moduli(text: str) -> list[int]:
    from infra.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and 2 <= int(part) < 1 << 31 for part in parts):
        raise ConfigError(f"--moduli {text!r}: whole numbers from 2 on with commas between them, as 1000000,1000")
    return [int(part) for part in parts]


class _Display:
    """A bar over all epochs of all cells; where there is no terminal, a line now and then."""

    def __init__(self, console: "Console", plan: "Plan", settings: "Settings") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console, self._done, self._last = console, 0, time.monotonic()
        self._total = len(plan.cells) * settings.epochs
        console.print(f"{len(plan.arms)} arms, {len(plan.seeds)} seeds, {settings.epochs} epochs; {plan.jobs} at once")
        if plan.left_out:
            console.print(f"too small to be made: {', '.join(arm.name for arm in plan.left_out)}")
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("[dim]{task.description}"), console=console, transient=True)
        self._task = self._bar.add_task("", total=self._total)

    def said(self, arm: str, seed: int, epoch: int, auc: float) -> None:
        """One epoch of one cell is done."""
        self._done += 1
        what = f"{arm}, seed {seed}, epoch {epoch + 1}: test AUC {auc:.4f}"
        if self._console.is_terminal:
            if self._done == 1:
                self._bar.start()
            self._bar.update(self._task, advance=1, description=what)
            if self._done == self._total:
                self._bar.stop()
        elif time.monotonic() - self._last > PLAIN_EVERY_S:
            self._last = time.monotonic()
            self._console.print(f"{self._done} of {self._total} epochs; {what}", highlight=False, soft_wrap=True)
