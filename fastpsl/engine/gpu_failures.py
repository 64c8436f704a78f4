"""What a GPU, its driver, its compiler or another rank refused, in one line with what to change; the rest is ours, with its traceback."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from fastpsl.engine.distributed import own_rank
from fastpsl.engine.gpu_faults import device_fault, lost_rank
from fastpsl.engine.gpu_memory import gibibytes
from fastpsl.engine.options import RunOptions
from fastpsl.engine.run import Run

# Of an allocation that did not pass through torch's allocator: the driver's, cuBLAS's, cuDNN's, DALI's and Triton's words. cuBLAS and cuDNN
# say no more than that they could not begin where a few MiB are missing.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "cudaErrorMemoryAllocation",
    "Triton Error [CUDA]: out of memory",
)
_LONGEST = 200


def explained(error: Exception, runs: Sequence[Run]) -> str | None:
    """One line for people, or None where `error` is of another kind. runs: those under way, the last counts."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return _out_of_memory(runs[-1] if runs else None)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"out of this machine's memory ({text[:_LONGEST] or 'no more is known'}): lower --prefetch-batches, --num-threads or "
            f"--batch-size{goes_on(runs)}"
        )
    if (lost := lost_rank(text)) is not None:
        return f"a rank other than {own_rank()} {lost}{goes_on(runs)}"
    if (fault := device_fault(text)) is not None:
        return fault + goes_on(runs)
    if "Triton Error [CUDA]" in text:
        return (
            f"Triton's kernels do not run here ({text[:_LONGEST]}): its CUDA may be newer than the driver's; update the driver, or "
            f"give --step eager --augment kornia"
        )
    if "no kernel image is available" in text:
        return f"this torch {torch.__version__} was built without kernels for this GPU: install one that was, or give --device cpu"
    if compiler_failed(error):
        return f"torch.compile failed on this stage's blocks ({text[:_LONGEST]}): give --step eager"
    return None


def of_another_rank(error: Exception) -> bool:
    """Whether this rank fails because another one has."""
    return lost_rank(" ".join(str(error).split())) is not None


def goes_on(runs: Sequence[Run]) -> str:
    """Where the same command begins."""
    if not runs:
        return ""
    paths = runs[-1].checkpoints.paths()
    begins = f"goes on from {paths[-1].name}" if paths else "starts anew, as there is no checkpoint yet"
    return f"; the same command with --out {runs[-1].folder} {begins}"


def compiler_failed(error: Exception) -> bool:
    """Whether torch.compile, or a compiler that it calls, gave up."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)


def _out_of_memory(run: Run | None) -> str:
    if run is None:
        return "out of GPU memory: lower --batch-size"
    options, position, device = run.options, run.position, run.world.device
    line = (
        f"out of GPU memory in stage {position.stage + 1}, step {position.step}, with {run.data.batch_size} images a pass of each GPU in "
        f"{run.precision}{_in_use(device)}; what takes less: "
    )
    return line + ", ".join(_less(options, run.precision, run.world.size))


def _in_use(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
    except RuntimeError:  # a device that answers no more
        return ""
    return f" ({gibibytes(total)} on the device, {gibibytes(own)} held by torch, {gibibytes(total - free - own)} by all else)"


def _less(options: RunOptions, precision: str, num_ranks: int) -> Iterator[str]:
    """What to give instead, the experiment's own values first."""
    if options.step == "graphed":
        yield "--step eager"
    try:
        parts = replace(options, accumulate=2 * options.accumulate)
        yield f"--accumulate {parts.accumulate} (the same batch, {parts.rank_batch(num_ranks)} images a pass)"
    except ValueError:
        pass  # a task that needs the batch whole, or a batch that does not divide
    if precision == "fp32":
        yield "--precision fp16"
    if getattr(options, "backbone", None) == "resnet50":
        yield "--backbone revnet50 (it recomputes what ResNet-50 keeps)"
    yield f"or --batch-size {max(options.batch_size // 2, 1)} with the learning rate in proportion"
