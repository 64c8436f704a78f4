"""Failures of the GPU, driver, compiler or another rank, explained in one line with a remedy."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from fastpsl.console.terminal import own_rank
from fastpsl.console.words import gibibytes, pasted
from fastpsl.engine.gpu import DRIVER_TOO_OLD, UPDATE_DRIVER, without_advice
from fastpsl.engine.options import TrainingOptions, per_stage
from fastpsl.engine.run import Run
from fastpsl.models.names import LESS_MEMORY

# Errors of allocations outside torch's allocator: by the driver, cuBLAS, cuDNN, DALI and Triton. If a few MiB
# are missing, cuBLAS and cuDNN only report that they could not be initialised.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_INITIALIZED", "cudaErrorMemoryAllocation",
    "Triton Error [CUDA]: out of memory",
)  # fmt: skip
# Any of the first words in an error → the fault and its remedy.
_FAULTS = (
    (DRIVER_TOO_OLD, "the driver is older than torch's CUDA", UPDATE_DRIVER),
    (
        (
            "illegal memory access", "misaligned address", "device-side assert", "unspecified launch failure",
            "illegal instruction", "invalid program counter", "invalid address space",
            "_STATUS_EXECUTION_FAILED",
        ),
        "a kernel failed on the GPU",
        (
            "with CUDA_LAUNCH_BLOCKING=1 before the command, error.txt names the kernel; --augment-backend "
            "kornia --compile off does without fastpsl's own; if it comes and goes, test the GPU (nvidia-smi "
            "-q -d ECC)"
        ),
    ),
    (
        ("NCCL", "nccl", "/gloo/"),
        "the ranks cannot talk: another one has gone or hangs, or the network does not let them",
        (
            "look at the first rank's error; NCCL_DEBUG=INFO before the command tells more, "
            "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network"
        ),
    ),
)  # fmt: skip
# Only errors that name one of these count, because other libraries may use the same words.
_SPEAKERS = ("cuda", "cublas", "cudnn", "nccl", "/gloo/")
# Errors of a rank that lost its connection to another one or waited in vain: those of Gloo, which names its
# file, of NCCL, and of the ranks' store.
_GLOOS_LOST_RANK = (
    "Connection closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "Read error"
)  # fmt: skip
_LOST_RANK = (
    "remote process exited", "ncclRemoteError", "collective operation timeout",
    "NCCL communicator was aborted", "wait timeout after", "Failed to recv, got 0 bytes",
)  # fmt: skip


def explained(error: Exception, runs: Sequence[Run]) -> str | None:
    """Explain an error in one line for people, or return None for an error of another kind."""
    text, first_words = " ".join(str(error).split()), without_advice(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return _out_of_memory(runs[-1] if runs else None)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return (
            f"out of this machine's memory ({first_words or 'no more is known'}): lower "
            f"--prefetch-batches, --workers or --batch-size{resume_hint(runs)}"
        )
    if of_another_rank(error):
        message = re.sub(r"^\[[^ ]*\] ", "", first_words)  # without Gloo's source file
        return (
            f"a rank other than {own_rank()} has gone or hangs ({message}): look for its error in the log, "
            f"or at its machine{resume_hint(runs)}"
        )
    if any(word in text.lower() for word in _SPEAKERS):
        for known, what, remedy in _FAULTS:
            if any(words in text for words in known):
                return f"{what} ({first_words}): {remedy}{resume_hint(runs)}"
    if "Triton Error [CUDA]" in text:
        return (
            f"Triton's kernels do not run here ({first_words}): its CUDA may be newer than the "
            "driver's; update the driver, or give --compile off --augment-backend kornia"
        )
    if "no kernel image is available" in text:
        return (
            f"this torch {torch.__version__} was built without kernels for this GPU: install one that was, "
            "or give --device cpu"
        )
    if compiler_failed(error):
        return f"torch.compile failed on this stage's blocks ({first_words}): give --compile off"
    return None


def of_another_rank(error: Exception) -> bool:
    """Return whether this rank failed because another one did."""
    text = " ".join(str(error).split())
    is_gloos = "/gloo/" in text or isinstance(error, torch.distributed.DistNetworkError)
    return any(words in text for words in _LOST_RANK + (_GLOOS_LOST_RANK if is_gloos else ()))


def resume_hint(runs: Sequence[Run]) -> str:
    """Return a text with the checkpoint from which the same command resumes."""
    if not runs:
        return ""
    paths = runs[-1].checkpoints.paths()
    begins = f"goes on from {paths[-1].name}" if paths else "starts anew, as there is no checkpoint yet"
    return f"; the same command with --out {pasted(runs[-1].folder)} {begins}"


def compiler_failed(error: Exception) -> bool:
    """Return whether torch.compile, or a compiler that it calls, failed."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)


def _out_of_memory(run: Run | None) -> str:
    if run is None:
        return "out of GPU memory: lower --batch-size"
    options, position, device = run.options, run.position, run.world.device
    return (
        f"out of GPU memory in stage {position.stage + 1}, step {position.step}, with "
        f"{run.data.batch_size} images per pass on each GPU in {run.precision}{_in_use(device)}; what takes "
        f"less: {', '.join(_less(options, run.precision, run.world.size, run.data.step_size))}"
    )


def _in_use(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except RuntimeError:  # the device no longer responds
        return ""
    others = total - free - reserved
    return (
        f" ({gibibytes(total)} on the device, {gibibytes(reserved)} held by torch, {gibibytes(others)} by "
        "all else)"
    )


def _less(
    options: TrainingOptions, precision: str, num_ranks: int, step_size: int | None = None
) -> Iterator[str]:
    """Yield options that need less memory, first those that do not change the experiment."""
    if options.graph == "on" or (options.graph == "auto" and num_ranks == 1):
        yield "--graph off"
    try:
        parts = replace(options, accumulate=2 * options.accumulate)
        images = parts.rank_batch(num_ranks, step_size)
        yield f"--accumulate {parts.accumulate} (the same batch, {images} images per pass)"
    except ValueError:
        pass  # the task needs the whole batch, or the batch is not divisible
    if precision == "fp32":
        yield "--precision fp16"
    if lighter := LESS_MEMORY.get(getattr(options, "backbone", "")):
        yield "--backbone {} ({})".format(*lighter)
    halves = " ".join(str(max(size // 2, 1)) for size in per_stage(options.batch_size))
    yield f"or --batch-size {halves} with the learning rate in proportion"
