"""`ouzel run`, `ouzel demo`, `ouzel up`, `ouzel verify`: whole runs, from the command line."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.config import load_config, refuse_credentials
from infra.errors import ConfigError
from infra.folders import check_new
from infra.process import RunFolder
from infra.speed import live_speed
from infra.supervisor import child
from infra.supervisor.crew import Crew
from infra.supervisor.runlog import OWN, broker_of, reach, refuse_elsewhere
from infra.supervisor.runs import fit, loop_members, prepare, read_source, remove_run, run_loop, source_of, write_report

CONFIG_HELP = "TOML configuration; what it leaves out keeps its default."
SET_HELP = "One value, such as time.tick_s=10; may be given again."

ConfigOption = Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP)]
SetOption = Annotated[list[str] | None, typer.Option("--set", help=SET_HELP)]
LogOption = Annotated[
    str | None, typer.Option("--log", help='Where the events flow: kafka://host:port, or "kafka" for --kafka.')
]
KafkaOption = Annotated[bool, typer.Option("--kafka", help="Over a Kafka broker of the run's own, started here.")]
WorkersOption = Annotated[int, typer.Option(min=1, max=64, help="Joiners; several share the partitions, on Kafka.")]
ReplicasOption = Annotated[int, typer.Option(min=1, max=64, help="Replicas, on ports from serve.port on.")]


def stoppable() -> None:
    """SIGTERM ends a command as Ctrl-C does: its processes are stopped, in order."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def run(
    mind: Annotated[
        list[Path],
        typer.Option("--mind", help="A MIND-format folder, or the .zip as it is downloaded; may be given again."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The run folder to make, or to continue.")],
    speed: Annotated[str | None, typer.Option("--speed", help='"max", or a multiple of real time: 60x.')] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    log: LogOption = None,
    kafka: KafkaOption = False,
    workers: WorkersOption = 1,
    replicas: ReplicasOption = 1,
) -> None:
    """Replay MIND logs through the whole loop and write the report."""
    stoppable()
    check_new(out, "--out")
    overrides = [*(set_ or []), *([f"replay.speed='{speed}'"] if speed else []), *_address(log, kafka)]
    folder = RunFolder(out)
    console = Console()
    wanted, crew = load_config(config, overrides=overrides), Crew(workers, replicas)
    crew.check(wanted)
    source_of(mind)
    reach(wanted)
    fits, asked = fit(folder, wanted, mind, console)
    prepare(folder, fits, mind, asked)
    _watch(folder, console, crew)


def demo(
    out: Annotated[Path, typer.Option("--out", help="The run folder; an earlier demo in it is replaced.")] = Path(
        "runs/demo"
    ),
    data: Annotated[Path, typer.Option("--data", help="Where the generated log lies or is made.")] = Path(
        "data/mind-tiny"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    log: LogOption = None,
    kafka: KafkaOption = False,
    workers: WorkersOption = 1,
    replicas: ReplicasOption = 1,
) -> None:
    """Generate a tiny news log, run the whole loop over it, show what came out and what to try next."""
    stoppable()
    console = Console()
    folder = RunFolder(out)
    wanted, crew = load_config(config, overrides=[*(set_ or []), *_address(log, kafka)]), Crew(workers, replicas)
    crew.check(wanted)
    reach(wanted)
    remove_run(folder, console)
    if not (data / "behaviors.tsv").is_file():
        console.print(f"[bold]1[/]  generating two days of a small news site into {data}")
        command = child.ouzel("generate", "mind", "--out", str(data), "--scale", "tiny")
        subprocess.run(command, check=True)
    else:
        console.print(f"[bold]1[/]  the generated log in {data} is there")
    fits, asked = fit(folder, wanted, [data], console)
    prepare(folder, fits, [data], asked)
    names = ", ".join(m.name for m in loop_members(read_source(folder), folder.load_config(), crew))
    console.print(f"[bold]2[/]  starting {names} over {folder.load_config().log.url or out}", soft_wrap=True)
    _watch(folder, console, crew)
    console.print(_next_steps(folder), highlight=False, soft_wrap=True)


def up(
    run: Annotated[Path, typer.Option("--run", help="A finished run's folder.")],
    speed: Annotated[str, typer.Option(help="Event seconds a wall second: 10 learns a click in seconds.")] = "1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the API; serve.port where it is not given.")
    ] = None,
    kafka: KafkaOption = False,
    workers: WorkersOption = 1,
    replicas: ReplicasOption = 1,
) -> None:
    """Go on from a finished run: serve it, take events, keep learning from them, until Ctrl-C."""
    from infra.supervisor.live import go_on

    stoppable()
    console, folder, clock_speed = Console(), RunFolder(run), live_speed(speed)
    if kafka:
        refuse_elsewhere(folder)
    with broker_of(folder, console) as check:
        go_on(folder, console, speed=clock_speed, port=port, crew=Crew(workers, replicas), check=check)


