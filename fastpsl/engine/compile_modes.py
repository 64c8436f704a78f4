"""The modes of a training step's blocks (`--compile`): off, fused BatchNorms, and on (torch.compile)."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Callable
from types import FunctionType
from typing import NamedTuple

import torch

from fastpsl.engine.options import CompileName
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Runner, run_blocks
from fastpsl.models.backbone import Backbone

# (backbone, first and last learning block, side of the images in px) → the speed relative to eager. Measured
# with ResNet-50 in fp16, batch 256, on one H200 with torch 2.11, launched from the host
# (bench/results/step-h200.json). In S2 and S3 eager was faster, because the host could not keep up.
GAINS: dict[tuple[str, int, int, int], float] = {
    ("resnet50", 1, 3, 224): 1.26,
    ("resnet50", 1, 5, 224): 1.19,
}
# The same of captured steps, relative to captured eager ones and with folded frozen blocks in S2 and S3, of a
# prototype on the same GPU on 2026-11-26. This version's own steps were not measured yet.
CAPTURED: dict[tuple[str, int, int, int], float] = {
    ("resnet50", 1, 5, 224): 1.27,
    ("resnet50", 1, 3, 224): 1.27,
    ("resnet50", 2, 4, 224): 1.31,
    ("resnet50", 3, 5, 224): 1.24,
}
MEASURED_PRECISIONS = ("fp16", "bf16")  # bf16 by analogy: it has fp16's kernels and its layout


# Triton, torch.compile's GPU backend, requires it.
MIN_CAPABILITY = (7, 0)


class StepChoice(NamedTuple):
    """A mode with the reason for it.

    Attributes:
        mode: "off", "fused" or "on".
        reason: A text for people.
    """

    mode: str
    reason: str


OFF = StepChoice("off", "asked for")


_numbers = itertools.count()


def make_runner(mode: str, backend: str | Callable[..., Callable[..., object]] = "inductor") -> Runner:
    """Return a stage's version of `run_blocks`. Compilation happens at its first call.

    The blocks are arguments, so the runner holds nothing of a stage, and a copy of a stage's blocks runs as
    its own.

    torch.compile is called with dynamic=False, and each runner has its own code object. For torch stores its
    caches and the sizes it has seen per code object. If a second stage shared one, its other height and width
    would make torch compile for symbolic sizes: S2's learning blocks had two SymInt inputs. Inductor does not
    use channels-last for convolutions of symbolic size. S2 was then slower compiled than eager: 5,000 against
    7,000 images/s. Within a stage, all steps have the same sizes.

    With fullgraph=True, a graph break, or more variants than torch keeps per code object (8), raises an
    error. Otherwise torch would silently run eagerly from then on.
    """
    if mode == "off":
        return run_blocks
    if mode == "fused":
        # fused_norms imports Triton, which is not installed everywhere.
        fused_runner: Runner = importlib.import_module("fastpsl.engine.fused_norms").make_fused_runner()
        return fused_runner
    code = run_blocks.__code__.replace(co_name=f"run_blocks_{next(_numbers)}")
    function = FunctionType(code, run_blocks.__globals__, argdefs=run_blocks.__defaults__)
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
    num_ranks: int = 1,
    sync_batchnorm: bool = False,
) -> StepChoice:
    """Choose the mode of a stage's steps."""
    if asked == "off":
        return OFF
    choice = StepChoice(asked, "asked for")
    if asked == "auto":
        choice = _fastest(backbone, stage, device, precision, side_px, captured, num_ranks)
        if choice.mode == "off":
            return choice
    if choice.mode == "fused":
        why_not = _why_not_fused(backbone, stage, device)
    else:
        why_not = _why_not_compiled(backbone, device, sync_batchnorm)
        choice = choice._replace(reason=f"{choice.reason}; the stage's first step takes a minute or so")
    if why_not and asked == "auto":
        return StepChoice("off", why_not)
    if why_not:
        raise ValueError(f"--compile {asked}: {why_not}; use --compile off, or auto")
    return choice


def _fastest(
    backbone: Backbone, stage: Stage, device: torch.device, precision: str, side_px: int, captured: bool,
    num_ranks: int,
) -> StepChoice:  # fmt: skip
    if device.type != "cuda":
        return StepChoice("off", "other modes were measured on CUDA only")
    if stage.first_learning > stage.last_block:
        return StepChoice("off", "no block learns")
    blocks = f"{backbone.name} B{stage.first_learning}-B{stage.last_block} on {side_px} px in {precision}"
    measured = (CAPTURED if captured else GAINS) if precision in MEASURED_PRECISIONS else {}
    gain = measured.get((backbone.name, stage.first_learning, stage.last_block, side_px))
    if captured and gain is None:
        return StepChoice("fused", f"faster for ResNet-50 in captured steps; not measured for {blocks}")
    if gain is None:
        return StepChoice("off", f"nothing faster was measured for launched steps of {blocks}")
    if num_ranks > 1 and not captured:
        return StepChoice("off", "fused was measured on one GPU only; try --compile fused")
    by = "by a prototype, both captured, " if captured else ""
    return StepChoice("fused", f"{gain} times eager's speed was measured {by}for {blocks}")


def _why_not_fused(backbone: Backbone, stage: Stage, device: torch.device) -> str:
    if backbone.why_untraceable:
        return backbone.why_untraceable
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
    """Return why torch.compile on CUDA and our own kernels cannot use Triton, or an empty string."""
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"Triton needs a GPU of compute capability {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    if importlib.util.find_spec("triton") is None:
        return "it needs Triton (pip install triton)"
    if not any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))):
        return "Triton needs a C compiler (apt-get install gcc), and none is on the PATH"
    return ""


def _why_not_compiled(backbone: Backbone, device: torch.device, sync_batchnorm: bool) -> str:
    if backbone.why_untraceable:
        return backbone.why_untraceable
    if sync_batchnorm:
        return "torch.compile does not take SyncBatchNorm, which talks to other ranks in its forward pass"
    if device.type == "cuda":
        return _why_no_triton(device)
    if not shutil.which(os.environ.get("CXX", "g++")):
        return "torch.compile on the CPU needs a C++ compiler (apt-get install g++), and none is on the PATH"
    return ""
