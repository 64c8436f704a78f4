"""timm's models as blocks: timm's own values and gradients, in stages, resumed, exported, and refusals."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import fastpsl
from fastpsl.console.installed import install
from fastpsl.engine.experiment import Experiment
from fastpsl.engine.gpu import torch_seed
from fastpsl.engine.optim.schedules import step_drops
from fastpsl.engine.plan import make_plan
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.step_modes import make_runner
from fastpsl.models.export import export
from fastpsl.models.factory import make_backbone
from fastpsl.models.fold_batchnorm import folded
from fastpsl.models.foreign_weights import recognise
from fastpsl.models.given import given
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.timm_backbone import maps_of, tokens_of
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.views import Input
from fastpsl.tasks.contrastive.simclr import SimCLR
from fastpsl.transfer.segmentation.fcn import network_of
from tests.engine.exact_signals import train_until
from tests.engine.steps import snapshot
from tests.engine.test_step_modes import Capture
from tests.engine.tiny import noise_batch, tiny_run
from tests.models.test_backbones import train_step, views
from tests.models.test_export import SEEN, checkpoint
from tests.models.test_fold_batchnorm import apart
from tests.programs import digests, newest_checkpoint
from tests.recipes.in_process import refused, start
from tests.slow import slow

timm = pytest.importorskip("timm")

from fastpsl.models import timm_backbone

SWIN = "swin_tiny_patch4_window7_224"
# EVA has positions that are added and positions that turn, DINOv3 those that turn and registers.
EVA, DINOV3 = "eva02_tiny_patch14_224", "vit_tiny_patch16_dinov3_qkvb"
# test_vit has a class token, test_vit3 has registers and no class token.
NAMES = ("resnet10t", "regnetx_002", "test_efficientnet", "test_convnext", SWIN, "test_vit", "test_vit3",
         EVA, DINOV3)  # fmt: skip
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "backbones.md"
NARROW: dict[str, dict[str, Any]] = {
    "swin_transformer": {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
    "eva": {"embed_dim": 16, "depth": 6, "num_heads": 2},
}


@pytest.fixture(autouse=True)
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "published_widths" not in request.fixturenames:
        for family, sizes in NARROW.items():
            monkeypatch.setitem(timm_backbone._ANY_SIZE, family, timm_backbone._ANY_SIZE[family] | sizes)


def timms_own(name: str, num_channels: int = 3) -> Any:
    """Build timm's model as timm does by itself, so for images of one size where it has but one."""
    family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    return timm.create_model(name, num_classes=0, in_chans=num_channels, **NARROW.get(family, {}))


def side_of(network: Any) -> int:
    return int(network.default_cfg["input_size"][-1])


def as_maps(network: Any, features: Tensor) -> Tensor:
    """Arrange the result of timm's `forward_features` as maps, by its documented layouts."""
    if features.dim() == 3:
        num, side = network.num_prefix_tokens, int((features.shape[1] - network.num_prefix_tokens) ** 0.5)
        patches = features[:, num:].transpose(1, 2).unflatten(2, (side, side))
        others = [token[:, :, None, None].expand_as(patches) for token in features[:, :num].unbind(1)]
        return torch.cat([patches, *others], 1)
    return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else features


