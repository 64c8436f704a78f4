"""DALI decodes and crops, on the GPU or on the CPU; what it cannot or should not decode goes to the plain decoder.

The loader's threads read and check the bytes. What DALI refuses it refuses with the whole batch: it is started anew at
that batch, and only the images at fault are decoded on the CPU.
"""

import threading
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.boxes import cannot, is_isotropic
from fastpsl.pipelines.decoders.codes import BAD_BOX, GOOD
from fastpsl.pipelines.decoders.dali_graph import Graph, why_missing
from fastpsl.pipelines.decoders.dali_pipeline import DaliPipeline
from fastpsl.pipelines.decoders.encoded import read_samples
from fastpsl.pipelines.decoders.torchvision import TorchvisionDecoder
from fastpsl.pipelines.rows import MODE_FILE, Rows
from fastpsl.pipelines.workers import Workers

_CLOSE_LIMIT_S = 5.0


@dataclass
class _Batch:
    rows: Rows
    boxes: list[np.ndarray]
    sizes_px: list[int]
    codes: np.ndarray
    runs: list[tuple[DaliPipeline, np.ndarray]]  # a pipeline and the samples that it was given


class DaliDecoder:
    """`kind`: of the data; files of folders are turned upright by EXIF. ValueError where DALI cannot be used.

    num_fallbacks counts the samples decoded on the CPU in DALI's place.
    """

    name = "dali"
    reasons = codes.REASONS
    depth = 3  # one whose crops are taken, one in DALI's hands, one ready

    def __init__(self, kind: str, batch_size: int, num_threads: int, device: torch.device) -> None:
        why = why_missing(device)
        if why:
            others = "torchvision" if kind == "folder" else "ffcv or torchvision"
            raise ValueError(f"decoder 'dali': {why}; or use {others}")
        self._turns = kind == "folder"
        self._batch_size, self._num_threads, self._device = batch_size, num_threads, device
        self._plain = TorchvisionDecoder()
        self._pipelines: dict[Graph, DaliPipeline] = {}
        self._waiting: deque[_Batch] = deque()
        self._workers: Workers | None = None
        self._lock = threading.Lock()
        self.num_fallbacks = 0

    def encode(self, rows: Rows) -> list[Any]:
        """A code other than 0, a JPEG's bytes, or a picture: of raw samples, and of what DALI is not to decode."""
        status, samples, is_sound = read_samples(rows)
        encoded: list[Any] = [
            sample if code == GOOD else int(code) for code, sample in zip(status, samples, strict=True)
        ]
        for i in range(len(encoded)):
            if rows.mode[i] == MODE_FILE:
                encoded[i] = self._decode_plainly(rows, i, "no 8-bit JPEG of 1 or 3 components")
            elif not is_sound[i]:
                # DALI 2.4 ends the process where its parser refuses a sample of a large batch (its threads go on in memory
                # that is no more), and takes JPEGs whose end is missing.
                encoded[i] = self._decode_plainly(
                    rows, i, "its markers are out of place, or its end is missing"
                )
        return encoded

    def _decode_plainly(self, rows: Rows, i: int, reason: str) -> "np.ndarray | int":
        code, picture = self._plain.picture(rows, i)
        if picture is None:
            return code
        self._count(rows, [i], reason)
        return np.ascontiguousarray(picture)

    def _count(self, rows: Rows, which: list[int], reason: str) -> None:
        with self._lock:
            is_first = not self.num_fallbacks
            self.num_fallbacks += len(which)
        if is_first:
            name = str(rows.path[which[0]]) or f"sample {rows.indices[which[0]]}"
            warnings.warn(
                f"{name} is decoded on the CPU, not by DALI ({reason}); so will be others like it, unmentioned",
                stacklevel=2,
            )

    def submit(self, rows: Rows, encoded: list[Any], boxes: list[np.ndarray], sizes_px: list[int]) -> None:
        status = np.array([sample if isinstance(sample, int) else GOOD for sample in encoded], np.int8)
        for box, size in zip(boxes, sizes_px, strict=True):
            status[(status == GOOD) & cannot(box, size, rows.height, rows.width)] = BAD_BOX
        isotropic = tuple(is_isotropic(box) for box in boxes)
        is_raw = np.array([np.ndim(sample) == 3 for sample in encoded], bool)
        runs = []
        for raw in (False, True):
            which = np.flatnonzero((status == GOOD) & (is_raw == raw))
            if len(which):
                graph = Graph(raw, self._turns and not raw, tuple(sizes_px), isotropic)
                runs.append((self._pipeline(graph), which))
        for pipeline, which in runs:
            sizes = np.stack([rows.height[which], rows.width[which]], axis=1)
            pipeline.submit([encoded[i] for i in which], sizes, [box[which] for box in boxes])
        self._waiting.append(_Batch(rows, boxes, sizes_px, status, runs))

    def _pipeline(self, graph: Graph) -> DaliPipeline:
        if any(graph.isotropic) and self._device.type == "cpu" and self._workers is None:
            self._workers = Workers(self._num_threads, "fastpsl-dali")
        if graph not in self._pipelines:
            self._pipelines[graph] = DaliPipeline(
                graph, self._batch_size, self._num_threads, self._device, self.depth, self._workers
            )
        return self._pipelines[graph]

    def collect(self) -> tuple[np.ndarray, list[Tensor]]:
        batch = self._waiting.popleft()
        results, errors = [], []
        # Each of them, also after an error: what is left behind would be the next batch's.
        for pipeline, which in batch.runs:
            try:
                results.append((which, *pipeline.collect()))
            except Exception as error:  # noqa: BLE001 - the caller's
                errors.append(error)
        if errors:
            raise errors[0]
        num = len(batch.codes)
        if len(results) == 1 and len(results[0][0]) == num and not results[0][2]:
            return batch.codes, results[0][1]
        pictures = [
            torch.zeros((num, size, size, 3), dtype=torch.uint8, device=self._device)
            for size in batch.sizes_px
        ]
        for which, crops, failed in results:
            _put(pictures, which, crops)
            if failed:
                self._fall_back(batch, pictures, {int(which[i]): failed[i] for i in sorted(failed)})
        return batch.codes, pictures

    def _fall_back(self, batch: _Batch, pictures: list[Tensor], failed: dict[int, str]) -> None:
        which = np.array(list(failed))
        outs = [np.zeros((len(which), size, size, 3), np.uint8) for size in batch.sizes_px]
        rows = batch.rows.part(which)
        batch.codes[which] = self._plain.decode(rows, [box[which] for box in batch.boxes], outs)
        _put(pictures, which, [self._moved(torch.from_numpy(out)) for out in outs])
        good = np.flatnonzero(batch.codes[which] == GOOD).tolist()
        if good:
            self._count(rows, good, failed[int(which[good[0]])])

    def _moved(self, crops: Tensor) -> Tensor:
        return crops if self._device.type == "cpu" else crops.pin_memory().to(self._device, non_blocking=True)

    def close(self) -> None:
        self._waiting.clear()
        self._pipelines.clear()
        if self._workers is not None:
            self._workers.close(_CLOSE_LIMIT_S)


def _put(pictures: list[Tensor], which: np.ndarray, crops: list[Tensor]) -> None:
    """crops[i] to pictures[which[i]] of each view; one by one, which needs no index on the device."""
    for into, crop in zip(pictures, crops, strict=True):
        for i, position in enumerate(which.tolist()):
            into[position].copy_(crop[i])
