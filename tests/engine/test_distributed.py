"""Ranks, their world and record, signals, and restarts by torchrun."""

import contextlib
import itertools
import math
import os
import platform
import re
import signal
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine import distributed, step_modes
from fastpsl.engine.distributed import (
    StopSignal,
    World,
    choose_device,
    environment,
    join_world,
    leave_world,
    total_over_ranks,
)
from fastpsl.engine.gpu_failures import explained
from fastpsl.engine.plan import make_plan
from fastpsl.engine.reporter import Reporter
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.engine.step_modes import GraphChoice, StageChoices
from fastpsl.engine.task import Task
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.views import Input, train_view
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.distill import Distill
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.rotation import Rotation
from fastpsl.tasks.sslpp.aet import AET
from fastpsl.tasks.sslpp.context import Context
from fastpsl.tasks.sslpp.rotnet import RotNet
from fastpsl.tasks.sslpp.sslpp import Proxy, SSLPlusPlus
from tests import threaded_world
from tests.engine.steps import assert_alike, make_step, plain_sgd, rank_of, snapshot
from tests.engine.tiny import TinyNet, noise_batch, one_process, part_of, teacher_of
from tests.evaluation.test_teacher_features import stored_task
from tests.programs import records
from tests.tasks.nearest_key_recipe import NearestKey
from tests.warm import on_ranks, results_of_ranks


def test_devices_are_chosen_or_refused() -> None:
    assert choose_device("cpu", 0) == torch.device("cpu")
    with pytest.raises(ValueError, match="auto, cpu, cuda"):
        choose_device("tpu", 0)
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="nproc-per-node"):
            choose_device("cuda", torch.cuda.device_count())
    else:
        assert choose_device("auto", 0) == torch.device("cpu")
        with pytest.raises(ValueError, match="--device cpu"):
            choose_device("cuda", 0)


def test_where_there_are_two_gpus_a_rank_has_its_own_and_the_cpu_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cpu", 1) == torch.device("cpu")
    assert [choose_device(name, 1) for name in ("auto", "cuda")] == 2 * [torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="local rank 2, but 2 CUDA devices"):
        choose_device("auto", 2)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 7, 8, 9])
