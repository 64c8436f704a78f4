"""A DALI pipeline that is fed with bytes and boxes and gives crops, in order; after an error it is built anew.

The one file that imports DALI. Nothing in the pipeline is random or knows of epochs: batches go in, their crops come out.
What needs a GPU (`_is_gpu`) has not been run yet.
"""

import io
import re
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OLDEST = (2, 2)  # its decoder says whether it turns pictures upright
# The filter nearest to an exact area mean, by the box's sides over the crop's. Mean difference in 1/255 on 48 photos for
# random resized crops to 224 / 112 / 64 px: Gaussian 0.76 / 0.66 / 0.87, linear 0.64 / 1.29 / 1.84, cubic 0.95 / 1.02 / 1.34,
# linear from 0.85 to 1.4 and Gaussian elsewhere 0.56 / 0.65 / 0.87. Linear copies what keeps its size; all cost the same.
_LINEAR_FROM, _LINEAR_TO = 0.85, 1.4


def why_missing(device: torch.device) -> str:
    """Why DALI cannot be used with batches on `device`, with the remedy; empty where it can."""
    cuda = (torch.version.cuda or "13").split(".")[0]
    install = f'pip install "fastpsl[dali-cu{cuda}]"'
    try:
        import nvidia.dali
    except ModuleNotFoundError as error:
        if str(error.name) in ("nvidia", "nvidia.dali"):
            return f"DALI is not installed; {install} installs it"
        return f"DALI does not load ({error}); {install} installs what it needs"
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"DALI does not load ({' '.join(str(error).split())}); {install} installs that for torch's CUDA"
        )
    version, built_for = nvidia.dali.__version__, str(nvidia.dali.__cuda_version__)[:2]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"DALI {version} is older than {OLDEST[0]}.{OLDEST[1]}; {install} --upgrade"
    if device.type == "cuda" and built_for != cuda:
        return (
            f"DALI is built for CUDA {built_for}, torch for CUDA {cuda}; "
            f"pip uninstall nvidia-dali-cuda{built_for}0, then {install}"
        )
    return ""


class Graph(NamedTuple):
    """What a pipeline does."""

    is_raw: bool  # it is given pictures, uint8 [H, W, 3], not JPEGs
    turns: bool  # JPEGs by their EXIF orientation
    sizes_px: tuple[int, ...]  # of the crops of each sample


@dataclass
class _Run:
    samples: list[np.ndarray]  # JPEGs, uint8 [num_bytes], or pictures, uint8 [H, W, 3]
    sizes: np.ndarray  # int [n, 2]: height and width of the upright pictures
    boxes: list[np.ndarray]  # per crop int32 [n, 5]
    # What DALI reads, without a copy: it must live until the run is over.
    feeds: list[tuple[str, Any]] = field(default_factory=list)
    is_fed: bool = False
    message: str = "DALI has ended"  # of DALI, where it was not fed

    def part(self, which: np.ndarray) -> "_Run":
        samples = [self.samples[i] for i in which]
        return _Run(samples, self.sizes[which], [boxes[which] for boxes in self.boxes])


