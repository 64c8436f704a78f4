"""Training on two network namespaces as on two machines: delay, unequal ranks, lost links and machines."""

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.engine.test_restarts import ENVIRONMENT, LIMIT_S, Agent, run_disturbed
from tests.network import ADDRESSES, DEVICE, Link, enter, two_machines, why_not
from tests.programs import wait_for_step
from tests.recipes.in_process import same_run

pytestmark = pytest.mark.nightly
RANKS = (3, 1)  # of each machine
TIMEOUT_S = 10.0  # of DISTURBED_ARGUMENTS


@pytest.fixture
def link() -> Iterator[Link]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines(delay_s=0.001) as link:
        yield link
        assert link.num_carried > 100


def machine(link: Link, number: int, out: Path) -> Agent:
    """Start torchrun on one of the machines, with a folder of its own."""
    options = (
        f"--nnodes=2 --node-rank={number} --nproc-per-node={RANKS[number]} --max-restarts=0 "
        f"--master-addr={ADDRESSES[0]} --master-port=29511 --local-addr={ADDRESSES[number]}"
    )
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": DEVICE}
    return Agent(options, out, environment=environment, prepare=partial(enter, link.names[number]))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "first", tmp_path / "second"


@pytest.fixture
def machines(link: Link, folders: tuple[Path, Path]) -> Iterator[list[Agent]]:
    started = [machine(link, number, out) for number, out in enumerate(folders)]
    yield started
    for agent in started:
        agent.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of four ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    run_disturbed(out, ranks=sum(RANKS))
    return out


def assert_equal(agents: list[Agent], out: Path, whole: Path) -> None:
    """Check that both machines end well, and as the undisturbed run."""
    assert [agent.wait(LIMIT_S)[0] for agent in agents] == [0, 0], [agent.texts for agent in agents]
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    same_run(whole, out, "metrics.jsonl")


def test_unequal_machines_train_as_one(
    machines: list[Agent], folders: tuple[Path, Path], whole: Path
) -> None:
    assert_equal(machines, folders[0], whole)


def test_a_link_that_is_down_for_five_seconds(
    link: Link, machines: list[Agent], folders: tuple[Path, Path], whole: Path
) -> None:
    """The run goes on."""
    wait_for_step(folders[0], 11, lambda: machines[0].code, LIMIT_S)
    link.is_up = False
    time.sleep(5)
    link.is_up = True
    assert_equal(machines, folders[0], whole)


def test_a_machine_that_is_killed_ends_the_other_in_one_line(
    link: Link, machines: list[Agent], folders: tuple[Path, Path], whole: Path
) -> None:
    """The other ends within its limit, and the same command, on both, goes on to the same end."""
    wait_for_step(folders[0], 17, lambda: machines[0].code, LIMIT_S)
    machines[1].kill()
    killed_at = time.monotonic()
    code, text, _ = machines[0].wait(LIMIT_S)
    assert code and time.monotonic() - killed_at < 6 * TIMEOUT_S, text
    lines = [line for line in text.splitlines() if "has gone or hangs" in line]
    assert lines and all("goes on from" in line for line in lines), text
    again = [machine(link, number, out) for number, out in enumerate(folders)]
    assert_equal(again, folders[0], whole)