@pytest.mark.parametrize(
    ("name", "num_channels"),
    [(name, 1 + number % 3) for number, name in enumerate(NAMES)]
    + [slow(name, 1 + (number + more) % 3) for number, name in enumerate(NAMES) for more in (1, 2)],
)
def test_values_gradients_and_names_are_timms(name: str, num_channels: int) -> None:
    torch.manual_seed(0)
    ours, theirs = make_backbone(f"timm/{name}", num_channels=num_channels), timms_own(name, num_channels)
    assert ours.name == f"timm/{name}" and ours.training
    assert len(ours.blocks()) == ours.num_blocks == len(ours.block_names) == 5
    state = {key: value.clone() for key, value in ours.state_dict().items()}
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state)
    side = side_of(theirs)
    images, results = torch.randn(2, num_channels, side, side), []
    weights = None
    for network in (ours, theirs.train()):
        torch.manual_seed(1)  # Swin has stochastic depth
        outputs = ours(images) if network is ours else as_maps(theirs, theirs.forward_features(images))
        weights = torch.randn(outputs.shape) if weights is None else weights
        (outputs * weights).sum().backward()
        inner: nn.Module = ours.network if network is ours else theirs  # type: ignore[assignment]
        gradients = {key: p.grad for key, p in inner.named_parameters() if p.grad is not None}
        results.append((outputs.detach(), gradients, inner.state_dict()))
    (values, gradients, state), (their_values, their_gradients, their_state) = results
    assert values.shape[1] == ours.channels[-1] and values.std() > 0
    torch.testing.assert_close(values, their_values, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == their_gradients.keys()
    for key, gradient in their_gradients.items():
        assert apart(gradient + 1e-12, gradients[key] + 1e-12) < 1e-4, key
    for key, value in their_state.items():  # with running statistics
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)
    in_blocks = {id(p) for block in ours.blocks() for p in block.parameters()}
    learn = {key for key, p in ours.network.named_parameters() if id(p) in in_blocks}  # type: ignore[union-attr]
    assert learn == gradients.keys()


@torch.no_grad()
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_maps_hold_all_tokens(num_prefix: int, batch: int) -> None:
    tokens = torch.randn(batch, num_prefix + 6, 4)
    maps = maps_of(tokens, 2, 3, num_prefix)
    assert maps.shape == (batch, 4 * (1 + num_prefix), 2, 3)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tokens_of(maps, num_prefix), tokens)
    for number in range(6):
        row, column = divmod(number, 3)
        for sample in range(batch):
            assert torch.equal(maps[sample, :4, row, column], tokens[sample, num_prefix + number])
    means = [tokens[:, num_prefix:].mean(1), tokens[:, :num_prefix].flatten(1)]
    torch.testing.assert_close(maps.mean((2, 3)), torch.cat(means, 1))


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_learning_blocks_change(name: str) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(f"timm/{name}").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch, calls = noise_batch(views(backbone), 4), list[int]()
    behind = {k: v.clone() for k, v in backbone.state_dict().items() if k.startswith("head.")}
    for stage in make_plan("psl", (1, 1, 1), num_blocks=backbone.num_blocks):
        step = train_step(backbone, stage)
        blocks = step.module.blocks
        for number, block in enumerate([*blocks.frozen, *blocks.learning], start=1):
            block.register_forward_hook(lambda *_, number=number: calls.append(number))
        before = [snapshot(block) for block in backbone.blocks()]
        calls.clear()
        for _ in range(2):
            step.step([batch], lr=0.1)
        assert calls == 2 * list(range(1, stage.last_block + 1)) and not step.num_skipped
        for number, block in enumerate(backbone.blocks(), start=1):
            after = block.state_dict()
            changed = [key for key, value in before[number - 1].items() if not torch.equal(value, after[key])]
            learns = stage.first_learning <= number <= stage.last_block
            assert bool(changed) == learns, (stage, number, changed)
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in behind.items())


def fit(out: Path, name: str, step: int | None = None) -> tuple[bool, Run]:
    """Train in three stages of two steps each, with a signal after `step`."""
    torch.manual_seed(torch_seed(0))
    backbone = make_backbone(f"timm/{name}")
    stages = make_plan("psl", (2, 2, 2), num_blocks=backbone.num_blocks)
    task = SimCLR(8, size_px=32, temperature=0.5, embedding_width=8)
    experiment = Experiment(task, backbone, stages, step_drops(0.05, (1,)))
    run = tiny_run(out, max_steps_per_stage=2, batch_size=8)
    return train_until(step, experiment, run), run


