"""Only the content of a view shows its angle in steps of 45 degrees.

Noise and flat colours go through the real loader.
Noise looks the same at every angle, so a detector that finds the angle of its views has found traces of the
resampling. Detectors are trained on half of the images and tested on the other half, with fixed seeds. A
detector that knows nothing exceeds chance plus 4 standard errors once in 30,000 cases.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels import device_crops, isotropic
from fastpsl.kernels.device_crops import crop_isotropic
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import AllTurns, Rotate45
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.image.jpeg import decode_plainly
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.decoding import batches_of, make
from tests.pipelines.isotropy import bilinear, network_accuracy, probe_accuracy
from tests.pipelines.photos import COMPILED, DECODERS, JPG, RAW, ffcv_decode, jpeg, photo, pil_decode, write

NUM, SIZE = 800, 64
# Height and width, some odd: windows of 67, 35 and 129 px, so 1.05, 0.55 and 2.02 source pixels per pixel.
SCALES = {"as it is": (137, 144), "enlarged": (88, 85), "shrunk": (243, 236)}
CROP = RotationCrop(SIZE)
FASTEST = [*COMPILED, "pillow"][0]
PROBE_CHANCE = 0.5 + 4.5 * (0.25 / (NUM // 2)) ** 0.5
NETWORK_CHANCE = 1 / 8 + 4 * (7 / 64 / (NUM // 2)) ** 0.5

Sample = tuple[bytes, int, int, int]
every_noise = pytest.mark.parametrize(
    "noise",
    [
        pytest.param((scale, kind), marks=() if kind == "raw" and scale != "shrunk" else pytest.mark.slow)
        for kind in ("raw", "jpeg")
        for scale in SCALES
    ],
    indirect=True,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def pixels_of(sample: Sample) -> np.ndarray:
    data, height, width, mode = sample
    return pil_decode(data) if mode == JPG else np.frombuffer(data, np.uint8).reshape(height, width, 3)


@pytest.fixture(scope="module")
def noise(request: pytest.FixtureRequest) -> tuple[str, list[Sample]]:
    """Return a scale and samples of white noise, raw or as JPEGs of quality 90 with 4:2:0 colour."""
    scale, kind = request.param
    height, width = SCALES[scale]
    random = np.random.default_rng(height)
    samples = []
    for _ in range(NUM):
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        data = jpeg(image, quality=90, subsampling=2) if kind == "jpeg" else image.tobytes()
        samples.append((data, height, width, JPG if kind == "jpeg" else RAW))
    return scale, samples


def batches_at(path: Path, views: Sequence[ViewSpec], batch_size: int, decoder: str = FASTEST) -> list[Batch]:
    with Beton(path) as data:
        return batches_of(data, views, batch_size, train=False, decoder=decoder, num_threads=2)


def views_of(path: Path, crop: RotationCrop = CROP, decoder: str = FASTEST) -> tuple[Tensor, Tensor]:
    """Return a view of each sample before normalisation, uint8 [N, 3, S, S], and labels from 0 to 7."""
    op = Rotate45()
    batches = batches_at(path, [ViewSpec(crop, (op,))], 100, decoder)  # which divides the images
    images = [op(batch.images[0], batch.draws[0][0]) for batch in batches]
    return torch.cat(images), torch.cat([batch.draws[0][0]["label"] for batch in batches])


def windows(samples: list[Sample]) -> tuple[np.ndarray, Tensor]:
    """Draw boxes, int32 [N, 5], and labels as the loader does in epoch 0."""
    keys = Keys(0, 0, np.arange(len(samples)))
    heights, widths = (np.array([sample[i] for sample in samples], np.int32) for i in (1, 2))
    boxes = np.concatenate([CROP.boxes(keys, heights, widths), CROP.resampling(keys)[:, None]], 1)
    return boxes, torch.from_numpy(Rotate45().draw(keys)["label"])


def all_rotations(bases: Sequence[Tensor]) -> Tensor:
    """Return the eight rotations, [B, 8, 3, S, S], of upright windows and windows turned by 45 degrees."""
    turned = [AllTurns(4)(images, {}).unflatten(0, (-1, 4)) for images in bases]
    return torch.stack(turned, 2).flatten(1, 2)


@every_noise
def test_noise_does_not_tell_its_angle(noise: tuple[str, list[Sample]], tmp_path: Path) -> None:
    scale, samples = noise
    path = write(tmp_path / "noise.beton", samples)
    views, labels = views_of(path)
    assert len(views) == NUM
    assert probe_accuracy(views, labels) < PROBE_CHANCE
    if scale == "as it is":
        assert network_accuracy(views, labels) < NETWORK_CHANCE
        # The batched kernel has its own matrix product, and DALI feeds either kernel from its own decode.
        other = (
            "resident"
            if samples[0][3] == RAW
            else next(name for name in ("dali", *COMPILED, "pillow") if name in DECODERS)
        )
        assert probe_accuracy(*views_of(path, decoder=other)) < PROBE_CHANCE


@pytest.mark.slow
@every_noise
def test_a_bilinear_rotation_is_found(noise: tuple[str, list[Sample]]) -> None:
    """The detectors find the angle if Pillow's bilinear transform makes the same windows."""
    scale, samples = noise
    boxes, labels = windows(samples)
    images = [
        np.rot90(bilinear(pixels_of(sample), box, 45 * (label % 2), SIZE), label // 2)
        for sample, box, label in zip(samples, boxes, labels.tolist(), strict=True)
    ]
    views = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    assert probe_accuracy(views, labels) > 0.95
    if scale == "as it is":
        # Knowing the base but guessing the turns gives one in four, 4 standard errors above this.
        assert network_accuracy(views, labels) > NETWORK_CHANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "constant", "value"),
    [
        (("as it is", "raw"), "LUMA_SIGMA_PX", 0.6),
        (("as it is", "raw"), "REACH_SIGMAS", 2.5),
        (("as it is", "jpeg"), "COLOUR_SIGMA_PX", 1.0),
    ],
    indirect=["noise"],
)
def test_a_lesser_kernel_is_found(
    noise: tuple[str, list[Sample]], constant: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs each of its constants; the probe finds what a small network would learn slowly."""
    for module in (isotropic, device_crops):
        monkeypatch.setattr(module, constant, value)
    samples = noise[1]
    boxes, labels = windows(samples)
    images = torch.from_numpy(np.stack([pixels_of(sample) for sample in samples]))
    views = crop_isotropic(images, torch.from_numpy(boxes), SIZE).permute(0, 3, 1, 2)
    assert probe_accuracy(views, labels) > 0.8


@pytest.mark.parametrize("mode", [JPG, RAW])
def test_flat_images_give_eight_equal_views(mode: int, tmp_path: Path) -> None:
    """For all sizes down to the smallest that fits, with corners close to the borders, no frame shows."""
    random = np.random.default_rng(0)
    samples, colours = [], []
    for i in range(60):
        height, width = (int(side) for side in random.integers(64, 130, 2)) if i % 2 else (64 + i // 2,) * 2
        image = np.empty((height, width, 3), np.uint8)
        image[:] = random.integers(0, 256, 3) if i > 2 else 127 * i
        colours.append(image[0, 0].copy())
        if mode == RAW and i % 3 == 0:
            image[[0, -1]] = image[:, [0, -1]] = 255 - colours[-1]
        samples.append((jpeg(image) if mode == JPG else image.tobytes(), height, width, mode))
    views = [ViewSpec(RotationCrop(31, share=1.0, base=base)) for base in (0, 45)]
    (batch,) = batches_at(write(tmp_path / "flat.beton", samples), views, 60)
    every = all_rotations(batch.images).numpy()
    np.testing.assert_array_equal(every, np.broadcast_to(every[:, :1, :, :1, :1], every.shape))
    difference = np.abs(every[:, 0, :, 0, 0].astype(int) - np.stack(colours))
    assert difference.max() <= (6 if mode == JPG else 0)


def decode_whole(decoder: Decoder, sample: Sample) -> np.ndarray:
    """Decode like the given decoder, because Pillow and libffcv differ by up to a few levels."""
    data, height, width, _ = sample
    if decoder.name == "ffcv":
        return ffcv_decode(data, height, width)
    image = decode_plainly(data)
    assert image is not None
    return image


@pytest.fixture(params=[name for name in DECODERS if name != "dali"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    made = make(request.param)
    assert isinstance(made, Decoder)
    return made


def test_decoders_sample_from_the_whole_decode(decoder: Decoder, tmp_path: Path) -> None:
    """Not from a scaled one, as for an area crop of the same size, and both kinds of view from one decode."""
    samples = [(jpeg(photo(i, 301, 411)), 301, 411, JPG) for i in range(6)]
    size = 15
    boxes = np.array([[60, 70 + i, 150, 150, (ISOTROPIC, DIAGONAL)[i % 2]] for i in range(6)], np.int32)
    area = np.array([[0, 0, 301, 411, codes.AREA]] * 6, np.int32)
    outs = [np.zeros((6, size, size, 3), np.uint8) for _ in range(2)]
    with Beton(write(tmp_path / "photos.beton", samples)) as data:
        rows = data.rows(np.arange(6))
        assert not decoder.decode(rows, [boxes, area], outs).any()
        together, expected = outs[0].copy(), np.zeros_like(outs[0])
        assert not decoder.decode(rows, [boxes], outs[:1]).any()
    np.testing.assert_array_equal(outs[0], together)
    for i, sample in enumerate(samples):
        top, left, side, _, base = boxes[i].tolist()
        pixels = decode_whole(decoder, sample).reshape(-1)
        isotropic_resize(pixels, 301, 411, top, left, side, base == DIAGONAL, expected[i])
    # turbo adds in another order, which may change a rounding.
    np.testing.assert_allclose(outs[0], expected, rtol=0, atol=1)
    assert (outs[0] != expected).mean() < 0.01
    assert outs[1].any()


def test_a_window_that_does_not_fit_is_a_bad_box(decoder: Decoder, tmp_path: Path) -> None:
    margin = int(margin_px(20, 16))
    height, width = 20 + 2 * margin, 21 + 2 * margin
    places = [[margin, margin + 1], [margin, margin + 2], [margin - 1, margin], [margin, margin], [0, 0]]
    kinds = [DIAGONAL, DIAGONAL, ISOTROPIC, ISOTROPIC, codes.AREA]
    boxes = np.column_stack([places, [20] * 5, [20, 20, 20, 19, 20], kinds]).astype(np.int32)
    samples = [(photo(i, height, width).tobytes(), height, width, RAW) for i in range(5)]
    outs = [np.zeros((5, 16, 16, 3), np.uint8)]
    with Beton(write(tmp_path / "raw.beton", samples)) as data:
        status = decoder.decode(data.rows(np.arange(5)), [boxes], outs)
    assert status.tolist() == [0, codes.BAD_BOX, codes.BAD_BOX, codes.BAD_BOX, 0]


def test_all_rotations_come_from_one_decode(tmp_path: Path) -> None:
    """The rotations of two views, one per base, contain the view of a drawn base where windows agree."""
    samples = [(jpeg(photo(i, 201, 211)), 201, 211, JPG) for i in range(40)]
    crops = [RotationCrop(32, base=base) for base in (0, 45)]
    views = [ViewSpec(RotationCrop(32), (Rotate45(),)), *(ViewSpec(crop) for crop in crops)]
    (batch,) = batches_at(write(tmp_path / "photos.beton", samples), views, 40)
    draw = batch.draws[0][0]
    every = all_rotations(batch.images[1:])
    drawn = Rotate45()(batch.images[0], draw)
    # Both bases show the window of view 0.
    torch.testing.assert_close(every[torch.arange(40), draw["label"]], drawn, rtol=0, atol=0)
