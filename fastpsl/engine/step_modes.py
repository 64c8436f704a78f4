"""How a stage's steps run: the mode of their blocks (`--compile`), and whether as one CUDA graph (`--graph`).

Hundreds of small kernels take longer to launch than to run. A graph has the whole step, from augmentation to
optimiser and the task's `after_step`, and is launched at once. It is captured after a few launched steps.
Each batch is copied to tensors at fixed addresses, which the graph reads. Python runs at the capture alone,
so a step must be a function of tensors.
"""

import contextlib
import copy
import functools
import importlib.util
import itertools
import os
import shutil
import traceback
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastpsl.engine.distributed import NCCL_FLAG, World, on_any_rank
from fastpsl.engine.options import CompileName, FoldName, GraphName
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Runner, StepMetrics, run_blocks
from fastpsl.models.backbone import Backbone
from fastpsl.models.fold_batchnorm import FoldError, check_foldable
from fastpsl.pipelines.loader.batch import Batch

# (backbone, first and last learning block, side of the images in px) → the speed relative to eager. Measured
# with ResNet-50 in fp16, batch 256, on one H200 with torch 2.11, launched from the host
# (bench/results/step-h200.json). End to end and in S2 eager was faster, because the host could not keep up.
GAINS: dict[tuple[str, int, int, int], float] = {("resnet50", 1, 3, 224): 1.4}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout


MIN_CAPABILITY = (7, 5)  # torch's wheels with CUDA 13 have no kernels for older GPUs


class StepChoice(NamedTuple):
    """A mode with the reason for it."""

    mode: str  # "off", "fused" or "on"; of folding, "off" or "on"
    reason: str  # for people


OFF = StepChoice("off", "asked for")


_numbers = itertools.count()


def make_runner(mode: str, backend: str | Callable[..., Callable[..., object]] = "inductor") -> Runner:
    """Return a stage's version of `run_blocks`. Compilation happens at its first call.

    The blocks are arguments, so the runner holds nothing of a stage, and a copy of a stage's blocks runs as
    its own.
    """
    if mode == "off":
        return run_blocks
    if mode == "fused":
        # fused_norms imports Triton, which is not installed everywhere.
        fused_runner: Runner = importlib.import_module("fastpsl.engine.fused_norms").make_fused_runner()
        return fused_runner
    # torch stores the sizes that it has seen per code object. With one for two stages, it would compile the
    # second for symbolic sizes, for which Inductor does not use channels-last: S2 was then slower compiled
    # than eager, 5,000 against 7,000 images/s.
    code = run_blocks.__code__.replace(co_name=f"run_blocks_{next(_numbers)}")
    function = FunctionType(code, run_blocks.__globals__, argdefs=run_blocks.__defaults__)
    # Without fullgraph, torch would silently run eagerly after a graph break, or after the 8 variants that it
    # keeps per code object.
    runner: Runner = torch.compile(function, backend=backend, dynamic=False, fullgraph=True)
    return runner


def what_is_built(mode: str) -> str:
    """Return what a stage's first step waits for, in words."""
    return {
        "fused": "Triton builds the kernels of BatchNorm",
        "on": "torch.compile builds the step, for a minute or so",
    }.get(mode, "torch loads what it needs")


def choose_step(
    asked: CompileName,
    backbone: Backbone,
    stage: Stage,
    device: torch.device,
    precision: str,
    side_px: int,
    *,
    captured: bool,
    sync_batchnorm: bool = False,
) -> StepChoice:
    """Choose the mode of a stage's steps."""
    if asked == "off":
        return OFF
    choice = StepChoice(asked, "asked for")
    if asked == "auto":
        choice = _fastest(backbone, stage, device, precision, side_px, captured)
        if choice.mode == "off":
            return choice
    if choice.mode == "fused":
        why_not = _why_not_fused(backbone, stage, device)
    else:
        # torch keeps eight variants of a runner, and parts need two each.
        why_not = "it was not tried on parts that learn at once" if stage.parts else ""
        why_not = why_not or _why_not_compiled(backbone, device, sync_batchnorm)
        choice = choice._replace(reason=f"{choice.reason}; the stage's first step takes a minute or so")
    if why_not and asked == "auto":
        return StepChoice("off", why_not)
    if why_not:
        raise ValueError(f"--compile {asked}: {why_not}; use --compile off, or auto")
    return choice


