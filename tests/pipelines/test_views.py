"""A view is a crop, ops in order and a normalisation; the standard ones equal torchvision's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import normalize, resize, ten_crop

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD
from fastpsl.kernels.geometry import Flip, Rotate45
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.augment import AugmentName, choose_augment
from fastpsl.pipelines.views import Crop, Draw, Input, Op, ViewSpec, center_view, ten_crop_views, train_view
from tests.pipelines.decoding import batches_of
from tests.pipelines.photos import DECODERS, RAW, photo, write

VIEW = ViewSpec(RandomResizedCrop(31), (Flip(), ColourDistortion(0.4, 0.4, 0.4, 0.1, 0.8), Grey(0.3)))
INDICES = np.arange(100, 116)


def tensors(draws: tuple[Draw, ...]) -> list[dict[str, torch.Tensor]]:
    return [{key: torch.from_numpy(value) for key, value in draw.items()} for draw in draws]


def equal(a: tuple[Draw, ...], b: tuple[Draw, ...]) -> bool:
    pairs = [(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x.keys() | y.keys()]
    return all(np.array_equal(x, y) for x, y in pairs)


def test_apply_is_the_ops_in_order_then_normalisation() -> None:
    images = torch.randint(0, 256, (16, 31, 31, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    draws = tensors(VIEW.draw(Keys(0, 0, INDICES)))
    result = VIEW.apply(images, draws, torch.float32)
    expected = images
    for op, draw in zip(VIEW.ops, draws, strict=True):
        expected = op(expected, draw)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (VIEW.mean, VIEW.std))
    torch.testing.assert_close(result, (expected - mean) / std, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    # Half precision rounds the result alone.
    assert torch.equal(VIEW.apply(images, draws, torch.bfloat16), result.bfloat16())


def test_draws_are_the_samples_own() -> None:
    whole = VIEW.draw(Keys(3, 2, INDICES, 1))
    assert len(whole) == len(VIEW.ops)
    part = VIEW.draw(Keys(3, 2, INDICES[4:9], 1))
    assert equal(part, tuple({key: value[4:9] for key, value in draw.items()} for draw in whole))
    for key in ((4, 2, INDICES, 1), (3, 1, INDICES, 1), (3, 2, INDICES, 0), (3, 2, INDICES + 1, 1)):
        assert not equal(whole, VIEW.draw(Keys(*key)))


def test_two_ops_of_a_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="Flip, Flip: two of one kind would share their random numbers"):
        ViewSpec(RandomResizedCrop(31), (Flip(), Flip(0.1)))


def test_a_label_of_45_degrees_is_true_or_refused() -> None:
    ViewSpec(RotationCrop(31), (Rotate45(), Grey(0.3)))
    ViewSpec(RotationCrop(31, base=45), (Flip(),))
    with pytest.raises(ValueError, match="Rotate45 and Flip: .* leave out Flip"):
        ViewSpec(RotationCrop(31), (Flip(), Rotate45()))
    for crop in (RandomResizedCrop(31), RotationCrop(31, base=0)):
        with pytest.raises(ValueError, match="give RotationCrop, base drawn"):
            ViewSpec(crop, (Rotate45(),))


@dataclass(frozen=True)
class Edges:
    """An operation from elsewhere: horizontal and vertical differences in a grid of two halves per image."""

    channels: ClassVar[str] = "my_ops.Edges"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[3] % 2:
            raise ValueError(f"images {shape[3]} px wide given to Edges; allowed are even widths")
        return 2 * shape[0], 2, shape[2], shape[3] // 2

    def check_view(self, crop: Crop, ops: Sequence[Op]) -> None:
        if ops[0] is not self:
            raise ValueError("Edges must be first")

    def draw(self, keys: Keys) -> Draw:
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        grey = torch.stack(images.float().mean(1).tensor_split(2, -1), 1).flatten(0, 1) / 255
        return torch.stack(
            [grey.diff(dim=2, append=grey[..., -1:]), grey.diff(dim=1, append=grey[:, -1:])], 1
        )


def test_an_op_from_elsewhere_makes_channels_and_images_of_its_own() -> None:
    view = ViewSpec(RandomResizedCrop(32), (Edges(), Flip()), (0.0, 0.1), (1.0, 0.5))
    assert view.side_px == 16
    draws: tuple[dict[str, Tensor], ...] = ({}, {"flip": torch.zeros(6, dtype=torch.bool)})
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    inputs = view.apply(images, draws, torch.float32)
    assert inputs.shape == (6, 2, 32, 16)
    assert view.denormalise(inputs).shape == (6, 3, 32, 16)
    record = Input.from_dict(view.input_record())
    assert record == view.input() == Input("my_ops.Edges", (0.0, 0.1), (1.0, 0.5), 32)
    assert record.num_channels == 2 and "my_ops.Edges" in record.in_words()
    with pytest.raises(ValueError, match="'my_ops.Edges': no op of fastpsl makes them"):
        center_view(record, 32)
    with pytest.raises(ValueError, match="for my_ops.Edges: give 2 values each"):
        ViewSpec(RandomResizedCrop(32), (Edges(),))
    with pytest.raises(ValueError, match="31 px wide"):
        ViewSpec(RandomResizedCrop(31), (Edges(),), (0.0, 0.1), (1.0, 0.5))
    with pytest.raises(ValueError, match="Edges must be first"):
        ViewSpec(RandomResizedCrop(32), (Flip(), Edges()), (0.0, 0.1), (1.0, 0.5))


def test_draws_of_another_view_are_refused() -> None:
    images = torch.zeros(1, 3, 31, 31, dtype=torch.uint8)
    with pytest.raises(ValueError, match="1 draws were given for 3 ops"):
        VIEW.apply(images, tensors(VIEW.draw(Keys(0, 0, INDICES)))[:1], torch.float32)


def test_the_input_record_says_what_the_weights_expect() -> None:
    view = ViewSpec(RandomResizedCrop(31), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    assert view.input_record() == {"mean": mean, "std": std, "size_px": 31, "channels": "RGB"}


SIZE = 56  # 224 / 256 of a shorter side of 64
# The places of our crops in torchvision's order: corners and the middle, then those of the mirrored image,
# with left and right exchanged.
PLACES = (4, 0, 1, 2, 3, 9, 6, 5, 8, 7)
RGB = Input(size_px=SIZE)
XY = Input("SobelXY", (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD), SIZE)


def beton(path: Path, images: Sequence[np.ndarray]) -> Path:
    return write(path, [(image.tobytes(), *image.shape[:2], RAW) for image in images])


def inputs(
    path: Path, decoder: str, views: Sequence[ViewSpec], augment: AugmentName = "torch"
) -> list[Tensor]:
    """Return the network's inputs for each view of all images."""
    path_of_ops = choose_augment(augment, tuple(views), torch.device("cpu"))
    with Beton(path) as data:
        (batch,) = batches_of(data, views, len(data), train=False, num_threads=1, decoder=decoder)
    return list(path_of_ops.inputs(batch, views, torch.float32))


