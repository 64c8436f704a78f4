"""A DALI pipeline that takes batches and returns their crops, in order, and is rebuilt after an error.

Nothing in it is random or depends on the epoch.
"""

import atexit
import importlib
import io
import re
import threading
from collections import deque
from concurrent import futures
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastpsl.console.installed import install
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.workers import Workers
from fastpsl.kernels.device_crops import crop_isotropic
from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.decoders.decoder import windows
from fastpsl.pipelines.decoders.memory import to_device

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
    """Return the error for a message that neither other samples nor a restart of DALI can fix."""
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


# The first version that has a decoder without EXIF rotation and lists of tensors without a copy.
OLDEST = (2, 2)
# The filter closest to an exact area mean, by the ratio of the box's sides to the crop's: linear up to 1.4,
# which is exact where nothing shrinks, and Gaussian above. All filters cost the same.
_LINEAR_TO = 1.4
_SAMPLE_PX = 64  # leaves room for any window around the middle
# The share of a batch for a GPU's hardware decoder. DALI's own default is 0.65 since May 2026. Ours stays
# until both are measured in one run, which bench/loaders.py does (part E of bench/gpu_day).
HW_DECODER_LOAD = 0.9


def why_missing(device: torch.device) -> str:
    """Return why DALI cannot make batches on `device`, with the remedy; empty if it can."""
    cuda = (torch.version.cuda or "13").split(".")[0]
    command = install(f"dali-cu{cuda}")
    try:
        dali = _dali()
    except ModuleNotFoundError as error:
        if str(error.name) in ("nvidia", "nvidia.dali"):
            return f"DALI is not installed; {command} installs it"
        return f"DALI does not load ({error}); {command} installs what it needs"
    except (ImportError, OSError, RuntimeError) as error:
        raise_of_the_system("DALI", error)
        return (
            f"DALI does not load ({' '.join(str(error).split())}); {command} installs that for torch's CUDA"
        )
    _watch_exit()
    version, built_for = str(dali.__version__), str(dali.__cuda_version__)[:2]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"DALI {version} is older than {OLDEST[0]}.{OLDEST[1]}; {command} --upgrade"
    if device.type == "cuda" and built_for != cuda:
        return (
            f"DALI is built for CUDA {built_for}, torch for CUDA {cuda}; "
            f"pip uninstall nvidia-dali-cuda{built_for}0, then {command}"
        )
    return ""


def _dali() -> Any:
    return importlib.import_module("nvidia.dali")


# The lock keeps the exit waiting for a pipeline that is being built.
_building, _exiting = threading.Lock(), threading.Event()


@cache
def _watch_exit() -> None:
    """Prevent new pipelines during the interpreter's exit."""

    # DALI's exit handler ends its pipelines and asserts that none is left, so no thread may start another.
    def stop() -> None:
        with _building:
            _exiting.set()

    # Handlers run in reverse order, so this one, registered after DALI's import, runs before DALI's.
    atexit.register(stop)


class Graph(NamedTuple):
    """The description of a pipeline."""

    is_raw: bool  # whether the input is images, uint8 [H, W, 3], and not JPEGs
    turns: bool  # whether JPEGs are rotated by EXIF. The last output is then the images' shapes
    sizes_px: tuple[int, ...]  # the side of each crop of a sample
    # For each crop, whether the output is a source window for the isotropic kernel.
    isotropic: tuple[bool, ...]
    hw_decoder_load: float = HW_DECODER_LOAD  # the share of a batch for the GPU's hardware decoder, 0 to 1


