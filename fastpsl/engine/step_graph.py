"""The training step as one CUDA graph (`--graph`): captured after a few launched steps, then replayed.

Hundreds of small kernels take longer to launch than to run. A graph has the whole step, from augmentation to
optimiser and the task's `after_step`, and is launched at once. Each batch is copied to tensors at fixed
addresses, which the graph reads. Python runs at the capture alone, so a step must be a function of tensors.
"""

import contextlib
import copy
import functools
import os
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastpsl.engine.distributed import World, on_any_rank
from fastpsl.engine.options import GraphName
from fastpsl.engine.stage_blocks import StepMetrics
from fastpsl.pipelines.loader.batch import Batch

# Values are kept back as integers of their size, because 0 times infinity is not 0.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepState:
    """A set of tensors that keep their values in a skipped step, without a wait for the device."""

    def __init__(self, tensors: Iterable[Tensor]):
        of_size: dict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
        seen = set[tuple[object, ...]]()
        for tensor in tensors:
            tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            if not tensor.numel() or not _may_be_written(tensor):
                continue
            bits = tensor.detach().view(_BITS[tensor.element_size()])
            place = (bits.untyped_storage()._cdata, bits.storage_offset(), bits.shape, bits.stride())
            if place not in seen:  # the same bits would be corrected twice
                seen.add(place)
                of_size[tensor.device, tensor.element_size()].append(bits)
        self._tensors = list(of_size.values())
        self._before = [[torch.empty_like(each) for each in group] for group in self._tensors]

    def keep(self) -> None:
        """Copy the present values."""
        for tensors, before in zip(self._tensors, self._before, strict=True):
            torch._foreach_copy_(before, tensors)

    def restore_if(self, is_skipped: Tensor) -> None:
        """Write the values of the last `keep` back if `is_skipped`, a number on the device, is not 0."""
        for tensors, before in zip(self._tensors, self._before, strict=True):
            torch._foreach_sub_(before, tensors)
            torch._foreach_mul_(before, (is_skipped != 0).to(before[0].dtype))
            torch._foreach_add_(tensors, before)


