"""ffcv itself, in a process of its own, because its import is heavy and sets thread counts.

python beton_stock.py FOLDER NUM BETON... writes random images by ffcv's DatasetWriter: as MODE.beton, in two
processes, and five of them as KIND.beton, without an integer. Then it reads betons of equal-sized images by
ffcv's Reader and Loader, the first one by compiled code, and writes the result as BETON.npz.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# Other fields than a class number: their names, and their values for five images.
OTHERS: dict[str, Callable[[int], tuple[Any, ...]]] = {
    "images": lambda i: (),
    "fractions": lambda i: (i / 2,),
    "several labels": lambda i: (np.ones(3, "f4"),),
}


def image_of(index: int) -> tuple[np.ndarray, int]:
    # Not default_rng, because tests with shifted seeds replace it only in their own process.
    random = np.random.Generator(np.random.PCG64(index))
    height, width = random.integers(20, 60, 2)
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8), index % 7


class PaperImages:
    def __init__(self, num: int, values: Callable[[int], tuple[Any, ...]] = lambda i: (i % 7,)):
        self.num, self.values = num, values

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return image_of(index)[0], *self.values(int(index))


def write(folder: str, num: int) -> None:
    from ffcv.fields import FloatField, IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    for mode in ("jpg", "raw", "proportion"):
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        writer = DatasetWriter(f"{folder}/{mode}.beton", fields, num_workers=2)
        writer.from_indexed_dataset(PaperImages(num), chunksize=3)
    labels: list[dict[str, Any]] = [{}, {"label": FloatField()}]
    labels.append({"label": NDArrayField(np.dtype("float32"), (3,))})
    for (kind, values), label in zip(OTHERS.items(), labels, strict=True):
        fields = {"image": RGBImageField(write_mode="raw"), **label}
        writer = DatasetWriter(f"{folder}/{kind}.beton", fields, num_workers=1)
        writer.from_indexed_dataset(PaperImages(5, values))


def read(path: str, is_compiled: bool) -> None:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.compiler import Compiler
    from ffcv.reader import Reader

    Compiler.set_enabled(is_compiled)  # a second takes as long as all else here
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
    np.savez(f"{path}.npz", **results)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
    for place, beton in enumerate(sys.argv[3:]):
        read(beton, is_compiled=place == 0)
