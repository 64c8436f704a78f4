"""The process group under torchrun, its machine, and how ranks agree: on values, and when to stop."""

import gc
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fastpsl.console.progress import operation, print_in_handler
from fastpsl.console.terminal import number_in
from fastpsl.engine import gpu
from fastpsl.files.digest import sha256_of_bytes

PACKAGES = ("torch", "torchvision", "numba", "numpy", "kornia", "ffcv", "triton")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def own_commit() -> str | None:
    """Return the commit of fastpsl's source, or None for an installed copy or without git."""
    root = Path(__file__).resolve().parents[2]
    # git looks upward, and an installed copy may lie in another project's repository.
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:  # a slow disk: no run ends, or waits longer, for want of this record
        return None
    return done.stdout.strip() or None


# torch wants it to be 0, before the group starts, where DDP's steps are captured as CUDA graphs.
NCCL_FLAG = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
# A rank that starts later than this one changes the name. A shorter time asks rank 0's store more often, a
# longer one delays the start by as much (not measured).
_LOOK_AGAIN_S = 0.5
_stores: dict[tuple[str | None, str | None], dist.Store] = {}  # by the address of rank 0


@dataclass(frozen=True)
class World:
    """One process of a training and its position among the others.

    Attributes:
        rank: The rank, in [0, size).
        size: The number of processes.
        local_rank: The rank on this machine.
        local_size: The number of processes on this machine.
        device: The device of this process.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device


def choose_device(name: str, local_rank: int) -> torch.device:
    """Choose the device of a process."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}: allowed are auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        why, remedy = gpu.why_no_cuda()
        raise ValueError(
            f"--device cuda, but torch sees no CUDA device ({why}): {remedy}, or give --device cpu"
        )
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if gpu.unused_gpu():
            why, remedy = gpu.why_no_cuda()
            warnings.warn(
                f"the CPU computes, though there is an NVIDIA driver: torch sees no CUDA device ({why}): "
                f"{remedy}",
                stacklevel=2,
            )
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank}, but {torch.cuda.device_count()} CUDA devices: lower torchrun's "
            "--nproc-per-node"
        )
    return torch.device("cuda", local_rank)


def join_world(device_name: str, timeout_s: float) -> World:
    """Start the process group of torchrun's environment: NCCL for CUDA, Gloo for the CPU."""
    alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    rank, size, local_rank, local_size = (number_in(name, n) for name, n in alone.items())
    device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # before the group, because NCCL takes the current device
    if size > 1:
        backend = "gloo"
        if device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"  # tensors on the CPU go over Gloo, so that no GPU waits for them
            os.environ.setdefault(NCCL_FLAG, "0")  # now, before the group; a value of the user's stays
        timeout = timedelta(seconds=timeout_s)
        with operation(f"waiting for all {size} processes"):
            # Kept until the process ends: one that joins again might reach the store of rank 0's former
            # start.
            place = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
            if place not in _stores:
                _stores[place] = next(rendezvous("env://", timeout=timeout))[0]
            store = _stores[place]
            store.set_timeout(timeout)  # a kept one has the limit of an earlier start
            own = dist.PrefixStore(_new_name(store, rank, size, timeout_s), store)
            dist.init_process_group(backend, timeout=timeout, store=own, rank=rank, world_size=size)
            # A rank that then refuses the options, and ends, would break another one's connecting.
            dist.all_reduce(torch.zeros(1))
    if device.type == "cuda":
        gpu.set_cudnn_benchmark(True)  # shapes are fixed within a stage
        gpu.allow_tf32()
    else:
        gpu.keep_freed_memory()
    return World(rank, size, local_rank, local_size, device)


def _new_name(store: dist.Store, rank: int, size: int, timeout_s: float) -> str:
    """Agree with the other ranks on a name for keys that their store does not have yet."""
    # The store may have keys of earlier starts: a process joins again, or torchrun has restarted the ranks.
    # Under these, Gloo would find the addresses of processes that have ended.
    store.set(f"start-{rank}", uuid.uuid4().hex)
    deadline = time.monotonic() + timeout_s
    while True:
        # It waits for all of them, as long as the store does. What another rank has set may be of its earlier
        # start. Then that rank computes another name.
        starts = store.multi_get([f"start-{other}" for other in range(size)])
        name = sha256_of_bytes(b"".join(starts))
        store.set(f"{name}-{rank}", "")
        try:
            store.wait([f"{name}-{other}" for other in range(size)], timedelta(seconds=_LOOK_AGAIN_S))
            return name
        except RuntimeError:  # not all have come to this name yet; a lost store fails in `multi_get` again
            if time.monotonic() > deadline:
                raise


def leave_world() -> None:
    """Destroy the process group and restore torch's flags."""
    gpu.restore_flags()
    if dist.is_initialized():
        gc.collect()  # DDP's objects go first, because otherwise Gloo's threads abort the process
        dist.destroy_process_group()


def share(world: World, value: Any = None) -> Any:
    """Return rank 0's `value`, any picklable object, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    # By the CPU's backend, Gloo, so that no GPU waits.
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def highest_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the highest values [...] of all ranks, element by element, on the CPU; every rank calls it.

    Gloo is used, so that no GPU waits.
    """
    (rank, size), distance = place_among_ranks(), 1
    # After k messages a rank knows the values of the 2^k ranks up to it. So N ranks need ⌈log2 N⌉ hops in
    # sequence, where an all-reduce by Gloo's ring has 2 (N - 1). It may meet a rank twice, which changes no
    # highest value, but would change a sum.
    while distance < size:
        others = torch.empty_like(values)
        # All ranks send at once, and each would wait for another one to receive.
        sending = dist.isend(values, (rank + distance) % size)
        dist.recv(others, (rank - distance) % size)
        assert sending is not None
        sending.wait()  # it reads `values`
        values, distance = torch.maximum(values, others), 2 * distance
    return values


