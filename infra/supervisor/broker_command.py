"""`ouzel broker`: a real Kafka broker on this machine until Ctrl-C, for people without a cluster and without Docker."""

import time
from pathlib import Path
from typing import Annotated

import typer

from infra.supervisor.broker import Broker
from infra.supervisor.commands import stoppable


def broker(
    folder: Annotated[Path, typer.Option("--folder", help="Where its data lies; started again, it goes on with it.")],
    port: Annotated[int, typer.Option("--port", help="Port of the first node, on 127.0.0.1.")] = 9092,
    nodes: Annotated[int, typer.Option("--nodes", help="1, or 3 for a quorum that survives the loss of one.")] = 1,
) -> None:
    """Start Apache Kafka, say its address, stop it with Ctrl-C."""
    stoppable()
    print(f"starting Kafka in {folder}", flush=True)
    try:
        with Broker(folder, nodes=nodes, port=port) as running:
            print(
                f"Kafka answers at {running.address}: --log kafka://{running.address}/PREFIX; Ctrl-C stops it",
                flush=True,
            )
            _until_stopped(running)
    except KeyboardInterrupt:
        pass
    print(f"stopped; the same command goes on with {folder}", flush=True)


def _until_stopped(running: Broker) -> None:
    try:
        while True:
            time.sleep(0.5)
            running.check()
    except KeyboardInterrupt:
        print("stopping", flush=True)
