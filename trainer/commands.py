"""`ouzel train` and `ouzel retrain`: where the trainer's objects are wired.

The trainer runs without torch; the retrain is the one process that has it.
"""

from pathlib import Path
from typing import Annotated

import typer

from infra.process import Process, RunFolder

RunOption = Annotated[Path, typer.Option("--run", help="The run folder.")]
UntilEndOption = Annotated[
    bool, typer.Option("--until-end/--follow", help="Stop once the replay's end was learned, or go on until stopped.")
]


def train(run: RunOption, until_end: UntilEndOption = False) -> None:
    """Learn each tick as it closes and publish it as a version."""
    from infra.eventlog import create_topics
    from infra.paramstore.configuration import hold_to_configuration
    from trainer.loop import TrainLoop

    config = RunFolder(run).load_config()
    with Process("trainer", run, config) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config, first=True)
        loop = TrainLoop(process, log, until_end=until_end)
        loop.run()
        loop.note()
        loop.close()
        log.close()


def retrain(
    run: RunOption,
    until_end: UntilEndOption = False,
    day: Annotated[
        str | None, typer.Option(help="Retrain this one day (2019-11-10) of the archive, say what came out, and stop.")
    ] = None,
) -> None:
    """Retrain each day as it completes, and carry the candidate to its promotion."""
    import torch

    from infra.eventlog import create_topics
    from infra.paramstore.configuration import hold_to_configuration
    from trainer.export import export_graphs
    from trainer.retrain import shape_of
    from trainer.retrain_loop import RetrainLoop

    torch.set_num_threads(1)  # the same bits whatever the machine has
    config = RunFolder(run).load_config()
    with Process("retrain" if day is None else "retrain-day", run, config) as process:
        log = process.open_log()
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config)
        process.progress(state="exporting the net", force=True)
        graphs = export_graphs(shape_of(config.model), graph_cache())
        if day is not None:
            from trainer.by_day import retrain_one_day

            print(retrain_one_day(process, log, graphs, day))
        else:
            loop = RetrainLoop(process, log, graphs, until_end=until_end)
            loop.run()
            process.note(retrained=loop.retrained)
            loop.close()
        log.close()


def graph_cache() -> Path:
    """Where exported graphs are kept between runs, by digest."""
    from infra.caches import cache_folder

    return cache_folder("graphs")
