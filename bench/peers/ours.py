"""Our Loader, by decoder."""

import ctypes
import itertools
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.peers.peer import LOOPS, Peer, Views, Work


def decoder_names(data: Any, device: torch.device) -> tuple[str, ...]:
    """Return the decoders of JPEGs, and synthetic: that of `auto` first."""
    from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a slow decoder is measured as such
        first, _ = choose_decoder("auto", data, device)
    return first, *(name for name in NAMES if name not in (first, "resident"))


def why_no_decoder(name: str, data: Any, device: torch.device) -> str | None:
    """Return the reason why our Loader cannot run with a decoder, or None if it can."""
    from fastpsl.pipelines.decoders.choose import NAMES, choose_decoder
    from fastpsl.pipelines.image import libturbo

    if name == "auto":
        return None
    if name in LOOPS:
        if missing := libturbo.why_missing():
            return missing
        is_here = LOOPS[name] <= libturbo.library().fastpsl_unpack_best()
        return None if is_here else "this processor has no such loops"
    if name not in NAMES:
        raise ValueError(f"--decoders {name}: there are {', '.join((*NAMES, *LOOPS))}")
    if name == "synthetic":
        return None
    try:
        choose_decoder(name, data, device)
    except ValueError as error:
        return str(error)
    return None


def auto_decoder(path: Path, device: torch.device) -> str:
    """Return the decoder that `auto` takes for a folder."""
    from fastpsl.pipelines.datasets.open import open_data
    from fastpsl.pipelines.decoders.choose import choose_decoder

    with warnings.catch_warnings(), closing(open_data(path)) as data:
        warnings.simplefilter("ignore")
        return choose_decoder("auto", data, device)[0]


def decoder_of(work: Work) -> str:
    """Return the decoder of ours that reads the data of a work; choose its loops in this process."""
    if work.kind not in LOOPS:
        return work.kind
    from fastpsl.pipelines.image.libturbo import library

    ctypes.c_int.in_dll(library(), "fastpsl_unpack_kind").value = LOOPS[work.kind]
    return "turbo"


@contextmanager
def open_ours(work: Work, num_views: int) -> Iterator[Any]:
    """Open our Loader with `num_views` random resized crops."""
    from fastpsl.kernels.crops import RandomResizedCrop
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.views import ViewSpec

    view = ViewSpec(RandomResizedCrop(work.size_px))
    with (
        Beton(work.data) as data,
        Loader(
            data, [view] * num_views, batch_size_per_rank=work.batch_size, decoder=decoder_of(work),
            num_threads=work.num_threads, device=work.device, hw_decoder_load=work.hw_decoder_load,
        ) as loader,
    ):  # fmt: skip
        yield loader


def batches(work: Work, num_views: int) -> Iterator[Views]:
    """Yield the views of our batches, epoch after epoch: of `fastpsl.loader` if they are float32."""
    if work.floats:
        import fastpsl

        with fastpsl.loader(
            Path(work.files) / "images" if work.from_folder else work.data, batch_size=work.batch_size,
            num_views=num_views, size_px=work.size_px, device=work.device, decoder=decoder_of(work),
            num_threads=work.num_threads,
        ) as loader:  # fmt: skip
            while True:
                for inputs, _ in loader:
                    yield inputs if num_views > 1 else [inputs]
    with open_ours(work, num_views) as loader:
        for epoch in itertools.count():
            for batch in loader.epoch(epoch):
                yield batch.images


def training_batches(work: Work, num_views: int) -> Iterator[int]:
    """Train a stage, and yield each step's number of samples. The recipe has its own views."""
    import torch

    from bench.recipe_stages import LongEpochs, recipe_of, recipe_options, stage_experiment
    from fastpsl.engine.distributed import World
    from fastpsl.pipelines.datasets.open import open_data

    world = World(0, 1, 0, 1, torch.device(work.device))
    options = recipe_options(
        work.recipe, is_sample=work.size_px < 224, batch_size=work.batch_size, backbone=work.backbone,
        device=world.device.type, decoder=work.decoder, workers=work.num_threads, precision=work.precision,
        size_px=work.size_px if "size_px" in recipe_of(work.recipe).paper else None,
    )  # fmt: skip
    experiment, number = stage_experiment(work.recipe, work.stage, options, world)
    with closing(open_data(Path(work.files) / "images" if work.from_folder else work.data)) as data:
        bench = LongEpochs(experiment, number, options, data, world)
        with bench.loader() as loader:
            training = bench.batches(loader)
            while True:
                yield bench._step(training)


TRAINING = Peer("fastpsl", training_batches)
