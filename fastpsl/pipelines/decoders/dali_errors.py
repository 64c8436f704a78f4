"""DALI's messages: whose fault an error is, in words for people."""

import re

# Texts of DALI 2.4: include/dali/core/cuda_error.h (CUDABadAlloc, CUDAError) and, of CUDA itself, cudaGetErrorString; torch's own
# for the copy that is made of DALI's output. "on host" is pinned memory.
_NO_MEMORY = re.compile(
    r"Can't allocate \d+ bytes on device|CUDA allocation failed|cudaErrorMemoryAllocation"
    r"|CUDA_ERROR_OUT_OF_MEMORY|CUDA out of memory"
)
_NO_HOST_MEMORY = re.compile(r"Can't allocate \d+ bytes on host|failed to allocate pinned GPU Memory")
# cudaErrorInsufficientDriver, cudaErrorUnsupportedPtxVersion, and of libdali where a pipeline is built.
_OLD_DRIVER = re.compile(
    r"driver version is insufficient|CUDA driver is not installed or its version is insufficient"
    r"|cudaErrorInsufficientDriver|unsupported toolchain|cudaErrorUnsupportedPtxVersion"
)
# Where its memory is short, nvImageCodec tells of a sample alone, as of a broken one. With less than this free, and no sample that
# was decoded, that was it.
_SHORT_BYTES = 64 << 20


def named_sample(message: str) -> int | None:
    """The position in its batch of a sample that DALI names: of those that are at fault the first."""
    found = re.search(r"sample #(\d+)", message)
    return int(found[1]) if found else None


def reason(message: str) -> str:
    """DALI's message without its frame of traceback and advice, in one line."""
    text = message.rsplit("encountered:", 1)[-1].replace("Current pipeline object is no longer valid.", "")
    return " ".join(text.replace("Critical error in pipeline:", "").split()).rstrip(" :")


def user_error(message: str, device: str, free_bytes: int | None, of_all: bool = False) -> ValueError | None:
    """What no other sample and no new start would mend, None for what they may. free_bytes: of the device, None on a CPU. of_all: a
    sound sample, or every sample of a run, was refused so."""
    is_short = of_all and free_bytes is not None and free_bytes < _SHORT_BYTES
    if free_bytes is not None and (is_short or _NO_MEMORY.search(message)):
        return ValueError(
            f"out of GPU memory while decoding on {device} ({reason(message)}; {free_bytes >> 20:,} MiB free): "
            "lower --prefetch-batches or --batch-size, or use --decoder ffcv"
        )
    if _NO_HOST_MEMORY.search(message):
        return ValueError(
            f"out of pinned host memory while decoding ({reason(message)}): lower --num-threads, "
            "--prefetch-batches or --batch-size, or use --decoder ffcv"
        )
    if _OLD_DRIVER.search(message):
        return ValueError(
            f"the NVIDIA driver is too old for this DALI ({reason(message)}): update the driver, install the DALI "
            "of an older CUDA, or use --decoder ffcv"
        )
    return None