def on_any_rank(world: World, fact: bool) -> bool:
    """Return whether `fact` holds on at least one rank; every rank calls it."""
    return fact if world.size == 1 else bool(highest_over_ranks(torch.tensor(float(fact))))


def gather_objects(world: World, value: Any) -> list[Any]:
    """Return every rank's `value`, any picklable object, in the order of the ranks."""
    values = [value] * world.size
    if world.size > 1:
        dist.all_gather_object(values, value)  # over Gloo: torch takes the CPU's backend where there is one
    return values


def wait_for_all(world: World) -> None:
    """Return once every rank has called this."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(()))  # on the CPU, so over Gloo, and no GPU waits


def sum_over_ranks(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks in place, by a collective call on its own device."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def total_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor that is summed over all ranks, on every rank; all must call it."""
    total = tensor.clone()  # the sum is made in place
    if place_among_ranks()[1] > 1:
        dist.all_reduce(total)
    return total


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate all ranks' tensors [B, ...], of equal B, in the order of ranks and without gradients."""
    tensor = tensor.detach()
    if not dist.is_initialized():
        return tensor
    # One tensor, because a list of the ranks' tensors would be copied once more.
    whole = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(whole, tensor.contiguous())
    return whole


def place_among_ranks() -> tuple[int, int]:
    """Return the rank and the number of ranks for code without a `World`; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def take_tensors_of_rank_0(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Copy rank 0's values to all ranks, which have different ones. Every rank calls it."""
    if world.size > 1:
        for tensor in tensors:
            values = tensor.detach().contiguous()  # itself, unless it is in channels-last memory
            dist.broadcast(values, src=0)
            tensor.detach().copy_(values)  # for those that are copies


def environment(world: World) -> dict[str, Any]:
    """Return the machine, package versions and commit, for the run's record."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "world_size": world.size,
        "torch_threads": torch.get_num_threads(),
        "commit": own_commit(),
        "packages": package_versions(),
    }


class Decision(NamedTuple):
    """The decision of all ranks after a step."""

    stop: bool
    checkpoint: bool  # whether to write one
    seconds: float = 0.0  # per step of the slowest rank; 0 if the ranks did not communicate


class StopSignal:
    """A decision of all ranks, after the same step, to stop or to write a checkpoint.

    They stop if any rank has received SIGTERM or SIGINT; in a thread, they are not received. Flags are
    exchanged over Gloo about once per second, so the GPU is never waited for.
    """

    # torchrun kills the ranks 30 s after a signal. An exchange after each step would delay fast ones.
    ask_every_s = 1.0
    # Later steps may be slower than those that were timed. With 0.23 s each, a signal is still heard in 15 s.
    max_steps_between = 64

    def __init__(self, world: World, checkpoint_minutes: float):
        self.world = world
        self.stop_requested = False
        self._checkpoint_s = checkpoint_minutes * 60
        self._last_checkpoint = self._last_asked = time.monotonic()
        self._steps_since = 0
        self._ask_after = 1  # the first step tells how long one takes
        # Python delivers signals to the main thread, and refuses handlers in others.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        self._handlers = {number: signal.getsignal(number) for number in numbers}
        for number in self._handlers:
            signal.signal(number, self._request_stop)

    def _request_stop(self, *_: object) -> None:
        if self.world.rank == 0 and not self.stop_requested:  # under torchrun, Ctrl-C arrives twice
            # `print` takes a lock, which the code that is interrupted may hold.
            print_in_handler("interrupted: stopping after this step")
        self.stop_requested = True

    def after_step(self) -> Decision:
        """Return the decision after a step. Every rank calls it after every step."""
        self._steps_since += 1
        if self._steps_since < self._ask_after:
            return Decision(False, False)
        now = time.monotonic()
        due = self._checkpoint_s > 0 and now - self._last_checkpoint >= self._checkpoint_s
        # In one tensor, for one exchange. A rank alone has none, and decides after each step.
        flags = torch.tensor([self.stop_requested, due, (now - self._last_asked) / self._steps_since])
        if self.world.size > 1:
            flags = highest_over_ranks(flags)
            # By the slowest rank's time, so that all compute the same step, whatever their clocks show.
            # A clock that has not moved between two steps tells 0.
            steps = int(self.ask_every_s / max(float(flags[2]), 1e-6))
            self._ask_after = min(max(steps, 1), self.max_steps_between)
        self._steps_since, self._last_asked = 0, now
        return Decision(bool(flags[0]), bool(flags[1]), float(flags[2]))

    def other_pace(self) -> None:
        """Prepare for steps of another duration: exchange flags after the first one. Every rank calls it."""
        self._steps_since, self._ask_after, self._last_asked = 0, 1, time.monotonic()

    def checkpointed(self) -> None:
        """Restart the clock of `checkpoint_minutes` after writing. Every rank calls it."""
        self._last_checkpoint = time.monotonic()
        self.other_pace()

    def ignore(self) -> None:
        """Ignore the signals from here on: the process is about to end, and its exit code shall say how."""
        for number in self._handlers:
            # srun sends SIGTERM to the ranks that are left, which would die of it before they end.
            signal.signal(number, signal.SIG_IGN)
        self._handlers.clear()  # `close` shall bring none back

    def close(self) -> None:
        """Restore the former signal handlers, unless the signals are ignored."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
