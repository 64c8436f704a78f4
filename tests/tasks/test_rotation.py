"""Rotation: views, chance and loss; a copy of the base must not tell the angle."""

from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.normalise import joined, normalise
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.augment import Augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.rotation import Rotation, RotationHead, image_degrees
from tests.engine.tiny import noise_batch, part_of
from tests.pipelines.isotropy import bilinear, network_accuracy, probe_accuracy
from tests.pipelines.photos import COMPILED, RAW, photo, write
from tests.slow import slow

NUM, SIZE, SHORTER = 24, 40, 50
ONE = Rotation(shorter_px=SHORTER, size_px=SIZE)
ALL = Rotation(shorter_px=SHORTER, size_px=SIZE, rotations_per_image="all")
SAME_ONE = Rotation(shorter_px=SHORTER, size_px=SIZE, same_window=True)
SAME_ALL = Rotation(shorter_px=SHORTER, size_px=SIZE, rotations_per_image="all", same_window=True)
LEVELS = {1: 2, 2: 4, 3: 8}
every_way = pytest.mark.parametrize(
    ("task", "level"), [(task, level) for task in (ONE, ALL) for level in LEVELS]
)


@cache
def photo_pixels(number: int) -> np.ndarray:
    return photo(number, 150 + 2 * number, 190 - number)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [(p.tobytes(), *p.shape[:2], RAW) for p in map(photo_pixels, range(NUM))]
    return write(tmp_path_factory.mktemp("rotation") / "photos.beton", samples)


def loaded(photos: Path, views: Sequence[ViewSpec]) -> tuple[list[Tensor], Batch]:
    """Load all photos as one batch of epoch 0 with seed 0."""
    with Beton(photos) as data, Loader(
        data, views, batch_size_per_rank=NUM, train=False, decoder="pillow", num_threads=1
    ) as loader:  # fmt: skip
        (batch,) = loader.epoch(0)
    return batch.inputs(views, torch.float32), batch


def plain_turn(number: int, box: np.ndarray, degrees: int) -> np.ndarray:
    """Return the window `box` of a photo that Pillow turned about the middle, float [SIZE, SIZE, 3]."""
    top, left, side = (int(value) for value in box[:3])
    middle = (left + side / 2, top + side / 2)
    turned = Image.fromarray(photo_pixels(number)).rotate(degrees, Image.Resampling.BICUBIC, center=middle)
    window = turned.crop((left, top, left + side, top + side))
    return np.asarray(window.resize((SIZE, SIZE), Image.Resampling.BOX), np.float64)


