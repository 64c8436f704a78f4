import math
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist

from fastpsl.engine import distributed
from fastpsl.engine.distributed import StopSignal, World, choose_device, join_world, total_over_ranks
from tests.engine.tiny import one_process
from tests.warm import on_ranks


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


def test_the_checkpoint_clock() -> None:
    stop_signal = StopSignal(one_process(), checkpoint_minutes=1e-9)
    try:
        assert stop_signal.after_step().checkpoint
        stop_signal.checkpointed()
        stop_signal._checkpoint_s = 3600.0
        assert not stop_signal.after_step().checkpoint
    finally:
        stop_signal.close()


def test_ranks_ask_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps of 0.1 s, every tenth step communicates. The other steps decide nothing."""
    now, times = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flags, op: times.append(now[0]))
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
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flags, op: asked.append(made[0]))
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
    monkeypatch.setattr(distributed, "_new_name", lambda *_: "world")  # the other rank is not here
    monkeypatch.setattr("torch.distributed.init_process_group", join)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert join_world("cpu", timeout_s=7.5) == World(1, 2, 1, 2, torch.device("cpu"))
    assert waits == [7.5, 7.5] and joined == [("gloo", 1, 2)]


def test_a_total_is_a_copy() -> None:
    counts = torch.arange(3)
    total = total_over_ranks(counts)
    total += 1
    assert counts.tolist() == [0, 1, 2] and total.tolist() == [1, 2, 3]


def join_again(rank: int, port: int, start: int) -> None:
    """Join a world of two, whose store torchrun keeps, and end without leaving it. Rank 1 comes late."""
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
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