class DaliPipeline:
    """`submit` and `collect` from one thread; `depth` runs are under way at most."""

    def __init__(
        self, graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int
    ) -> None:
        self._graph, self._batch_size, self._num_threads = graph, batch_size, num_threads
        self._device, self._depth = device, depth
        self._is_gpu = device.type == "cuda"
        self._pending: deque[_Run] = deque()
        self._pipe: Any = None
        self._start()

    def submit(self, samples: list[np.ndarray], sizes: np.ndarray, boxes: list[np.ndarray]) -> None:
        """Contiguous arrays of one batch; nothing is copied."""
        run = _Run(samples, sizes, boxes)
        self._pending.append(run)
        self._feed(run)

    def collect(self) -> tuple[list[Tensor], dict[int, str]]:
        """Of the oldest run: a crop of each size, uint8 [n, S, S, 3] on the device, and the samples that DALI could not
        decode: position → reason (their crops are black). RuntimeError where DALI itself does not work any more."""
        run = self._pending.popleft()
        message = None
        if run.is_fed and self._pipe is not None:
            try:
                return self._take(run)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                message = str(error)
        self._stop()
        return self._recover(run, message)

    def _stop(self) -> None:
        """Nothing of what was fed is read any more after it. An error must not be kept until here: its traceback holds the
        pipeline, whose threads would read what is freed meanwhile."""
        self._pipe = None

    def _start(self) -> None:
        """A new pipeline, proved by a sample; the first call of schedule_run starts as many runs as are prefetched."""
        pipe = _build(self._graph, self._batch_size, self._num_threads, self._device, self._depth)
        run = _Run([_SAMPLE_RAW if self._graph.is_raw else _sample_jpeg()], np.array([[_SIDE, _SIDE]]), [])
        run.boxes = [np.array([[0, 0, _SIDE, _SIDE, 0]], np.int32)] * len(self._graph.sizes_px)
        feeds = _feeds(run, self._graph)
        try:
            for _ in range(self._depth):
                for name, values in feeds:
                    pipe.feed_input(name, values)
            pipe.schedule_run()
            for _ in range(self._depth):
                pipe.share_outputs()
                pipe.release_outputs()
        except Exception as error:
            raise RuntimeError(f"DALI does not work here: {_reason(str(error))}") from error
        self._pipe = pipe

    def _feed(self, run: _Run) -> None:
        run.is_fed = False
        if self._pipe is None:
            return
        run.feeds = _feeds(run, self._graph)
        try:
            for name, values in run.feeds:
                self._pipe.feed_input(name, values)
            self._pipe.schedule_run()
            run.is_fed = True
        except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
            run.message = str(error)
        if not run.is_fed:  # a pipeline half fed is of no use
            self._stop()

    def _take(self, run: _Run) -> tuple[list[Tensor], dict[int, str]]:
        outputs = self._pipe.share_outputs()
        crops = [torch.from_dlpack(output.as_tensor()) for output in outputs[: len(self._graph.sizes_px)]]
        if self._is_gpu:
            # DALI would hand the memory out again as soon as the tensor goes, whatever streams still read it.
            crops = [crop.clone() for crop in crops]
            copied = torch.cuda.Event()
            copied.record()
            copied.synchronize()
        failed = {}
        if self._graph.turns:
            # What EXIF means is up to its reader: DALI and Pillow must agree on which way up a picture is.
            sizes = np.asarray(outputs[-1].as_array())[:, :2]
            for i in np.flatnonzero((sizes != run.sizes).any(1)).tolist():
                failed[i] = f"decoded as {sizes[i][0]} x {sizes[i][1]} px by DALI"
        self._pipe.release_outputs()
        return crops, failed

    def _recover(self, run: _Run, message: str | None) -> tuple[list[Tensor], dict[int, str]]:
        """Everything of a run that failed with a message, or was never fed, but for the samples at fault; then all that waits behind
        it is fed again."""
        num = len(run.samples)
        crops = [
            torch.zeros((num, size, size, 3), dtype=torch.uint8, device=self._device)
            for size in self._graph.sizes_px
        ]
        failed: dict[int, str] = {}
        waiting = [(np.arange(num), message)]
        try:
            while waiting:
                which, message = waiting.pop()
                if message is None:
                    message = self._try(run, which, crops, failed)
                if message is None:
                    continue
                at_fault = _named_sample(message)
                if len(which) == 1:
                    failed[int(which[0])] = _reason(message)
                elif at_fault is not None and at_fault < len(which):
                    failed[int(which[at_fault])] = _reason(message)
                    waiting.append((np.delete(which, at_fault), None))
                else:
                    waiting += [(half, None) for half in np.array_split(which, 2)]
            if self._pipe is None:
                self._start()
        finally:
            for later in self._pending:
                self._feed(later)
        return crops, failed

    def _try(self, run: _Run, which: np.ndarray, crops: list[Tensor], failed: dict[int, str]) -> str | None:
        """Some samples of a run alone, put where they belong; DALI's message, where it fails."""
        if self._pipe is None:
            self._start()
        part = run.part(which)
        self._feed(part)
        if part.is_fed:
            try:
                taken, odd = self._take(part)
            except Exception as error:  # noqa: BLE001 - DALI's errors are of many types
                part.message, part.is_fed = str(error), False
        if not part.is_fed:
            self._stop()
            return part.message
        failed.update({int(which[i]): reason for i, reason in odd.items()})
        for into, crop in zip(crops, taken, strict=True):
            for i, position in enumerate(which.tolist()):
                into[position].copy_(crop[i])
        return None


_SIDE = 64
_SAMPLE_RAW = np.zeros((_SIDE, _SIDE, 3), np.uint8)


@cache
def _sample_jpeg() -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(_SAMPLE_RAW).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def _build(graph: Graph, batch_size: int, num_threads: int, device: torch.device, depth: int) -> Any:
    from nvidia.dali import Pipeline, fn, types

    is_gpu = device.type == "cuda"

    def source(name: str, dtype: Any, ndim: int, layout: str | None = None) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, layout=layout, no_copy=True)

    pipe = Pipeline(
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
            # The hardware decoder's share: 0.9 was the fastest of what was tried on an H200.
            pictures = fn.decoders.image(
                source("samples", types.UINT8, 1),
                device="mixed" if is_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=graph.turns,
                **({"hw_decoder_load": 0.9} if is_gpu else {}),
            )
        outputs = [
            fn.resize(
                pictures,
                size=(size, size),
                roi_start=source(f"start{k}", types.FLOAT, 1),
                roi_end=source(f"end{k}", types.FLOAT, 1),
                interp_type=fn.cast(source(f"filter{k}", types.INT32, 0), dtype=types.INTERP_TYPE),
                antialias=True,
            )
            for k, size in enumerate(graph.sizes_px)
        ]
        if graph.turns:
            outputs.append(pictures.shape(device="cpu"))
        pipe.set_outputs(*outputs)
    pipe.build()
    return pipe


def _feeds(run: _Run, graph: Graph) -> list[tuple[str, Any]]:
    from nvidia.dali import types

    linear, gaussian = int(types.INTERP_LINEAR), int(types.INTERP_GAUSSIAN)
    feeds: list[tuple[str, Any]] = [("samples", run.samples)]
    for k, (boxes, size) in enumerate(zip(run.boxes, graph.sizes_px, strict=True)):
        corners, sides = boxes[:, :2].astype(np.float32), boxes[:, 2:4].astype(np.float32)
        scales = sides / np.float32(size)
        is_near = ((scales >= _LINEAR_FROM) & (scales <= _LINEAR_TO)).all(1)
        feeds.append((f"start{k}", np.ascontiguousarray(corners)))
        feeds.append((f"end{k}", np.ascontiguousarray(corners + sides)))
        feeds.append((f"filter{k}", np.where(is_near, linear, gaussian).astype(np.int32)))
    return feeds


def _named_sample(message: str) -> int | None:
    """The position in its batch of a sample that DALI names: of those that are at fault the first."""
    found = re.search(r"sample #(\d+)", message)
    return int(found[1]) if found else None


def _reason(message: str) -> str:
    """DALI's message without its frame of traceback and advice, in one line."""
    text = message.rsplit("encountered:", 1)[-1].replace("Current pipeline object is no longer valid.", "")
    return " ".join(text.replace("Critical error in pipeline:", "").split()).rstrip(" :")
