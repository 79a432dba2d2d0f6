"""Who brings the records to the joiner: its own loop, or Faust. What comes out is the same."""

from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from infra.config import Config
from infra.errors import ConfigError
from infra.eventlog import EventLog, GroupLog
from infra.metrics import Metrics
from stream.join.base import Worker
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker


class Engine(StrEnum):
    """As `--engine` says it."""

    OWN = "own"
    FAUST = "faust"


def open_worker(
    engine: Engine,
    log: EventLog,
    config: Config,
    *,
    folder: Path,
    metrics: Metrics,
    max_lag_records: int,
    stopping: Callable[[], bool],
) -> Worker:
    """A worker of this engine; `folder` is the run's. Raises ConfigError where the engine cannot join this log."""
    settings = JoinSettings.of(config)
    if engine is Engine.OWN:
        return JoinWorker(
            log,
            settings,
            grouped=isinstance(log, GroupLog),
            wire=config.wire,
            max_lag_records=max_lag_records,
            stopping=stopping,
        )
    if not config.log.url:
        raise ConfigError("--engine faust: Faust reads Kafka; this run's log lies in its folder: use the own engine")
    if find_spec("faust") is None:
        raise ConfigError("--engine faust: faust-streaming is not installed; pip install 'ouzel[faust]'")
    from infra.eventlog.kafka import KafkaLog
    from stream.join.faust.engine import FaustWorker, start_faust

    assert isinstance(log, KafkaLog)
    faust = start_faust(log, config.log.kafka, folder / "faust", metrics=metrics)
    return FaustWorker(
        log,
        settings,
        faust,
        wire=config.wire,
        metrics=metrics,
        max_lag_records=max_lag_records,
        stopping=stopping,
    )
