"""Errors for the user from DALI's original messages."""

import pytest

from fastpsl.pipelines.decoders.dali_pipeline import named_sample, reason, user_error

# Messages of DALI 2.4: CUDABadAlloc and CUDAError (include/dali/core/cuda_error.h) in the frame of its
# executor, CUDA's texts of cudaErrorInsufficientDriver and cudaErrorUnsupportedPtxVersion, libdali's when it
# builds a pipeline for a GPU, and those of torch's allocator.
FRAMED = (
    "Critical error in pipeline:\nError in MIXED operator `x`,\nencountered:\n\n{}\n"
    "Current pipeline object is no longer valid."
)
ROOM = 8 << 30


@pytest.mark.parametrize(
    ("text", "free_bytes", "says"),
    [
        (
            "Can't allocate 268435456 bytes on device 0.",
            ROOM,
            "out of GPU memory while decoding on cuda:0 (Can't allocate",
        ),
        ("CUDA allocation failed", ROOM, "lower --prefetch-batches or --batch-size, or use --decoder turbo"),
        (
            "CUDA out of memory. Tried to allocate 36.00 MiB. GPU 0 has",
            ROOM,
            "out of GPU memory while decoding on cuda:0",
        ),
        ("Failed to decode sample #17 : ", 16 << 20, ""),  # only this sample failed
        ("Failed to decode sample #17 : ", ROOM, ""),
        ("Failed to decode sample #17 : ", None, ""),  # on a CPU
        ("Can't allocate 8388608 bytes on host.", ROOM, "out of pinned host memory while decoding"),
        (
            (
                "CUDA runtime API error cudaErrorInsufficientDriver (35):\n"
                "CUDA driver version is insufficient for CUDA runtime version"
            ),
            ROOM,
            "the NVIDIA driver is too old for this DALI",
        ),
        (
            (
                "The pipeline requires a CUDA-capable GPU but the CUDA driver is not installed "
                "or its version is insufficient."
            ),
            None,
            "the NVIDIA driver is too old for this DALI",
        ),
        (
            (
                "CUDA runtime API error cudaErrorUnsupportedPtxVersion (222):\n"
                "the provided PTX was compiled with an unsupported toolchain."
            ),
            ROOM,
            "update the driver, install the DALI of an older CUDA, or use --decoder turbo",
        ),
        ("CUDA runtime API error cudaErrorIllegalAddress (700)", ROOM, ""),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(text: str, free_bytes: int | None, says: str) -> None:
    error = user_error(FRAMED.format(text), "cuda:0", free_bytes)
    if not says:
        assert error is None
    else:
        assert says in str(error) and "\n" not in str(error) and "encountered" not in str(error)


def test_short_memory_is_the_reason_where_nothing_could_be_decoded() -> None:
    text, device = FRAMED.format("Failed to decode sample #17 : "), "cuda:0"
    assert "out of GPU memory while decoding on cuda:0" in str(
        user_error(text, device, 16 << 20, of_all=True)
    )
    assert user_error(text, device, ROOM, of_all=True) is None
    assert user_error(text, device, None, of_all=True) is None


def test_messages_are_read() -> None:
    text = (
        "Critical error in pipeline:\nError in CPU operator `x`,\n\n  File 'a', line 1\n\nencountered:\n\n"
        "Failed to decode sample #17 : \nCurrent pipeline object is no longer valid.\n"
    )
    assert named_sample(text) == 17 and reason(text) == "Failed to decode sample #17"
    assert named_sample("nvImageCodec failure: '#3'") is None
