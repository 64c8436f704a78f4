"""The DALI pipeline from JPEGs or raw images and boxes to crops. Only this file imports DALI."""

import atexit
import importlib
import io
import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fastpsl.pipelines.decoders.boxes import windows

# The first version that has a decoder without EXIF rotation and lists of tensors without a copy.
OLDEST = (2, 2)
# The filter closest to an exact area mean, by the ratio of the box's sides to the crop's: linear up to 1.4,
# which is exact where nothing shrinks, and Gaussian above. All filters cost the same.
_LINEAR_TO = 1.4
_SAMPLE_PX = 64  # leaves room for any window around the middle
# The share of a batch for a GPU's hardware decoder. DALI's own default is 0.65 since May 2026. Ours stays
# until both are measured in one run, which bench/jpeg_engines.py does (part E of bench/gpu_day).
HW_DECODER_LOAD = 0.9


def why_missing(device: torch.device) -> str:
    """Return why DALI cannot make batches on `device`, with the remedy; empty if it can."""
    cuda = (torch.version.cuda or "13").split(".")[0]
    install = f'pip install "fastpsl-vision[dali-cu{cuda}]"'
    try:
        dali = _dali()
    except ModuleNotFoundError as error:
        if str(error.name) in ("nvidia", "nvidia.dali"):
            return f"DALI is not installed; {install} installs it"
        return f"DALI does not load ({error}); {install} installs what it needs"
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"DALI does not load ({' '.join(str(error).split())}); {install} installs that for torch's CUDA"
        )
    _watch_exit()
    version, built_for = str(dali.__version__), str(dali.__cuda_version__)[:2]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"DALI {version} is older than {OLDEST[0]}.{OLDEST[1]}; {install} --upgrade"
    if device.type == "cuda" and built_for != cuda:
        return (
            f"DALI is built for CUDA {built_for}, torch for CUDA {cuda}; "
            f"pip uninstall nvidia-dali-cuda{built_for}0, then {install}"
        )
    return ""


def _dali() -> Any:
    return importlib.import_module("nvidia.dali")


_building, _exiting = threading.Lock(), threading.Event()


@cache
def _watch_exit() -> None:
    """Prevent new pipelines during the interpreter's exit.

    DALI's exit handler ends its pipelines and asserts that none is left, so no thread may then start another.
    Handlers run in reverse order, so this one, registered after DALI's import, runs before DALI's.
    """

    def stop() -> None:
        with _building:
            _exiting.set()

    atexit.register(stop)


class Graph(NamedTuple):
    """The description of a pipeline.

    Attributes:
        is_raw: Whether the input is images, uint8 [H, W, 3], and not JPEGs.
        turns: Whether JPEGs are rotated by EXIF. The last output is then the images' shapes.
        sizes_px: The side of each crop of a sample.
        isotropic: For each crop, whether the output is a source window for the isotropic kernel.
        hw_decoder_load: The share of a batch for the GPU's hardware decoder, 0 to 1.
    """

    is_raw: bool
    turns: bool
    sizes_px: tuple[int, ...]
    isotropic: tuple[bool, ...]
    hw_decoder_load: float = HW_DECODER_LOAD


def build(graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int) -> Any:
    """Build a pipeline for the inputs of `feeds`, with an output for each crop or its window.

    Args:
        graph: The description of the pipeline.
        batch_size: The largest batch.
        num_threads: The number of DALI's threads.
        device: The device of the outputs.
        depth: The length of DALI's prefetch queue.

    Raises:
        RuntimeError: If the interpreter is exiting.
    """
    with _building:
        if _exiting.is_set():
            raise RuntimeError("the process ends")
        return _build(graph, batch_size, num_threads, device, depth)


