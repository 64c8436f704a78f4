"""Every backbone by name: in stages of plans, folded, compiled, and with the tasks' own views."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastpsl.engine.plan import Stage, make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.step_modes import StageChoices, StepChoice, make_runner
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.permutations import permutation_set
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import NIN, VGG, AlexNet
from fastpsl.models.factory import make_backbone
from fastpsl.models.fold_batchnorm import folded
from fastpsl.models.names import ANY_BACKBONE, BACKBONES
from fastpsl.models.resnet import ResNet
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.moco import MoCo
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.tasks.jigsaw import Jigsaw
from fastpsl.tasks.rotation import Rotation
from tests.engine.steps import make_step, snapshot
from tests.engine.test_step_modes import Capture
from tests.engine.tiny import noise_batch
from tests.models.test_fold_batchnorm import apart
from tests.programs import ROOT
from tests.slow import slow

# Small networks, with fully-connected layers of 16 features, for tests that do not depend on the size.
SMALL: dict[str, Callable[[], Backbone]] = {
    "alexnet": lambda: AlexNet("alexnet", fc_width=16),
    "alexnet_rotnet": lambda: AlexNet("alexnet_rotnet", fc_width=16),
    "nin3": lambda: NIN("nin3"),
    "nin4": lambda: NIN("nin4"),
    "resnet18_cifar": lambda: ResNet("resnet18_cifar"),
    "resnet34_iic": lambda: ResNet("resnet34_iic"),
    "resnet50_mlp": lambda: ResNet("resnet50_mlp"),
    "vgg16": lambda: VGG(fc_width=16),
}
LARGE = ("resnet34_iic", "resnet50_mlp", "vgg16")
# The suggestions of docs/reference/backbones.md, which has none for up to five blocks in three stages.
SUGGESTED = {6: ("1-3", "2-4", "3-6"), 7: ("1-3", "2-4", "3-7")}


def small(name: str) -> Backbone:
    """Build a small network with running statistics and affine values as after training."""
    torch.manual_seed(0)
    network = SMALL[name]()
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
        elif isinstance(part, nn.Linear):
            # DeepCluster's 0.01 suits inputs of 9,216 and 4,096 features. With 16, outputs would be tiny.
            nn.init.kaiming_normal_(part.weight)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def views(backbone: Backbone) -> tuple[ViewSpec, ...]:
    return (ViewSpec(RandomResizedCrop(max(backbone.min_px, 24))),)


def train_step(backbone: Backbone, stage: Stage, precision: str = "fp32", fold: bool = False) -> TrainStep:
    choices = StageChoices(fold=StepChoice("on" if fold else "off", ""))
    return make_step(stage, backbone=backbone, precision=precision, views=views(backbone), choices=choices)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_name_makes_its_backbone(name: str) -> None:
    with torch.device("meta"):
        three, two = make_backbone(name), make_backbone(name, num_channels=2)
    assert three.name == two.name == name
    assert len(three.blocks()) == three.num_blocks == len(three.block_names) == len(three.channels)
    shapes = [
        {key: tensor.shape for key, tensor in backbone.state_dict().items()} for backbone in (three, two)
    ]
    assert shapes[0].keys() == shapes[1].keys()
    ((first, (_, *kernel)),) = ((key, shape) for key, shape in shapes[0].items() if shape != shapes[1][key])
    assert first == next(iter(shapes[0])) and kernel[0] == 3
    assert shapes[1][first] == (shapes[0][first][0], 2, *kernel[1:])
    used = {id(part) for block in three.blocks() for part in block.modules() if not list(part.children())}
    assert {id(part) for part in three.modules() if list(part.parameters(recurse=False))} <= used


def test_a_first_convolution_of_other_channels_begins_as_the_backbones_own() -> None:
    torch.manual_seed(0)
    for name in ("alexnet_rotnet", "resnet18"):
        first = next(m for m in make_backbone(name, num_channels=2).modules() if isinstance(m, nn.Conv2d))
        std = (2 / (first.kernel_size[0] ** 2 * first.out_channels)) ** 0.5
        assert first.in_channels == 2 and first.weight.std().item() == pytest.approx(std, rel=0.04)
        assert (first.bias is None) == (name == "resnet18")
        assert first.bias is None or not first.bias.any()


def test_dropout_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="--dropout 0.5: alexnet_rotnet has no dropout; .* alexnet or vgg16"):
        make_backbone("alexnet_rotnet", dropout=0.5)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="--dropout .*: it must be 0 or more and below 1"):
            make_backbone("vgg16", dropout=wrong)
    with torch.device("meta"):
        for name, count in (("alexnet", 2), ("vgg16", 1)):
            network = make_backbone(name, dropout=0.0)
            assert [part.p for part in network.modules() if isinstance(part, nn.Dropout)] == [0.0] * count


def test_who_names_some_names_all() -> None:
    """Help texts take the list from `ANY_BACKBONE`, or write it out in full."""
    assert ANY_BACKBONE.startswith(f"{', '.join(BACKBONES)}, timm/NAME ")
    num_texts = 0
    for path in [*ROOT.glob("recipes/*.py"), *ROOT.glob("fastpsl/**/*.py")]:
        source = path.read_text()
        num_texts += source.count("{ANY_BACKBONE}")
        for text in re.findall(r'"""[^"]*\bresnet18 or [^"]*"""|"""[^"]*\bresnet18,[^"]*"""', source):
            assert ANY_BACKBONE in text, f"{path.name}: {text}"
            num_texts += 1
    assert num_texts >= 5


@pytest.mark.parametrize(
    ("name", "kind"),
    [slow(name, "default") if name in LARGE else (name, "default") for name in SMALL]
    + [
        ("alexnet", "suggested"),
        slow("alexnet_rotnet", "suggested"),
        ("resnet50_mlp", "suggested"),
        slow("vgg16", "suggested"),
    ],
)
def test_exactly_the_learning_blocks_change(name: str, kind: str) -> None:
    backbone = small(name)
    partition = SUGGESTED.get(backbone.num_blocks, ()) if kind == "suggested" else ()
    calls: list[int] = []
    batch = noise_batch(views(backbone), 4)
    for stage in make_plan("psl", (1, 1, 1), num_blocks=backbone.num_blocks, partition=partition):
        step = train_step(backbone, stage)
        blocks = step.module.blocks
        hooks = [
            block.register_forward_hook(lambda m, args, output, number=number: calls.append(number))
            for number, block in enumerate([*blocks.frozen, *blocks.learning], start=1)
        ]
        before = [snapshot(block) for block in backbone.blocks()]
        calls.clear()
        step.step([batch], lr=0.001)
        assert calls == list(range(1, stage.last_block + 1)) and not step.num_skipped
        for hook in hooks:
            hook.remove()
        for number, block in enumerate(backbone.blocks(), start=1):
            learns = stage.first_learning <= number <= stage.last_block
            for key, value in block.state_dict().items():
                # The gradient of a bias before a BatchNorm is only rounding, and its weight decay starts at
                # 0.
                if not key.endswith("bias") or not learns:
                    assert torch.equal(before[number - 1][key], value) != learns, (stage, number, key)


BOUNDS = {"fp32": 2e-5, "bf16": 0.03}


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", slow("bf16")])
@pytest.mark.parametrize("name", [slow(name) if name in LARGE else name for name in SMALL])
def test_all_blocks_frozen_and_folded_have_the_blocks_features(name: str, precision: str) -> None:
    """Dropout is off in frozen blocks, folded or not."""
    last = small(name).num_blocks
    stage, dtype = Stage("linear", 1, last + 1, last, 1), DTYPES[precision]
    side = views(small(name))[0].crop.size_px
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    features = []
    for fold in (False, True):
        step = train_step(small(name), stage, precision, fold)
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
            features.append(step.module.blocks.features(images))
        for block in step.module.blocks.frozen_as_run if fold else ():
            assert not any(isinstance(part, _BatchNorm) for part in block.modules())
            dtypes = [
                part.weight.dtype for part in block.modules() if isinstance(part, nn.Conv2d | nn.Linear)
            ]
            assert set(dtypes) == {dtype}
    for plain_features, folded_features in zip(*features, strict=True):
        assert plain_features.std() > 0 and apart(plain_features, folded_features) < BOUNDS[precision]


@torch.no_grad()
def test_a_folded_blocks_dropout_is_not_at_work() -> None:
    block, vectors = small("alexnet").train().blocks()[6], torch.randn(2, 16, 1, 1)
    folded_block = folded(block, torch.float32)
    assert not torch.equal(block(vectors), block(vectors))
    assert torch.equal(folded_block(vectors), block.eval()(vectors))


@torch.no_grad()
def test_synchronised_batchnorms_behind_linears_fold_too() -> None:
    block = small("alexnet_rotnet").eval().blocks()[6]
    images = torch.randn(2, 16, 1, 1)
    expected = block(images)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in synchronised.modules())
    assert apart(expected, folded(synchronised, torch.float32)(images)) < 1e-5


@pytest.mark.slow
def test_compiled_steps_with_dropout_learn_what_eager_ones_do() -> None:
    backend, weights = Capture(), []
    stage = make_plan("psl", (1, 1, 1), num_blocks=7, partition=SUGGESTED[7])[2]
    for mode in ("off", "on"):
        backbone = small("alexnet")
        step = train_step(backbone, stage)
        if mode == "on":
            step.module.blocks.runner = make_runner(mode, backend)
        for seed in range(2):
            torch.manual_seed(seed)
            step.step([noise_batch(views(backbone), 4, seed)], lr=0.1)
        weights.append(torch.cat([value.flatten() for value in step.module.state_dict().values()]))
    # One graph for frozen blocks, one for learning blocks, and none for the second step.
    assert len(backend.inputs) == 2
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_a_blocks_refuses_images_that_end_before_the_network() -> None:
    for name, side in (("alexnet", 62), ("vgg16", 31)):
        backbone = small(name)
        blocks = StageBlocks(backbone, make_plan("end_to_end", (1,), num_blocks=7)[0]).eval()
        with pytest.raises(ValueError, match=f"this backbone reads {side + 1} px and more") as excinfo:
            blocks(torch.zeros(1, 3, 224, side))
        assert "\n" not in str(excinfo.value)
        blocks(torch.zeros(1, 3, side + 1, side + 1))


TASKS: dict[str, Callable[[], Task]] = {
    # Its tiles have 64 px, and AlexNet needs at least 63 px.
    "jigsaw": lambda: Jigsaw(
        permutation_set(9, (16,)).permutations, (16,), shorter_px=256, cell_px=75, tile_px=64,
        permutations_per_image=1, embedding_width=8,
    ),
    "rotation": lambda: Rotation(shorter_px=256, size_px=224),
    "simclr": lambda: SimCLR(2, size_px=224, temperature=0.1, embedding_width=128),
    "moco": lambda: MoCo(
        seed=0, batch_size=2, queue_size=8, momentum=0.999, temperature=0.2, key_group=2, width=128,
        size_px=224,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_run_on_alexnet_with_their_own_views(name: str) -> None:
    task, backbone = TASKS[name](), small("alexnet")
    stage = make_plan("psl", (1,) * 3, num_levels=task.num_levels, num_blocks=7, partition=SUGGESTED[7])[2]
    step = make_step(stage, task, backbone)
    module, specs = step.module, step.views
    for number in range(task.num_warm_up_batches(stage) or 0):
        step.warm_up(task.warm_up, noise_batch(specs, 2, 100 + number))
    before = snapshot(module)
    step.step([noise_batch(specs, 2)], lr=0.1)
    assert not step.num_skipped
    key = "blocks.learning.4.2.weight"
    assert isinstance(module.get_parameter(key), Tensor)
    assert not torch.equal(before[key], module.state_dict()[key])
