"""SPDL: its pipeline's threads, with OpenCV or with its own FFmpeg functions.

A task decodes a whole batch, as `spdl.io.load_image_batch` has it: tasks of one image pass the pipeline's
event loop each, which costs more than decoding a small one. Both decode once for all views. OpenCV makes
float32 by a table, in one pass, and torch does after FFmpeg. On a GPU a thread of its own copies the batches
there.
"""

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.peer import MEAN, STD, Peer, Views, Work

Box = tuple[int, int, int, int]


def random_box(height: int, width: int) -> Box:
    """Draw a box (top, left, height, width) as torchvision's RandomResizedCrop does."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = random.randint(0, height - box_height), random.randint(0, width - box_width)
            return top, left, box_height, box_width
    box_height = min(height, round(width / (3 / 4)))
    box_width = min(width, round(height * 4 / 3))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def with_cv2(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of batches that OpenCV decodes and resizes."""
    import cv2

    cv2.setNumThreads(1)  # the pipeline has the threads
    size = work.size_px
    pixels = np.arange(256, dtype=np.float32)[:, None, None] / 255
    table = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)

    def decode(paths: list[Path]) -> np.ndarray:
        out = np.empty((num_views, len(paths), size, size, 3), np.float32 if work.floats else np.uint8)
        for number, path in enumerate(paths):
            image: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
            for view in range(num_views):
                top, left, height, width = random_box(*image.shape[:2])
                crop = image[top : top + height, left : left + width]
                to = None if work.floats else out[view, number]
                crop = cv2.resize(crop, (size, size), dst=to, interpolation=cv2.INTER_AREA)
                if work.floats:
                    crop = cv2.flip(crop, 1) if random.random() < 0.5 else crop
                    cv2.LUT(crop, table, dst=out[view, number])
        return out

    return _batches(work, decode)


def with_ffmpeg(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of batches that SPDL's FFmpeg functions decode, crop and scale."""
    import spdl.io

    def decode(paths: list[Path]) -> np.ndarray:
        frames = []
        for path in paths:
            packets = spdl.io.demux_image(path.read_bytes())
            boxes = [random_box(packets.codec.height, packets.codec.width) for _ in range(num_views)]
            graph = filter_graph(boxes, work.size_px, flips=work.floats)
            frames.append(spdl.io.decode_packets(packets, filter_desc=graph))
        buffer = spdl.io.to_numpy(spdl.io.convert_frames(frames))
        return buffer.reshape(len(paths), num_views, work.size_px, work.size_px, 3).swapaxes(0, 1)

    return _batches(work, decode)


def filter_graph(boxes: list[Box], size_px: int, *, flips: bool = False) -> str:
    """Return FFmpeg's filters that cut boxes out of an image, flip half of them, and stack all in one."""
    crops = [
        f"crop=w={width}:h={height}:x={left}:y={top},scale=w={size_px}:h={size_px}:flags=area"
        + (",hflip" if flips and random.random() < 0.5 else "")
        for top, left, height, width in boxes
    ]
    if len(crops) == 1:
        return f"{crops[0]},format=pix_fmts=rgb24"
    names = [f"[out{number}]" for number in range(len(crops))]
    views = ";".join(f"[in{i}]{crop}{name}" for i, (crop, name) in enumerate(zip(crops, names, strict=True)))
    split = f"split={len(crops)}" + "".join(f"[in{number}]" for number in range(len(crops)))
    return f"{split};{views};{''.join(names)}vstack=inputs={len(crops)},format=pix_fmts=rgb24"


def _batches(work: Work, decode: Callable[[list[Path]], np.ndarray]) -> Iterator[Views]:
    """Yield the views of the batches of a pipeline whose threads run `decode`."""
    from spdl.pipeline import PipelineBuilder
    from torchvision.transforms.v2 import functional

    torch.set_num_threads(1)  # the pipeline has the threads

    paths = sorted((Path(work.files) / "images").glob("*/*.jpg"))
    labels = {path: int(path.parent.name) for path in paths}

    def source() -> Iterator[list[Path]]:
        while True:
            random.shuffle(paths)
            for start in range(0, len(paths) - work.batch_size + 1, work.batch_size):
                yield paths[start : start + work.batch_size]

    def load(batch: list[Path]) -> tuple[Any, Any]:
        images = torch.from_numpy(decode(batch)).movedim(-1, -3)
        if work.floats and not images.is_floating_point():
            images = functional.normalize(functional.to_dtype(images, torch.float32, scale=True), MEAN, STD)
        return images, torch.tensor([labels[path] for path in batch])

    builder = PipelineBuilder().add_source(source()).pipe(load, concurrency=work.num_threads)
    if work.device != "cpu":
        import spdl.io

        # To cuda:0, unless LOCAL_RANK is set.
        builder.pipe(spdl.io.transfer_tensor_h2d, executor=ThreadPoolExecutor(1))
    pipeline = builder.add_sink().build(
        num_threads=work.num_threads, max_failures=0, use_thread_output_queue=True
    )
    with pipeline.auto_stop():
        for images, _ in pipeline:
            yield list(images)


WITH_CV2 = Peer("SPDL, OpenCV", with_cv2, ("spdl.pipeline", "cv2"), reads="folder")
WITH_FFMPEG = Peer("SPDL, its FFmpeg", with_ffmpeg, ("spdl.pipeline", "spdl.io"), reads="folder")
