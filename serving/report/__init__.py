"""The report of a run: `report.json` for programs, `report.html` for people."""

from pathlib import Path

import msgspec

from infra.process import RunFolder, write_atomically
from serving.report.build import Report, build_report
from serving.report.collect import collect
from serving.report.page import page

__all__ = ["build_report", "collect", "page", "write_report"]


def write_report(run: Path) -> Report:
    """Write report.json and report.html into a run folder; the report. Raises InputError where it holds no run."""
    folder = RunFolder(run)
    report = build_report(collect(folder))
    write_atomically(folder.path / "report.json", msgspec.json.format(msgspec.json.encode(report)))
    write_atomically(folder.path / "report.html", page(report).encode())
    return report
