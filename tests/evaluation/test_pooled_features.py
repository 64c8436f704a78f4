"""Test features that are pooled to a grid, or kept, and flattened: values, widths, shared passes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fastpsl.engine.train_step import DTYPES
from fastpsl.evaluation import features as features_module
from fastpsl.evaluation.blocks import block_shapes
from fastpsl.evaluation.feature_file import PartialFeatures
from fastpsl.evaluation.features import Extraction, extract
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.protocols import PROTOCOLS, Pool, pooled, pooled_width
from fastpsl.kernels.enlarge import Enlarge
from fastpsl.models.factory import make_backbone
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.folder import Folder
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.pipelines.views import Input, center_view
from tests.engine.tiny import TinyNet, one_process

INPUT = Input("RGB", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 32)
AS_IT_IS = Pool(None)
MAX_3_2 = Pool(None, "max", (None, 3, 2, 0))


def extraction(data: Dataset, name: str, block: int, pool: Pool | None, **options: Any) -> Extraction:
    torch.manual_seed(0)
    pretrained = Pretrained(make_backbone(name), INPUT, {"sha256": "random", "backbone": name})
    values: dict[str, Any] = {"size_px": 64, "batch_size": 40, "dtype": "float32"} | options
    return Extraction(pretrained, data, block, pool=pool, loader={"num_threads": 1}, **values)


@pytest.fixture
def data() -> Iterator[Beton]:
    with Beton(sample_paths().test_32) as opened:
        yield opened


def maps_by_hand(data: Beton, net: nn.Module, block: int, num: int) -> torch.Tensor:
    """Return the block's outputs [num, C, h, w] for the first `num` images."""
    options: dict[str, Any] = {"batch_size_per_rank": num, "train": False, "num_threads": 1}
    with Loader(data, [center_view(INPUT, 64)], **options) as loader:
        batch = next(batches := loader.epoch(0))
        (images,) = batch.inputs(loader.views, torch.float32)
        batches.close()
    with torch.no_grad():
        maps: torch.Tensor = nn.Sequential(*net.eval().blocks()[:block])(images)  # type: ignore[operator]
    return maps


def windows_by_loops(maps: np.ndarray, kernel: int, stride: int, take: Any) -> np.ndarray:
    """Reduce [C, h, w] to [C, n, n], each window by `take`."""
    side = (maps.shape[-1] - kernel) // stride + 1
    parts = [slice(i * stride, i * stride + kernel) for i in range(side)]
    return np.moveaxis(
        np.array([[take(maps[:, rows, columns]) for columns in parts] for rows in parts]), 2, 0
    )


def test_features_are_flattened_channel_by_channel(data: Beton, tmp_path: Path) -> None:
    """Compare conv3 as it is, conv5 max-pooled (3 x 3, stride 2) and averages over a grid with loops."""
    works = [
        extraction(data, "alexnet", 3, AS_IT_IS),
        extraction(data, "alexnet", 1, MAX_3_2),
        extraction(data, "alexnet", 1, Pool(5, window=(15, 3, 3, 0))),
        extraction(data, "alexnet", 1, None),
    ]
    works = [replace(work, pretrained=works[0].pretrained) for work in works]
    outs = [tmp_path / f"{number}.npy" for number in range(len(works))]
    files = extract(works, outs, one_process())
    net = works[0].pretrained.backbone
    conv3, conv1 = (maps_by_hand(data, net, block, 5).numpy() for block in (3, 1))
    assert conv3.shape == (5, 384, 3, 3) and conv1.shape == (5, 96, 15, 15)
    expected = [
        [[conv3[i, c, y, x] for c in range(384) for y in range(3) for x in range(3)] for i in range(5)],
        [windows_by_loops(maps, 3, 2, lambda window: window.max((1, 2))).ravel() for maps in conv1],
        [windows_by_loops(maps, 3, 3, lambda window: window.mean((1, 2))).ravel() for maps in conv1],
        conv1.mean((2, 3)),
    ]
    widths = [384 * 9, 96 * 49, 96 * 25, 96]
    for file, work, values, width in zip(files, works, expected, widths, strict=True):
        rows = file.features()
        assert rows.shape == (160, width) and work.width == width
        assert rows.std(0).mean() > 1e-3
        np.testing.assert_allclose(rows[:5], np.array(values), rtol=1e-3, atol=1e-5)
    records = [json.loads(out.with_suffix(".json").read_text()) for out in outs]
    assert records[1]["pool"] == {"grid": None, "kind": "max", "window": [None, 3, 2, 0]}
    assert {one["pooling"] for one in records[:3]} == {"by pool, then flattened"}
    assert records[3]["pooling"] == "average over all positions"
    assert "pool" not in records[3] and len({one["digest"] for one in records}) == 4


