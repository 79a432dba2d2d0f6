"""Where a run's log lies: in its folder, on somebody's Kafka, or on a broker of the run's own.

`ouzel run --log kafka://host:port` gives the run a prefix of its own, so that two runs on a broker keep apart; one
that is written out (`…/prefix`) is taken as it is. `--kafka` gives it a broker of its own: RUN/kafka, started and
stopped with the run's processes, always on the port that it got at first. The run folder keeps the full address.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console

from infra.config import Config
from infra.errors import ConfigError, RetryableError
from infra.eventlog import create_topics, open_log, remove_log
from infra.process import RunFolder

OWN = "kafka"  # as an address: a broker of the run's own


def with_address(config: Config, url: str) -> Config:
    """The configuration with another `log.url`."""
    return msgspec.structs.replace(config, log=msgspec.structs.replace(config.log, url=url))


def placed(folder: RunFolder, config: Config) -> Config:
    """The configuration with the run's full address: the one it has, or a new one. Raises ConfigError."""
    url = config.log.url
    if not url:
        return config
    before = folder.load_config().log.url if folder.config_file.is_file() else ""
    if url == OWN:
        return with_address(config, before if before and _kafka_folder_of(folder) else _own_address(folder))
    from infra.eventlog.kafka.address import parse_address

    address = parse_address(url)
    if address.prefix:
        return config
    if before and parse_address(before).brokers == address.brokers:
        return with_address(config, before)
    return with_address(config, str(address._replace(prefix=_new_prefix(folder))))


def reach(config: Config) -> None:
    """Return where somebody's Kafka answers, and a prefix that was written out has the partitions of the configuration.

    For whoever is about to make a run folder. Raises as `open_log` and `create_topics`.
    """
    if config.log.url in ("", OWN):
        return
    from infra.eventlog.kafka.address import parse_address

    log = open_log(config.log.url, config.log)
    try:
        if parse_address(config.log.url).prefix:
            create_topics(log, config.log.partitions)
    finally:
        log.close()


def _own_address(folder: RunFolder) -> str:
    from infra.supervisor.broker import free_ports

    return f"kafka://127.0.0.1:{free_ports(1)[0]}/{_new_prefix(folder)}"


def _new_prefix(folder: RunFolder) -> str:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.path.resolve().name.lower()).strip("-_")[:40]
    return f"{name or 'run'}-{secrets.token_hex(3)}"


def _kafka_folder_of(folder: RunFolder) -> bool:
    return folder.broker.is_dir()


@contextmanager
def broker_of(folder: RunFolder, console: Console) -> Iterator[Callable[[], None]]:
    """Run the run's own broker, where it has one. What it gives raises BrokerFailed where that broker has ended."""
    if not _kafka_folder_of(folder):
        yield lambda: None
        return
    from infra.eventlog.kafka.address import parse_address
    from infra.supervisor.broker import Broker

    brokers = parse_address(folder.load_config().log.url).brokers
    console.print(f"starting a Kafka broker on {brokers}, its data in {folder.broker}", highlight=False)
    with Broker(folder.broker, port=int(brokers.rpartition(":")[2])) as broker:
        yield broker.check


@contextmanager
def reachable(folder: RunFolder, console: Console) -> Iterator[None]:
    """For a command that only looks: the run's own broker, where it has one and it does not run, runs meanwhile."""
    if not _kafka_folder_of(folder) or _answers(folder):
        yield
        return
    with broker_of(folder, console):
        yield


def _answers(folder: RunFolder) -> bool:
    """Whether somebody listens where the run's own broker lies."""
    from infra.eventlog.kafka.address import parse_address
    from infra.supervisor.broker import check_port

    try:
        check_port(int(parse_address(folder.load_config().log.url).brokers.rpartition(":")[2]))
    except ConfigError:
        return True
    return False


def refuse_elsewhere(folder: RunFolder) -> None:
    """Raises ConfigError where a run has no broker of its own: a log does not move."""
    if not _kafka_folder_of(folder):
        where = folder.load_config().log.url or f"in {folder.log}"
        raise ConfigError(
            f"--kafka: the log of {folder.path} lies {where} and stays there: positions are part of it. A run over a "
            "broker of its own is made by `ouzel run --kafka`; one in a run folder goes over by infra/docs/kafka.md"
        )


def drop_log(folder: RunFolder, console: Console) -> None:
    """Remove what the run has on somebody's Kafka; where nobody answers, say that it stays."""
    url = folder.load_config().log.url
    if not url or _kafka_folder_of(folder):
        return
    try:
        remove_log(url, folder.load_config().log)
    except RetryableError as error:
        console.print(f"the topics of the earlier run stay: {error}\nlater: ouzel topics drop --log {url}")