def _fastest(
    backbone: Backbone, stage: Stage, device: torch.device, precision: str, side_px: int, captured: bool
) -> StepChoice:
    if device.type != "cuda":
        return StepChoice("off", "other modes were measured on CUDA only")
    if stage.first_learning > stage.last_block:
        return StepChoice("off", "no block learns")
    blocks = f"{backbone.name} B{stage.first_learning}-B{stage.last_block} on {side_px} px in {precision}"
    blocks += " in parts" if stage.parts else ""
    if captured:
        # 1.35 to 1.41 times captured eager steps: E, S1 and S2 of ResNet-50 at 224 px in fp16, on an H200
        # (bench/results/step-h200.json).
        return StepChoice("fused", "faster in captured steps, where that was measured")
    gain = GAINS.get((backbone.name, stage.first_learning, stage.last_block, side_px))
    if gain is None or stage.parts or precision not in MEASURED_PRECISIONS:
        return StepChoice("off", f"nothing faster was measured for launched steps of {blocks}")
    return StepChoice("fused", f"{gain} times eager's speed was measured for {blocks}")


def _why_not_fused(backbone: Backbone, stage: Stage, device: torch.device) -> str:
    if backbone.why_untraceable:
        return backbone.why_untraceable
    if device.type != "cuda":
        return "its kernels need CUDA"
    why_not = _why_no_triton(device)
    if why_not:
        return why_not
    # Only now, because it imports Triton.
    names = importlib.import_module("fastpsl.engine.fused_norms")
    try:
        views = [names.fused(block) for block in backbone.blocks()[: stage.last_block]]
    except ValueError as error:
        return str(error)
    if not any(isinstance(part, names.FusedNorm) for view in views for part in view.modules()):
        return "these blocks have no BatchNorm of maps"
    return ""


def _why_no_triton(device: torch.device) -> str:
    """Return why torch.compile on CUDA and our own kernels cannot use Triton, or an empty string."""
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        least = ".".join(map(str, MIN_CAPABILITY))
        return f"torch's wheels have kernels for GPUs of compute capability {least} and above"
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton (pip install triton)"
    if not any(map(shutil.which, (_compiler("CC", "cc"), "gcc", "clang"))):
        return "Triton needs a C compiler (apt-get install gcc), and none is on the PATH"
    return ""


def _compiler(variable: str, usual: str) -> str:
    """Return the compiler's name. A variable that is empty is removed: Triton and torch would call it."""
    if not os.environ.get(variable):
        os.environ.pop(variable, None)
    return os.environ.get(variable, usual)


def _why_not_compiled(backbone: Backbone, device: torch.device, sync_batchnorm: bool) -> str:
    if backbone.why_untraceable:
        return backbone.why_untraceable
    if sync_batchnorm:
        return "torch.compile does not take SyncBatchNorm, which talks to other ranks in its forward pass"
    if device.type == "cuda":
        return _why_no_triton(device)
    if not shutil.which(_compiler("CXX", "g++")):
        return "torch.compile on the CPU needs a C++ compiler (apt-get install g++), and none is on the PATH"
    return ""


def choose_fold(
    asked: FoldName, frozen: Sequence[nn.Module], frozen_batchnorm: str, precision: str, *, captured: bool
) -> StepChoice:
    """Choose whether a stage's frozen blocks run folded: "on" or "off".

    Raises:
        ValueError: It was asked for, and cannot be done.
    """
    if asked == "off":
        return OFF
    if not frozen:
        return StepChoice("off", "no block is frozen")
    if asked == "auto" and not (captured and precision in MEASURED_PRECISIONS):
        return StepChoice("off", "it was measured for captured steps in half precision alone")
    try:
        check_foldable(frozen, frozen_batchnorm)
    except FoldError as error:
        if asked == "on":
            raise
        return StepChoice("off", error.reason)
    return StepChoice("on", "asked for" if asked == "on" else "frozen blocks then pass over their maps once")


# The integer type of each size in bytes. In a step that is not skipped, the difference to the kept value is
# multiplied by 0. As a float it may be infinite, and the product would be NaN.
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
            # An `if` would wait for the device, and cannot be captured. Integers that overflow wrap around,
            # so the sum has the very bits.
            torch._foreach_sub_(before, tensors)
            torch._foreach_mul_(before, (is_skipped != 0).to(before[0].dtype))
            torch._foreach_add_(tensors, before)


# In the extras of `Task.after_step`: a float32 [1] on the device, not 0 where the step is skipped.
IS_SKIPPED = "is_skipped"


