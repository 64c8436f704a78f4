"""The DALI decoder, on the GPU or the CPU.

Samples that DALI cannot or should not decode go to the plain decoder.
The loader's threads read and check the bytes. DALI refuses a whole batch for one bad sample. It is then
restarted at that batch, and only the samples at fault are decoded on the CPU.

A100, H100, H200, B200, Ada's server cards and others have engines. nvJPEG reaches them by libnvcuvid, which
belongs to the driver, and DALI decodes on the CPU's cores without a word where that is missing.
"""

import ctypes
import importlib.util
import os
import re
import threading
import warnings
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.workers import Workers
from fastpsl.pipelines.decoders.codes import BAD_BOX, GOOD
from fastpsl.pipelines.decoders.dali_pipeline import HW_DECODER_LOAD, DaliPipeline, Graph, put, why_missing
from fastpsl.pipelines.decoders.decoder import BatchDecoder, cannot, is_isotropic
from fastpsl.pipelines.decoders.memory import Arenas, to_device
from fastpsl.pipelines.decoders.pillow import PillowDecoder
from fastpsl.pipelines.decoders.read_samples import Encoded
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.interface.dataset import MODE_FILE, MODE_RAW, SampleTable

_SUCCESS, _ARCH_MISMATCH = 0, 7  # nvjpegStatus_t (nvjpeg.h)
_HARDWARE = 3  # nvjpegBackend_t: NVJPEG_BACKEND_HARDWARE
_NVCUVID = "libnvcuvid.so.1"
# Names of slices of a GPU: "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "GRID A100-10C", "NVIDIA H100-80C".
_SLICE = re.compile(r"\bMIG\b|\bGRID\b|-\d+[ABCQ]$")

_NO_VIDEO = (
    'driver capability "video" is missing in this container: start it with '
    "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video "
    "(docker --gpus 'all,\"capabilities=compute,utility,video\"')"
)
_NO_NVCUVID = (
    f"{_NVCUVID} of the driver is missing, by which the JPEG engines are reached: install the driver's "
    "decode package (such as libnvidia-decode-580, of the driver's number)"
)
# What container programs leave in a container: Docker, Podman, Kubernetes, and what systemd notes of others.
_CONTAINER_FILES = (
    "/.dockerenv", "/run/.containerenv", "/run/secrets/kubernetes.io", "/run/systemd/container",
)  # fmt: skip
_CONTAINER_VARIABLES = (
    "container", "KUBERNETES_SERVICE_HOST", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER",
)  # fmt: skip


@cache
def why_slower(device: torch.device) -> str:
    """Return why a GPU's JPEG engines cannot be used, with the remedy; empty if they can, or on a CPU."""
    if device.type != "cuda":
        return ""
    with torch.cuda.device(device):
        torch.cuda.init()
        return why_idle(nvjpeg_library(), torch.cuda.get_device_name(device))


def why_idle(library: Any, name: str) -> str:
    """Return why the current device's JPEG engines cannot be used, with the remedy; empty if they can."""
    if not loads(_NVCUVID):
        remedy = _NO_VIDEO if is_in_container() else _NO_NVCUVID
        if num_engines(library) != 0:
            return remedy
        # Whether nvJPEG counts rightly without this library is not known.
        return f"{name} has no JPEG engines, as far as nvJPEG can tell. If it should have some: {remedy}"
    status = _open_engines(library)
    if status == _SUCCESS:
        return ""
    if status is None:
        return (
            "whether the JPEG engines work is unknown, because nvJPEG is missing or too old: "
            "install the DALI of torch's CUDA anew"
        )
    if _SLICE.search(name):
        return (
            f"{name} has no JPEG engine in this slice of a GPU (nvJPEG: status {status}): "
            "choose a MIG profile with media engines (such as 1g.10gb+me), or the whole GPU"
        )
    if status == _ARCH_MISMATCH:
        return f"{name} has no JPEG engines: the host's cores take a part of each image"
    return f"nvJPEG cannot open the JPEG engines of {name} (status {status}): update the driver"


