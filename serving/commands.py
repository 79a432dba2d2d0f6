"""`ouzel serve`, `ouzel evaluate`, `ouzel report`: wires what the rest of `serving` defines."""

import math
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.errors import ConfigError
from infra.process import Process, RunFolder
from infra.speed import live_speed

if TYPE_CHECKING:
    import uvicorn

    from infra.eventlog import EventLog
    from serving.api import Services
    from serving.clock import EventClock

RunOption = Annotated[Path, typer.Option("--run", help="The run folder.")]
UntilEndOption = Annotated[
    bool, typer.Option("--until-end/--follow", help="Stop once the replay's end has passed, or go on until stopped.")
]
CLOCK_HELP = "auto: continue a finished replay; wall: no replay, wall time; off: go by the log alone."
BACKLOG = 128  # connections that the kernel holds for us
PROGRESS_S = 0.25


def serve(
    run: RunOption,
    until_end: UntilEndOption = False,
    host: Annotated[str | None, typer.Option(help="Address to bind; loopback only.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0 picks a free one.")] = None,
    clock: Annotated[
        str,
        typer.Option(help="auto: continue a finished replay; wall: no replay, wall time; off: go by the log alone."),
    ] = "auto",
    speed: Annotated[str, typer.Option(help="Event seconds a wall second once the clock goes on: 10, or 10x.")] = "1",
    number: Annotated[int, typer.Option(help="Which of several replicas this is, from 1 on.")] = 1,
) -> None:
    """Serve a run over HTTP: rank, take events, say how fresh the answers are."""
    from infra.eventlog import create_topics
    from infra.paramstore.configuration import hold_to_configuration
    from serving.api import build_app, check_host

    clock_speed = live_speed(speed)
    folder = RunFolder(run)
    config = folder.load_config()
    address = check_host(host or config.serve.host)
    with Process("replica", run, config, number=number) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config)
        event_clock = _clock(folder, log, "off" if until_end else clock, clock_speed)
        services = _services(process, log, event_clock)
        listener = _listen(address, config.serve.port if port is None else port, any_port=until_end)
        server = _server(build_app(services), services)
        url = f"http://{address}:{listener.getsockname()[1]}"
        print(f"serving {run} on {url}", flush=True)
        watcher = threading.Thread(target=_watch, args=(process, services, server, url, until_end), daemon=True)
        services.follower.start()
        services.feedback.start()
        watcher.start()
        try:
            server.run(sockets=[listener])
        finally:
            process.stopping = True
            watcher.join()
            services.feedback.stop()
            services.follower.stop()
            event_clock.close()
            log.close()
            _note(process, services)


def evaluate(run: RunOption, until_end: UntilEndOption = True) -> None:
    """Score every impression with the version that was certain to serve it, for every arm."""
    from serving.evaluator.evaluate import evaluate_run

    evaluate_run(run, until_end=until_end)


def report(run: RunOption) -> None:
    """Write report.json and report.html of a run."""
    from rich.console import Console

    from infra.supervisor.runlog import reachable
    from serving.report import write_report

    with reachable(RunFolder(run), Console(stderr=True)):
        written = write_report(run)
    print(*written["account"], f"report: {run / 'report.html'}", sep="\n")


def _clock(folder: RunFolder, log: "EventLog", mode: str, speed: float) -> "EventClock":
    from serving.clock import ClockMode, EventClock

    if mode not in list(ClockMode):
        raise ConfigError(f"--clock {mode}: one of {', '.join(ClockMode)}")
    return EventClock(log, mode=ClockMode(mode), speed=speed, lock_file=folder.path / "clock.lock")


def _services(process: Process, log: "EventLog", clock: "EventClock") -> "Services":
    from infra.paramstore.store import ParamStore
    from serving.api import Services
    from serving.fates import Fates
    from serving.feedback import Feedback
    from serving.follower import Follower
    from serving.replica import Replica
    from serving.scorer import Scorer

    config = process.config
    timeline = config.time.build()
    scorer = Scorer(config.model, timeline)
    replica = Replica(ParamStore(process.folder.path, log), config)
    follower = Follower(replica, scorer, clock, log, config, process.metrics, process.folder.path)
    return Services(
        follower=follower,
        scorer=scorer,
        feedback=Feedback(log, timeline, clock, Fates(timeline, config.join.late_s * 1000)),
        clock=clock,
        timeline=timeline,
        metrics=process.metrics,
        limits=config.serve,
        wire=config.wire,
    )


def _listen(host: str, port: int, *, any_port: bool) -> socket.socket:
    """Bind before anything is promised; `any_port` takes a free one where the configured one is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for choice in (port, 0) if any_port else (port,):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, choice))
        except OSError as error:
            listener.close()
            reason = error
        else:
            return listener
    raise ConfigError(f"cannot bind {host}:{port} ({reason}); choose another with --port or serve.port")


def _server(app: object, services: "Services") -> "uvicorn.Server":
    import uvicorn

    from serving.protocol import Gate, protocol_of

    return uvicorn.Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=protocol_of(Gate(services.limits, services.metrics)),
            log_level="error",  # what clients do wrong is counted, not logged
            access_log=False,
            ws="none",
            lifespan="off",
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=math.ceil(services.limits.keep_alive_s),
            timeout_graceful_shutdown=2,
        )
    )


def _watch(process: Process, services: "Services", server: "uvicorn.Server", url: str, until_end: bool) -> None:
    """Shows progress; ends the server with the replay's end, or when a thread that it needs has failed."""
    follower = services.follower
    while not process.stopping:
        version = follower.replica.version
        process.progress(
            url=url,
            state="serving" if version is not None else "waiting for generation 0",
            generation=-1 if version is None else version.generation,
            tick=follower.replica.through,
            lag_ticks=follower.lag_ticks(),
        )
        if until_end and (follower.ended.is_set() or follower.failure):
            break
        follower.ended.wait(PROGRESS_S) if until_end else threading.Event().wait(PROGRESS_S)
    server.should_exit = True  # also where the process was told to stop before the server took the signals


def _note(process: Process, services: "Services") -> None:
    from serving.evaluator.distribution import distribution

    replica = services.follower.replica
    process.note(
        versions_applied=replica.applied,
        catch_ups=replica.catch_ups,
        heartbeats=services.feedback.heartbeats,
        served_tick=replica.through,
        sync_s=distribution(replica.sync_s, measured_by="replica: tick closed to version served"),
        table_rows=replica.model.table_rows,
        failure=services.follower.failure,
    )
