"""What decoding was measured to cost, what a step needs, and the choice on a GPU that follows from both.

All figures are of one machine: an NVIDIA H200 and 16 cores of an Intel Xeon, torch 2.11, DALI 2.4, on
2026-11-26. Images were JPEGs of 500 px and 55 KB (bench/photos.py), crops were random and resized to 224 px,
batches had 256 images. They are those of prototypes; this version was not measured on a GPU yet.
`fastpsl doctor` measures both decoders on the machine at hand.
"""

import math
from collections.abc import Callable

from fastpsl.console.words import number_of

# CPU time per image: `turbo` with 16 threads made 22,987 images/s with one view (15.6 cores), and 17,030
# with two, which take 0.90 ms. With 4 threads it took 0.63 ms for one view.
TURBO_MS, TURBO_MS_PER_FURTHER_VIEW = 0.68, 0.22
MEASURED_PIXELS = 167_000  # of an image, in the mean
# The same of a plain DALI pipeline whose JPEG engines were busy: 37,027 images/s, 4.2 cores, one view.
DALI_MS = 0.11
# The same of our `dali` while the engines were idle: 14,002 images/s, 13.6 cores, one view.
DALI_MS_WITHOUT_ENGINES = 0.97
# Images/s of the fastest step: a captured prototype with fused BatchNorms, ResNet-50, fp16, level S3 with
# folded blocks. It was jigsaw with one view, and SimCLR with two. A loader need not deliver more.
FASTEST_STEP, FASTEST_STEP_OF_TWO_VIEWS = 14_758, 6_031


def turbo_ms(num_views: int, num_pixels: float = MEASURED_PIXELS) -> float:
    """Return the CPU time of `turbo` per image, in ms; for other sizes and more views it is an estimate.

    Below the measured size the time grows as the pixels (bench/results/sizes.json). Above it, it grows as
    their root, because parts of an image are skipped, and larger ones are decoded at a half or less.

    Args:
        num_views: The views of each image.
        num_pixels: The pixels of an image, in the mean.
    """
    share = num_pixels / MEASURED_PIXELS
    return TURBO_MS * min(share, share**0.5) + TURBO_MS_PER_FURTHER_VIEW * (num_views - 1) * min(share, 1)


def fastest_step(num_views: int) -> int:
    """Return the images/s of the fastest step that was measured with so many views, or with two."""
    return FASTEST_STEP if num_views == 1 else FASTEST_STEP_OF_TWO_VIEWS


def choose_on_gpu(
    num_threads: int, num_cores: int, num_views: int, num_pixels: float, why_not_dali: Callable[[], str]
) -> tuple[str, str]:
    """Choose between `turbo`, which takes the CPU, and `dali`, which takes the GPU's JPEG engines.

    Args:
        num_threads: The threads that decode.
        num_cores: This process's share of the cores. More threads do not decode more.
        num_views: The views of each image.
        num_pixels: The pixels of an image, in the mean.
        why_not_dali: Returns why `dali` cannot decode by the GPU's engines, or "". It is called only if the
            threads may not suffice, because the answer takes seconds.

    Returns:
        The decoder's name, and the reason in one line.
    """
    num_threads, needed = min(num_threads, num_cores), fastest_step(num_views)
    image_ms = turbo_ms(num_views, num_pixels)
    rate = 1e3 * num_threads / image_ms
    threads = number_of(num_threads, "thread decodes", "threads decode")
    decode = f"{threads} about {float(f'{rate:.3g}'):,.0f} images/s of {num_pixels / 1e6:.2g} Mpx"
    estimate = f"{decode} (an estimate), and the fastest step measured takes {needed:,}"
    if rate >= needed:
        return "turbo", estimate
    reason = why_not_dali()
    if not reason:
        return "dali", f"the GPU's JPEG engines decode. By turbo {estimate}"
    enough = math.ceil(needed * image_ms / 1e3)
    more = f"--workers {enough}" if num_cores >= enough else f"{enough} cores per GPU instead of {num_cores}"
    return "turbo", f"{estimate}. If the step waits, {more} would do. dali is not taken: {reason}"


def without_engines(reason: str) -> str:
    """Return why `dali` is slower than `turbo` without its engines, given why they do not work."""
    return (
        f"without JPEG engines it took {DALI_MS_WITHOUT_ENGINES:g} ms of CPU per image, turbo {TURBO_MS:g} "
        f"({reason})"
    )