def loads(name: str) -> bool:
    """Return whether a shared library can be loaded."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise_of_the_system(name, error)
        return False
    return True


def is_in_container() -> bool:
    """Return whether this process seems to run in a container."""
    return any(map(os.path.exists, _CONTAINER_FILES)) or any(map(os.environ.get, _CONTAINER_VARIABLES))


def _open_engines(library: Any) -> int | None:
    """Open and close the hardware decoder; return the status of nvjpegCreateEx, or None without an answer."""
    handle = ctypes.c_void_p()
    try:
        status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
    except AttributeError:  # no library, or an older one
        return None
    if status == _SUCCESS:
        library.nvjpegDestroy(handle)
    return int(status)


def num_engines(library: Any) -> int | None:
    """Return the number of JPEG engines of the current device; None if nvJPEG does not report it."""
    handle, num, num_cores = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_uint(0)
    if library is None or library.nvjpegCreateSimple(ctypes.byref(handle)) != _SUCCESS:
        return None
    try:
        ask = library.nvjpegGetHardwareDecoderInfo
        status = ask(handle, ctypes.byref(num), ctypes.byref(num_cores))
    except AttributeError:  # an older nvJPEG
        return None
    finally:
        library.nvjpegDestroy(handle)
    if status == _ARCH_MISMATCH:
        return 0
    return int(num.value) if status == _SUCCESS else None


def nvjpeg_library() -> Any:
    """Load the nvJPEG that is installed beside DALI, else the system's; return None without either."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvjpeg.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    paths = [folder / part / "lib" / name for folder in folders for part in (f"cu{major}", "nvjpeg")]
    for path in (*(str(path) for path in paths if path.exists()), name):
        try:
            return ctypes.CDLL(path)
        except OSError as error:
            raise_of_the_system(path, error)
    return None


_CLOSE_LIMIT_S = 5.0  # its threads crop what is in memory, which takes milliseconds


@dataclass
class _Batch:
    rows: SampleTable
    boxes: list[np.ndarray]
    sizes_px: list[int]
    codes: np.ndarray
    runs: list[tuple[DaliPipeline, np.ndarray]]  # each pipeline with the positions of its samples


