"""A small writing that tests interrupt; it imports neither torch nor the commands."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.output import Output, WriteReport
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample

NUM = 12
RAW = Target(mode="raw", min_px=20)


def samples(skip: int = 0) -> Iterator[Sample]:
    """Yield images of 120 kB in two classes; the third is broken and the sixth small."""
    for i in range(skip, NUM):
        image: bytes | np.ndarray = np.full((200, 200, 3), i, np.uint8)
        if i == 2:
            image = b"broken"
        if i == 5:
            image = np.zeros((8, 9, 3), np.uint8)
        yield Sample(f"ant/{i}.png", image, i % 2)


def write(out: Path, source: object = samples, **options: object) -> WriteReport:
    arguments = {
        "num_samples": NUM, "class_names": ["ant", "bee"], "target": RAW, "num_workers": 1, "max_bad": "1",
        "page_bytes": 1 << 21,
    } | options  # fmt: skip
    return write_beton(source, out, **arguments)  # type: ignore[arg-type]


def interrupt_at(patch: Any, number: int) -> None:
    """Interrupt writings at the image of this number, from 1."""
    real, numbers = Output.take, count(1)

    def take(self: Output, *arguments: Any) -> None:
        if next(numbers) == number:
            raise KeyboardInterrupt
        real(self, *arguments)

    patch.setattr(Output, "take", take)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
