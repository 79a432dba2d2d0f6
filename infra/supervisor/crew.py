"""How many processes of a kind a run has. Its result hangs on none of it."""

from dataclasses import dataclass

from infra.config import Config
from infra.errors import ConfigError
from infra.supervisor.fleet import Member


@dataclass(frozen=True, slots=True)
class Crew:
    """Of those processes that may be several: joiners, over Kafka, and replicas."""

    workers: int = 1
    replicas: int = 1

    def check(self, config: Config) -> None:
        """Raises ConfigError where the log has no room for several joiners."""
        if self.workers > 1 and not config.log.url:
            raise ConfigError(
                f"--workers {self.workers}: the log in a run folder is joined by one worker; several share the "
                "partitions of a log on Kafka: --kafka, or --log kafka://host:port"
            )

    def joiners(self, config: Config, *arguments: str) -> list[Member]:
        """The joiners; and the archive, which on Kafka they do not keep. Raises ConfigError as `check`."""
        self.check(config)
        joiners = [numbered("joiner", "join", n, *arguments) for n in range(1, self.workers + 1)]
        return [*joiners, Member("archive", "archive", arguments)] if config.log.url else joiners

    def replicas_on(self, port: int, *arguments: str) -> list[Member]:
        """The replicas, on this port and those after it."""
        return [
            numbered("replica", "serve", n, *arguments, "--port", str(port and port + n - 1))
            for n in range(1, self.replicas + 1)
        ]


ALONE = Crew()


def numbered(name: str, command: str, number: int, *arguments: str) -> Member:
    """The n-th process of a name, from 1 on."""
    if number == 1:
        return Member(name, command, arguments)
    return Member(f"{name}-{number}", command, (*arguments, "--number", str(number)))