def build(graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int) -> Any:
    """Build a pipeline for the inputs of `feeds`, with an output for each crop or its window."""
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
    """Return the name and the value of each input of a pipeline for a batch.

    Samples are n JPEGs, uint8 [num_bytes], or images, uint8 [H, W, 3]; boxes are int32 [n, 5] for each crop.
    DALI reads the samples' memory in place, so it must stay alive and unchanged until the run is over. If
    all of it is pinned, the thread's current device must be CUDA.
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

    The first run is a full batch, the others have one image.
    """
    black = np.zeros((_SAMPLE_PX, _SAMPLE_PX, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(black).save(file, "JPEG")
    sample = black if graph.is_raw else np.frombuffer(file.getvalue(), np.uint8)
    middle = _SAMPLE_PX // 2
    inputs = []
    # nvImageCodec turns the hardware decoder's share of the first batch into a number of samples, and keeps
    # it for all later batches. A small first batch would leave the decoder idle. (Source: nvImageCodec 0.8,
    # src/image_generic_codec.h, adjustBatchSizes.)
    for num in (batch_size, *[1] * (depth - 1)):
        boxes = [np.array([[middle, middle, 1, 1, kernel]] * num, np.int32) for kernel in graph.isotropic]
        inputs += feeds(graph, [sample] * num, boxes)
    return inputs


_CHUNK = 8  # samples per task of a thread; fewer would spread better, and cost more calls (not measured)


@dataclass
class _Run:
    """A batch that is submitted; `submit` describes the first five fields."""

    samples: list[Any]
    sizes: np.ndarray
    boxes: list[np.ndarray]
    owner: object
    is_pinned: bool
    feeds: list[tuple[str, Any]] = field(default_factory=list)
    is_fed: bool = False
    message: str = "DALI has ended"  # DALI's message if the batch could not be fed

    def part(self, which: np.ndarray) -> "_Run":
        samples = [self.samples[i] for i in which]
        boxes = [boxes[which] for boxes in self.boxes]
        return _Run(samples, self.sizes[which], boxes, self.owner, self.is_pinned)


class DaliPipeline:
    """A queue of batches through a DALI pipeline; one thread submits and collects."""

    def __init__(
        self,
        graph: Graph,
        batch_size: int,
        num_threads: int,
        device: torch.device,
        depth: int,
        workers: Workers | None = None,
    ) -> None:
        self._graph, self._batch_size, self._num_threads = graph, batch_size, num_threads
        self._device, self._depth, self._workers = device, depth, workers
        self._is_gpu = device.type == "cuda"
        self._pending: deque[_Run] = deque()
        # On a GPU, the runs and DALI's outputs that its queues may still read.
        self._kept: deque[tuple[torch.cuda.Event, _Run, Any]] = deque()
        self._pipe: Any = None
        self._start()

    def submit(
        self,
        samples: list[Any],
        sizes: np.ndarray,
        boxes: list[np.ndarray],
        owner: object = None,
        is_pinned: bool = False,
    ) -> None:
        """Submit n contiguous JPEGs, uint8 [num_bytes], or images, uint8 [H, W, 3], without copying them.

        Their upright sizes are int [n, 2], boxes int32 [n, 5] for each crop. The owner of their memory is
        referenced until they have been read. DALI's threads copy them for a GPU unless all are pinned.
        """
        run = _Run(samples, sizes, boxes, owner, is_pinned)
        self._pending.append(run)
        self._feed(run)

    def collect(self) -> tuple[list[Tensor], dict[int, str]]:
        """Return the crops of the oldest batch; on a GPU they are in flight on the current stream.

        These are uint8 [n, S, S, 3] on the device for each size. The reason for each position that DALI could
        not decode follows; its crops are black.
        """
        run = self._pending.popleft()
        message = None
        if run.is_fed and self._pipe is not None:
            try:
                return self._take(run)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                message = str(error)  # and not the error, which would keep the pipeline alive
        self._stop()
        return self._recover(run, message)

    def _stop(self) -> None:
        """Delete the pipeline, after which it reads no more of its input.

        Only a GPU's copies from pinned memory may still be in flight. Their results are discarded, and torch
        keeps those pages locked. No reference to an error of DALI may exist here.
        """
        # The traceback of an error would keep the pipeline alive, and its threads would read freed memory.
        self._pipe = None

    def _start(self) -> None:
        """Build a pipeline and test it with black images."""
        try:
            with _building:
                if _exiting.is_set():
                    raise RuntimeError("the process ends")
                pipe = build(self._graph, self._batch_size, self._num_threads, self._device, self._depth)
            # So an error of DALI's installation shows here, and not in a batch.
            for name, values in first_feeds(self._graph, self._batch_size, self._depth):
                pipe.feed_input(name, values)
            pipe.schedule_run()  # the first call starts as many runs as the prefetch queue holds
            for _ in range(self._depth):
                pipe.share_outputs()
                pipe.release_outputs()
        except Exception as error:
            self._check_user(str(error), of_all=True)
            raise RuntimeError(
                f"DALI does not work here ({reason(str(error))}); use --decoder turbo"
            ) from error
        self._pipe = pipe

    def _feed(self, run: _Run) -> None:
        run.is_fed = False
        if self._pipe is None:
            return
        run.feeds = feeds(self._graph, run.samples, run.boxes, run.is_pinned)
        try:
            for name, values in run.feeds:
                self._pipe.feed_input(name, values)
            self._pipe.schedule_run()
            run.is_fed = True
        except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
            run.message = str(error)
        if not run.is_fed:  # some inputs may lack the batch, and would be a batch behind from here on
            self._stop()

    def _check_user(self, message: str, of_all: bool) -> None:
        """Raise a ValueError if the user can fix the cause of a message (`user_error`)."""
        free_bytes = None
        if self._is_gpu and torch.cuda.is_initialized():
            free_bytes = torch.cuda.mem_get_info(self._device)[0]
        error = user_error(message, str(self._device), free_bytes, of_all)
        if error is not None:
            raise error

    def _take(self, run: _Run) -> tuple[list[Tensor], dict[int, str]]:
        """Return the oldest outputs as `collect` does, waiting for DALI's threads but not for the GPU."""
        # DALI binds its outputs to this stream, which waits for them.
        stream = torch.cuda.current_stream(self._device) if self._is_gpu else None
        self._release()  # before the next outputs, so that DALI has those back that the GPU has read
        outputs = self._pipe.share_outputs(stream)
        crops = [self._crop(output, run.boxes[k], k) for k, output in enumerate(outputs[: len(run.boxes)])]
        failed = {}
        if self._graph.turns:
            # Compared, because readers differ in EXIF, and DALI must agree with Pillow on the rotation.
            sizes = np.asarray(outputs[-1].as_array())[:, :2]
            for i in np.flatnonzero((sizes != run.sizes).any(1)).tolist():
                failed[i] = f"decoded as {sizes[i][0]} x {sizes[i][1]} px by DALI"
        self._pipe.release_outputs()
        if self._is_gpu:
            # DALI reuses an output's memory once its last reference is gone, in the order of the stream that
            # it is bound to. The consumer reads on another stream, and torch's record_stream does not apply
            # to memory that is not torch's. So the consumer gets a copy: 38 MB read and written for 256 crops
            # of 224 px, 0.018 ms of the 8.4 ms that decoding them takes at 30,600/s (by 4.25 TB/s, an H200's
            # measured copy bandwidth).
            crops = [crop if self._graph.isotropic[k] else crop.clone() for k, crop in enumerate(crops)]
            copied = torch.cuda.Event(blocking=True)  # blocking sleeps; torch's default spins on a core
            copied.record(stream)
            self._kept.append((copied, run, outputs))
        return crops, failed

    def _release(self, limit: int | None = None) -> None:
        """Release the runs that the GPU has read; wait while more than `limit` (the depth) are held."""
        limit = self._depth if limit is None else limit
        while self._kept and (len(self._kept) > limit or self._kept[0][0].query()):
            self._kept.popleft()[0].synchronize()

    def close(self) -> None:
        """End the pipeline, after which no submitted batch is read any more."""
        self._stop()  # first, because until then DALI reads the runs' memory
        self._pending.clear()
        self._release(0)

    def _crop(self, output: Any, boxes: np.ndarray, k: int) -> Tensor:
        """Return an output of DALI as crops, which the isotropic kernel makes from windows."""
        size = self._graph.sizes_px[k]
        if not self._graph.isotropic[k]:
            return torch.from_dlpack(output.as_tensor())
        _, _, relative = windows(boxes, size)
        if self._is_gpu:
            device_boxes = to_device(torch.from_numpy(relative), self._device)
            return crop_isotropic(torch.from_dlpack(output.as_tensor()), device_boxes, size)
        crops = np.empty((len(boxes), size, size, 3), np.uint8)

        def crop(which: range) -> None:
            for i in which:
                window = np.asarray(output[i])
                top, left, side = (int(value) for value in relative[i, :3])
                is_turned = relative[i, 4] == DIAGONAL
                rows, columns = window.shape[:2]
                isotropic_resize(window.reshape(-1), rows, columns, top, left, side, is_turned, crops[i])

        assert self._workers is not None
        starts = range(0, len(boxes), _CHUNK)
        parts = [range(start, min(start + _CHUNK, len(boxes))) for start in starts]
        calls = [self._workers.call(crop, part) for part in parts]
        futures.wait(calls)  # all of them, also after an error: they read DALI's memory
        for call in calls:
            call.result()
        return torch.from_numpy(crops)

    def _recover(self, run: _Run, message: str | None) -> tuple[list[Tensor], dict[int, str]]:
        """Decode a run without its samples at fault, and feed the later runs again."""
        num = len(run.samples)
        crops = [
            torch.zeros((num, size, size, 3), dtype=torch.uint8, device=self._device)
            for size in self._graph.sizes_px
        ]
        failed: dict[int, str] = {}
        num_refused = 0
        waiting: list[tuple[np.ndarray, str | None]] = [(np.arange(num), message)]
        try:
            while waiting:
                which, message = waiting.pop()
                if message is None:
                    message = self._try(run, which, crops, failed)
                if message is None:
                    continue
                at_fault = 0 if len(which) == 1 else named_sample(message)
                if at_fault is not None and at_fault >= len(which):
                    at_fault = None
                if at_fault is not None:
                    num_refused += 1
                self._check_user(message, of_all=num_refused == num)
                if at_fault is not None:
                    failed[int(which[at_fault])] = reason(message)
                    which = np.delete(which, at_fault)
                    if len(which):
                        waiting.append((which, None))
                else:
                    # DALI names no sample, so halves are tried until it is found.
                    waiting += [(half, None) for half in np.array_split(which, 2)]
            if self._pipe is None:
                self._start()
        finally:
            for later in self._pending:  # their inputs went with the old pipeline
                self._feed(later)
        return crops, failed

    def _try(self, run: _Run, which: np.ndarray, crops: list[Tensor], failed: dict[int, str]) -> str | None:
        """Decode some samples of a run into `crops` and `failed`; return DALI's message if it fails."""
        if self._pipe is None:
            self._start()
        part = run.part(which)
        self._feed(part)
        if part.is_fed:
            try:
                part_crops, part_failed = self._take(part)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                part.message, part.is_fed = str(error), False
        if not part.is_fed:
            self._stop()
            return part.message
        failed.update({int(which[i]): reason for i, reason in part_failed.items()})
        put(crops, which, part_crops)
        return None


def put(images: list[Tensor], which: np.ndarray, crops: list[Tensor]) -> None:
    """Copy m crops to the positions `which`, int [m], of the images of each view, uint8 [n, S, S, 3]."""
    places = torch.from_numpy(np.ascontiguousarray(which, np.int64))
    places = to_device(places, crops[0].device)
    for image, crop in zip(images, crops, strict=True):
        image.index_copy_(0, places, crop)