class DaliDecoder(BatchDecoder):
    """A decoder on DALI's pipelines, for `beton` or `folder` data, whose files are rotated by EXIF.

    A CUDA device needs its index. `hw_decoder_load` is the share of a batch for the GPU's hardware decoder,
    from 0 to 1.
    """

    name = "dali"
    depth = 3  # a batch being collected, one in DALI and one ready

    def __init__(
        self,
        kind: str,
        batch_size: int,
        num_threads: int,
        device: torch.device,
        hw_decoder_load: float = HW_DECODER_LOAD,
    ) -> None:
        if not 0 <= hw_decoder_load <= 1:
            raise ValueError(f"hw_decoder_load {hw_decoder_load}: a share of the batch, from 0 to 1")
        assert not why_missing(device)  # `choose_decoder` refuses it
        assert device.type == "cpu" or device.index is not None, device  # DALI takes None for the CPU
        self.remark = why_slower(device)
        self._turns = kind == "folder"
        self._batch_size, self._num_threads, self._device = batch_size, num_threads, device
        self._hw_decoder_load = float(hw_decoder_load)
        self._arenas = Arenas(pinned=device.type == "cuda")
        self._pipelines: dict[Graph, DaliPipeline] = {}
        self._waiting: deque[_Batch] = deque()
        self._workers: Workers | None = None
        self._lock = threading.Lock()
        self.num_fallbacks = 0  # samples that the plain decoder has decoded in place of DALI

    @override
    def begin(self, rows: SampleTable) -> Encoded:
        return Encoded(rows, self._arenas)

    @override
    def encode(self, rows: SampleTable, encoded: Encoded, part: slice) -> None:
        """Read and check a slice of the batch, and decode the samples that are not for DALI."""
        if not encoded.read(part):
            return
        for i in range(part.start, part.stop):
            if encoded.codes[i] != GOOD:
                continue
            if rows.mode[i] == MODE_FILE:
                self._decode_plainly(rows, encoded, i, "no 8-bit JPEG of 1 or 3 components")
            elif not encoded.is_sound[i]:
                # Not by DALI: version 2.4 crashes when its parser refuses a sample of a large batch (its
                # threads go on in freed memory), and it accepts JPEGs without an end.
                why = "its markers are out of place, or its end or its Huffman tables are missing"
                self._decode_plainly(rows, encoded, i, why)

    def _decode_plainly(self, rows: SampleTable, encoded: Encoded, i: int, reason: str) -> None:
        encoded.codes[i], image = decode_whole(rows, i)
        if image is not None:
            self._count(rows, [i], reason)
            encoded.images[i] = np.ascontiguousarray(image)

    def _count(self, rows: SampleTable, which: list[int], reason: str) -> None:
        with self._lock:
            is_first = not self.num_fallbacks
            self.num_fallbacks += len(which)
        if is_first:
            name = str(rows.path[which[0]]) or f"sample {rows.indices[which[0]]}"
            warnings.warn(
                f"{name} is decoded on the CPU, not by DALI ({reason}); "
                "so will be others like it, unmentioned",
                stacklevel=2,
            )

    @override
    def submit(
        self, rows: SampleTable, encoded: Encoded, boxes: list[np.ndarray], sizes_px: list[int]
    ) -> None:
        status = encoded.codes
        for box, size in zip(boxes, sizes_px, strict=True):
            status[(status == GOOD) & cannot(box, size, rows.height, rows.width)] = BAD_BOX
        isotropic = tuple(is_isotropic(box) for box in boxes)
        is_raw = rows.mode == MODE_RAW
        is_raw[list(encoded.images)] = True
        runs = []
        for raw in (False, True):
            which = np.flatnonzero((status == GOOD) & (is_raw == raw))
            if len(which):
                graph = Graph(raw, self._turns and not raw, tuple(sizes_px), isotropic, self._hw_decoder_load)
                runs.append((self._pipeline(graph), which))
        for pipeline, which in runs:
            sizes = np.stack([rows.height[which], rows.width[which]], axis=1)
            is_pinned, run_boxes = encoded.are_pinned(which), [box[which] for box in boxes]
            pipeline.submit(encoded.samples(which), sizes, run_boxes, encoded.arena, is_pinned)
        self._waiting.append(_Batch(rows, boxes, sizes_px, status, runs))

    def _pipeline(self, graph: Graph) -> DaliPipeline:
        if any(graph.isotropic) and self._device.type == "cpu" and self._workers is None:
            self._workers = Workers(self._num_threads, "fastpsl-dali")
        if graph not in self._pipelines:
            self._pipelines[graph] = DaliPipeline(
                graph, self._batch_size, self._num_threads, self._device, self.depth, self._workers
            )
        return self._pipelines[graph]

    @override
    def collect(self) -> tuple[np.ndarray, list[Tensor]]:
        batch = self._waiting.popleft()
        results, errors = [], []
        # All of them, also after an error, because the next batch would collect a run that is left behind.
        for pipeline, which in batch.runs:
            try:
                results.append((which, *pipeline.collect()))
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
        if errors:
            raise errors[0]
        num = len(batch.codes)
        if len(results) == 1 and len(results[0][0]) == num and not results[0][2]:
            return batch.codes, results[0][1]
        images = [
            torch.zeros((num, size, size, 3), dtype=torch.uint8, device=self._device)
            for size in batch.sizes_px
        ]
        for which, crops, failed in results:
            put(images, which, crops)
            if failed:
                self._fall_back(batch, images, {int(which[i]): failed[i] for i in sorted(failed)})
        return batch.codes, images

    def _fall_back(self, batch: _Batch, images: list[Tensor], failed: dict[int, str]) -> None:
        which = np.array(list(failed))
        outs = [np.zeros((len(which), size, size, 3), np.uint8) for size in batch.sizes_px]
        rows = batch.rows.part(which)
        batch.codes[which] = PillowDecoder().decode(rows, [box[which] for box in batch.boxes], outs)
        put(images, which, [to_device(torch.from_numpy(out), self._device) for out in outs])
        good = np.flatnonzero(batch.codes[which] == GOOD).tolist()
        if good:
            self._count(rows, good, failed[int(which[good[0]])])

    @override
    def close(self) -> None:
        self._waiting.clear()
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()
        if self._workers is not None:
            self._workers.close(_CLOSE_LIMIT_S)
