"""A finished run that went on live is not replayed to an end that it no longer has."""

from pathlib import Path

import pytest

from infra.config import Config, dump_config
from infra.errors import ConfigError
from infra.eventlog import create_topics, open_log
from infra.paramstore.store import ParamStore
from infra.process import RunFolder
from infra.supervisor.runs import refuse_gone_on


def note(folder: RunFolder, tick: int, *, end: bool) -> None:
    log = open_log(folder.log, Config().log)
    create_topics(log, 2)
    publisher = ParamStore(folder.path, log).publisher()
    publisher.progress(tick, positions={0: 0, 1: 0}, items_offset=0, control_offset=0, timestamp_ms=0, end=end)
    publisher.flush()
    publisher.close()
    log.close()


def test_a_finished_run_may_be_run_again_until_it_goes_on_live(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(dump_config(Config()))
    note(folder, 7, end=False)
    refuse_gone_on(folder)  # interrupted: no report yet
    (tmp_path / "report.json").write_text("{}")
    note(folder, 8, end=True)
    refuse_gone_on(folder)
    note(folder, 9, end=False)
    with pytest.raises(ConfigError, match="ouzel up"):
        refuse_gone_on(folder)
