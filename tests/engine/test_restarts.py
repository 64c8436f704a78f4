"""Ranks that are stopped, killed, lost or hang, and go on: torchrun's restarts, and runs on other ranks."""

import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import programs
from tests.programs import ENVIRONMENT, ROOT, newest_checkpoint, records, run, torchrun, wait_for_step
from tests.recipes.in_process import cut_back, same_run
from tests.warm import Running

RECIPE = ROOT / "tests" / "tasks" / "nearest_key_recipe.py"
ARGUMENTS = ("--workers", "1", "--no-tensorboard", "--checkpoint-minutes", "0", "--probe-every", "0")
LONG = ("--epochs", "6", "6", "6")


@pytest.mark.slow
def test_two_ranks_preempted_in_mid_epoch_end_as_never_stopped(tmp_path: Path) -> None:
    """480 images in batches of 64 make 7 steps per epoch and 126 in all. Ranks confer once per second."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    process = run(RECIPE, *ARGUMENTS, *LONG, "--out", whole, ranks=2)
    assert process.returncode == 0, process.stderr
    slow = ("--checkpoint-steps", "1", "--keep-checkpoints", "5")  # leaves time for a signal within a stage
    options: dict[str, Any] = {"folder": stopped, "step": 17, "number": signal.SIGTERM, "ranks": 2}
    _, output = programs.run_until(RECIPE, *ARGUMENTS, *LONG, *slow, "--out", stopped, **options)
    status = json.loads((stopped / "status.json").read_text())
    assert status["state"] == "preempted", output
    position = newest_checkpoint(stopped)["position"]
    assert 17 <= position["run_step"] < 126 and status["step"] == position["step"]
    process = run(RECIPE, *ARGUMENTS, *LONG, "--out", stopped, ranks=2)
    assert process.returncode == 0, process.stderr
    task = newest_checkpoint(whole)["task"]
    assert (task["nearest"] >= 0).sum() > 400 and task["queue"].shape == (64, 16)
    same_run(whole, stopped, "metrics.jsonl")
    losses = [row["loss"] for row in records(whole / "metrics.jsonl")]
    assert sum(losses[11:14]) < 3 * max(losses[:3])  # the first is low, because the queue is noise


@pytest.mark.nightly
def test_ranks_do_not_each_compile(tmp_path: Path) -> None:
    """With an empty numba cache, only one of two ranks saves each compiled function."""
    arguments = (*ARGUMENTS, "--decoder", "ffcv", "--max-steps-per-stage", "1", "--out", tmp_path / "out")
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1"}
    process = programs.run_fresh(RECIPE, *arguments, ranks=2, environment=cache)
    assert process.returncode == 0, process.stderr
    saved = re.findall(r"data saved to '([^']+)'", process.stdout)
    assert saved and len(saved) == len(set(saved)), sorted(saved)
    assert "data loaded from" in process.stdout


DISTURBED = ROOT / "tests" / "engine" / "disturbed_recipe.py"
FEW = "--checkpoint-steps 2 --max-steps-per-stage 14 --timeout-s 10 --keep-checkpoints 99"
DISTURBED_ARGUMENTS = (*ARGUMENTS, *FEW.split())
LIMIT_S = 400.0


class Agent(Running):
    """A torchrun of the recipe."""

    def __init__(self, options: str, out: Path, **how: Any):
        words = torchrun(options, DISTURBED, *DISTURBED_ARGUMENTS, "--out", out)
        super().__init__(words, how.pop("environment", ENVIRONMENT), ROOT, together=True, **how)

    def ranks(self) -> list[int]:
        """Return the ids of the ranks' processes. They are forks, unlike multiprocessing's tracker."""
        own = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        (children,) = Path(f"/proc/{self.pid}/task").glob(f"{self.pid}/children")
        return [int(child) for child in children.read_text().split()
                if Path(f"/proc/{child}/cmdline").read_bytes() == own]  # fmt: skip

    def kill(self) -> None:
        """Kill torchrun and its ranks, as if their machine was lost."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    started = list[Agent]()
    yield started
    for agent in started:
        agent.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two ranks that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    run_disturbed(out, ranks=2)
    return out