@pytest.mark.parametrize("name", [SWIN, slow("test_vit"), slow("test_convnext"), slow(DINOV3)])
def test_resumed_equals_never_stopped(name: str, tmp_path: Path) -> None:
    """Swin draws in its forward passes, too: which of a batch's samples skip a layer."""
    assert fit(tmp_path / "whole", name)[0]
    assert not fit(tmp_path / "cut", name, 3)[0]
    assert newest_checkpoint(tmp_path / "cut")["position"]["run_step"] == 3
    assert fit(tmp_path / "cut", name)[0]
    assert digests(newest_checkpoint(tmp_path / "cut")) == digests(newest_checkpoint(tmp_path / "whole"))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_timm_loads_what_is_exported(name: str, tmp_path: Path) -> None:
    side = side_of(timms_own(name))
    network, path = checkpoint(tmp_path, f"timm/{name}"), tmp_path / "weights.pth"
    said = export(tmp_path, "timm", path)
    theirs = timms_own(name).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(1, 3, side, side)
    expected = as_maps(theirs, theirs.forward_features(images))
    torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
    (words,) = (line.partition(": ")[2] for line in said.splitlines() if "our pooled features: " in line)
    *before, pooled = words.split(", as ")
    names = {"model": theirs, "x": images, "torch": torch}
    exec("; ".join([*before, f"pooled = {pooled}"]), names)  # noqa: S102  (as it is printed)
    torch.testing.assert_close(names["pooled"], network(images).mean((2, 3)), rtol=1e-5, atol=1e-5)
    loaded = load_pretrained(path)
    assert loaded.record["backbone"] == f"timm/{name}" and loaded.input == SEEN
    assert torch.equal(loaded.backbone.eval()(images), network(images))
    assert torch.equal(load_pretrained(tmp_path).backbone.eval()(images), network(images))


def test_a_hub_folder_keeps_positions_that_were_learned_for_another_size_than_timms_usual(
    tmp_path: Path,
) -> None:
    network = checkpoint(tmp_path, "timm/test_vit")  # for images of 160 px
    export(tmp_path, "hf", tmp_path / "folder")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True, num_classes=0)
    assert torch.equal(theirs.pos_embed, network.state_dict()["pos_embed"])


