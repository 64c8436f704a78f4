"""torchrun starts the ranks anew after one was killed, and they go on from the last checkpoint."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.programs import ENVIRONMENT, ROOT, digests, newest_checkpoint, newest_step, run

RECIPE = ROOT / "tests" / "engine" / "elastic_recipe.py"
ARGUMENTS = (
    *("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0", "--checkpoint-steps", "2"),
    *("--max-steps-per-stage", "14", "--timeout-s", "10", "--keep-checkpoints", "99"),
)
LIMIT_S = 400.0


class Agent:
    """A torchrun in a session of its own, with its output in a file."""

    def __init__(self, options: Sequence[str], out: Path, log: Path):
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", *options, str(RECIPE)),
                    *(*ARGUMENTS, "--out", str(out)),
                ],
                cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def ranks(self) -> dict[str, int]:
        """Return the ids of the ranks' processes, by the number of restarts and the rank."""
        found = {}
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in path.read_text().split():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
                    variables = dict(word.split("=", 1) for word in words if "=" in word)
                    found[variables["TORCHELASTIC_RESTART_COUNT"] + "-" + variables["RANK"]] = int(child)
        return found

    def kill(self) -> None:
        """Kill torchrun and its ranks, as if their machine was lost."""
        for number in (*self.ranks().values(), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[Agent]]:
    started = list[Agent]()
    yield started
    for agent in started:
        if agent.process.poll() is None:
            agent.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    process = run(RECIPE, *ARGUMENTS, "--out", out, ranks=2)
    assert process.returncode == 0, process.stderr
    return out


def wait_for_step(out: Path, step: int, agent: Agent) -> None:
    deadline = time.monotonic() + LIMIT_S
    while newest_step(out) < step:
        assert agent.process.poll() is None and time.monotonic() < deadline, agent.log.read_text()
        time.sleep(0.01)


def assert_close(out: Path, whole: Path) -> None:
    """Check that a run saw the same images in the same views, and learned the same but for rounding."""
    state, expected = newest_checkpoint(out), newest_checkpoint(whole)
    assert state["position"]["run_step"] == expected["position"]["run_step"]
    torch.testing.assert_close(state["backbone"], expected["backbone"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(state["train_step"], expected["train_step"], rtol=1e-3, atol=1e-4)
    rows, expected_rows = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (out, whole)
    )
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected_rows], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_kill_torchrun_restarts_and_the_run_ends_as_never_disturbed(
    rank: int, whole: Path, tmp_path: Path, agents: list[Agent]
) -> None:
    out = tmp_path / "out"
    agent = Agent(("--standalone", "--nproc-per-node=2", "--max-restarts=1"), out, tmp_path / "log")
    agents.append(agent)
    wait_for_step(out, 17, agent)
    os.kill(agent.ranks()[f"0-{rank}"], signal.SIGKILL)
    assert agent.process.wait(LIMIT_S) == 0, agent.log.read_text()
    text = agent.log.read_text()
    assert text.count("resuming ") == 1 and "another process trains" not in text, text
    assert digests(newest_checkpoint(out)) == digests(newest_checkpoint(whole))
    assert (out / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_one_rank_goes_on_where_two_stopped(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    name = "step-00000018.pt"
    (out / "checkpoints" / name).write_bytes((whole / "checkpoints" / name).read_bytes())
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:18]))
    process = run(RECIPE, *ARGUMENTS, "--out", out, ranks=1)
    assert process.returncode == 0 and "world_size 2 → 1" in process.stderr, process
    assert_close(out, whole)


@pytest.mark.nightly
def test_a_machine_is_lost_and_the_other_goes_on_alone(
    whole: Path, tmp_path: Path, agents: list[Agent]
) -> None:
    """Two torchruns stand for two machines. The first one is also where they meet."""
    out = tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        *(
            "--nnodes=1:2",
            "--nproc-per-node=1",
            "--max-restarts=3",
            "--rdzv-backend=c10d",
            "--rdzv-id=elastic",
        ),
        *(f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"),
        "--rdzv-conf=last_call_timeout=10,join_timeout=300",
    )
    for number in range(2):
        agents.append(Agent(options, out, tmp_path / f"log-{number}"))
        time.sleep(1)
    wait_for_step(out, 17, agents[0])
    agents[1].kill()
    assert agents[0].process.wait(LIMIT_S) == 0, agents[0].log.read_text()
    texts = "".join(agent.log.read_text() for agent in agents)
    assert "world_size 2 → 1" in texts, texts
    assert_close(out, whole)
