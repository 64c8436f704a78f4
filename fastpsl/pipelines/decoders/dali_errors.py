"""DALI's error messages: the sample at fault, the reason, and the errors that the user can fix."""

import re

# Texts of DALI 2.4 (include/dali/core/cuda_error.h: CUDABadAlloc, CUDAError), of CUDA's cudaGetErrorString,
# and of torch for the copy of DALI's output. "on host" is pinned memory.
_NO_MEMORY = re.compile(
    r"Can't allocate \d+ bytes on device|CUDA allocation failed|cudaErrorMemoryAllocation"
    r"|CUDA_ERROR_OUT_OF_MEMORY|CUDA out of memory"
)
_NO_HOST_MEMORY = re.compile(r"Can't allocate \d+ bytes on host|failed to allocate pinned GPU Memory")
# Texts of cudaErrorInsufficientDriver and cudaErrorUnsupportedPtxVersion, and of libdali at building.
_OLD_DRIVER = re.compile(
    r"driver version is insufficient|CUDA driver is not installed or its version is insufficient"
    r"|cudaErrorInsufficientDriver|unsupported toolchain|cudaErrorUnsupportedPtxVersion"
)
# When memory is short, nvImageCodec reports only a sample, as if it were broken. With less free memory than
# this and no decoded sample, memory is taken for the cause.
_SHORT_BYTES = 64 << 20


def named_sample(message: str) -> int | None:
    """Return the position in its batch of the first sample that DALI names, or None."""
    match = re.search(r"sample #(\d+)", message)
    return int(match[1]) if match else None


def reason(message: str) -> str:
    """Return DALI's message in one line, without its traceback and advice."""
    text = message.rsplit("encountered:", 1)[-1].replace("Current pipeline object is no longer valid.", "")
    return " ".join(text.replace("Critical error in pipeline:", "").split()).rstrip(" :")


def user_error(message: str, device: str, free_bytes: int | None, of_all: bool = False) -> ValueError | None:
    """Return the error for a message that neither other samples nor a restart of DALI can fix.

    Args:
        message: DALI's message.
        device: The device, for the error's text.
        free_bytes: The device's free memory; None on a CPU.
        of_all: Whether DALI refused a sound sample, or every sample of a run.

    Returns:
        The error to raise, or None if other samples or a restart may help.
    """
    is_short = of_all and free_bytes is not None and free_bytes < _SHORT_BYTES
    if free_bytes is not None and (is_short or _NO_MEMORY.search(message)):
        return ValueError(
            f"out of GPU memory while decoding on {device} ({reason(message)}; "
            f"{free_bytes >> 20:,} MiB free): "
            "lower --prefetch-batches or --batch-size, or use --decoder turbo"
        )
    if _NO_HOST_MEMORY.search(message):
        return ValueError(
            f"out of pinned host memory while decoding ({reason(message)}): lower --workers, "
            "--prefetch-batches or --batch-size, or use --decoder turbo"
        )
    if _OLD_DRIVER.search(message):
        return ValueError(
            f"the NVIDIA driver is too old for this DALI ({reason(message)}): update the driver, "
            "install the DALI of an older CUDA, or use --decoder turbo"
        )
    return None