def test_dinov3_begins_from_timms_file_and_learns_stage_after_stage(
    tmp_path: Path, published_widths: None
) -> None:
    theirs = timm.create_model(DINOV3, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    run = fastpsl.pretrain(
        "simclr", sample_paths().train_32, out=tmp_path / "run", backbone=f"timm/{DINOV3}",
        init=tmp_path / "theirs.pth", epochs=(1, 1), warmup_epochs=0, size_px=32, batch_size=8,
        max_steps_per_stage=2, checkpoint_steps=2, keep_checkpoints=9, workers=1, tensorboard=False,
    )  # fmt: skip
    states = [theirs.state_dict()] + [
        torch.load(run.folder / "checkpoints" / f"step-0000000{step}.pt", weights_only=True)["backbone"]
        for step in (2, 4)
    ]
    quarters = [{f"blocks.{number}" for number in range(first, first + 3)} for first in (0, 3, 6, 9)]
    blocks = [{"cls_token", "reg_token", "patch_embed"}, *quarters[:3], quarters[3] | {"norm"}]
    for (before, after), learning in zip(pairwise(states), (blocks[:4], blocks[1:]), strict=True):
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        layers = {".".join(key.split(".")[: 2 if key.startswith("blocks") else 1]) for key in changed}
        assert layers == set[str]().union(*learning)


def test_timms_own_files_are_read_without_their_classifier(tmp_path: Path) -> None:
    for name, left_out in (("test_convnext", ["head.fc.*"]), ("test_vit", ["head.*"])):
        model = timm.create_model(name, num_classes=4)
        torch.save(model.state_dict(), tmp_path / "theirs.pth")
        record = load_pretrained(tmp_path / "theirs.pth", f"timm/{name}", Input.usual("RGB", 64))
        assert record.record["kind"] == "timm" and record.record["left_out"] == left_out
        state = record.backbone.state_dict()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    with pytest.raises(ValueError, match=r"theirs.pth.*another file|theirs.pth.*--backbone"):
        load_pretrained(tmp_path / "theirs.pth", "timm/test_convnext", Input.usual("RGB", 64))


def test_a_name_of_the_backbones_own_is_not_translated() -> None:
    """timm's VGG has pre_logits.fc1, which is classifier.0 in torchvision's."""
    tensors = {"pre_logits.fc1.weight": torch.ones(2, 3, 7, 7), "head.fc.weight": torch.ones(5, 2)}
    wanted = {"pre_logits.fc1.weight": torch.zeros(2, 3, 7, 7)}
    result = recognise(Path("x.pth"), tensors, wanted)
    assert list(result.tensors) == list(wanted) and result.left_out == ["head.*"]


@torch.no_grad()
@pytest.mark.parametrize("name", [EVA, DINOV3])
def test_turned_positions_are_timms_for_any_size_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    ours = make_backbone(f"timm/{name}").eval()
    dynamic = {"dynamic_img_size": True, "dynamic_img_pad": True}
    theirs = timm.create_model(name, num_classes=0, **dynamic, **NARROW["eva"])
    theirs.load_state_dict(ours.state_dict())
    for height, width in ((45, 71), (97, 32), (1, 30)):
        images = torch.randn(2, 3, height, width)
        maps, tokens = ours(images), theirs.eval().forward_features(images)
        expected = maps_of(tokens, maps.shape[2], maps.shape[3], theirs.num_prefix_tokens)
        assert torch.equal(maps, expected), (height, width)


@torch.no_grad()
def test_images_of_other_sizes_are_padded_to_whole_patches() -> None:
    torch.manual_seed(0)
    network = make_backbone("timm/test_vit").eval()
    images = torch.randn(2, 3, 20, 45)
    assert network.min_px == 1 and network(images).shape[2:] == (2, 3)
    assert torch.equal(network(images), network(F.pad(images, (0, 3, 0, 12))))


@torch.no_grad()
def test_the_smallest_image_is_the_smallest_that_runs() -> None:
    for name in ("test_convnext", "densenet121", SWIN):
        network = make_backbone(f"timm/{name}").eval()
        blocks = StageBlocks(network, make_plan("end_to_end", (1,), num_blocks=5)[0]).eval()
        assert blocks(torch.zeros(1, 3, network.min_px, network.min_px)).numel() > 0
        with pytest.raises(ValueError, match=f"reads {network.min_px} px and more"):
            blocks(torch.zeros(1, 3, network.min_px - 1, 64))
        if name != SWIN:  # Swin pads all but the patches
            with pytest.raises(RuntimeError):
                network(torch.zeros(1, 3, network.min_px - 1, network.min_px - 1))


def test_blocks_of_families() -> None:
    with torch.device("meta"):
        found = {name: make_backbone(f"timm/{name}") for name in ("resnet18", "efficientnet_b0")}
        vit = make_backbone("timm/vit_tiny_patch16_224")
    assert found["resnet18"].channels == (64, 64, 128, 256, 512)
    assert found["resnet18"].block_names == ("act1", "layer1", "layer2", "layer3", "layer4")
    assert found["efficientnet_b0"].channels == (16, 24, 40, 112, 1280)
    assert vit.channels == (384,) * 5
    assert vit.block_names == ("embedding", "blocks.0-2", "blocks.3-5", "blocks.6-8", "blocks.9-11")


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002"])
def test_synchronised_batchnorms_keep_their_activations(name: str) -> None:
    torch.manual_seed(0)
    network = make_backbone(f"timm/{name}").eval()
    images = torch.randn(2, 3, 32, 32)
    expected = network(images)
    network.synchronise_batchnorms()
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    assert norms and all(isinstance(part, nn.SyncBatchNorm) for part in norms)
    assert torch.equal(network.eval()(images), expected)


@torch.no_grad()
def test_frozen_blocks_fold_where_batchnorms_are_torchs() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    network = make_backbone("timm/resnet10t").eval()
    for block in network.blocks():
        result = folded(block, torch.float32)
        assert not any(isinstance(part, _BatchNorm) for part in result.modules())
        assert apart(block(images), result(images)) < 1e-5
        images = block(images)
    with pytest.raises(ValueError, match="--fold-frozen: BatchNormAct2d may do more .*; leave it out"):
        folded(make_backbone("timm/regnetx_002").blocks()[0], torch.float32)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_compiled_blocks_are_the_eager_ones(name: str) -> None:
    torch.manual_seed(0)
    network = make_backbone(f"timm/{name}").eval()
    images = torch.randn(2, 3, 32, 32)
    outputs = make_runner("on", Capture())(network.blocks(), images, True)
    torch.testing.assert_close(outputs[-1], network(images), rtol=1e-5, atol=1e-5)
    assert [output.shape[1] for output in outputs] == list(network.channels)


def refusal(name: str) -> str:
    with pytest.raises(ValueError) as excinfo:
        make_backbone(name)
    text = str(excinfo.value)
    assert "\n" not in text and text.startswith(f"--backbone {name}: ")
    return text


def test_unknown_names_get_their_nearest() -> None:
    assert "has no model 'resnt18'; the nearest are timm/resnet18, timm/" in refusal("timm/resnt18")
    assert "give timm/resnet18, because a tag" in refusal("timm/resnet18.a1_in1k")
    assert "has no model ''" in refusal("timm/")
    assert "see timm.list_models()" in refusal("timm/hf-hub:@@@@@@@@")
    refused(start("rotation_rv50", "--backbone", "timm/resnt18"), "--backbone timm/resnt18", "timm/resnet18")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mixer_s32_224", "no chain"),
        ("hrnet_w18_small", "no chain"),
        ("crossvit_tiny_240", "no chain"),
        ("pvt_v2_b0", "no maps"),
        ("xcit_tiny_12_p16_224", "no size"),
    ],
)
def test_what_is_no_chain_of_maps_is_refused(name: str, reason: str) -> None:
    text = refusal(f"timm/{name}")
    assert reason in text and "such as ResNet, RegNet, EfficientNet, ConvNeXt, Swin and ViT" in text


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_small_patch16_rope_mixed_224", {}, "the positions of all its layers are one parameter"),
        (DINOV3, {"rope_rescale_coords": 2.0}, "one random draw moves the positions of all its layers"),
        (DINOV3, {"patch_drop_rate": 0.5}, "make it with patch_drop_rate=0"),
        ("test_vit", {"patch_drop_rate": 0.5}, "make it with patch_drop_rate=0"),
    ],
)
def test_transformers_whose_layers_depend_on_each_other_are_refused(
    name: str, options: dict[str, Any], reason: str, published_widths: None
) -> None:
    """By its name, or as a module that must not be taken for what timm makes by the name."""
    with pytest.raises(ValueError, match=reason):
        make_backbone(given(timm.create_model(name, **options)))