class SkippedStep:
    """A hook that counts steps with non-finite gradients in `num`, and tells whether the present one is one.

    It knows no `TrainStep`, which would live until the collector of cycles runs, with its graphs.
    """

    def __init__(self, num: Tensor):
        self._num = num
        self._found_inf: Tensor | None = None

    def __call__(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        # The scaler sets it for fused optimisers.
        self._found_inf = optimiser.found_inf  # type: ignore[attr-defined]
        self._num += self._found_inf

    def take(self) -> Tensor:
        """Return what the scaler has found, and forget it, because it may lie in a graph's memory."""
        found_inf, self._found_inf = self._found_inf, None
        assert found_inf is not None
        return found_inf


def _may_be_written(tensor: Tensor) -> bool:
    """Return whether torch writes into a tensor in place: not if it is sparse, or expanded."""
    if tensor.layout != torch.strided:
        return False
    return all(stride or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


# Steps of each variant before its capture: they load kernels, choose convolutions and fill the optimiser's
# state. DDP times its buckets for longer (torch's notes on CUDA graphs).
NUM_LAUNCHED, NUM_LAUNCHED_BY_DDP = 3, 11
_NCCL_FLAG = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class GraphChoice(NamedTuple):
    """A choice whether steps are captured, with the reason for it.

    Attributes:
        captures: Whether they are.
        reason: A text for people.
        must: Whether a step that cannot be captured is an error; otherwise it is launched.
    """

    captures: bool
    reason: str
    must: bool = False

    @property
    def value(self) -> str:
        """The value of --graph that asks for it."""
        return "on" if self.captures else "off"


LAUNCHED: GraphChoice = GraphChoice(False, "asked for")


def choose_graph(asked: GraphName, device: torch.device, num_ranks: int, why_not: str) -> GraphChoice:
    """Choose whether a stage's steps are captured."""
    if asked == "off":
        return LAUNCHED
    if device.type != "cuda":
        why_not = "CUDA graphs need CUDA"
    elif num_ranks > 1 and asked == "auto" and not why_not:
        why_not = f"with {num_ranks} ranks it was never measured; try --graph on"
    elif num_ranks > 1 and os.environ.get(_NCCL_FLAG) != "0" and not why_not:
        why_not = f"with {num_ranks} ranks it needs the environment variable {_NCCL_FLAG}=0, as torch states"
    if why_not and asked == "on":
        raise ValueError(f"--graph on: {why_not}; use --graph off, or auto")
    if why_not:
        return GraphChoice(False, why_not)
    reason = "asked for" if asked == "on" else "the host launches a step at once"
    return GraphChoice(True, reason, must=asked == "on")


class Compute(Protocol):
    """A whole step on batches, of which the second argument is the number."""

    def __call__(self, batches: Iterable[Batch], num_batches: int, /) -> StepMetrics: ...


Replay = Callable[[], StepMetrics]
"""A captured step on the batches of its capture. Its metrics are the caller's own."""


class StepGraphs:
    """The steps of a stage: launched at first, then captured, a graph for each variant."""

    def __init__(self, choice: GraphChoice, world: World):
        self._choice, self._world, self._device = choice, world, world.device
        self.num_launched = NUM_LAUNCHED if world.size == 1 else NUM_LAUNCHED_BY_DDP
        self._given_up = False
        # The variants share their memory, because they never run at once.
        self._pool = torch.cuda.graph_pool_handle() if world.device.type == "cuda" else None
        self._static: list[Batch] = []
        self._made: Counter[int] = Counter()
        self._replays: dict[int, Replay] = {}

    def step(
        self, batches: Iterable[Batch], num_batches: int, compute: Compute, abandon: Callable[[], None]
    ) -> StepMetrics:
        """Make a step, as `compute` does."""
        if self._given_up:
            return compute(batches, num_batches)
        static = self._copied(batches)
        variant = static[0].variant
        if variant in self._replays:
            return self._replays[variant]()
        if self._made[variant] < self.num_launched:
            self._made[variant] += 1
            with beside(self._device):
                return compute(static, num_batches)
        why, replay = "", None
        try:
            replay = capture(lambda: compute(static, num_batches), self._device, self._pool)
        except Exception as error:  # noqa: BLE001  (a capture may fail by any)
            why = reason_of(error)
        # The error, which held the memory of the capture, is gone here.
        if on_any_rank(self._world, replay is None):
            abandon()
            self._give_up(why or "another rank could not")
            return compute(static, num_batches)
        assert replay is not None
        self._replays[variant] = replay
        return replay()

    def _copied(self, batches: Iterable[Batch]) -> list[Batch]:
        """Copy a step's batches to the static ones, which are made of the first step's."""
        copied = []
        for place, batch in enumerate(batches):
            if place == len(self._static):
                self._static.append(batch.clone())
            static = copy.copy(self._static[place])  # the variants of a step share tensors
            static.copy_(batch)
            static.variant, static.extra = batch.variant, dict(static.extra)  # `loss` may add to it
            copied.append(static)
        return copied

    def _give_up(self, reason: str) -> None:
        """Launch all further steps after a failed capture, or raise ValueError if it must be captured."""
        why = f"this stage's step cannot be captured as a CUDA graph ({reason})"
        if self._choice.must:
            raise ValueError(f"--graph on: {why}; use --graph off, or auto")
        self._given_up = True
        self._replays.clear()
        warnings.warn(f"{why}; its steps are launched one operation after the other", stacklevel=2)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Run on a side stream of a GPU, where torch wants what precedes a capture."""
    if device.type != "cuda":
        yield
        return
    stream = _side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def capture(compute: Callable[[], StepMetrics], device: torch.device, pool: Any) -> Replay:
    """Capture a step without running it."""
    graph, first = torch.cuda.CUDAGraph(), None
    generator, stream = torch.cuda.default_generators[device.index or 0], torch.cuda.current_stream(device)
    spare = generator.clone_state()
    try:
        # The loader's threads use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                metrics = compute()
            except BaseException as error:
                first = error
                raise
    except BaseException as error:  # noqa: BLE001  (it is raised again)
        # torch 2.11 leaves the stream, the allocator and the generator as if the capture went on.
        torch.cuda.set_stream(stream)
        with contextlib.suppress(RuntimeError):  # a newer torch has done both
            torch._C._cuda_endAllocateToPool(device.index or 0, pool)
            torch._C._cuda_releasePool(device.index or 0, pool)
        generator.graphsafe_set_state(spare)
        raise first or error from None

    def replay() -> StepMetrics:
        graph.replay()
        # The next replay overwrites the graph's own.
        return metrics._replace(values=metrics.values.clone())

    return replay


def reason_of(error: Exception) -> str:
    """Return why a capture failed: the innermost module, the line that runs there, and the first words."""
    if isinstance(error, torch.OutOfMemoryError):
        return "its memory does not fit beside what the device holds"
    parts = []
    modules = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if isinstance(frame.f_locals.get("self"), nn.Module)
    ]
    if modules:
        parts.append(f"in {modules[-1]}")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].line:
        parts.append(f"at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: {frames[-1].line}")
    words = str(error).strip().splitlines()
    parts.append(words[0] if words else type(error).__name__)
    return ", ".join(parts)[:300]