@pytest.mark.parametrize("level", LEVELS)
def test_the_label_is_the_angle_that_the_pixels_show(level: int, photos: Path) -> None:
    """Pillow's turn by the label is near, at most 1.5 of 255 on average and 6 at level 3, which blurs.

    Others are far.
    """
    (view,) = ONE.views(level)
    inputs, batch = loaded(photos, [view])
    degrees = image_degrees(batch)
    angles = range(0, 360, 360 // LEVELS[level])
    assert degrees.shape == (1, NUM, 1) and degrees.unique().tolist() == list(angles)  # every angle occurs
    mean, std = (np.array(v)[:, None, None] for v in (view.mean, view.std))
    heights, widths = (np.array([photo_pixels(i).shape[k] for i in range(NUM)], np.int32) for k in (0, 1))
    boxes = view.crop.boxes(Keys(0, 0, np.arange(NUM)), heights, widths)
    for i in range(NUM):
        image = ((inputs[0][i].double().numpy() * std + mean) * 255).transpose(1, 2, 0)
        away = {angle: np.abs(plain_turn(i, boxes[i], angle) - image).mean() for angle in angles}
        right = away.pop(int(degrees[0, i]))
        assert right < (8 if level == 3 else 2) and min(away.values()) > 16, (i, right, away)


@pytest.mark.parametrize("level", [1, 2])
def test_turns_of_the_square_angles_are_exact(level: int, photos: Path) -> None:
    (view,) = ONE.views(level)
    inputs, batch = loaded(photos, [view])
    (upright,), _ = loaded(photos, [ViewSpec(view.crop)])
    for i, angle in enumerate(image_degrees(batch).flatten().tolist()):
        assert torch.equal(inputs[0][i], torch.rot90(upright[i], angle // 90, (1, 2)))


@pytest.mark.parametrize("level", [1, 2])
def test_the_same_window_leaves_nothing_but_the_angle_to_the_level(level: int, photos: Path) -> None:
    """Each image of levels 1 and 2 is, bit for bit, one of the upright images of level 3.

    By default levels 1 and 2 have a larger window.
    """
    hardest, hardest_batch = loaded(photos, SAME_ALL.views(3))
    of_angle = dict(zip(range(0, 360, 90), hardest[0].unflatten(0, (NUM, 4)).unbind(1), strict=True))
    assert image_degrees(hardest_batch)[0, 0].tolist() == list(of_angle)
    inputs, batch = loaded(photos, SAME_ONE.views(level))
    for i, angle in enumerate(image_degrees(batch).flatten().tolist()):
        assert torch.equal(inputs[0][i], of_angle[angle][i])
    inputs, batch = loaded(photos, SAME_ALL.views(level))
    degrees = image_degrees(batch)[0]
    for i, images in enumerate(inputs[0].unflatten(0, (NUM, LEVELS[level]))):
        for image, angle in zip(images, degrees[i].tolist(), strict=True):
            assert torch.equal(image, of_angle[angle][i])
    keys, sides = Keys(0, 0, np.arange(1)), np.array([150], np.int32)
    of_default, of_same = (
        task.views(level)[0].crop.boxes(keys, sides, sides)[0, 2] for task in (ONE, SAME_ONE)
    )
    assert (of_default, of_same) == (120, SAME_ONE.views(3)[0].crop.boxes(keys, sides, sides)[0, 2])
    assert SAME_ONE.views(3) == ONE.views(3) and SAME_ALL.views(3) == ALL.views(3)


def by_sample(values: Tensor, num_views: int, num_samples: int) -> Tensor:
    """Map the order (view, sample, turn) to [sample, view * turn, ...]."""
    return values.unflatten(0, (num_views, num_samples, -1)).transpose(0, 1).flatten(1, 2)


@pytest.mark.parametrize("level", LEVELS)
def test_all_rotations_hold_the_one_that_would_be_drawn(level: int, photos: Path) -> None:
    """Both have the same window."""
    one, one_batch = loaded(photos, ONE.views(level))
    every, every_batch = loaded(photos, ALL.views(level))
    num = LEVELS[level]
    assert ALL.inputs_per_image(level) == num and ONE.inputs_per_image(level) == 1
    images = by_sample(joined(every), len(every), NUM)
    degrees = by_sample(image_degrees(every_batch).flatten(), len(every), NUM)
    assert degrees.sort(1).values.tolist() == NUM * [list(range(0, 360, 360 // num))]
    is_drawn = degrees == image_degrees(one_batch)[0]
    assert (is_drawn.sum(1) == 1).all()
    torch.testing.assert_close(images[is_drawn], joined(one), rtol=0, atol=0)


@pytest.mark.parametrize("level", LEVELS)
def test_all_rotations_are_turns_of_the_windows(level: int, photos: Path) -> None:
    """For a label of 45 * l degrees, base l % 2 is turned by l // 2 quarters."""
    views = ALL.views(level)
    inputs, batch = loaded(photos, views)
    bases, _ = loaded(photos, [ViewSpec(view.crop) for view in views])
    labels = (image_degrees(batch).flatten() // 45).tolist()
    samples = [i for _ in views for i in range(NUM) for _ in range(LEVELS[level] // len(views))]
    for image, label, sample in zip(joined(inputs), labels, samples, strict=True):
        assert torch.equal(image, torch.rot90(bases[label % 2][sample], label // 2, (1, 2)))


def test_the_fused_path_writes_all_rotations_into_one_buffer() -> None:
    """The network's input is then not copied; order and values are those of the plain path."""
    pytest.importorskip("triton")
    from fastpsl.kernels.fused_cuda import geometric

    views = ALL.views(3)
    batch = noise_batch(views, 2)
    if torch.cuda.is_available():
        batch = batch.to(torch.device("cuda"))
    inputs = Augment("fused", "", (geometric,)).inputs(batch, views, torch.float16)
    whole = joined(inputs)
    assert len(inputs) == 2 and len(whole) == 16
    assert whole.data_ptr() == inputs[0].data_ptr() and torch.equal(whole[8:], inputs[1])
    whole[8:] += 1
    assert torch.equal(whole[8:], inputs[1])
    whole[8:] -= 1
    plain = joined(batch.inputs(views, torch.float16))
    torch.testing.assert_close(whole, plain, rtol=2**-10, atol=2**-9)


def small_modules(level: int) -> tuple[nn.Module, RotationHead]:
    torch.manual_seed(0)
    head = ONE.head(level, 7)
    assert isinstance(head, RotationHead)
    return nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.ReLU()), head


@every_way
@pytest.mark.parametrize("indices", [[3, 0, 8, 5], [3, -1, 8, -1], [7]])
def test_loss_and_accuracy_are_those_of_a_plain_loop(task: Rotation, level: int, indices: list[int]) -> None:
    """Each image by itself. Samples of index -1 are left out, and a batch may be one."""
    views, (blocks, head) = task.views(level), small_modules(level)
    batch = noise_batch(views, len(indices))
    batch.indices = torch.tensor(indices)
    inputs = batch.inputs(views, torch.float32)
    loss, metrics = task.loss(blocks, head, inputs, batch)  # type: ignore[arg-type]

    images = by_sample(joined(inputs), len(views), len(indices))
    degrees = by_sample(image_degrees(batch).flatten(), len(views), len(indices))
    losses, right = [], 0
    for i, index in enumerate(indices):
        for image, angle in zip(images[i], degrees[i].tolist(), strict=True):
            if index >= 0:
                label = list(range(0, 360, 360 // LEVELS[level])).index(angle)
                logits = head.classify(blocks(image[None])[0].mean((1, 2)))
                losses.append(F.cross_entropy(logits, torch.tensor(label)))
                right += int(logits.argmax() == label)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert metrics["accuracy"] == (right, len(losses)) and metrics["loss"][1] == len(losses)
    torch.testing.assert_close(metrics["loss"][0], torch.stack(losses).sum().detach())


def test_nothing_but_padding_is_a_loss_of_nought() -> None:
    views, (blocks, head) = ONE.views(3), small_modules(3)
    batch = noise_batch(views, 2)
    batch.indices = torch.tensor([-1, -1])
    loss, metrics = ONE.loss(blocks, head, batch.inputs(views, torch.float32), batch)  # type: ignore[arg-type]
    assert loss == 0 and metrics["accuracy"] == metrics["loss"] == (0, 0)


@every_way
def test_the_contact_sheet_shows_every_angle_and_the_captions_name_it(task: Rotation, level: int) -> None:
    views = task.views(level)
    batch = noise_batch(views, 2)
    inputs = batch.inputs(views, torch.float32)
    sheet, captions = task.contact_sheet(inputs, batch), task.captions(batch)
    num = task.inputs_per_image(level)
    rows, columns = -(-num // 4), min(num, 4)
    step = SIZE + 4
    assert sheet.shape == (2, 3, rows * step - 4, columns * step - 4)
    words = [[word for line in caption.split("\n") for word in line.split()] for caption in captions]
    degrees, order = by_sample(image_degrees(batch).flatten(), len(views), 2).sort(1)
    assert words == [[f"{angle}°" for angle in angles] for angles in degrees.tolist()]
    assert all(caption.count("\n") == rows - 1 for caption in captions)
    images = by_sample(joined(inputs), len(views), 2)
    images = torch.stack([of_one[places] for of_one, places in zip(images, order, strict=True)])
    for number in range(num):
        top, left = number // columns * step, number % columns * step
        image = normalise(
            sheet[:, :, top : top + SIZE, left : left + SIZE], views[0].mean, views[0].std, torch.float32
        )
        torch.testing.assert_close(image, images[:, number], atol=1e-4, rtol=0)


@every_way
def test_halves_of_a_batch_are_its_parts(task: Rotation, level: int) -> None:
    """Images and angles are in the same order by sample, so a rank's part is a part of the whole."""
    views = task.views(level)
    whole = noise_batch(views, 4)
    half = part_of(whole, 1, 2)
    assert torch.equal(image_degrees(half), image_degrees(whole)[:, 2:])
    images = by_sample(joined(whole.inputs(views, torch.float32)), len(views), 4)
    assert torch.equal(by_sample(joined(half.inputs(views, torch.float32)), len(views), 2), images[2:])


def test_impossible_tasks_are_one_line() -> None:
    with pytest.raises(
        ValueError, match="window of 60 px given for a shorter side of 50 px; allowed"
    ) as error:
        Rotation(shorter_px=50, size_px=60)
    assert "\n" not in str(error.value)
    assert Rotation(shorter_px=50, size_px=50).views(1)[0].crop.size_px == 50
    with pytest.raises(ValueError, match="rotations_per_image 'two' given; allowed are 'one' and 'all'"):
        Rotation(shorter_px=60, size_px=50, rotations_per_image="two")  # type: ignore[arg-type]


LEAK_NUM, HEIGHT, WIDTH, LEAK_SIZE, LEAK_SHORTER = 640, 113, 118, 48, 55
STEPS = 60


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (LEAK_NUM, HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def beton(noise: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise") / "noise.beton"
    return write(path, [(image.tobytes(), HEIGHT, WIDTH, RAW) for image in noise])


def own_views(task: Rotation, level: int, beton: Path) -> tuple[Tensor, Tensor]:
    """Return NUM of the network's images, uint8 [NUM, 3, S, S], and their angles in degrees [NUM]."""
    views, images, degrees = task.views(level), [], []
    batch_size = LEAK_NUM // 4 // task.inputs_per_image(level)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (views[0].mean, views[0].std))
    with Beton(beton) as data, Loader(
        data, views, batch_size_per_rank=batch_size, train=False,
        decoder=[*COMPILED, "pillow"][0],
        num_threads=2,
    ) as loader:  # fmt: skip
        for batch in islice(loader.epoch(0), 4):
            inputs = batch.inputs(views, torch.float32)
            images.append(((joined(inputs) * std + mean) * 255).round().byte())
            degrees.append(image_degrees(batch).flatten())
    return torch.cat(images), torch.cat(degrees)


def accuracies(images: Tensor, degrees: Tensor, level: int) -> dict[str, tuple[float, float]]:
    """Return the detectors' accuracies on the second half, and the limit of chance.

    A small network classifies half or quarter turns. At level 3, spectra separate turns by 45 degrees from
    others.
    """
    turns, num = (degrees // 180, 2) if level == 1 else (degrees // 90, 4)
    error = 4.5 * (len(images) // 2) ** -0.5
    scores = {"turns": (network_accuracy(images, turns, STEPS), 1 / num + error * (num - 1) ** 0.5 / num)}
    if level == 3:
        scores["45 degrees"] = (probe_accuracy(images, degrees // 45), 0.5 + 0.5 * error)
    return scores


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("way", ["one", "all"])
@pytest.mark.parametrize("level", [*map(slow, (1, 2)), 3])
def test_noise_does_not_tell_its_angle(level: int, way: Literal["one", "all"], beton: Path) -> None:
    """All rotations of an image are on the same side of the split."""
    task = Rotation(shorter_px=LEAK_SHORTER, size_px=LEAK_SIZE, rotations_per_image=way)
    images, degrees = own_views(task, level, beton)
    assert len(images) == LEAK_NUM and degrees.unique().tolist() == list(range(0, 360, 360 // 2**level))
    for what, (accuracy, at_most) in accuracies(images, degrees, level).items():
        assert accuracy < at_most, what


def off_the_middle(window: np.ndarray, turns: int) -> np.ndarray:
    """Turn by quarters about a corner of the middle pixel: a row and a column become black."""
    turned = np.rot90(window, turns)
    return np.pad(turned, ((1, 0), (1, 0), (0, 0)))[:-1, :-1] if turns else turned


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 2, 3])
def test_turns_that_are_made_badly_are_found(level: int, noise: np.ndarray) -> None:
    """Windows and angles are the same; turns are bilinear at level 3, else one pixel off the middle."""
    (view,) = Rotation(shorter_px=LEAK_SHORTER, size_px=LEAK_SIZE).views(level)
    keys = Keys(0, 0, np.arange(LEAK_NUM))
    boxes = view.crop.boxes(keys, np.full(LEAK_NUM, HEIGHT, np.int32), np.full(LEAK_NUM, WIDTH, np.int32))
    draw = view.draw(keys)[0]
    eighths = draw["label"] if level == 3 else 2 * draw["turns"]
    rotated = []
    for image, box, eighth in zip(noise, boxes, eighths.tolist(), strict=True):
        window = bilinear(image, box, 45 * (eighth % 2), LEAK_SIZE)
        rotated.append(np.rot90(window, eighth // 2) if level == 3 else off_the_middle(window, eighth // 2))
    images = torch.from_numpy(np.stack(rotated)).permute(0, 3, 1, 2)
    scores = accuracies(images, torch.from_numpy(45 * eighths), level)
    accuracy, at_most = scores["45 degrees" if level == 3 else "turns"]
    # At level 2 the network recognises upright images and guesses among three turns: 0.5 ± 0.023.
    wanted = 0.4 if level == 2 else 0.95
    assert accuracy > wanted > at_most
