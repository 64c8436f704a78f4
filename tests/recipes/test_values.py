"""The papers' values in what is built of the recipes: stages, rates, groups, views and heads.

All values are written out, so that no default of the code can change one. Networks are on the meta device, so
they take neither time nor memory.
"""

import itertools
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.optim.optimisers import LARS
from fastpsl.engine.optim.schedules import Moment
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur, Sobel
from fastpsl.kernels.geometry import AllTurns, Flip, Rotate45, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.views import Crop, Op, ViewSpec
from fastpsl.scripts.recipe_files import TRAIN, find_recipe
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
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