def test_each_is_as_alone(data: Beton, tmp_path: Path) -> None:
    """The block after ResNet-18's B1 begins with an operation in place on B1's map."""
    works = [extraction(data, "resnet18", 1, pool) for pool in (AS_IT_IS, Pool(4), None)]
    works = [replace(work, pretrained=works[0].pretrained) for work in works]
    works.append(replace(works[0], block=2, pool=Pool(2)))
    outs = [tmp_path / f"{number}.npy" for number in range(4)]
    together = extract(works, outs, one_process())
    for file, work in zip(together, works, strict=True):
        alone = work.to_file(tmp_path / "alone.npy", one_process(), overwrite=True)
        assert np.array_equal(file.features(), alone.features())
        assert file.record["digest"] == alone.record["digest"] == work.digest()
    again = extract(works, outs, one_process())
    assert [file.record for file in again] == [file.record for file in together]


def test_without_a_pool_the_digest_is_as_ever(data: Beton) -> None:
    """The digest covers exactly these values, as in files from before pools existed."""
    work = extraction(data, "alexnet", 3, None)
    contents = {
        "format": 1, "shape": [160, 384], "dtype": "float32", "block": "B3", "size_px": 64,
        "precision": "fp32", "input": INPUT.as_dict(),
        "backbone": "alexnet", "weights": "random", "data": data.digest(),
    }  # fmt: skip
    assert work.digest() == hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    assert replace(work, pool=AS_IT_IS).digest() != replace(work, pool=MAX_3_2).digest() != work.digest()


def test_unnormalised_maps_that_half_precision_cannot_hold(data: Beton, tmp_path: Path) -> None:
    work = extraction(data, "alexnet", 1, AS_IT_IS, dtype="float16")
    work.pretrained.backbone.blocks()[0][0].weight.data.mul_(1e6)  # type: ignore[index]
    for norm in work.pretrained.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.fill_(1e-9)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="features of B1 reach .* which float16 cannot hold"):
        work.to_file(tmp_path / "large.npy", one_process())


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 13])
def test_windows_of_any_side_and_maps_smaller_than_them(side: int) -> None:
    maps = torch.rand(2, 3, side, side)
    result = pooled(maps, MAX_3_2)
    assert torch.equal(result, F.max_pool2d(maps, 3, 2) if side >= 3 else maps)
    assert pooled(maps, AS_IT_IS) is maps
    assert pooled_width((3, side, side), MAX_3_2) == result[0].numel()
    with_grid = Pool(6, "max", (13, 3, 2, 0))
    expected = F.max_pool2d(maps, 3, 2) if side == 13 else F.adaptive_max_pool2d(maps, min(6, side))
    assert torch.equal(pooled(maps, with_grid), expected)


@pytest.mark.usefixtures("published_widths")
def test_the_published_widths_at_224_px(data: Beton) -> None:
    """VISSL's widths for ResNet-50's blocks, and 384 x 13 x 13 for AlexNet's conv3."""
    torch.manual_seed(0)
    net = make_backbone("resnet50").train()
    shapes = block_shapes(net, center_view(INPUT, 224))
    widths = [pooled_width(shape, pool) for shape, pool in zip(shapes, PROTOCOLS["vissl"].pools, strict=True)]
    assert widths == [9216, 9216, 8192, 9216, 8192]
    assert net.training and block_shapes(net, center_view(INPUT, 224), 2) == shapes[:2]
    enlarged = replace(center_view(INPUT, 24), ops=(Enlarge(224, 224), *center_view(INPUT, 24).ops))
    net.min_px = 32  # of what the network is shown
    assert block_shapes(net, enlarged) == shapes
    conv3 = Extraction(Pretrained(make_backbone("alexnet"), INPUT, {}), data, 3, 224, pool=AS_IT_IS)
    assert conv3.width == 384 * 13 * 13


