"""The papers' values in what is built of the recipes: stages, rates, groups, views and heads.

All values are written out, so that no default of the code can change one. Networks are on the meta device, so
they take neither time nor memory.
"""

import itertools
import json
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.optimisers import LARS
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.geometry import AllTurns, Flip, Rotate45, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.views import Crop, Op, ViewSpec
from fastpsl.scripts.recipe_files import TRAIN, find_recipe
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.pseudo_labels import uic as uic_module
from tests.programs import SMALL_NET
from tests.recipes import in_process

pytestmark = pytest.mark.usefixtures("published_widths")
RECIPES = ("jigsaw_r50", "rotation_rv50", "simclr_r50", "mocov2_r50")
LEVELS = (1, 2, 3)
STEPS = 5004  # of an epoch: ImageNet's 1,281,167 images in batches of 256
CHANNELS = (512, 1024, 2048)  # of B3, B4 and B5, on which the heads of S1, S2 and S3 are


built = cache(partial(in_process.built, data="T.beton"))


def layers(head: nn.Module) -> list[str]:
    """Return the layers in their order, such as "Linear 2048 1000"; plain ones have no bias that learns."""
    lines = []
    for part in head.modules():
        if isinstance(part, nn.Linear):
            lines.append(f"Linear {part.in_features} {part.out_features}" + " plain" * (part.bias is None))
        elif isinstance(part, nn.BatchNorm1d):
            assert part.affine and part.track_running_stats and part.weight.requires_grad
            lines.append(f"BatchNorm {part.num_features}" + " plain" * (not part.bias.requires_grad))
        elif not list(part.children()):
            lines.append(type(part).__name__)
    return lines


