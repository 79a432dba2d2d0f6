"""The brokers go away in the middle of a whole run: it pauses, says so, and goes on by itself to the same result."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from infra.errors import OuzelError
from infra.eventlog.kafka.address import parse_address
from infra.supervisor.broker import Broker
from tests.brokers import or_skip

from .conftest import Run, figures
from .whole_run import VERSIONS, WholeRun, whole_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SLOWLY = "replay.speed='3000x'"  # a minute: all are in the middle of it when the first versions are there
SOME_VERSIONS = 40
NOTICED_S = 15.0  # a request gives up after 5 s; whoever asks less often than all the time notices a little later
BACK_S = 20.0  # ... to the next version, after the brokers are back
RESTING = 0.15  # of a core, at most, while nobody answers


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Broker]:
    with broker_or_skip(tmp_path, 1) as broker:
        yield broker


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Broker]:
    with broker_or_skip(tmp_path, 3) as broker:
        yield broker


def broker_or_skip(folder: Path, nodes: int) -> Broker:
    try:
        return Broker(folder / "kafka", nodes=nodes)
    except OuzelError as error:
        or_skip(error)
        raise


def in_the_middle(run: WholeRun) -> float:
    """Wait until the trainer has committed some versions; how many."""
    run.until("in the middle", lambda: run.metric("trainer", VERSIONS) >= SOME_VERSIONS)
    assert run.alive() == run.names, "everyone is still at work"
    return run.metric("trainer", VERSIONS)


def noticed(run: WholeRun, *groups: list[str]) -> set[str]:
    """Wait until one of each group has said in its metric that nothing answers, now or a moment ago; all who have."""
    seen: set[str] = set()

    def all_groups() -> bool:
        seen.update(name for name, waited_s in run.waiting_s().items() if waited_s)
        return all(seen.intersection(group) for group in groups)

    run.until("noticed", all_groups, NOTICED_S)
    return seen


def goes_on(run: WholeRun, versions: float) -> float:
    """Wait until nobody waits any more and versions come again; the seconds that it took."""
    took_s = run.until("gone on", lambda: run.metric("trainer", VERSIONS) > versions + 2, BACK_S)
    return took_s + run.until("well", lambda: not any(run.waiting_s().values()), BACK_S)


def check_whole(run: WholeRun, straight: Run, versions: float, waited: set[str]) -> None:
    """The result is that of the undisturbed run, nobody was started twice, and the fault met unfinished work.

    Whoever waited has said so, and that it is over, and not again and again.
    """
    report = run.finish()
    assert figures(report) == figures(straight.report)
    assert run.lives() == dict.fromkeys(run.names, 1)
    assert versions < run.stats("trainer")["notes"]["learned"]["versions"] / 2
    for name, lines in run.said().items():
        lost, back = (sum(text in line for line in lines) for text in ("no answer (", "answers again"))
        assert (name in waited) <= lost == back <= 3, f"{name} said:\n" + "\n".join(lines)


def lines_each(run: WholeRun) -> dict[str, int]:
    """How much each process has said."""
    return {name: len(lines) for name, lines in run.said().items()}


def stay_away(run: WholeRun, away_s: float) -> set[str]:
    """Nobody answers for so long: everyone waits, rests, and is silent; replicas answer from what they hold."""
    started = time.monotonic()
    waited = noticed(run, *([name] for name in run.names))
    cpu, lines = run.cpu_s(), lines_each(run)
    for name in run.api:
        assert len(run.rank(name)["items"]) == 3
    time.sleep(max(0.0, started + away_s - time.monotonic()))
    waiting_s = run.waiting_s()
    assert min(waiting_s.values()) > 0, waiting_s
    if away_s:
        spent = {name: (s - cpu[name]) / (away_s - NOTICED_S) for name, s in run.cpu_s().items()}
        assert max(spent.values()) < RESTING, spent
        said = {name: n - lines[name] for name, n in lines_each(run).items()}
        assert max(said.values()) <= 3, run.said()
    assert run.alive() == run.names
    return waited


def test_a_broker_that_is_cut_off_for_30_s_pauses_the_loop(
    one: Broker, straight: Run, mind: Path, tmp_path: Path
) -> None:
    with whole_run(tmp_path / "run", mind, one.address, SLOWLY) as run:
        versions = in_the_middle(run)
        one.pause()
        waited = stay_away(run, 30.0)
        one.resume()
        print(f"went on after {goes_on(run, versions):.1f} s")
        check_whole(run, straight, versions, waited)


@pytest.mark.parametrize("away_s", [0.0, 30.0], ids=["short", "30s"])
def test_a_broker_that_is_killed_and_restarted_pauses_the_loop(
    one: Broker, straight: Run, mind: Path, tmp_path: Path, away_s: float
) -> None:
    """0: until everyone has noticed."""
    with whole_run(tmp_path / "run", mind, one.address, SLOWLY) as run:
        versions = in_the_middle(run)
        one.kill()
        waited = stay_away(run, away_s)
        one.start()
        print(f"went on after {goes_on(run, versions):.1f} s")
        check_whole(run, straight, versions, waited)


def test_a_leader_of_three_that_is_killed_for_good_pauses_the_loop(
    three: Broker, straight: Run, mind: Path, tmp_path: Path
) -> None:
    with whole_run(tmp_path / "run", mind, three.address, SLOWLY) as run:
        versions = in_the_middle(run)
        led = leads(three, run)
        victim = led["versions"][0]
        assert victim in led["events"]
        assert victim in led["examples"]
        three.kill(victim)
        started = time.monotonic()
        waited = noticed(run, ["joiner", "joiner-2"], ["trainer"])
        goes_on(run, versions)
        print(f"went on {time.monotonic() - started:.1f} s after the kill")
        assert victim not in {number for numbers in leads(three, run).values() for number in numbers}
        check_whole(run, straight, versions, waited)


def leads(broker: Broker, run: WholeRun) -> dict[str, list[int]]:
    """The node that leads each partition, by topic."""
    prefix = parse_address(run.folder.load_config().log.url).prefix
    topics = AdminClient({"bootstrap.servers": broker.address, "log_level": 0}).list_topics(timeout=10).topics
    return {
        name.removeprefix(f"{prefix}."): [topic.partitions[n].leader for n in sorted(topic.partitions)]
        for name, topic in topics.items()
        if name.startswith(f"{prefix}.")
    }