def test_of_each_takes_one_block_with_several_pools(data: Beton) -> None:
    options = EvaluationOptions(random_weights=True, backbone="alexnet", size_px=64, device="cpu")
    weights = options.pretrained()
    blocks, pools = ("conv5", "conv5", "B3"), (AS_IT_IS, MAX_3_2, None)
    works = Extraction.for_blocks(options, weights, data, blocks, one_process(), "float32", pools)
    assert [(work.block, work.pool) for work in works] == [(5, AS_IT_IS), (5, MAX_3_2), (3, None)]
    with pytest.raises(ValueError, match="--block B5 B5: give one block or several, each once"):
        Extraction.for_blocks(
            options, weights, data, ("B5", "B5"), one_process(), "float32", (MAX_3_2, MAX_3_2)
        )


def test_an_image_squashed(tmp_path: Path) -> None:
    """40 x 20 px become a square of 16; the black ends, outside the central square, are a quarter each."""
    images = tmp_path / "pictures"
    (images / "one").mkdir(parents=True)
    column = np.repeat(np.array([0, 255, 0], np.uint8), [10, 20, 10])
    Image.fromarray(np.repeat(np.tile(column[:, None], (1, 20))[..., None], 3, 2)).save(
        images / "one" / "0.png"
    )
    with Folder(images) as data:
        work = extraction(data, "resnet18", 1, None, size_px=16, squashed=True)
        assert work.wanted()["squashed"] is True and "squashed" not in replace(work, squashed=False).wanted()
        with Loader(data, [work.view], batch_size_per_rank=1, train=False, num_threads=1) as loader:
            batch = next(batches := loader.epoch(0))
            batches.close()
        assert batch.images[0].shape == (1, 3, 16, 16)
        rows = batch.images[0][0, 0].float().mean(1)
        assert rows[:3].max() < 9 and rows[5:11].min() > 246 and rows[13:].max() < 9
        assert work.to_file(tmp_path / "F.npy", one_process()).features().shape == (1, 64)


def test_features_are_those_of_the_block_if_the_next_one_writes_into_them(
    data: Beton, tmp_path: Path
) -> None:
    """Maps of one position are not copied by being flattened, as larger ones in channels-last memory are."""
    work = extraction(data, "resnet18", 4, AS_IT_IS, size_px=16)
    net = TinyNet()
    net.parts[4].insert(0, nn.Threshold(0.5, 9.0, inplace=True))  # type: ignore[operator]
    work = replace(work, pretrained=Pretrained(net, INPUT, work.pretrained.record))
    alone, first, second = (tmp_path / f"{name}.npy" for name in ("alone", "first", "second"))
    work.to_file(alone, one_process())
    extract([work, replace(work, block=5)], [first, second], one_process())
    assert np.array_equal(np.load(first), np.load(alone)) and np.load(alone).max() < 9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_run_in_the_precision_that_is_asked_for(data: Beton, tmp_path: Path, precision: str) -> None:
    work, seen = extraction(data, "resnet18", 1, None, precision=precision), set[torch.dtype]()
    conv = next(part for part in work.pretrained.backbone.modules() if isinstance(part, nn.Conv2d))
    conv.register_forward_hook(lambda *called: seen.add(called[-1].dtype))
    work.to_file(tmp_path / "F.npy", one_process())
    assert seen == {DTYPES[precision]}


def test_rows_are_saved_every_so_many_seconds(
    data: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 16 images takes a second, and so does saving. The last step is saved in any case."""
    save, saved = PartialFeatures.save, list[int]()

    def note(file: PartialFeatures, num_rows: int) -> None:
        saved.append(num_rows)
        save(file, num_rows)

    monkeypatch.setattr(PartialFeatures, "save", note)
    monkeypatch.setattr(features_module, "time", SimpleNamespace(monotonic=count(0.0).__next__))
    work = extraction(data, "resnet18", 1, None, batch_size=16)
    work.to_file(tmp_path / "F.npy", one_process(), save_every_s=3.0)
    assert saved == [48, 96, 144, 160]


def test_random_weights_are_of_the_backbone_that_is_given() -> None:
    """They are taken where there is neither data nor a checkpoint."""
    assert EvaluationOptions().completed().backbone == "resnet18"
    given = EvaluationOptions(backbone="nin3").completed()
    assert (given.backbone, given.random_weights) == ("nin3", True)
    for options in (EvaluationOptions(data="photos"), EvaluationOptions(checkpoint=Path("a.pth"))):
        assert options.completed() == options and not options.random_weights