def test_a_fact_on_any_rank_reaches_all_in_log2_hops(num_ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pattern of facts, of nine ranks those with one, all or no fact, and some."""
    patterns = [*itertools.product((False, True), repeat=num_ranks)]
    if len(patterns) > 64:
        patterns = [pattern for pattern in patterns if sum(pattern) in (0, 1, num_ranks)] + patterns[::37]
    hops = Counter[int]()

    def answers(rank: int, size: int) -> list[bool]:
        world = rank_of(rank, size)
        return [distributed.on_any_rank(world, pattern[rank]) for pattern in patterns]

    receive = threaded_world.Messages.recv

    def counted(messages: threaded_world.Messages, tensor: Tensor, source: int) -> None:
        hops[dist.get_rank()] += 1
        receive(messages, tensor, source)

    monkeypatch.setattr(threaded_world.Messages, "recv", counted)
    found = threaded_world.results_of_threads(answers, num_ranks)
    assert all(of_rank == [any(pattern) for pattern in patterns] for of_rank in found)
    wanted = len(patterns) * math.ceil(math.log2(num_ranks))
    assert all(hops[rank] == wanted for rank in range(num_ranks))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop_signal = StopSignal(one_process(), checkpoint_minutes=0)
    assert stop_signal.after_step()[:2] == (False, False)
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # Ctrl-C reaches a process twice under torchrun
    decision = stop_signal.after_step()
    assert decision.stop and not decision.checkpoint and 0 < decision.seconds < math.inf
    stop_signal.close()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_ignored_to_the_end_of_the_process(number: signal.Signals) -> None:
    """srun sends SIGTERM to the ranks that are left, which would die of it if the handlers came back."""
    before = signal.getsignal(number)
    stop_signal = StopSignal(one_process(), checkpoint_minutes=0)
    try:
        stop_signal.ignore()
        stop_signal.close()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_ranks_ask_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 0.1 s, every tenth step communicates. The other steps decide nothing."""
    now, times = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    asked = lambda flags: times.append(now[0]) or flags  # type: ignore[func-returns-value]
    monkeypatch.setattr("fastpsl.engine.distributed.highest_over_ranks", asked)
    stop_signal = StopSignal(World(0, 2, 0, 2, torch.device("cpu")), checkpoint_minutes=0)
    for _ in range(100):
        now[0] += 0.1
        stop_signal.after_step()
    now[0] += 60.0
    stop_signal.other_pace()  # steps of a minute follow, and each of them communicates
    for _ in range(3):
        now[0] += 60.0
        assert stop_signal.after_step().seconds == 60.0 and times.pop() == now[0]
    stop_signal.close()
    gaps = [b - a for a, b in pairwise(times)]
    assert 9 <= len(times) <= 12 and all(0.85 < gap < 1.05 for gap in gaps)


def test_checkpoints_are_due_by_minutes_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stop_signal, due = StopSignal(one_process(), checkpoint_minutes=2.0), []
    for seconds in (60.0, 59.0, 1.0, 119.0, 1.0):
        now[0] += seconds
        due.append(stop_signal.after_step().checkpoint)
        if due[-1]:
            now[0] += 30.0  # of writing
            stop_signal.checkpointed()
    stop_signal.close()
    assert due == [False, False, True, False, True]
    never = StopSignal(one_process(), checkpoint_minutes=0.0)
    now[0] += 1e6
    assert not never.after_step().checkpoint
    never.close()


def test_ranks_with_short_steps_ask_at_every_64th(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands still, so that steps seem to take no time."""
    asked, made = list[int](), [0]
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    ask = lambda flags: asked.append(made[0]) or flags  # type: ignore[func-returns-value]
    monkeypatch.setattr("fastpsl.engine.distributed.highest_over_ranks", ask)
    stop_signal = StopSignal(World(0, 2, 0, 2, torch.device("cpu")), checkpoint_minutes=0)
    for made[0] in range(1, 200):
        stop_signal.after_step()
    stop_signal.close()
    assert asked == [1, 65, 129, 193]


def test_a_process_knows_its_place_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group, torchrun's other numbers are still those of its environment."""
    for name, value in (("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert join_world("cpu", timeout_s=1) == World(0, 1, 3, 4, torch.device("cpu"))
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert join_world("cpu", timeout_s=1) == one_process()


def test_ranks_wait_for_each_other_as_long_as_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, joined = list[float](), list[tuple[str, int, int]]()

    def rendezvous(url: str, timeout: timedelta) -> Iterator[tuple[dist.Store, int, int]]:
        waits.append(timeout.total_seconds())
        yield dist.HashStore(), 1, 2

    def join(backend: str, timeout: timedelta, store: dist.Store, rank: int, world_size: int) -> None:
        waits.append(timeout.total_seconds())
        joined.append((backend, rank, world_size))

    monkeypatch.setattr(distributed, "rendezvous", rendezvous)
    monkeypatch.setattr(distributed, "_stores", {})
    monkeypatch.setattr(distributed, "_new_name", lambda *_: "world")  # the other rank is not here
    monkeypatch.setattr("torch.distributed.init_process_group", join)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda value: None)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert join_world("cpu", timeout_s=7.5) == World(1, 2, 1, 2, torch.device("cpu"))
    assert waits == [7.5, 7.5] and joined == [("gloo", 1, 2)]


def test_a_total_is_a_copy() -> None:
    counts = torch.arange(3)
    total = total_over_ranks(counts)
    total += 1
    assert counts.tolist() == [0, 1, 2] and total.tolist() == [1, 2, 3]


def be_rank(rank: int, port: int) -> None:
    """Set torchrun's variables for a rank of two, whose store torchrun keeps at `port`."""
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip


def join_again(rank: int, port: int, start: int) -> None:
    """Join a world of two, whose store torchrun keeps, and end without leaving it. Rank 1 comes late."""
    be_rank(rank, port)
    time.sleep(rank * start)
    world = join_world("cpu", timeout_s=60)
    values = torch.tensor([rank + 1.0])
    dist.all_reduce(values)
    assert world.rank == rank and values.item() == 3
    os._exit(0)


def test_ranks_that_torchrun_restarts_do_not_meet_those_before() -> None:
    """torchrun's store still has the addresses of the ranks before, which nobody answers."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for start in range(2):
        on_ranks(join_again, (store.port, start), 2)


def join_and_end(rank: int, port: int, path: str) -> None:
    """Join a world of two and end at once. Rank 1's joining ends late, and leaves a file."""
    be_rank(rank, port)
    join = dist.init_process_group

    def join_late(*arguments: Any, **named: Any) -> None:
        join(*arguments, **named)
        time.sleep(rank)
        Path(path, str(rank)).touch()

    dist.init_process_group = join_late
    join_world("cpu", timeout_s=60)
    assert len(os.listdir(path)) == 2
    os._exit(0)


def test_a_rank_ends_no_earlier_than_all_have_joined(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    on_ranks(join_and_end, (store.port, str(tmp_path)), 2)


TASKS = {
    "jigsaw": 2, "nearest_key": 2, "rotation": 2, "all_rotations": 3, "simclr": 3, "sslpp_rotation": 1,
    "sslpp_aet": 1, "sslpp_context": 1, "distill": 1, "distill_stored": 1,
}  # the level of each task  # fmt: skip
PROXIES: dict[str, Callable[[], Proxy]] = {
    "sslpp_rotation": lambda: RotNet(32),
    "sslpp_aet": lambda: AET("projective", 32),
    "sslpp_context": lambda: Context(0.5, 32),
}
GLOBAL_BATCH = 8
S2 = make_plan("psl", (1, 1, 1))[1]


def make_task(name: str) -> Task:
    if name == "jigsaw":
        permutations = permutation_set(9, [6, 12, 24]).permutations
        sizes = {"shorter_px": 60, "cell_px": 18, "tile_px": 16, "embedding_width": 4}
        return Jigsaw(permutations, (6, 12, 24), permutations_per_image=2, **sizes)
    if name == "rotation":
        return Rotation(shorter_px=36, size_px=32)
    if name == "all_rotations":
        return Rotation(shorter_px=36, size_px=32, rotations_per_image="all")
    if name == "simclr":
        return SimCLR(GLOBAL_BATCH, size_px=32, temperature=0.1, embedding_width=4)
    if name == "distill":
        return Distill(teacher_of(1, 40), 5, size_px=32)
    if name == "distill_stored":
        rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(3)).half()
        return stored_task(teacher_of(1, 40), rows, queue_size=6)
    if name in PROXIES:
        labels = np.arange(GLOBAL_BATCH) % 3
        plain = train_view(Input(), 32, "padded")
        return SSLPlusPlus(PROXIES[name](), plain, weight=1.0, num_classes=3, labels=labels)
    return NearestKey(num_samples=GLOBAL_BATCH)


def weights_after_a_step(name: str, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return the weights after a step of rate 1, which are the initial ones minus the gradient."""
    torch.manual_seed(0)
    backbone, task, world = TinyNet(), make_task(name), rank_of(rank, world_size)
    stage = replace(S2, level=TASKS[name])
    train_step = make_step(stage, task, backbone, world=world, optimiser=plain_sgd)
    module = train_step.module.eval()
    # Only the flag is set, without the head's BatchNorms: in eval mode, there is no loss of pseudo-labels,
    # and no key is kept.
    module.head.training = True
    task.start_stage(stage, module.blocks, module.head)  # so that copies are in eval mode, too
    train_step.step([part_of(noise_batch(train_step.views, GLOBAL_BATCH), rank, world_size)], lr=1.0)
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def running_statistics(rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Return the blocks' buffers before two steps, after them, and after a validation pass.

    The ranks start with different buffers.
    """
    torch.manual_seed(0)
    backbone = TinyNet()
    for buffer in backbone.buffers():
        buffer += rank
    train_step = make_step(S2, make_task("rotation"), backbone, world=rank_of(rank, world_size))
    blocks, views = train_step.module.blocks, train_step.views
    batch = part_of(noise_batch(views, GLOBAL_BATCH), rank, world_size)
    buffers = {"before": [buffer.clone() for buffer in blocks.buffers()]}
    for _ in range(2):
        train_step.step([batch], lr=0.1)
    buffers["stepped"] = [buffer.clone() for buffer in blocks.buffers()]
    train_step.evaluate([batch], views, lambda: False)
    buffers["evaluated"] = list(blocks.buffers())
    return buffers


def captured_steps(rank: int, world_size: int, folder: Path, kind: str) -> None:
    """Train 16 steps, of which the last five are to be captured. `kind` is a fault of the replays."""
    torch.set_num_threads(1)
    limit = timedelta(seconds=5)
    place = f"file://{folder}/{kind}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world_size, timeout=limit)
    num_replays = itertools.count(1)

    def capture(compute: Callable[[], StepMetrics], *_: Any) -> Callable[[], StepMetrics]:
        def replay() -> StepMetrics:
            is_trained = next(num_replays) > step_modes.NUM_COMPARED + 1
            if kind in ("killed", "hangs") and rank == 1 and is_trained:
                time.sleep(0 if kind == "killed" else 8)
                os._exit(0)
            with train_step.forward.no_sync() if kind == "no exchange" else contextlib.nullcontext():  # type: ignore[operator]
                metrics = compute()
            other = kind == "other losses" and rank == 1
            return metrics._replace(values=metrics.values * 1.1) if other else metrics

        return replay

    def no_copies(*_: Any) -> step_modes.Proof:
        raise torch.OutOfMemoryError("20 GiB")

    step_modes.capture = capture  # type: ignore[assignment]
    if kind == "no memory" and rank == 1:
        step_modes.Proof = no_copies  # type: ignore[assignment,misc]
    torch.manual_seed(0)
    world, choices = rank_of(rank, world_size), StageChoices(graph=GraphChoice(kind != "launched", "a test"))
    train_step = make_step(S2, make_task("rotation"), world=world, choices=choices)
    error: Exception | None = None
    with warnings.catch_warnings(record=True) as told:
        for number in range(16):
            batch = part_of(noise_batch(train_step.views, GLOBAL_BATCH, number), rank, world_size)
            try:
                train_step.step([batch], lr=1e-3)
            except RuntimeError as caught:
                error = caught
                break
    state = snapshot(train_step.module)
    lines = [str(each.message) for each in told]
    torch.save((state, lines, error and explained(error, [])), folder / f"{kind}-{rank}.pt")
    if error is None:
        del train_step
        leave_world()
    else:
        os._exit(0)  # as a process ends that has told its error; the group waits for the other rank


def by_two_ranks(folder: Path, kind: str) -> list[Any]:
    on_ranks(captured_steps, (2, folder, kind), 2)
    return [torch.load(path) for path in sorted(folder.glob(f"{kind}-*.pt"))]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("sound", ""),
        ("no exchange", "captured steps change the weights otherwise than launched ones, by "),
        ("other losses", "the losses of captured steps differ from those of launched ones by 0."),
        ("no memory", "a rank has no memory for the copies by which captured steps are proven"),
    ],
)
def test_captured_steps_must_do_as_launched_ones_on_all_ranks(kind: str, says: str, tmp_path: Path) -> None:
    """Whatever the replays do, the weights become those of a launched training, bit for bit."""
    launched, captured = by_two_ranks(tmp_path, "launched"), by_two_ranks(tmp_path, kind)
    for (state, lines, error), (expected, _, _) in zip(captured, launched, strict=True):
        assert not error and len(lines) == bool(says)
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    if says:
        texts = [lines[0] for _, lines, _ in captured]
        assert any(text.startswith(says) for text in texts) and all("launched" in text for text in texts)


@pytest.mark.parametrize("kind", ["killed", "hangs"])
def test_a_rank_that_is_lost_in_a_captured_step_ends_the_other_in_one_line(kind: str, tmp_path: Path) -> None:
    ((_, _, error),) = by_two_ranks(tmp_path, kind)
    assert error.startswith("a rank other than 0 has gone or hangs") and "\n" not in error


def report_steps(rank: int, world_size: int, folder: Path) -> None:
    """Report two steps, in which rank 1 counts other numbers of samples than rank 0."""
    report = Reporter(
        folder, rank_of(rank, world_size), batch_size=8, log_steps=2, resumed_run_step=0, tensorboard=False,
        wandb=False, config={},
    )  # fmt: skip
    report.stage_begins(S2, 0, 2, 2)
    for step, num in ((1, 4.0), (2, (0.0, 2.0)[rank])):
        values = torch.tensor([((1 + 2 * rank) * num, num), (0.0, 1.0)])
        report.step(step, step, 0.1, StepMetrics(("loss",), values))
    report.close()


def in_a_process(folder: Path, rank: int, world_size: int) -> dict[str, Any]:
    report_steps(rank, world_size, folder)
    learned = {name: weights_after_a_step(name, rank, world_size) for name in TASKS}
    return learned | {"statistics": running_statistics(rank, world_size)}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder that two processes report to, and their results for all tasks."""
    path = tmp_path_factory.mktemp("world")
    return path, results_of_ranks(partial(in_a_process, path), 2, path)


@pytest.mark.parametrize("name", TASKS)
def test_two_ranks_learn_as_one(name: str, of_ranks: Any) -> None:
    assert_alike([rank[name] for rank in of_ranks[1]], weights_after_a_step(name, 0, 1))


def test_running_statistics_are_rank_0s_where_they_are_read(of_ranks: Any) -> None:
    """Frozen blocks and validation passes read them. No forward pass of a step waits for them."""
    first, second = (rank["statistics"] for rank in of_ranks[1])
    for part, is_equal in (("before", True), ("stepped", False), ("evaluated", True)):
        assert all(map(torch.equal, first[part], second[part])) == is_equal, part
    assert all(map(torch.equal, first["stepped"], first["evaluated"]))
    # The three buffers of the frozen block never change.
    assert all(map(torch.equal, first["before"][:3], second["stepped"][:3]))


def test_reported_metrics_are_means_over_the_samples_of_all_ranks(of_ranks: Any) -> None:
    """Each of rank 0's samples has the loss 1, and each of rank 1's 3. Rank 0 has none in the second step."""
    assert [row["loss"] for row in records(of_ranks[0] / "metrics.jsonl")] == [2.0, 3.0]


def test_the_record_is_of_all_ranks_and_of_this_machine() -> None:
    record = environment(World(3, 8, 1, 4, torch.device("cpu")))
    assert record["world_size"] == 8 and record["gpu"] is None
    assert record["python"] == platform.python_version() and record["cpu_count"] == os.cpu_count()
    assert record["torch_threads"] == torch.get_num_threads()
    assert record["packages"]["numpy"] == np.__version__
    names = {"torch", "torchvision", "numba", "numpy", "kornia", "ffcv", "triton"}
    assert record["packages"].keys() == names


def test_a_copy_within_anothers_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = distributed.own_commit()
    assert own is None or re.fullmatch("[0-9a-f]{40}", own)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    copy = tmp_path / "venv" / "fastpsl" / "engine" / "distributed.py"
    copy.parent.mkdir(parents=True)
    monkeypatch.setattr(distributed, "__file__", str(copy))
    monkeypatch.setattr(subprocess, "run", None)  # git is not asked
    assert distributed.own_commit() is None