def verify(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch folder of the derivation.")] = False,
) -> None:
    """Derive a run's examples and parameters again from its logs, and compare digests; exit 1 where they differ."""
    from infra.supervisor.verify import scratch_folder, verify_run, what_was_checked

    stoppable()
    console = Console()
    scratch = scratch_folder(run)
    try:
        with broker_of(RunFolder(run), console):
            verdict = verify_run(RunFolder(run), scratch, console)
    finally:
        if not keep and scratch.path.exists():
            shutil.rmtree(scratch.path)
    console.print(f"events → examples   {_equal(verdict.examples_equal)}")
    console.print(f"examples → versions {_equal(verdict.versions_equal)}")
    console.print(f"digest {verdict.digest}", highlight=False)
    if not verdict.versions_equal:
        console.print(f"derived {verdict.derived}", highlight=False)
    console.print(f"checked {what_was_checked()}, in {verdict.seconds:.1f} s", highlight=False)
    raise typer.Exit(0 if verdict.equal else 1)


def _equal(equal: bool) -> str:
    return "[green]equal[/]" if equal else "[red]different[/]"


def _address(log: str | None, kafka: bool) -> list[str]:
    """As an override of the configuration."""
    refuse_credentials(log or "", "--log")
    if kafka and log not in (None, OWN):
        raise ConfigError(f"--kafka and --log {log}: the one starts a broker of the run's own, the other names yours")
    url = OWN if kafka else log
    return [f"log.url='{url}'"] if url else []


def _watch(folder: RunFolder, console: Console, crew: Crew) -> None:
    try:
        with broker_of(folder, console) as check:
            run_loop(folder, console, crew, check=check)
            report = write_report(folder)
    except KeyboardInterrupt:
        console.print("stopped; the same command continues where it was")
        raise typer.Exit(130) from None
    console.print(_headline(report) if report["arms"] else _nothing_scored(report), soft_wrap=True)
    console.print(
        f"{report['events_in']:,} events, {report['examples_out']:,} examples, {report['shown_items']:,} shown items "
        f"in {report['seconds']:.1f} s; peak memory {report['peak_rss_bytes'] / 1e9:.2f} GB; "
        f"digest {report['digest'][:16]}",
        *report["compared"],
        *report["account"],
        f"report: {folder.path / 'report.html'}",
        sep="\n",
        highlight=False,
        soft_wrap=True,
    )


def _headline(report: dict[str, Any]) -> Table:
    table = Table(title="mean over impressions, scored with the version that served them", title_justify="left")
    for name in ("arm", "AUC", "MRR", "nDCG@5", "nDCG@10", "log-loss", "calibration"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for name, arm in report["arms"].items():
        row = [arm[key] for key in ("auc_impression", "mrr", "ndcg5", "ndcg10", "log_loss", "calibration")]
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in row))
    return table


def _nothing_scored(report: dict[str, Any]) -> str:
    early, config = report["scored"].get("before_first_version", 0), report["config"]
    return (
        f"[bold]nothing was scored[/]: {early:,} of {report['examples_out']:,} impressions closed before a first "
        f"version was served, train.bootstrap_hours ({config['bootstrap_hours']:.4g}) and then train.promotion_delay_s "
        f"({config['promotion_delay_s']}) into the log: lower them, or take a longer log"
    )


def _next_steps(folder: RunFolder) -> str:
    ouzel = _as_called()
    return f"""
Try next:
  {ouzel} up --run {folder.path} --speed 10   serve it, and keep learning from what you post; it prints what to ask
  {ouzel} verify {folder.path}                derive the parameters again from the logs, and compare
  {ouzel} run --mind DIR --out runs/mine  the same over your own MIND download (https://msnews.github.io)"""


def _as_called() -> str:
    """How the command was started, so that what is printed can be pasted: by its path, or from the PATH."""
    called = Path(sys.argv[0])
    if called.name != "ouzel" or shutil.which("ouzel") == str(called):
        return "ouzel"
    return os.path.relpath(called) if called.is_absolute() else str(called)
