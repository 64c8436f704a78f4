"""One epoch of a loader on data of a server, for `remote.py`; prints images and seconds.

The clock runs from the opening of the data to the last batch. Imports are not counted.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed

SHUFFLE = 1000  # as in bench/peers
Counted = tuple[int, float, float]
"""Images, the time of the start, and that of the end."""


def fastpsl(options: argparse.Namespace) -> Counted:
    """Run our loader, on a local file or from the server."""
    from fastpsl.files.remote.cache import Cache
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    began, num = time.perf_counter(), 0
    cache = None if options.kind == "local" else Cache(options.cache, options.cache_gb)
    with (
        Beton(options.source, cache) as data,
        Loader(
            data, [ViewSpec(RandomResizedCrop(options.size_px))], batch_size_per_rank=options.batch_size,
            order="quasi_random", lanes=options.lanes, num_threads=options.threads,
        ) as loader,
    ):  # fmt: skip
        for batch in loader.epoch(0):
            num += len(batch.indices)
        return num, began, time.perf_counter()


def fetch(options: argparse.Namespace) -> Counted:
    """Fetch all pages, without decoding."""
    import numpy as np

    from fastpsl.files.remote.cache import Cache
    from fastpsl.pipelines.beton.reader import Beton

    began = time.perf_counter()
    with Beton(options.source, Cache(options.cache, options.cache_gb)) as data:
        assert data.remote is not None
        data.remote.plan(range(len(data.remote.pages.starts) - 1))
        data.wait(np.arange(data.num_samples))
        return data.num_samples, began, time.perf_counter()


def webdataset(options: argparse.Namespace) -> Counted:
    """Run WebDataset, which reads tars by curl, with a shuffle buffer."""
    import webdataset as wds

    from bench.peers.pil_crops import PilCrops

    crops = PilCrops(options.size_px, 1)
    began, num = time.perf_counter(), 0
    samples = wds.WebDataset(options.source.split(), shardshuffle=100).shuffle(SHUFFLE)
    pairs = samples.decode("pilrgb").to_tuple("jpg", "cls").map(lambda pair: (*crops(pair[0]), pair[1]))
    batches = pairs.batched(options.batch_size, partial=True)
    for batch in wds.WebLoader(batches, batch_size=None, num_workers=options.threads):
        num += len(batch[-1])
    return num, began, time.perf_counter()


def streaming(options: argparse.Namespace) -> Counted:
    """Run MosaicML Streaming with its own defaults of shuffling and prefetching."""
    import io

    from PIL import Image
    from streaming import StreamingDataLoader, StreamingDataset

    from bench.peers.pil_crops import PilCrops

    crops = PilCrops(options.size_px, 1)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> object:
            sample = super().__getitem__(index)
            return crops(Image.open(io.BytesIO(sample["image"])).convert("RGB"))[0], sample["label"]

    began, num = time.perf_counter(), 0
    data = Images(
        remote=options.source, local=str(options.cache), shuffle=True, batch_size=options.batch_size
    )
    for batch in StreamingDataLoader(data, batch_size=options.batch_size, num_workers=options.threads):
        num += len(batch[-1])
    return num, began, time.perf_counter()


def write_mds(options: argparse.Namespace) -> Counted:
    """Copy the images of WebDataset's tars into MosaicML Streaming's format."""
    import tarfile

    from streaming import MDSWriter

    num = 0
    with MDSWriter(out=str(options.cache), columns={"image": "bytes", "label": "int"}) as writer:
        for path in options.source.split():
            with tarfile.open(path) as tar:
                members = {member.name: member for member in tar}
                for name in (name for name in members if name.endswith(".jpg")):
                    image, label = (
                        tar.extractfile(members[key]).read()  # type: ignore[union-attr]
                        for key in (name, name.replace(".jpg", ".cls"))
                    )
                    writer.write({"image": image, "label": int(label)})
                    num += 1
    return num, 0.0, 1.0


KINDS: dict[str, Callable[[argparse.Namespace], Counted]] = {
    "local": fastpsl, "fastpsl": fastpsl, "fetch": fetch, "webdataset": webdataset, "streaming": streaming,
    "write_mds": write_mds,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("source", help="the data: a path, an address, or several of them")
    parser.add_argument("cache", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--cache-gb", type=float, default=1.0)
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lanes", type=int, default=2, help="8 pages are mixed, some 1,200 images")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.kind in ("local", "fastpsl", "fetch"):  # not counted, as others' imports are not
        import torch

        import fastpsl.pipelines.loader.loader  # noqa: F401

        torch.set_num_threads(1)
        if options.kind != "local":
            import s3fs  # noqa: F401
    num, began, ended = KINDS[options.kind](options)
    print(num, ended - began, flush=True)


if __name__ == "__main__":
    main()
