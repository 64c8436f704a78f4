"""How the blocks of a training step run: as they are, with fused BatchNorms, by torch.compile, or compiled and replayed as CUDA graphs (`--step`)."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Callable
from types import FunctionType
from typing import Literal, NamedTuple

import torch

from fastpsl.engine.block_runner import Runner, run_blocks
from fastpsl.engine.plan import Stage
from fastpsl.models.backbone import Backbone
from fastpsl.models.revnet import RevNet

StepName = Literal["auto", "eager", "fused", "compiled", "graphed"]

# (backbone, first and last learning block, side of what it reads in px) → the fastest mode, and how much faster than eager it was: ResNet-50 in
# fp16, batch 256, on one H200 with torch 2.11: S1 9,900 against 8,400 images/s, end to end 6,700 against 5,800. What is not here was not measured;
# `fused` was not yet.
GAINS = {("resnet50", 1, 3, 224): ("compiled", 1.18), ("resnet50", 1, 5, 224): ("compiled", 1.16)}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout
# torch.compile's GPU backend asks for it: Triton.
MIN_CAPABILITY = (7, 0)


class StepChoice(NamedTuple):
    """mode: "eager", "fused", "compiled" or "graphed"; reason: why, for people."""

    mode: str
    reason: str


EAGER = StepChoice("eager", "asked for")


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
    gradients in place, see `TrainStep`.
    """
    if mode == "eager":
        return run_blocks
    if mode == "fused":
        # It imports Triton, which is not everywhere.
        made: Runner = importlib.import_module("fastpsl.engine.fused_norms").make_fused_runner()
        return made
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
    side_px: int,
    *,
    num_ranks: int = 1,
    sync_batchnorm: bool = False,
) -> StepChoice:
    """The mode of a stage's steps; auto: what was measured to be faster, else eager. ValueError for what cannot be.

    side_px: of the pictures that the backbone reads.
    """
    if asked == "eager":
        return EAGER
    choice = StepChoice(asked, "asked for")
    if asked == "auto":
        choice = _measured(backbone, stage, device, precision, side_px)
        if choice.mode == "eager":
            return choice
        if num_ranks > 1:
            return StepChoice(
                "eager", f"{choice.mode} was measured on one GPU only; try --step {choice.mode}"
            )
    if choice.mode == "fused":
        why_not = _why_not_fused(backbone, stage, device)
    else:
        why_not = _why_not_compiled(backbone, device, sync_batchnorm)
        choice = choice._replace(reason=f"{choice.reason}; the stage's first step takes a minute or so")
    if choice.mode == "graphed" and not why_not:
        why_not = _why_not_graphed(device, num_ranks)
    if why_not and asked == "auto":
        return StepChoice("eager", why_not)
    if why_not:
        raise ValueError(f"--step {asked}: {why_not}; use --step eager, or auto")
    return choice


def _measured(
    backbone: Backbone, stage: Stage, device: torch.device, precision: str, side_px: int
) -> StepChoice:
    if device.type != "cuda":
        return StepChoice("eager", "other modes were measured on CUDA only")
    blocks = f"{backbone.name} B{stage.first_learning}-B{stage.last_block}"
    if stage.first_learning > stage.last_block:
        return StepChoice("eager", "no block learns")
    found = GAINS.get((backbone.name, stage.first_learning, stage.last_block, side_px))
    if found is None or precision not in MEASURED_PRECISIONS:
        return StepChoice("eager", f"nothing faster was measured for {blocks} on {side_px} px in {precision}")
    mode, gain = found
    return StepChoice(mode, f"{gain:.2f} times eager's speed was measured for {blocks} on {side_px} px")


def _why_not_fused(backbone: Backbone, stage: Stage, device: torch.device) -> str:
    if isinstance(backbone, RevNet):
        return "RevNet recomputes its blocks in the backward pass, which torch.fx cannot follow"
    if device.type != "cuda":
        return "its kernels need CUDA"
    why_not = _why_no_triton(device)
    if why_not:
        return why_not
    names = importlib.import_module("fastpsl.engine.fused_norms")
    try:
        views = [names.fused(block) for block in backbone.blocks()[: stage.last_block]]
    except ValueError as error:
        return str(error)
    if not any(isinstance(part, names.FusedNorm) for view in views for part in view.modules()):
        return "these blocks have no BatchNorm of maps"
    return ""


def _why_no_triton(device: torch.device) -> str:
    """Of torch.compile on CUDA, and of our kernels."""
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"Triton needs a GPU of compute capability {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton (pip install triton)"
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "Triton needs a C compiler (apt-get install gcc), and none is on the PATH"
    return ""


def _why_not_compiled(backbone: Backbone, device: torch.device, sync_batchnorm: bool) -> str:
    if isinstance(backbone, RevNet):
        return "RevNet's backward pass, which recomputes its inputs, is a function that torch.compile does not take"
    if sync_batchnorm:
        return "torch.compile does not take SyncBatchNorm, which talks to other ranks in its forward pass"
    if device.type == "cuda":
        return _why_no_triton(device)
    if not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile on the CPU needs a C++ compiler (apt-get install g++), and none is on the PATH"
    return ""


def _why_not_graphed(device: torch.device, num_ranks: int) -> str:
    if device.type != "cuda":
        return "CUDA graphs need CUDA"
    if num_ranks > 1:
        return f"with {num_ranks} ranks DDP moves gradients between graphs, which was never tried"
    return ""