class SkippedStep:
    """A hook that counts steps with non-finite gradients in `num`, and tells whether this step is one."""

    def __init__(self, num: Tensor):
        self._num = num  # no `TrainStep`, which would live with its graphs until cycles are collected
        self._found_inf: Tensor | None = None

    def __call__(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        # The scaler sets it for fused optimisers.
        self._found_inf = optimiser.found_inf  # type: ignore[attr-defined]
        self._num += self._found_inf

    def take(self) -> Tensor:
        """Return the scaler's found_inf, float32 [1], and forget it."""
        # Not kept, because it may lie in a graph's memory.
        found_inf, self._found_inf = self._found_inf, None
        assert found_inf is not None
        return found_inf


def _may_be_written(tensor: Tensor) -> bool:
    """Return whether torch writes into a tensor in place: not if it is sparse, or expanded."""
    if tensor.layout != torch.strided:
        return False
    return all(stride or size == 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


# Steps of each variant before its capture: they load kernels, choose convolutions and fill the optimiser's
# state. torch's notes on CUDA graphs make 3, and with DDP, which times its buckets for longer, 11 at least.
NUM_LAUNCHED, NUM_LAUNCHED_BY_DDP = 3, 11
# Launched and captured steps from one state, which several ranks compare before they go on with replays. One
# shows that an exchange is missing. With more, one that a replay does not wait for is likelier to show.
NUM_COMPARED = 3
# Relatively, at most; sums are rounded in another order. Bounds by judgement: several GPUs were not measured.
_LOSSES_APART, _CHANGES_APART = 0.01, 0.1


class GraphChoice(NamedTuple):
    """A choice whether steps are captured, with the reason for it."""

    captures: bool
    reason: str  # for people
    must: bool = False  # a step that cannot be captured is an error; otherwise it is launched

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
    elif num_ranks > 1 and os.environ.get(NCCL_FLAG) != "0" and not why_not:
        why_not = f"with {num_ranks} ranks it needs the environment variable {NCCL_FLAG}=0, as torch states"
    if why_not and asked == "on":
        raise ValueError(f"--graph on: {why_not}; use --graph off, or auto")
    if why_not:
        return GraphChoice(False, why_not)
    reason = "asked for" if asked == "on" else "the host launches a step at once"
    if num_ranks > 1 and asked == "auto":
        reason += f", where {NUM_COMPARED} steps give the losses of launched ones on all {num_ranks} ranks"
    if num_ranks > 1:
        reason += f"; {NCCL_FLAG} is 0 for it"
    return GraphChoice(True, reason, must=asked == "on")


class StageChoices(NamedTuple):
    """The choices of how a stage's steps run."""

    step: StepChoice = OFF
    graph: GraphChoice = LAUNCHED
    fold: StepChoice = OFF  # "on" or "off"
    launched: StepChoice = OFF  # of the steps of a stage whose capture fails

    def reasons(self) -> dict[str, tuple[str, str]]:
        """Return each option's value, and the reason for it."""
        graph = self.graph.value, self.graph.reason
        return {"compile": (*self.step,), "graph": graph, "fold_frozen": (*self.fold,)}


PLAIN = StageChoices()


class Steps(Protocol):
    """The steps of a stage, as they are launched."""

    def compute(self, batches: Iterable[Batch], num_batches: int) -> StepMetrics:
        """Make a whole step on so many batches."""

    def abandon(self) -> None:
        """Forget what half of a step has left, and launch all further steps."""

    def written(self) -> Iterable[Tensor]:
        """Yield all tensors that a step writes and a later one reads."""


Replay = Callable[[], StepMetrics]
"""A captured step on the batches of its capture. Its metrics are the caller's own."""


class Proof:
    """A comparison of launched and captured steps from one state, which is as before after each part.

    An exchange that a graph lacks, or that its replays do not wait for, changes what steps change in the
    weights. `written` yields all tensors that a step writes and a later one reads.
    """

    def __init__(self, device: torch.device, written: Iterable[Tensor]):
        self._device = device
        self._tensors = list({id(tensor): tensor for tensor in written}.values())
        self._before = [tensor.detach().clone() for tensor in self._tensors]
        learning = [number for number, tensor in enumerate(self._tensors) if tensor.requires_grad]
        self._weights = [(self._tensors[number].detach(), self._before[number]) for number in learning]
        # Here, too, although needed later: the caller catches a lack of memory at the making alone.
        weights = [weight for weight, _ in self._weights]
        self._changes, self._gaps = ([torch.empty_like(each) for each in weights] for _ in range(2))
        self._draws = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def launched(self, launch: "Replay") -> None:
        """Make launched steps, and keep their losses and changes."""
        self._losses = self._made(launch, self._changes)

    def why_not(self, replay: "Replay") -> str:
        """Return in what replays differ from the launched steps, or an empty string."""
        losses = self._made(replay, self._gaps)
        torch._foreach_sub_(self._gaps, self._changes)
        apart = (losses - self._losses).abs().max() / self._losses.abs().max()
        length, gap = (torch.stack(torch._foreach_norm(each)).norm() for each in (self._changes, self._gaps))
        share = gap / length.clamp_min(1e-30)  # 0 / 0, of weights that stay, would count as a difference
        # `not … <=`, because NaN is a difference, too.
        if not apart <= _LOSSES_APART:
            return f"the losses of captured steps differ from those of launched ones by {apart:.2g}"
        if not share <= _CHANGES_APART:
            return f"captured steps change the weights otherwise than launched ones, by {share:.2g}"
        return ""

    @torch.no_grad()
    def _made(self, step: "Replay", changes: list[Tensor]) -> Tensor:
        """Return the losses of some steps, float64, and write what they change in the weights."""
        with torch.enable_grad():
            losses = torch.stack([step().values for _ in range(NUM_COMPARED)]).double()
        weights, before = zip(*self._weights, strict=True)
        torch._foreach_copy_(changes, weights)
        torch._foreach_sub_(changes, before)
        torch._foreach_copy_(self._tensors, self._before)
        if self._draws is not None:  # launched and captured steps must draw the same, as of dropout
            torch.cuda.set_rng_state(self._draws, self._device)
        return losses


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
        self._ends = deque[torch.cuda.Event]()  # of the last two replays

    def step(self, batches: Iterable[Batch], num_batches: int, steps: Steps) -> StepMetrics:
        """Make a step, as `steps.compute` does."""
        if self._given_up:
            return steps.compute(batches, num_batches)
        static = self._copied(batches)
        variant = static[0].variant
        if variant in self._replays:
            return self._replayed(self._replays[variant])
        if self._made[variant] < self.num_launched:
            self._made[variant] += 1
            with beside(self._device):
                return steps.compute(static, num_batches)
        why, replay, proof = "", None, None
        launch = lambda: steps.compute(static, num_batches)
        # Exchanges are what a replay may miss. Who asked for captured steps gets them without the proof.
        if self._world.size > 1 and not self._choice.must:
            try:
                proof = Proof(self._device, steps.written())
            except torch.OutOfMemoryError:
                pass  # the error would hold what there is of the copies
            # All ranks go the same way from here, because the steps below exchange gradients.
            if on_any_rank(self._world, proof is None):
                why = "a rank has no memory for the copies by which captured steps are proven"
            else:
                assert proof is not None
                with beside(self._device):  # before the capture, which keeps a step's memory
                    proof.launched(launch)
        if not why:
            try:
                replay = capture(launch, self._device, self._pool)
            except Exception as error:  # noqa: BLE001  (a capture may fail by any)
                why = f"this stage's step cannot be captured as a CUDA graph ({reason_of(error)})"
            # The error, which held the memory of the capture, is gone here.
            if on_any_rank(self._world, replay is None):
                why = why or "another rank cannot capture this stage's step as a CUDA graph"
            elif proof is not None:
                assert replay is not None
                why = proof.why_not(replay)
                if on_any_rank(self._world, bool(why)):
                    why = why or "on another rank, captured steps differ from launched ones"
        del proof  # which has copies of the state
        if why:
            del replay  # it holds the memory that launched steps need
            steps.abandon()
            self._give_up(why)
            return launch()  # the capture has computed nothing, and the proof has put everything back
        assert replay is not None
        self._replays[variant] = replay
        return self._replayed(replay)

    def _replayed(self, replay: Replay) -> StepMetrics:
        """Replay a step once the last but one has ended."""
        if self._device.type != "cuda":
            return replay()
        if len(self._ends) < 2:  # two, so that the device has the next step while it makes one
            end = torch.cuda.Event(blocking=True)  # its wait sleeps, and would else occupy a core
        else:
            # Without a wait, the host would run ahead until CUDA's queue is full, hold the batches of all
            # these steps, and spin in the next launch.
            end = self._ends.popleft()
            end.synchronize()
        metrics = replay()
        end.record()
        self._ends.append(end)
        return metrics

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

    def _give_up(self, why: str) -> None:
        """Launch all further steps after a failed capture, or raise ValueError if it must be captured."""
        if self._choice.must:
            raise ValueError(f"--graph on: {why}; use --graph off, or auto")
        self._given_up = True
        self._replays.clear()  # those of other variants hold memory
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
    # Both streams wait: this one for its inputs, the other one for its results.
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
                first = error  # to end the capture then raises another one, which tells nothing
                raise
    except BaseException as error:  # noqa: BLE001  (it is raised again)
        # torch 2.11 leaves the stream, the allocator and the generator as if the capture went on.
        torch.cuda.set_stream(stream)
        with contextlib.suppress(RuntimeError, AttributeError):  # a newer torch has done both, or has none
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
    selves = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [each for each in selves if isinstance(each, nn.Module)]
    if modules:
        parts.append(f"in {type(modules[-1]).__name__}")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].line:
        parts.append(f"at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}: {frames[-1].line}")
    words = str(error).strip().splitlines()
    parts.append(words[0] if words else type(error).__name__)
    return ", ".join(parts)[:300]