def by_torchvision(image: np.ndarray) -> list[Tensor]:
    """Return the ten crops of an image with a shorter side of 64, in our order: [3, 56, 56] in [0, 1]."""
    crops = ten_crop(torch.from_numpy(image).permute(2, 0, 1) / 255, [SIZE, SIZE])
    return [crops[place] for place in PLACES]


def normalised(crop: Tensor) -> Tensor:
    return normalize(crop, list(RGB.mean), list(RGB.std))


def gradients_by_hand(crop: Tensor) -> Tensor:
    """Compute Sobel gradients of the mean colour along x and y, with the border repeated: [2, H, W]."""
    grey = F.pad(crop.double().mean(0)[None, None], (1, 1, 1, 1), mode="replicate")[0, 0].numpy()
    out = np.zeros((2, *crop.shape[1:]))
    for y, row in enumerate(((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))):
        for x, weight in enumerate(row):
            height, width = crop.shape[1:]
            out[0] += weight / 8 * grey[y : y + height, x : x + width]
            out[1] += weight / 8 * grey[x : x + height, y : y + width]  # transposed
    return torch.from_numpy(out).float()


@pytest.mark.parametrize("decoder", [*DECODERS, "resident"])
@pytest.mark.parametrize("shape", [(64, 80), (94, 64), (64, 64)])
def test_ten_crops_are_torchvisions(tmp_path: Path, decoder: str, shape: tuple[int, int]) -> None:
    """Without a resize they are equal up to rounding; mirrored crops have the mirrored image's gradients."""
    images = [photo(i, *shape) for i in range(3)]
    path = beton(tmp_path / "raw.beton", images)
    ways: list[tuple[Input, AugmentName]] = [(RGB, "torch"), (XY, "torch"), (RGB, "fused"), (XY, "auto")]
    for input, augment in ways:
        network_inputs = inputs(path, decoder, ten_crop_views(input, SIZE), augment)
        assert len(network_inputs) == 10
        for number, image in enumerate(images):
            for place, crop in enumerate(by_torchvision(image)):
                rgb, xy = normalised(crop), gradients_by_hand(crop) / SOBEL_XY_STD
                expected = rgb if input is RGB else xy
                difference = (network_inputs[place][number] - expected).abs()
                assert difference.max() < 0.1 and difference.mean() < 0.003, (input.channels, place)


