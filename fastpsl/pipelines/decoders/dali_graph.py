"""What DALI computes: JPEGs or raw pictures, with boxes, to crops. The one file that imports DALI.

What needs a GPU (`is_gpu`) has not been run yet.
"""

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

# Its decoder can be told not to turn pictures upright, and its lists of tensors need no copy.
OLDEST = (2, 2)
# The filter nearest to an exact area mean, by the box's sides over the crop's. Mean difference in 1/255 on 48 photos for
# random resized crops to 224 / 112 / 64 px: Gaussian 0.76 / 0.66 / 0.87, linear 0.64 / 1.29 / 1.84, cubic 0.95 / 1.02 / 1.34,
# linear from 0.85 to 1.4 and Gaussian elsewhere 0.56 / 0.65 / 0.87. Linear copies what keeps its size; all cost the same.
_LINEAR_FROM, _LINEAR_TO = 0.85, 1.4
_SAMPLE_PX = 256  # around its middle there is room for any window
# The share of a batch that a GPU's hardware decoder is given: that of the run that made 32,200 images/s on an H200.
HW_DECODER_LOAD = 0.9


def why_missing(device: torch.device) -> str:
    """Why DALI cannot be used for batches on `device`, with the remedy; empty where it can."""
    cuda = (torch.version.cuda or "13").split(".")[0]
    install = f'pip install "fastpsl[dali-cu{cuda}]"'
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
    """At exit DALI ends its pipelines and asserts that none is left. Registered after DALI's import, this comes before that: a
    thread whose pipeline is ended must not start another."""

    def stop() -> None:
        with _building:
            _exiting.set()

    atexit.register(stop)


class Graph(NamedTuple):
    """What one pipeline does."""

    is_raw: bool  # it is given pictures, uint8 [H, W, 3], not JPEGs
    turns: bool  # JPEGs by their EXIF orientation; the sizes of the pictures are its last output then
    sizes_px: tuple[int, ...]  # of the crops of each sample
    isotropic: tuple[
        bool, ...
    ]  # of each crop: whether it is still to be made, by the isotropic kernel, of a window
    hw_decoder_load: float = HW_DECODER_LOAD


def build(graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int) -> Any:
    """A pipeline for `feeds`, with a crop, or the window of one, of each size as its outputs. RuntimeError at the
    interpreter's exit."""
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
            pictures = source("samples", types.UINT8, 3, "HWC")
            pictures = pictures.gpu() if is_gpu else pictures
        else:
            # affine ties threads to cores, to the same ones for every rank of a machine. Memory is bounded by DALI's defaults:
            # 16 MiB on the device and 2 x 8 MiB pinned a thread, which grow with the largest picture alone.
            pictures = fn.decoders.image(
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
                window = fn.slice(pictures, start=start, shape=shape, axes=(0, 1))
                # At the top left of what the largest of the batch needs.
                outputs.append(fn.pad(window, axes=(0, 1)) if is_gpu else window)
                continue
            outputs.append(
                fn.resize(
                    pictures,
                    size=(size, size),
                    roi_start=source(f"start{k}", types.FLOAT, 1),
                    roi_end=source(f"end{k}", types.FLOAT, 1),
                    interp_type=fn.cast(source(f"filter{k}", types.INT32, 0), dtype=types.INTERP_TYPE),
                    antialias=True,
                )
            )
        if graph.turns:
            outputs.append(pictures.shape(device="cpu"))
        pipe.set_outputs(*outputs)
    pipe.build()
    return pipe


def feeds(
    graph: Graph, samples: list[Any], boxes: list[np.ndarray], is_pinned: bool = False
) -> list[tuple[str, Any]]:
    """Names of inputs and what they are fed with: JPEGs, buffers of uint8 [num_bytes], or pictures, and per crop int32 [n, 5].

    DALI reads the memory itself: it must live, and stay as it is, until the run is over. is_pinned: of all samples; needs a CUDA
    device, the thread's current one.
    """
    dali = _dali()
    types, tensors = dali.types, dali.tensors
    linear, gaussian = int(types.INTERP_LINEAR), int(types.INTERP_GAUSSIAN)
    # Wrapped here, without a copy: of a list of arrays feed_input makes the same with checks of each, in 8 us a sample under the
    # interpreter's lock instead of 2.5.
    # What a GPU's operators read DALI first copies to pinned memory, unless it is told that it lies there; all of a list or none. The
    # flag (is_pinned) stands third: by its name it costs 1 us a sample.
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
        is_near = ((scales >= _LINEAR_FROM) & (scales <= _LINEAR_TO)).all(1)
        named.append((f"start{k}", np.ascontiguousarray(corners)))
        named.append((f"end{k}", np.ascontiguousarray(corners + sides)))
        named.append((f"filter{k}", np.where(is_near, linear, gaussian).astype(np.int32)))
    return named


@cache
def sample_feeds(graph: Graph) -> list[tuple[str, Any]]:
    """A batch of one small black picture, to try a pipeline with."""
    black = np.zeros((_SAMPLE_PX, _SAMPLE_PX, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(black).save(file, "JPEG")
    sample = black if graph.is_raw else np.frombuffer(file.getvalue(), np.uint8)
    boxes = [
        np.array([[_SAMPLE_PX // 2, _SAMPLE_PX // 2, 1, 1, is_isotropic]], np.int32)
        for is_isotropic in graph.isotropic
    ]
    return feeds(graph, [sample], boxes)
