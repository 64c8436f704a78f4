"""A stage's rates are measured with the trainer's own step and loader."""

import torch

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, place_backbone
from fastpsl.engine.optim.schedules import cosine
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.plan import make_plan
from fastpsl.engine.stage_bench import StageBench
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.tasks.rotation import Rotation


def test_rates_of_a_stage() -> None:
    options = PretrainOptions(batch_size=4, accumulate=2, epochs=(1, 1, 1), decoder="torchvision")
    world = World(0, 1, 0, 1, torch.device("cpu"))
    experiment = Experiment(
        Rotation(shorter_px=36, size_px=32, rotations_per_image="all"),
        make_backbone("resnet18"),
        make_plan("psl", (1, 1, 1)),
        cosine(0.1),
    )
    place_backbone(experiment, options, world)
    with Beton(sample_paths().train) as data:
        bench = StageBench(experiment, 1, options, data, world, seconds=0.01)
        assert bench.batch_size == 4 // 2
        assert bench.synthetic_batch() is bench.synthetic_batch()
        steps = []
        bench.train_step.optimiser.register_step_post_hook(lambda *_: steps.append(1))
        rates = [bench.loader_alone(), bench.step_alone(), bench.both(), bench.loader_alone("synthetic")]
        assert min(rates) > 0 and len(steps) >= 2
        before = len(steps)
        assert len(bench.step_ms(3)) == 3 and len(steps) == before + 4
        assert len(bench.augment_ms(2)) == 2 and len(steps) == before + 4