def test_a_mirrored_input_is_not_the_input_of_a_mirrored_image(tmp_path: Path) -> None:
    """Mirroring also negates the gradient along x, but not the one along y."""
    path = beton(tmp_path / "raw.beton", [photo(0, 64, 80)])
    network_inputs = inputs(path, "pillow", ten_crop_views(XY, SIZE))
    for plain, mirrored in zip(network_inputs[:5], network_inputs[5:], strict=True):
        expected = plain.flip(-1) * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        torch.testing.assert_close(mirrored, expected, atol=1e-4, rtol=0)
        assert (mirrored - plain.flip(-1)).abs().max() > 1


@pytest.mark.parametrize("decoder", DECODERS)
def test_ten_crops_of_larger_images(tmp_path: Path, decoder: str) -> None:
    """Resizing and cropping at once is within a few grey values of torchvision's two steps."""
    images = [photo(7, 200, 261), photo(8, 173, 150)]
    network_inputs = inputs(beton(tmp_path / "raw.beton", images), decoder, ten_crop_views(RGB, SIZE))
    for number, image in enumerate(images):
        resized = resize(torch.from_numpy(image).permute(2, 0, 1), [64], antialias=True)
        expected = [normalised(crop) for crop in by_torchvision(resized.permute(1, 2, 0).numpy())]
        means = [
            [float((crops[number] - crop).abs().mean()) for crop in expected] for crops in network_inputs
        ]
        away = torch.tensor(means)
        assert away.argmin(1).tolist() == list(range(10))
        # In normalised values: 9 grey values at edges that moved by half a pixel.
        assert away.diagonal().max() < 0.15


@pytest.mark.parametrize("decoder", DECODERS)
def test_images_of_a_few_pixels_have_ten_crops(tmp_path: Path, decoder: str) -> None:
    """A crop is 7 / 8 of the shorter side, at least one pixel: of a row the first, middle or last one."""
    row, column = photo(1, 1, 9), photo(2, 12, 1)
    path = beton(tmp_path / "raw.beton", [row, column, photo(3, 1, 1)])
    network_inputs = inputs(path, decoder, ten_crop_views(RGB, SIZE))
    of_row, of_column = [(0, 4), (0, 0), (0, 8), (0, 0), (0, 8)], [(5, 0), (0, 0), (0, 0), (11, 0), (11, 0)]
    cases = (row, of_row), (column, of_column), (photo(3, 1, 1), [(0, 0)] * 5)
    for number, (image, places) in enumerate(cases):
        for crop, place in zip(network_inputs, places * 2, strict=True):
            pixel = torch.from_numpy(image[place].copy()).view(3, 1, 1) / 255
            expected = normalised(pixel).expand(3, 2, 2)
            # Some decoders read beyond the box when they enlarge, which changes only its border.
            middle = crop[number, :, SIZE // 2 - 1 : SIZE // 2 + 1, SIZE // 2 - 1 : SIZE // 2 + 1]
            torch.testing.assert_close(middle, expected, atol=0.04, rtol=0)


def test_views_to_learn_from() -> None:
    """RandomResizedCrop or the shorter side's crop, flipped and normalised as the weights expect."""
    assert train_view(RGB, SIZE).crop == RandomResizedCrop(SIZE)
    for where in ("random", "random_middle"):
        view = train_view(XY, SIZE, where)
        assert view.crop == ShorterSideCrop(64, SIZE, where) and view.input() == XY
        assert [type(op).__name__ for op in view.ops] == ["Flip", "SobelXY"]
    middle, *others = ten_crop_views(XY, SIZE)
    assert middle == center_view(XY, SIZE) and len(set(others)) == 9
    assert [view.ops[0] == Flip(p=1.0) for view in others] == [False] * 4 + [True] * 5
