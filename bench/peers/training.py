"""Ours in training: a stage of a recipe as `fastpsl train` makes it, from the dataset file."""

from collections.abc import Iterator

from bench.peers.peer import Peer, Work


def batches(work: Work, num_views: int) -> Iterator[int]:
    """Train a stage, and yield each step's number of samples. The recipe has its own views."""
    import torch

    from bench.long_epochs import LongEpochs
    from bench.recipe_stages import recipe_options, stage_experiment
    from fastpsl.engine.distributed import World
    from fastpsl.pipelines.beton.reader import Beton

    world = World(0, 1, 0, 1, torch.device(work.device))
    options = recipe_options(
        work.recipe, is_sample=work.size_px < 224, batch_size=work.batch_size, backbone=work.backbone,
        device=world.device.type, decoder=work.decoder, workers=work.num_threads,
    )  # fmt: skip
    experiment, number = stage_experiment(work.recipe, work.stage, options, world)
    with Beton(work.data) as data:
        bench = LongEpochs(experiment, number, options, data, world)
        with bench.loader() as loader:
            batches = bench.batches(loader)
            while True:
                yield bench._step(batches)


PEER = Peer("fastpsl", batches)