@pytest.mark.nightly
def test_the_table_of_families_is_true(published_widths: None) -> None:
    part = PAGE.read_text().partition("## Models of timm")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("|") and "`" in line]
    wrong, files = [], set()
    for models, first, _, smallest in rows:
        for name in re.findall(r"`(\w+)`", models.partition("eva.py`")[2] or models):
            files.add(timm.models.model_entrypoint(name).__module__)
            try:
                said = f" {make_backbone(f'timm/{name}').min_px} px "
            except ValueError as error:
                said = str(error)
            if (first.partition("refused: ")[2].strip() or smallest) not in said:
                wrong.append((name, said))
    assert not wrong and len(files) == 98


def test_a_model_without_a_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's NaFlexViT embeds patches by a linear layer."""
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Linear(2, 2))
    assert "it has no convolution that reads images" in refusal("timm/resnet10t")


def test_layers_that_give_another_result_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = timm.models.resnet.ResNet
    forward = resnet.forward_features
    monkeypatch.setattr(resnet, "forward_features", lambda self, x: forward(self, x).relu() + 1)
    assert "its layers in sequence have another result" in refusal("timm/resnet10t")


def test_segmentation_and_dropout_are_refused() -> None:
    with pytest.raises(ValueError, match="--backbone timm/resnet10t: FCN dilates B4 and B5"):
        network_of(make_backbone("timm/resnet10t"), auxiliary=False)
    with pytest.raises(ValueError, match="--dropout 0.5: timm/resnet10t has no dropout"):
        make_backbone("timm/resnet10t", dropout=0.5)


def test_other_libraries_do_not_get_timms_models(tmp_path: Path) -> None:
    checkpoint(tmp_path, "timm/test_convnext", replace(SEEN))
    for to, ending in (("torchvision", "pth"), ("detectron2", "pkl")):
        with pytest.raises(ValueError, match=f"{to} has no timm/test_convnext"):
            export(tmp_path, to, tmp_path / f"x.{ending}")


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    yield


@pytest.mark.usefixtures("without_timm")
def test_without_timm_one_line_says_how_to_install_it() -> None:
    assert refusal("timm/resnet18").endswith(f"timm is not installed; {install('timm')}")