def _build(graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int) -> Any:
    dali = _dali()
    fn, types = dali.fn, dali.types
    is_gpu = device.type == "cuda"

    def source(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout, no_copy=True)

    pipe = dali.Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=device.index if is_gpu else None,
        prefetch_queue_depth=depth,
        exec_dynamic=True,
    )
    with pipe:
        if graph.is_raw:
            images = source("samples", types.UINT8, 3, "HWC")
            images = images.gpu() if is_gpu else images
        else:
            # Without affine, because it binds threads to cores, the same ones for every rank of a machine.
            # Memory is bounded by DALI's defaults, 16 MiB on the device and 2 x 8 MiB pinned per thread,
            # which grow only with the largest image.
            images = fn.decoders.image(
                source("samples", types.UINT8, 1),
                device="mixed" if is_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=graph.turns,
                **({"hw_decoder_load": graph.hw_decoder_load, "affine": False} if is_gpu else {}),
            )
        outputs = []
        for k, size in enumerate(graph.sizes_px):
            if graph.isotropic[k]:
                start, shape = source(f"start{k}", types.INT32, 1), source(f"shape{k}", types.INT32, 1)
                window = fn.slice(images, start=start, shape=shape, axes=(0, 1))
                # Padded at the bottom and the right to the largest window of the batch, to form one tensor.
                outputs.append(fn.pad(window, axes=(0, 1)) if is_gpu else window)
                continue
            outputs.append(
                fn.resize(
                    images,
                    size=(size, size),
                    roi_start=source(f"start{k}", types.FLOAT, 1),
                    roi_end=source(f"end{k}", types.FLOAT, 1),
                    interp_type=fn.cast(source(f"filter{k}", types.INT32, 0), dtype=types.INTERP_TYPE),
                    antialias=True,
                )
            )
        if graph.turns:
            outputs.append(images.shape(device="cpu"))
        pipe.set_outputs(*outputs)
    pipe.build()
    return pipe


def feeds(
    graph: Graph, samples: list[Any], boxes: list[np.ndarray], is_pinned: bool = False
) -> list[tuple[str, Any]]:
    """Prepare a batch as inputs of a pipeline.

    DALI reads the samples' memory in place, so it must stay alive and unchanged until the run is over.

    Args:
        graph: The description of the pipeline.
        samples: n JPEGs, uint8 [num_bytes], or images, uint8 [H, W, 3].
        boxes: For each crop int32 [n, 5].
        is_pinned: Whether all samples lie in pinned memory; the thread's current device must be CUDA.

    Returns:
        The name and the value of each input.
    """
    dali = _dali()
    types, tensors = dali.types, dali.tensors
    linear, gaussian = int(types.INTERP_LINEAR), int(types.INTERP_GAUSSIAN)
    # Wrapped here without a copy, because feed_input would do the same for a list of arrays with checks of
    # each, which take 8 us per sample under the interpreter's lock instead of 2.5. DALI copies the input of a
    # GPU's operators to pinned memory first, unless is_pinned says that it lies there; that holds for all of
    # a list or none. The flag is positional, because by name it costs 1 us per sample.
    wrapped = [tensors.TensorCPU(sample, None, is_pinned) for sample in samples]
    inputs = tensors.TensorListCPU(wrapped, contiguous=False)
    named: list[tuple[str, Any]] = [("samples", inputs)]
    for k, (box, size) in enumerate(zip(boxes, graph.sizes_px, strict=True)):
        if graph.isotropic[k]:
            start, shape, _ = windows(box, size)
            named += [(f"start{k}", np.ascontiguousarray(start)), (f"shape{k}", np.ascontiguousarray(shape))]
            continue
        corners, sides = box[:, :2].astype(np.float32), box[:, 2:4].astype(np.float32)
        scales = sides / np.float32(size)
        is_near = (scales <= _LINEAR_TO).all(1)
        named.append((f"start{k}", np.ascontiguousarray(corners)))
        named.append((f"end{k}", np.ascontiguousarray(corners + sides)))
        named.append((f"filter{k}", np.where(is_near, linear, gaussian).astype(np.int32)))
    return named


@cache
def first_feeds(graph: Graph, batch_size: int, depth: int) -> list[tuple[str, Any]]:
    """Return the inputs for a pipeline's first `depth` runs, of small black images.

    The first run is a full batch, the others have one image. nvImageCodec turns the hardware decoder's share
    of the first batch into a number of samples, and keeps it for all later batches. A small first batch would
    leave the decoder idle. (Source: nvImageCodec 0.8, src/image_generic_codec.h, adjustBatchSizes.)
    """
    black = np.zeros((_SAMPLE_PX, _SAMPLE_PX, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(black).save(file, "JPEG")
    sample = black if graph.is_raw else np.frombuffer(file.getvalue(), np.uint8)
    middle = _SAMPLE_PX // 2
    inputs = []
    for num in (batch_size, *[1] * (depth - 1)):
        boxes = [np.array([[middle, middle, 1, 1, kernel]] * num, np.int32) for kernel in graph.isotropic]
        inputs += feeds(graph, [sample] * num, boxes)
    return inputs