def run_disturbed(out: Path, ranks: int) -> str:
    """Train in `out` to the end, and return what goes to standard error."""
    process = run(DISTURBED, *DISTURBED_ARGUMENTS, "--out", out, ranks=ranks)
    assert process.returncode == 0, process.stderr
    return process.stderr


def assert_close(out: Path, whole: Path) -> None:
    """Check that a run saw the same images in the same views, and learned the same but for rounding."""
    state, expected = newest_checkpoint(out), newest_checkpoint(whole)
    assert state["position"]["run_step"] == expected["position"]["run_step"]
    torch.testing.assert_close(state["backbone"], expected["backbone"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(state["train_step"], expected["train_step"], rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in records(path / "metrics.jsonl")] for path in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_after_kills_torchrun_restarts_and_the_run_ends_as_never_disturbed(
    whole: Path, tmp_path: Path, agents: list[Agent]
) -> None:
    """Each of the ranks is killed once."""
    out = tmp_path / "out"
    agent = Agent("--standalone --nproc-per-node=2 --max-restarts=2", out)
    agents.append(agent)
    for rank, step in enumerate((11, 27)):
        wait_for_step(out, step, lambda: agent.code, LIMIT_S)
        ranks = agent.ranks()
        assert len(ranks) == 2, agent.texts
        os.kill(ranks[rank], signal.SIGKILL)
    code, text, _ = agent.wait(LIMIT_S)
    assert code == 0 and text.count("resuming ") == 2 and "another process trains" not in text, text
    same_run(whole, out, "metrics.jsonl")
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_four_ranks_go_on_with_the_same_bits(tmp_path: Path) -> None:
    """A sum over two ranks has the same bits in any order, one over four has not."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_disturbed(whole, ranks=4)
    cut_back(whole, out, 18)
    run_disturbed(out, ranks=4)
    same_run(whole, out, "metrics.jsonl")


@pytest.mark.slow
def test_one_rank_goes_on_where_two_stopped(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut_back(whole, out, 18)
    assert "world_size 2 → 1" in run_disturbed(out, ranks=1)
    assert_close(out, whole)


@pytest.mark.slow
def test_a_rank_that_hangs_in_a_step_leaves_the_step_before(whole: Path, tmp_path: Path) -> None:
    """Rank 0 hangs in step 6 of stage 1 and ignores signals. Rank 1 waits for it."""
    words = torchrun(2, DISTURBED, *DISTURBED_ARGUMENTS, "--out", tmp_path)
    _, output, errors = Running(words, ENVIRONMENT | {"HANG_AT": "6"}, ROOT).wait(LIMIT_S)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {"state": "preempted", "stage": 1, "step": 5, "reason": "interrupted"}, errors
    assert newest_checkpoint(tmp_path)["position"]["run_step"] == 5
    assert "after 5 steps of the run, without waiting" in output and "rank 1" not in errors
    run_disturbed(tmp_path, ranks=2)
    same_run(whole, tmp_path, "metrics.jsonl")


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
        "--nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --rdzv-backend=c10d --rdzv-id=elastic "
        f"--rdzv-endpoint=127.0.0.1:{port} --local-addr=127.0.0.1 "
        "--rdzv-conf=last_call_timeout=10,join_timeout=300"
    )
    for _ in range(2):
        agents.append(Agent(options, out))
        time.sleep(1)
    wait_for_step(out, 17, lambda: agents[0].code, LIMIT_S)
    agents[1].kill()
    code, *_ = agents[0].wait(LIMIT_S)
    texts = "".join(agent.texts[0] for agent in agents)
    assert code == 0 and "world_size 2 → 1" in texts, texts
    assert_close(out, whole)
