"""DALI's own reader of files; with one view it decodes only what the crop needs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.peers.peer import MEAN, SHUFFLE, STD, Peer, Views, Work


def batches(work: Work, num_views: int, *, whole: bool = False) -> Iterator[Views]:
    """Yield the views of its batches; with `whole`, one view has whole images decoded, too."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

    is_cuda = work.device != "cpu"
    decoder: dict[str, Any] = {"device": "mixed" if is_cuda else "cpu"}
    if is_cuda and work.hw_decoder_load is not None:
        decoder["hw_decoder_load"] = work.hw_decoder_load
    size = (work.size_px, work.size_px)

    @pipeline_def
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(
            file_root=str(Path(work.files) / "images"),
            random_shuffle=True,
            initial_fill=SHUFFLE,
            name="files",
        )
        if num_views == 1 and not whole:
            views = [fn.resize(fn.decoders.image_random_crop(jpegs, **decoder), size=size)]
        else:
            images = fn.decoders.image(jpegs, **decoder)
            views = [fn.random_resized_crop(images, size=size) for _ in range(num_views)]
        if work.floats:
            views = [
                fn.crop_mirror_normalize(
                    view, dtype=types.FLOAT, output_layout="CHW", mean=[255 * each for each in MEAN],
                    std=[255 * each for each in STD], mirror=fn.random.coin_flip(),
                )
                for view in views
            ]  # fmt: skip
        return (*views, labels.gpu() if is_cuda else labels)

    names = [f"view_{view}" for view in range(num_views)]
    device_id = torch.device(work.device).index or 0 if is_cuda else None
    built = pipeline(batch_size=work.batch_size, num_threads=work.num_threads, device_id=device_id)
    loader = DALIGenericIterator(
        built, [*names, "label"], reader_name="files", auto_reset=True, last_batch_policy=LastBatchPolicy.DROP
    )
    while True:
        for (batch,) in loader:
            yield [batch[name] for name in names]


PEER = Peer("DALI's reader", batches, ("nvidia.dali",), reads="folder")
WHOLE = Peer("DALI's reader, whole images", partial(batches, whole=True), ("nvidia.dali",), reads="folder")
