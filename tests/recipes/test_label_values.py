"""The values of UIC, DeepCluster and IIC, as their papers and codes have them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.optim.schedules import Moment
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule
from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur, SobelXY
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.views import Op, ViewSpec
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tasks.pseudo_labels import uic as uic_module
from tests.recipes.test_values import built

pytestmark = pytest.mark.usefixtures("published_widths")
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
    moments = {step: Moment(step, num_steps, 0, stage.epochs, stage.epochs) for step in steps}
    return {step: experiment.schedule(moment) for step, moment in moments.items()}


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
