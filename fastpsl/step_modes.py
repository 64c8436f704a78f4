"""How the blocks of a training step run: as they are, by torch.compile, or compiled and replayed as CUDA graphs (`--step`)."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fastpsl.backbones.backbone import Backbone
from fastpsl.backbones.revnet import RevNet
from fastpsl.plan import Stage

StepName = Literal["auto", "eager", "compiled", "graphed"]

# (backbone, first and last learning block) → how much faster compiled was than eager: ResNet-50 in fp16 at 224 px, batch 256,
# on one H200 with torch 2.11: S1 9,900 against 8,400 images/s, end to end 6,700 against 5,800. What is not here was not measured.
COMPILED_GAIN = {("resnet50", 1, 3): 1.18, ("resnet50", 1, 5): 1.16}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout
# torch.compile's GPU backend asks for it.
MIN_CAPABILITY = (7, 0)


class StepChoice(NamedTuple):
    """mode: "eager", "compiled" or "graphed"; reason: why, for people."""

    mode: str
    reason: str


EAGER = StepChoice("eager", "asked for")


class Runner(Protocol):
    """Runs blocks one after another: images to the output of the last, or to each one's."""

    def __call__(self, blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]: ...


def run_blocks(blocks: Sequence[nn.Module], images: Tensor, every: bool = False) -> list[Tensor]:
    """[B, C, H, W] to the outputs of `every` block, or to that of the last alone; blocks: one or more."""
    outputs = []
    for block in blocks:
        images = block(images)
        if every:
            outputs.append(images)
    return outputs or [images]


_numbers = itertools.count()


def make_runner(mode: str, backend: str | Callable[..., Callable[..., object]] = "inductor") -> Runner:
    """`run_blocks` as a stage has it in `mode`; what is compiled is compiled when it is first called.

    Blocks are arguments: nothing of a stage is held here, and a copy of a trunk runs its own blocks.

    dynamic=False, and a code object for each runner: torch keeps its caches, and what it saw of sizes, by code object. When a
    second stage runs through the same one, its other height and width make torch compile it for symbolic sizes (S2's
    learning blocks had two SymInt inputs), and inductor leaves channels-last for convolutions of symbolic size. So compiled
    S2 was slower than eager: 5,000 against 7,000 images/s. Sizes are the same in all steps of a stage.

    fullgraph: a graph break, or more variants than torch keeps of one code object (8), raises instead of running
    eagerly from there on without a word.

    graphed: by torch.compile's CUDA graph trees and not by torch.cuda.make_graphed_callables, which runs the blocks three
    times before it captures (BatchNorm's running statistics would move, and torch leaves it to the caller to undo that),
    copies each input into a fixed place and fuses nothing. The caller marks each pass (`begin_pass`) and keeps
    gradients in place, see `Learner`.
    """
    if mode == "eager":
        return run_blocks
    code = run_blocks.__code__.replace(co_name=f"run_blocks_{next(_numbers)}")
    own = FunctionType(code, run_blocks.__globals__, argdefs=run_blocks.__defaults__)
    inductor_mode = "reduce-overhead" if mode == "graphed" else None
    runner: Runner = torch.compile(own, backend=backend, dynamic=False, fullgraph=True, mode=inductor_mode)
    return runner


def begin_pass(mode: str) -> None:
    """Before each forward pass in training: outputs of the last one's graphs may be overwritten from here on.

    Without it torch guesses where an iteration begins, and takes the frozen blocks, after which no backward pass comes, for a whole
    one: their output would be gone before the learning blocks have read it.
    """
    if mode == "graphed":
        torch.compiler.cudagraph_mark_step_begin()


def choose_step(
    asked: StepName,
    backbone: Backbone,
    stage: Stage,
    device: torch.device,
    precision: str,
    *,
    num_ranks: int = 1,
    sync_batchnorm: bool = False,
) -> StepChoice:
    """The mode of a stage's steps; auto: what was measured to be faster, else eager. ValueError for what cannot be."""
    if asked == "eager":
        return EAGER
    why_not = _why_not_compiled(backbone, device, sync_batchnorm)
    if asked == "auto":
        if not why_not and num_ranks > 1 and device.type == "cuda":
            why_not = "compiled was measured on one GPU only; try --step compiled"
        return StepChoice("eager", why_not) if why_not else _measured(backbone, stage, device, precision)
    if asked == "graphed" and not why_not:
        why_not = _why_not_graphed(device, num_ranks)
    if why_not:
        raise ValueError(f"--step {asked}: {why_not}; use --step eager, or auto")
    return StepChoice(asked, "asked for; the stage's first step takes a minute or so")


def _measured(backbone: Backbone, stage: Stage, device: torch.device, precision: str) -> StepChoice:
    if device.type != "cuda":
        return StepChoice("eager", "torch.compile was measured on CUDA only")
    name = backbone.name
    blocks = f"{name} B{stage.first_learning}-B{stage.last_block}"
    if stage.first_learning > stage.last_block:
        return StepChoice("eager", "no block learns")
    gain = COMPILED_GAIN.get((name, stage.first_learning, stage.last_block))
    if gain is None or precision not in MEASURED_PRECISIONS:
        return StepChoice("eager", f"nothing faster was measured for {blocks} in {precision}")
    reason = f"{gain:.2f} times eager's speed was measured for {blocks}; the first step takes a minute or so"
    return StepChoice("compiled", reason)


def _why_not_compiled(backbone: Backbone, device: torch.device, sync_batchnorm: bool) -> str:
    if isinstance(backbone, RevNet):
        return "RevNet's backward pass, which recomputes its inputs, is a function that torch.compile does not take"
    if sync_batchnorm:
        return "torch.compile does not take SyncBatchNorm, which talks to other ranks in its forward pass"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
            return f"torch.compile needs a GPU of compute capability {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton (pip install triton)"
        if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
            return "Triton needs a C compiler (apt-get install gcc), and none is on the PATH"
    elif not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile on the CPU needs a C++ compiler (apt-get install g++), and none is on the PATH"
    return ""


def _why_not_graphed(device: torch.device, num_ranks: int) -> str:
    if device.type != "cuda":
        return "CUDA graphs need CUDA"
    if num_ranks > 1:
        return f"with {num_ranks} ranks DDP moves gradients between graphs, which was never tried"
    return ""
