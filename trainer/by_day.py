"""`ouzel retrain --day`: one link of the nightly chain, made again from the archive and the link before it."""

import datetime
import time

from infra.config import Config
from infra.errors import InputError
from infra.eventlog import EventLog
from infra.paramstore.store import ParamStore
from infra.process import Process
from infra.ticks import Timeline
from stream.examples import decode_example_meta
from trainer.control import ControlLog
from trainer.nightly import NightlyChain
from trainer.schedule import Schedule, nightly_name


def retrain_one_day(process: Process, log: EventLog, graphs: dict[str, bytes], day: str) -> str:
    """Retrain `day` (YYYY-MM-DD, UTC) and say how it compares with what the run holds. Raises InputError."""
    config: Config = process.config
    timeline = config.time.build()
    cut = midnight_after(day, timeline)
    bootstrap = ControlLog(log).bootstrap()
    if bootstrap is None:
        raise InputError(f"{process.folder.path} has no first tick yet; let the trainer read some examples first")
    schedule = Schedule.of(bootstrap.tick, config, timeline)
    refuse_outside(log, day, cut, bootstrap.tick, timeline)
    if cut <= schedule.bootstrap:
        raise InputError(f"--day {day} ends before the bootstrap does; the first day to retrain comes after it")
    chain = NightlyChain(process, log, graphs)
    chain.stand_before(cut, schedule)
    started = time.monotonic()
    if not chain.retrain(cut, schedule, lambda: process.stopping):
        return "stopped"
    store = ParamStore(process.folder.path, log)
    name = nightly_name(cut)
    if store.snapshots.exists(name):
        positions = store.snapshots.meta(name).positions
        chain.save(positions, schedule)  # raises CorruptStateError where the content differs
        said = f"equal to the run's own {name}, bit for bit"
    else:
        said = f"new: kept as {chain.save(positions_before(log, cut), schedule).name}"
    rows = ", ".join(f"{slot} {len(table):,}" for slot, table in chain.state.tables.items())
    return (
        f"{day}: retrained in {time.monotonic() - started:.1f} s; {said}\nrows: {rows}\ndigest {chain.state.digest()}"
    )


def refuse_outside(log: EventLog, day: str, cut: int, first: int, timeline: Timeline) -> None:
    """Raises InputError where no tick of the day lies in the log."""
    records = [log.last_record("examples", p) for p in range(log.partitions("examples"))]
    last = max((decode_example_meta(r.meta).closed_through for r in records if r is not None), default=first)
    if cut - timeline.ticks_per_day <= last and first < cut:
        return
    span = " to ".join(
        f"{datetime.datetime.fromtimestamp(timeline.start_ms(t) / 1000, datetime.UTC):%Y-%m-%d %H:%M}"
        for t in (first, last)
    )
    raise InputError(f"--day {day} lies outside the log, which holds {span} (UTC): choose a day in it")


def positions_before(log: EventLog, cut: int) -> dict[int, int]:
    """Where `examples` reaches a cut, by partition: from there the retrain goes on after the night."""
    positions = {}
    for partition in range(log.partitions("examples")):
        at = log.start_offset("examples", partition)
        while records := log.read("examples", partition, at):
            later = [r.offset for r in records if decode_example_meta(r.meta).tick >= cut]
            at = later[0] if later else records[-1].offset + 1
            if later:
                break
        positions[partition] = at
    return positions


def midnight_after(day: str, timeline: Timeline) -> int:
    """The tick at which `day` ends. Raises InputError for anything but YYYY-MM-DD."""
    try:
        date = datetime.date.fromisoformat(day)
    except ValueError as error:
        raise InputError(f"--day {day}: write it as YYYY-MM-DD, in UTC") from error
    midnight = datetime.datetime.combine(date, datetime.time(), datetime.UTC)
    return timeline.tick_of(int(midnight.timestamp() * 1000)) + timeline.ticks_per_day
