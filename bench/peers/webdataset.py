"""WebDataset, with resampled shards and a shuffle buffer."""

from collections.abc import Iterator
from pathlib import Path

from bench.peers.peer import SHUFFLE, Peer, Views, Work
from bench.peers.pil_crops import PilCrops, on_device


def batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of its batches."""
    import webdataset

    crops = PilCrops(work, num_views)
    shards = sorted(str(path) for path in (Path(work.files) / "shards").glob("*.tar"))
    samples = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(SHUFFLE)
    pairs = samples.decode("pilrgb").to_tuple("jpg", "cls").map(lambda pair: (*crops(pair[0]), pair[1]))
    loader = webdataset.WebLoader(
        pairs.batched(work.batch_size, partial=False), batch_size=None, num_workers=work.num_threads,
        pin_memory=work.device != "cpu",
    )  # fmt: skip
    yield from on_device(loader, work.device)


PEER = Peer("WebDataset", batches, ("webdataset",), reads="tar")