def seen(crop: Crop, *ops: Op) -> ViewSpec:
    """Return a view with ImageNet's means and deviations."""
    return ViewSpec(crop, ops, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


# Section 4.1: the backbone, and the stages' epochs. The batch is 256 images for all.
SCALES = {
    "jigsaw_r50": ("resnet50", (60, 60, 60)),
    "rotation_rv50": ("revnet50", (60, 60, 60)),
    "simclr_r50": ("resnet50", (60, 70, 70)),
    "mocov2_r50": ("resnet50", (60, 70, 70)),  # our reading: as SimCLR
}
# Table 1: the numbers of permutations. Section 4.1: 128 dimensions. SimCLR's code: a temperature of .1. MoCo,
# sections 3 and 4: 65,536 keys, a momentum of .999, 256 images on 8 GPUs. MoCo v2, section 3: .2.
TASK_VALUES: dict[str, dict[str, object]] = {
    "jigsaw_r50": {"counts": (500, 1000, 2000), "grid": 3, "permutations_per_image": 1},
    "rotation_rv50": {"rotations_per_image": "one", "same_window": False},
    "simclr_r50": {"batch_size": 256, "temperature": 0.1, "embedding_width": 128},
    "mocov2_r50": {
        "batch_size": 256, "queue_size": 65_536, "momentum": 0.999, "temperature": 0.2, "key_group": 32,
        "width": 128,
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_batch_stages_and_the_tasks_own_values(recipe: str) -> None:
    """Test the stages of section 3.2: B1-B3, B2-B4 and B3-B5, on levels G1, G2 and G3."""
    options, experiment = built(recipe)
    backbone, epochs = SCALES[recipe]
    assert (experiment.backbone.name, options.batch_size, options.passes_per_step) == (backbone, 256, 1)
    assert tuple(experiment.backbone.channels[2:]) == CHANNELS
    stages = [(s.name, s.level, s.first_learning, s.last_block, s.num_steps) for s in experiment.stages]
    assert stages == [("S1", 1, 1, 3, None), ("S2", 2, 2, 4, None), ("S3", 3, 3, 5, None)]
    assert tuple(stage.epochs for stage in experiment.stages) == epochs
    assert experiment.task.num_levels == 3 and experiment.inputs_per_image() == {}
    assert (experiment.batchnorm, experiment.clip_norm, experiment.part) == ("train", None, None)
    wanted = TASK_VALUES[recipe]
    assert {name: getattr(experiment.task, name) for name in wanted} == wanted


# By the epoch of a stage: the rate of the step before it, and of its first step.
Rates = dict[int, tuple[float | None, float | None]]
# Section 4.1: .01, "dropped by a factor of 10", "20/20/10/10", "for each training stage".
DROPS: Rates = {0: (None, 1e-2), 20: (1e-2, 1e-3), 40: (1e-3, 1e-4), 50: (1e-4, 1e-5), 60: (1e-5, None)}
RATES: dict[str, tuple[Rates, Rates, Rates]] = {
    "jigsaw_r50": (DROPS, DROPS, DROPS),
    "rotation_rv50": (DROPS, DROPS, DROPS),
    # Section 4.1: .3, "cosine decay schedule without restart"; SimCLR's warm-up of 10 epochs before it.
    "simclr_r50": (
        {0: (None, 0.0), 1: (0.03, 0.03), 5: (0.15, 0.15), 10: (0.3, 0.3), 60: (0.251592, None)},
        {0: (None, 0.251592), 45: (0.15, 0.15), 70: (0.0897457, None)},
        {0: (None, 0.0897457), 35: (0.0244250, 0.0244250), 70: (0.0, None)},
    ),
    # MoCo v2, section 3: .03 and a cosine. That it is one over all stages is our reading.
    "mocov2_r50": (
        {0: (None, 0.03), 30: (0.0283651, 0.0283651), 60: (0.0238168, None)},
        {0: (None, 0.0238168), 40: (0.015, 0.015), 70: (0.00819014, None)},
        {0: (None, 0.00819014), 35: (0.00221040, 0.00221040), 70: (0.0, None)},
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_rates_of_every_stage(recipe: str) -> None:
    _, experiment = built(recipe)
    lengths = [stage.epochs for stage in experiment.stages]
    for number, rates in enumerate(RATES[recipe]):
        length, first = lengths[number], sum(lengths[:number])
        for epoch, around in rates.items():
            for rate, step in zip(around, (epoch * STEPS - 1, epoch * STEPS), strict=True):
                if rate is not None:
                    moment = Moment(step, length * STEPS, first, length, sum(lengths))
                    found = experiment.schedule(moment)
                    assert found == pytest.approx(rate, rel=3e-4, abs=1e-10), (number, epoch, step)


# Section 4.1, jigsaw: "momentum of 0.9, weight decay 1e-4 with no decay for the bias parameters"; for the
# rotation it states none. MoCo, section 4: the same values, and in its code all parameters decay. SimCLR,
# section 2.2 and its code: LARS, momentum .9, decay 1e-6, eeta .001; biases and BatchNorms have neither decay
# nor a rate of their own.
SGD = {"momentum": 0.9, "dampening": 0, "nesterov": False, "maximize": False, "lr": 0.0}
LAYERWISE = {"momentum": 0.9, "eeta": 0.001, "lr": 0.0}
WEIGHT: dict[str, dict[str, object]] = {
    "jigsaw_r50": {**SGD, "weight_decay": 1e-4},
    "rotation_rv50": {**SGD, "weight_decay": 1e-4},
    "simclr_r50": {**LAYERWISE, "weight_decay": 1e-6, "adapt": True},
    "mocov2_r50": {**SGD, "weight_decay": 1e-4},
}
BIAS: dict[str, dict[str, object]] = {
    "jigsaw_r50": {**SGD, "weight_decay": 0.0},
    "rotation_rv50": {**SGD, "weight_decay": 0.0},
    "simclr_r50": {**LAYERWISE, "weight_decay": 0.0, "adapt": False},
    "mocov2_r50": {**SGD, "weight_decay": 1e-4},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_optimiser_of_every_parameter(recipe: str) -> None:
    """Test that a BatchNorm's scale is a bias for LARS alone."""
    _, experiment = built(recipe)
    with torch.device("meta"):
        model = nn.ModuleDict({"blocks": experiment.backbone, "head": experiment.task.head(3, 2048)})
    named = dict(model.named_parameters())
    optimiser = experiment.optimiser(named.items())
    assert type(optimiser) is (LARS if recipe == "simclr_r50" else torch.optim.SGD)
    names = {id(parameter): name for name, parameter in named.items()}
    groups = {names[id(p)]: group for group in optimiser.param_groups for p in group["params"]}
    assert groups.keys() == named.keys()
    for name, parameter in named.items():
        is_bias = parameter.ndim == 1 if recipe == "simclr_r50" else name.endswith(".bias")
        wanted = (BIAS if is_bias else WEIGHT)[recipe]
        assert {key: groups[name][key] for key in wanted} == wanted, name


# Section 3.3.1: windows of 225 px, cells of 75, tiles of 64. Table 1: the numbers of permutations.
# Section 4.1: the shorter side at 256 and a flip with 50 % probability.
@pytest.mark.parametrize(("level", "count"), [(1, 500), (2, 1000), (3, 2000)])
def test_the_jigsaw_of_every_level(level: int, count: int) -> None:
    task = built("jigsaw_r50")[1].task
    tiles = JigsawTiles(grid=3, cell_px=75, tile_px=64, num_permutations=count, permutations_per_image=1)
    view = seen(ShorterSideCrop(shorter_px=256, size_px=225, where="random"), Flip(p=0.5), tiles)
    assert task.views(level) == task.val_views(level) == (view,)
    # Twenty images for each permutation of level 3.
    flips, puzzles = task.views(level)[0].draw(Keys(seed=0, epoch=0, indices=np.arange(40_000)))
    assert np.unique(puzzles["permutation"]).tolist() == list(range(count))
    assert np.unique(puzzles["offsets"]).tolist() == list(range(12))
    assert np.unique(flips["flip"]).tolist() == [False, True]
    with torch.device("meta"):
        orders = task.head(level, 2048).get_buffer("permutations")
        hardest = task.head(3, 2048).get_buffer("permutations")
    assert torch.equal(orders, hardest[:count]) and len(orders.unique(dim=0)) == count
    assert torch.equal(orders.sort(dim=1).values, torch.arange(9).expand(count, 9))
    assert task.chance(level) == 1 / count


def test_a_jigsaw_of_other_sizes_and_permutations(tmp_path: Path) -> None:
    orders = np.array([*itertools.permutations(range(4))])
    np.save(tmp_path / "orders.npy", orders)
    _, experiment = built(
        "jigsaw_r50", backbone="resnet18", permutations=tmp_path / "orders.npy", counts=(2, 3, 24),
        permutations_per_image=5, embedding_width=7, grid=2, short_side=108, cell_px=32, tile_px=28,
    )  # fmt: skip
    for level, count in zip(LEVELS, (2, 3, 24), strict=True):
        tiles = JigsawTiles(grid=2, cell_px=32, tile_px=28, num_permutations=count, permutations_per_image=5)
        window = ShorterSideCrop(shorter_px=108, size_px=64, where="random")
        assert experiment.task.views(level) == (seen(window, Flip(p=0.5), tiles),)
        head = experiment.task.head(level, 10)
        assert layers(head) == ["Linear 10 7", "BatchNorm 7", "ReLU", f"Linear 28 {count}"]
        assert np.array_equal(head.get_buffer("permutations"), orders[:count])


@pytest.mark.parametrize(
    ("words", "sides"),
    [
        ("--data T.beton", (225, 256, 75, 64)), ("", (96, 108, 32, 28)),
        ("--size-px 48", (48, 54, 16, 14)), ("--size-px 3 --grid 1", (3, 3, 3, 3)),
        # The names of before: all sides, or one, which the others follow.
        ("--data T.beton --short-side 108 --cell-px 32 --tile-px 28", (96, 108, 32, 28)),
        ("--grid 2 --short-side 40 --cell-px 18 --tile-px 16", (36, 40, 18, 16)),
        ("--short-side 64 --cell-px 18 --tile-px 16", (54, 64, 18, 16)),
        ("--short-side 60", (54, 60, 18, 16)), ("--short-side 60 --size-px 48", (48, 60, 16, 14)),
        ("--cell-px 18", (54, 60, 18, 16)), ("--cell-px 75 --size-px 225", (225, 256, 75, 64)),
    ],
)  # fmt: skip
def test_the_sides_of_a_puzzle(words: str, sides: tuple[int, ...], tmp_path: Path) -> None:
    script: Any = find_recipe("jigsaw_r50")
    options = script.parse(["--preset", "paper"] * ("--data" in words) + words.split(), log=len)
    names = ("short_side", "cell_px", "tile_px")
    assert (options.size_px, *map(options.sides().get, names)) == sides
    assert [options.science()[name] for name in names] == [*sides[1:]] and "size_px" not in options.science()
    # A record from before --size-px, as --config and a replay read it.
    old = {"preset": "paper", "grid": options.grid, **options.sides()}
    record = {"options": old, "science": {"recipe": "jigsaw_r50"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    again = script.parse(["--config", str(tmp_path)], log=len)
    assert again.size_px == script.with_paper(**old).size_px == sides[0]
    assert again.sides() == options.sides()


@pytest.mark.parametrize("name", TRAIN.values())
def test_size_px_is_the_side_that_the_weights_record(name: str) -> None:
    script: Any = find_recipe(name)
    teacher = ["--teacher", SMALL_NET] if name == "distill" else []
    with torch.device("cpu" if teacher else "meta"):
        experiment = script.build(script.parse(["--size-px", "48", *teacher], log=len))
    assert {experiment.task.input_record(stage.level)["size_px"] for stage in experiment.stages} == {48}


# Section 3.3.2, Table 2 and section 4.1: 2, 4 and 8 angles; windows of 224 of 256. The other sizes are for
# small images. All rows: the shorter side, the side and its share.
WINDOWS = [(256, 224, 0.875), (128, 96, 0.75), (80, 64, 0.8)]


@pytest.mark.parametrize(("short_side", "size_px", "share"), WINDOWS)
def test_the_rotations_of_every_level(short_side: int, size_px: int, share: float) -> None:
    def views(level: int, **options: Any) -> tuple[ViewSpec, ...]:
        if size_px != 224:
            options |= {"short_side": short_side, "size_px": size_px}
        return built("rotation_rv50", backbone="resnet18", **options)[1].task.views(level)

    window = ShorterSideCrop(shorter_px=short_side, size_px=size_px, where="random")
    upright, turned = (RotationCrop(size_px=size_px, share=share, random=True, base=base) for base in (0, 45))
    either = RotationCrop(size_px=size_px, share=share, random=True, base="drawn")
    for same_window, easy in ((False, window), (True, upright)):
        one, every = ({"same_window": same_window, "rotations_per_image": each} for each in ("one", "all"))
        assert views(1, **one) == (seen(easy, Rotate90(num=2)),)
        assert views(2, **one) == (seen(easy, Rotate90(num=4)),)
        assert views(3, **one) == (seen(either, Rotate45()),)
        assert views(1, **every) == (seen(easy, AllTurns(num=2)),)
        assert views(2, **every) == (seen(easy, AllTurns(num=4)),)
        assert views(3, **every) == (seen(upright, AllTurns(num=4)), seen(turned, AllTurns(num=4)))


@pytest.mark.parametrize(
    ("level", "name", "labels"), [(1, "turns", [0, 2]), (2, "turns", [0, 1, 2, 3]), (3, "label", [*range(8)])]
)
def test_the_angles_of_every_level(level: int, name: str, labels: list[int]) -> None:
    task = built("rotation_rv50")[1].task
    (view,) = task.views(level)
    (draw,) = view.draw(Keys(seed=0, epoch=0, indices=np.arange(1000)))
    assert np.unique(draw[name]).tolist() == labels and task.chance(level) == 1 / len(labels)


# Table 3: T1 is a crop, T2 adds colour distortion, T3 adds Gaussian blur and Sobel. The values are SimCLR's,
# appendix A: crops of .08 to 1 of the area, jitter of strength 1 with probability .8, grey .2, blur .5 with a
# kernel of a tenth of the side and sigma .1 to 2; and MoCo's and MoCo v2's: .2 to 1, jitter of .4 and .1.
CONTRASTIVE = {"simclr_r50": ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2))}
CONTRASTIVE["mocov2_r50"] = ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1))
KERNELS = {224: 23, 96: 9, 64: 7}  # by the side; the paper's is 224


def contrastive_views(recipe: str, size_px: int, sobel: tuple[Op, ...]) -> list[ViewSpec]:
    """Return the views of levels G1, G2 and G3."""
    scale, (brightness, contrast, saturation, hue) = CONTRASTIVE[recipe]
    crop = RandomResizedCrop(size_px=size_px, scale=scale, ratio=(3 / 4, 4 / 3))
    flip = Flip(p=0.5)
    colour = (ColourDistortion(brightness, contrast, saturation, hue, p=0.8), Grey(p=0.2))
    blur = GaussianBlur(kernel_px=KERNELS[size_px], sigma=(0.1, 2.0), p=0.5)
    return [seen(crop, flip), seen(crop, flip, *colour), seen(crop, flip, *colour, blur, *sobel)]


@pytest.mark.parametrize("size_px", KERNELS)
@pytest.mark.parametrize("recipe", CONTRASTIVE)
def test_both_contrastive_views_of_every_level(recipe: str, size_px: int) -> None:
    """Test the paper's Sobel, none, as SimCLR and MoCo v2 were published, and another one."""
    cases: list[tuple[dict[str, Any], tuple[Op, ...]]] = [
        ({}, (Sobel(p=0.2),)),
        ({"sobel_p": 0.0}, ()),
        ({"sobel_p": 0.7}, (Sobel(p=0.7),)),
    ]
    for changes, sobel in cases:
        if size_px != 224:
            changes |= {"size_px": size_px}
        task = built(recipe, backbone="resnet18", **changes)[1].task
        for level, view in zip(LEVELS, contrastive_views(recipe, size_px, sobel), strict=True):
            assert task.views(level) == task.val_views(level) == (view, view), (changes, level)


def test_contrastive_tasks_without_a_recipe_have_the_same_views() -> None:
    simclr = SimCLR(256, size_px=224, temperature=0.1, embedding_width=128)
    moco = MoCo(
        seed=0, batch_size=256, queue_size=65_536, momentum=0.999, temperature=0.2, key_group=32, width=128,
        size_px=224,
    )  # fmt: skip
    for recipe, task in (("simclr_r50", simclr), ("mocov2_r50", moco)):
        for level in LEVELS:
            assert task.views(level) == built(recipe)[1].task.views(level)
        hardest = contrastive_views(recipe, 224, (Sobel(p=0.2),))[2]
        assert task.views(3) == (hardest, hardest)


def head_layers(recipe: str, level: int, c: int) -> list[str]:
    """Return the layers of the recipe's head on c channels."""
    return {
        # VISSL's: 1000 for each of nine tiles, then one for each permutation.
        "jigsaw_r50": [
            f"Linear {c} 1000", "BatchNorm 1000", "ReLU", f"Linear 9000 {(500, 1000, 2000)[level - 1]}",
        ],
        # VISSL's: one for each angle.
        "rotation_rv50": [f"Linear {c} {(2, 4, 8)[level - 1]}"],
        # Section 4.1: "2-layer MLP projection head", 128. SimCLR's code has BatchNorm instead of biases.
        "simclr_r50": [
            f"Linear {c} {c} plain", f"BatchNorm {c}", "ReLU", f"Linear {c} 128 plain", "BatchNorm 128 plain",
        ],
        # MoCo v2, section 3: "2-layer MLP head (hidden layer 2048-d, with ReLU)".
        "mocov2_r50": ["AveragePool", "Flatten", f"Linear {c} {c}", "ReLU", f"Linear {c} 128"],
    }[recipe]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_head_of_every_stage(recipe: str) -> None:
    task = built(recipe)[1].task
    for level, channels in zip(LEVELS, CHANNELS, strict=True):
        with torch.device("meta"):
            head = task.head(level, channels)
        assert layers(head) == head_layers(recipe, level, channels)


STEPS_PER_EPOCH = 10


class Values(NamedTuple):
    """The values of a recipe, whose rates are by step, with `STEPS_PER_EPOCH` steps in each epoch."""

    backbone: str
    epochs: int
    batch_size: int
    num_clusters: int
    num_outputs: int
    rates: dict[int, float]


# UIC, section 4.2: "500 epochs", "256 batch size", "0.1 learning rate decaying linearly"; Table 1: 3k
# classes.
LINEAR_500 = {
    0: 0.1,
    1: 0.09998,
    1250: 0.075,  # epoch 125
    2500: 0.05,  # epoch 250
    4990: 0.0002,  # epoch 499
    4999: 0.00002,
}
# Section 4.3: "30 epochs", here at a tenth of the rate.
LINEAR_30 = {0: 0.01, 10: 0.01 * 29 / 30, 150: 0.005, 290: 0.01 / 30, 299: 0.01 / 300}
VALUES = {
    "uic_alexnet": Values("alexnet", 500, 256, 3000, 3000, LINEAR_500),
    # Section 5.2 has 500 epochs of ResNet-50, too.
    "uic_r50": Values("resnet50", 500, 256, 3000, 3000, LINEAR_500),
    # No paper has CIFAR-10; these are our own values.
    "uic_cifar10": Values(
        "resnet18_cifar", 200, 256, 128, 128, {0: 0.1, 500: 0.075, 1000: 0.05, 1990: 0.0005, 1999: 0.00005}
    ),
    # DeepCluster, section 4: 500 epochs, 10,000 clusters, batches of 256; its code (main.py): a constant .05.
    "deepcluster_alexnet": Values(
        "alexnet", 500, 256, 10_000, 10_000, dict.fromkeys((0, 1250, 2499, 2500, 2501, 4500, 4999), 0.05)
    ),
    # SSL++, sections IV.B and V: 70 clusters; IIC's code for CIFAR-10: 2000 epochs, 660 pairs of 220 images,
    # five sub-heads, a constant rate of .0001.
    "sslpp_iic": Values(
        "resnet34_iic", 2000, 220, 70, 5 * 70, dict.fromkeys((0, 5000, 9999, 10_000, 10_001, 19_999), 1e-4)
    ),
}
UIC_RECIPES = ("uic_alexnet", "uic_cifar10", "uic_r50")


def build(name: str, **values: Any) -> Experiment:
    """Build a recipe's experiment with the paper's values, but for `values`."""
    return built(name, **values)[1]


def rates(experiment: Experiment, steps: dict[int, float]) -> dict[int, float]:
    (stage,) = experiment.stages
    num_steps = stage.epochs * STEPS_PER_EPOCH
    return {
        step: experiment.schedule(Moment(step, num_steps, 0, stage.epochs, stage.epochs)) for step in steps
    }


class Group(NamedTuple):
    """A parameter group of an optimiser: the parameters' names, and its settings."""

    names: set[str]
    settings: dict[str, Any]


def optimiser_of(experiment: Experiment) -> tuple[torch.optim.Optimizer, list[Group], set[str]]:
    """Return the only stage's optimiser on one number per parameter, its groups, and all names."""
    (stage,) = experiment.stages
    with torch.device("meta"):
        head = experiment.task.head(stage.level, experiment.backbone.channels[-1])
        module = StageModule(StageBlocks(experiment.backbone, stage), head, experiment.task)
    small = {name: nn.Parameter(torch.zeros(1)) for name, _ in module.learning_parameters()}
    name_of = {id(parameter): name for name, parameter in small.items()}
    optimiser = experiment.optimiser(small.items())
    groups = [
        Group({name_of[id(parameter)] for parameter in group["params"]}, group)
        for group in optimiser.param_groups
        if group["params"]
    ]
    return optimiser, groups, set(small)


def settings(group: Group, *names: str) -> tuple[Any, ...]:
    return tuple(group.settings[name] for name in names)


@pytest.mark.parametrize("name", VALUES)
def test_lengths_and_sizes(name: str) -> None:
    expected = VALUES[name]
    assert built(name)[0].batch_size == expected.batch_size
    experiment = build(name)
    backbone, (stage,) = experiment.backbone, experiment.stages
    assert backbone.name == expected.backbone
    # All blocks learn at once.
    blocks = stage.first_learning, stage.last_block
    assert stage.epochs == expected.epochs and blocks == (1, backbone.num_blocks)
    name_of = "num_clusters" if name == "sslpp_iic" else "num_classes"
    assert getattr(experiment.task, name_of) == expected.num_clusters
    with torch.device("meta"):
        head = experiment.task.head(1, backbone.channels[-1])
    (classifier,) = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    assert classifier.out_features == expected.num_outputs
    assert experiment.inputs_per_image() == ({"E": 4} if name == "sslpp_iic" else {})
    assert experiment.batchnorm == "train" and experiment.clip_norm is None


@pytest.mark.parametrize("name", VALUES)
def test_rates(name: str) -> None:
    expected = VALUES[name].rates
    assert rates(build(name), expected) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", UIC_RECIPES)
def test_fine_tuning_has_thirty_epochs_at_a_tenth_of_the_rate(name: str) -> None:
    """UIC, section 4.3: "further fine-tune the network with 30 epochs"."""
    arguments = ("--data", "T.beton", "--fine-tune", "runs/uic")
    options = find_recipe(name).parse(arguments, log=lambda line: None)
    assert (options.epochs, options.lr) == ((30,), 0.01)
    assert (options.batch_size, options.num_clusters) == (256, VALUES[name].num_clusters)
    # The network of the run is not needed here.
    experiment = build(name, epochs=options.epochs, lr=options.lr)
    assert rates(experiment, LINEAR_30) == pytest.approx(LINEAR_30, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "weight_decay"),
    [("uic_alexnet", 1e-4), ("uic_r50", 1e-4), ("uic_cifar10", 5e-4)],  # UIC, section 4.2, but for CIFAR-10
)
def test_optimiser_of_uic(name: str, weight_decay: float) -> None:
    """UIC, section 4.2: "SGD optimizer", "0.9 momentum, 1e-4 weight decay", as in supervised training."""
    optimiser, (group,), names = optimiser_of(build(name))
    assert isinstance(optimiser, torch.optim.SGD)
    assert group.names == names and "head.2.bias" in names and "blocks.0.0.weight" in names
    asked = settings(group, "momentum", "weight_decay", "nesterov", "dampening")
    assert asked == (0.9, weight_decay, False, 0)


def test_optimiser_of_deepcluster() -> None:
    """DeepCluster's main.py: momentum .9 and a decay of 10^-5; the top layer's own SGD has no momentum."""
    optimiser, (backbone, top), names = optimiser_of(build("deepcluster_alexnet"))
    assert isinstance(optimiser, torch.optim.SGD)
    assert top.names == {"head.2.weight", "head.2.bias"} and backbone.names == names - top.names
    # Five convolutions and their BatchNorms, fc6 and fc7, a weight and a bias each.
    assert len(backbone.names) == 24
    for group, momentum in ((backbone, 0.9), (top, 0.0)):
        asked = settings(group, "momentum", "weight_decay", "nesterov", "dampening")
        assert asked == (momentum, 1e-5, False, 0)


def test_optimiser_of_iic() -> None:
    """IIC's code: torch's Adam as it comes, so without decay."""
    optimiser, (group,), names = optimiser_of(build("sslpp_iic"))
    assert isinstance(optimiser, torch.optim.Adam) and group.names == names
    assert {"head.classify.0.weight", "head.classify.0.bias"} < names
    asked = settings(group, "betas", "weight_decay", "eps", "amsgrad")
    assert asked == ((0.9, 0.999), 0.0, 1e-8, False)


@pytest.mark.parametrize("name", ["uic_alexnet", "deepcluster_alexnet"])
@pytest.mark.parametrize(("values", "p"), [({}, 0.5), ({"dropout": 0.25}, 0.25), ({"dropout": 0.0}, 0.0)])
def test_dropout_of_alexnet(name: str, values: dict[str, Any], p: float) -> None:
    """UIC, section 4.2: "0.5 drop-out ratio", before each of fc6 and fc7."""
    parts = build(name, **values).backbone.named_modules()
    dropped = {part: layer.p for part, layer in parts if isinstance(layer, nn.Dropout)}
    assert dropped == {"classifier.0": p, "classifier.3": p}


def test_settings_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    uic: Any = build("uic_alexnet").task
    assert (uic.label_view, uic.fixed, uic.from_training, uic.head_std) == ("train", False, True, None)
    center: Any = build("uic_alexnet", label_view="center").task  # Table 3
    assert (center.label_view, center.from_training) == ("center", False)
    # Section 4.3: fine-tuned on the labels of the finished network, which then stay as they are.
    science = {"backbone": "alexnet", "num_clusters": 3000, "input_channels": "SobelXY"}
    head = {"2.weight": torch.zeros(3000, 4096)}
    backbone = build("uic_alexnet").backbone.state_dict()
    state = {"science": science, "backbone": backbone, "train_step": {"head": head}}
    monkeypatch.setattr(uic_module, "_trained", lambda *given: (Path("step.pt"), state))
    monkeypatch.setattr(uic_module, "sha256_of_file", lambda path: "d" * 64)
    tuned: Any = build("uic_alexnet", fine_tune="runs/uic", label_view="center").task
    assert (tuned.label_view, tuned.fixed, tuned.classifier) == ("center", True, head)
    # DeepCluster, section 4: "PCA-reduced to 256 dimensions"; its code: 20 iterations, and a classifier of
    # N(0, .01²).
    deepcluster: Any = build("deepcluster_alexnet").task
    assert (deepcluster.pca_width, deepcluster.k_means_iterations) == (256, 20)
    assert deepcluster.head_std == 0.01
    # SSL++ needs one head; IIC's code has five sub-heads and three copies of each image of CIFAR-10.
    iic: Any = build("sslpp_iic").task
    assert (iic.num_sub_heads, iic.num_copies, iic.sizes) == (5, 3, {"--num-clusters": 70})
    for name in VALUES:
        task: Any = build(name, seed=5).task
        assert task.seed == 5
    two: Any = build("sslpp_iic", num_heads=2).task
    assert two.sizes == {"--num-clusters": 70, "--second-clusters": 10}


MEANS = {"RGB": (0.485, 0.456, 0.406), "SobelXY": (0.0, 0.0)}
STDS = {"RGB": (0.229, 0.224, 0.225), "SobelXY": (0.02825, 0.02825)}
LAST: dict[str, tuple[Op, ...]] = {"RGB": (), "SobelXY": (SobelXY(),)}
SHORTER_PX = {224: 256, 96: 110, 64: 73, 32: 37}  # 256 / 224 of the view's side
BLUR_PX = {224: 23, 96: 9, 64: 7, 32: 3}  # a tenth of the view's side, made odd, as in SimCLR


def uic_views(augment: str, channels: str, size_px: int) -> tuple[ViewSpec, ViewSpec]:
    """Return the training view of UIC and the view of its centre crops.

    UIC, section 4.2: "randomly resized cropping and horizontally flipping", and a Sobel filter. Section 5.1:
    "strong color jittering and random Gaussian blur" of SimCLR.
    """
    strong: dict[str, tuple[Op, ...]] = {
        "standard": (),
        # SimCLR, appendix A, with strength 1: grey is a part of its colour distortion.
        "strong": (
            ColourDistortion(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
            Grey(p=0.2),
            GaussianBlur(kernel_px=BLUR_PX[size_px], sigma=(0.1, 2.0), p=0.5),
        ),
    }
    crop = RandomResizedCrop(size_px, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    middle = ShorterSideCrop(SHORTER_PX[size_px], size_px, "center")
    statistics, last = (MEANS[channels], STDS[channels]), LAST[channels]
    train = ViewSpec(crop, (Flip(p=0.5), *strong[augment], *last), *statistics)
    return train, ViewSpec(middle, last, *statistics)


@pytest.mark.parametrize(
    ("name", "values", "augment", "channels", "size_px"),
    [
        ("uic_alexnet", {}, "standard", "SobelXY", 224),
        ("uic_alexnet", {"augment": "strong"}, "strong", "SobelXY", 224),
        ("uic_alexnet", {"input_channels": "RGB"}, "standard", "RGB", 224),
        ("uic_alexnet", {"input_channels": "RGB", "augment": "strong"}, "strong", "RGB", 224),
        ("uic_alexnet", {"size_px": 96, "augment": "strong"}, "strong", "SobelXY", 96),
        ("uic_alexnet", {"label_view": "center"}, "standard", "SobelXY", 224),
        ("uic_cifar10", {}, "strong", "SobelXY", 32),
        ("uic_cifar10", {"augment": "standard"}, "standard", "SobelXY", 32),
        ("uic_cifar10", {"input_channels": "RGB"}, "strong", "RGB", 32),
        ("uic_cifar10", {"size_px": 64}, "strong", "SobelXY", 64),
        ("uic_r50", {}, "strong", "RGB", 224),
        ("uic_r50", {"augment": "standard"}, "standard", "RGB", 224),
        ("uic_r50", {"input_channels": "SobelXY"}, "strong", "SobelXY", 224),
        # DeepCluster, section 4, and its code: the same crops, flips and gradients.
        ("deepcluster_alexnet", {}, "standard", "SobelXY", 224),
        ("deepcluster_alexnet", {"input_channels": "RGB", "size_px": 96}, "standard", "RGB", 96),
    ],
)
def test_views_of_uic_and_deepcluster(
    name: str, values: dict[str, Any], augment: str, channels: str, size_px: int
) -> None:
    view, middle = uic_views(augment, channels, size_px)
    experiment = build(name, **values)
    task = experiment.task
    assert task.views(1) == (view,)
    assert task.val_views(1) == (view, view)  # of two crops, the second names the first's class
    assert task.pass_views(1) == (middle,)
    first = next(layer for layer in experiment.backbone.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == {"RGB": 3, "SobelXY": 2}[channels]


# IIC's jitter is applied to each image. `SobelXY` makes its grey image itself.
JITTER = ColourDistortion(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.125, p=1.0)
TABLE_XIV: dict[str, tuple[tuple[Op, ...], tuple[Op, ...]]] = {
    "crop": ((), ()),
    "flip": ((), (Flip(p=0.5),)),
    "colour": ((), (Flip(p=0.5), JITTER)),
    "grey": ((Grey(p=1.0),), (Flip(p=0.5), JITTER, Grey(p=1.0))),
    "sobel": ((SobelXY(),), (Flip(p=0.5), JITTER, SobelXY())),
}


@pytest.mark.parametrize("augment", [None, *TABLE_XIV])
def test_views_of_iic(augment: str | None) -> None:
    """SSL++, Table XIV: each column adds a transformation; the default is the last one, which has all."""
    task = build("sslpp_iic", **({} if augment is None else {"augment": augment})).task
    column = augment or "sobel"
    channels = "SobelXY" if column == "sobel" else "RGB"
    statistics = MEANS[channels], STDS[channels]
    crop, middle = ShorterSideCrop(51, 32, "random"), ShorterSideCrop(51, 32, "center")
    weak, strong = (ViewSpec(crop, ops, *statistics) for ops in TABLE_XIV[column])
    assert task.views(1) == task.val_views(1) == (weak, strong, strong, strong)
    assert task.pass_views(1) == (ViewSpec(middle, TABLE_XIV[column][0], *statistics),)


@pytest.mark.parametrize(
    ("values", "image_px", "side_px"),
    # IIC's code: 20 of CIFAR-10's 32 px, and 64 of STL-10's 96 px.
    [({}, 32, 20), ({"crop_share": 0.667, "num_copies": 5}, 96, 64)],
)
def test_sides_of_the_crops_of_iic(values: dict[str, Any], image_px: int, side_px: int) -> None:
    task = build("sslpp_iic", **values).task
    views = (*task.views(1), *task.pass_views(1))
    assert len(views) == 1 + values.get("num_copies", 3) + 1
    sizes = np.full(4, image_px, np.int32)
    for number, view in enumerate(views):
        boxes = view.crop.boxes(Keys(0, 0, np.arange(4), number), sizes, sizes)
        assert view.crop.size_px == 32 and (boxes[:, 2:] == side_px).all()
