"""ffcv itself, in a process of its own, because its import is heavy and sets thread counts.

python beton_stock.py write FOLDER NUM
    writes random images as MODE.beton by ffcv's DatasetWriter in two processes;
python beton_stock.py read BETON...
    reads betons of equal-sized images by ffcv's Reader and Loader, and writes the result as BETON.npz.
"""

import sys
from typing import Any

import numpy as np


def image_of(index: int) -> tuple[np.ndarray, int]:
    # Not default_rng, because tests with shifted seeds replace it only in their own process.
    random = np.random.Generator(np.random.PCG64(index))
    height, width = random.integers(20, 60, 2)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8), index % 7


class PaperImages:
    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return image_of(index)


def write(mode: str, out: str, num: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
    DatasetWriter(out, fields, num_workers=2).from_indexed_dataset(PaperImages(num), chunksize=3)


def read(path: str, out: str) -> None:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader

    reader = Reader(path)
    results: dict[str, Any] = {
        "names": np.array(reader.field_names),
        "num_samples": np.array(reader.num_samples),
    }
    for os_cache in (True, False):  # the whole file mapped, and page by page
        loader = Loader(
            path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=os_cache,
            drop_last=False, pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )  # fmt: skip
        batches = [(images.copy(), labels.copy()) for images, labels in loader]
        results[f"images_{os_cache}"] = np.concatenate([images for images, _ in batches])
        results[f"labels_{os_cache}"] = np.concatenate([labels for _, labels in batches])[:, 0]
    np.savez(out, **results)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        for mode in ("jpg", "raw", "proportion"):
            write(mode, f"{sys.argv[2]}/{mode}.beton", int(sys.argv[3]))
    else:
        for name in sys.argv[2:]:
            read(name, f"{name}.npz")
