"""Windows that `turbo` decodes for a device to crop: bit-equal to Pillow's, and their crops those of the CPU.

Without a GPU the interpreter runs the kernels, and tensors stay on the CPU.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("triton")
from fastpsl.kernels import device_crops
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.device_crops import fused_form
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused_cuda import isotropic as fused
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px, reach_px
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.decoders import turbo
from fastpsl.pipelines.decoders.pillow import PillowDecoder
from fastpsl.pipelines.decoders.turbo import plan_windows
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.orientation import turn
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable
from fastpsl.pipelines.loader import loader
from fastpsl.pipelines.loader.batch import BadSampleError, Batch
from fastpsl.pipelines.loader.device_windows import DeviceWindows, Room, crops_on_device
from fastpsl.pipelines.loader.engines import ThreadEngine
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.fake_cuda import fake_cuda
from tests.pipelines.decoding import Samples, make, samples_are_closed, whole, with_resampling  # noqa: F401
from tests.pipelines.photos import JPG, RAW, exif, file_of, jpeg, photo, pil_decode, write
from tests.pipelines.written import tree

pytestmark = [pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")]
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
pytestmark += [pytest.mark.gpu] if DEVICE.type == "cuda" else []

SIZE = 24
DRAWN, UPRIGHT, TURNED = (RotationCrop(SIZE, 0.9, base=base) for base in ("drawn", 0, 45))  # type: ignore[arg-type]
VIEWS = {
    "one view": [ViewSpec(DRAWN)],
    "both bases": [ViewSpec(UPRIGHT), ViewSpec(TURNED)],
    "mixed": [ViewSpec(RandomResizedCrop(9)), ViewSpec(DRAWN)],
}
SIZES = [(61, 67), (75, 58), (83, 64), (90, 101), (120, 77)]


def samples(num: int = 5) -> list[tuple[bytes, int, int, int]]:
    """Return JPEGs of several kinds, with an image of raw pixels, the larger ones last."""
    stored = [(photo(i, *SIZES[i]), *SIZES[i]) for i in range(num)]
    kinds: list[dict[str, object]] = [{}, {"subsampling": 0}, {"progressive": True}, {}, {"subsampling": 1}]
    return [
        (image.tobytes(), height, width, RAW) if i == 1 else (jpeg(image, **kinds[i]), height, width, JPG)
        for i, (image, height, width) in enumerate(stored)
    ]


def image_of(sample: tuple[bytes, int, int, int]) -> np.ndarray:
    data, height, width, mode = sample
    return np.frombuffer(data, np.uint8).reshape(height, width, 3) if mode == RAW else pil_decode(data)


def corners(side: int, kind: int) -> np.ndarray:
    """Return boxes that touch, with their margins, each image's top left or bottom right corner."""
    margin = int(margin_px(side, SIZE))
    tops = [
        [margin, margin] if i % 2 else [h - side - margin, w - side - margin]
        for i, (h, w) in enumerate(SIZES)
    ]
    return np.column_stack([tops, np.full((5, 2), side), np.full(5, kind)]).astype(np.int32)


@pytest.mark.parametrize("side", [1, 17])
def test_windows_are_parts_of_pillows_decode(side: int, tmp_path: Path) -> None:
    stored, decoder = samples(), make("turbo")
    height, width = SIZES[3]
    stored[3] = (jpeg(photo(3, width, height)), height, width, JPG)
    rows = Samples(tmp_path / "data", stored).rows
    rows.orientation[:] = orientations = 1, 1, 2, 6, 4
    boxes = [corners(side, ISOTROPIC), with_resampling(whole(rows)), corners(side, DIAGONAL)]
    boxes[2][0, :2] = boxes[0][0, :2] - [1, 0]  # the views of one sample see different parts
    for which in ([0], [2], [0, 1, 2]):
        views = [boxes[k] for k in which]
        planned = plan_windows(rows, views, [SIZE] * len(which))
        arena = np.full(planned.num_bytes + 9, 171, np.uint8)
        outs = [np.full((0 if k != 1 else 5, SIZE, SIZE, 3), 9, np.uint8) for k in which]
        request = decoder.begin(rows, views, outs, planned, arena)  # type: ignore[union-attr,call-arg]
        for i in range(5):
            decoder.decode_part(request, slice(i, i + 1))  # type: ignore[union-attr]
        assert not request.codes.any() and (arena[planned.num_bytes :] == 171).all()
        end = 0
        for i, (top, left, height, width) in enumerate(planned.places.tolist()):
            start, end = end, end + height * width * 3
            assert planned.offsets[i] == start
            upright = turn(image_of(stored[i]), orientations[i])
            expected = upright[top : top + height, left : left + width]
            np.testing.assert_array_equal(arena[start:end].reshape(height, width, 3), expected)
        assert end == planned.num_bytes
        beyond = int((margin_px if 2 in which else reach_px)(side, SIZE))
        assert (planned.places[1:, 2:] == side + 2 * beyond).all()
        if 1 in which:
            alone = np.zeros((5, SIZE, SIZE, 3), np.uint8)
            PillowDecoder().decode(rows, [boxes[1]], [alone])
            assert np.abs(outs[1].astype(int) - alone).max() <= 1


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loader's device crop isotropic views."""
    monkeypatch.setattr(device_crops, "_tried", lambda device: (fused, ""))
    monkeypatch.setattr(loader, "crops_on_device", lambda *_: True)


def batches(
    data: Dataset, views: list[ViewSpec], device: torch.device, batch_size: int = 2
) -> tuple[list[Batch], Room | None]:
    with Loader(
        data, views, batch_size_per_rank=batch_size, train=False, decoder="turbo", device=device,
        on_bad_sample="skip", prefetch_batches=1,
    ) as source:  # fmt: skip
        assert isinstance(source._engine, ThreadEngine)
        return list(source.epoch(1)), source._engine._room


def assert_same(seen: list[Batch], expected: list[Batch], views: list[ViewSpec]) -> None:
    """Compare batches, those of isotropic views to the bounds of tests/kernels/test_fused_isotropic.py."""
    for batch, other in zip(seen, expected, strict=True):
        assert torch.equal(batch.indices.cpu(), other.indices) and torch.equal(
            batch.labels.cpu(), other.labels
        )
        for view, images, expected_images in zip(views, batch.images, other.images, strict=True):
            assert images.shape == expected_images.shape and images.dtype == torch.uint8
            assert images.is_contiguous(memory_format=torch.channels_last)
            difference = (images.cpu().int() - expected_images.int()).abs()
            if isinstance(view.crop, RotationCrop):
                assert difference.max() <= 1 and (difference > 0).sum() <= 4 + 0.01 * difference.numel()
            else:
                assert not difference.any()


def expected_of(data: Dataset, views: list[ViewSpec], batch_size: int = 2) -> list[Batch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "crops_on_device", lambda *_: False)
        return batches(data, views, torch.device("cpu"), batch_size)[0]


@pytest.mark.parametrize("name", VIEWS)
def test_batches_are_those_of_the_cpu(name: str, tmp_path: Path, on_device: None) -> None:
    """The last batch has padding, and windows grow from batch to batch."""
    views = VIEWS[name]
    with Beton(write(tmp_path / "x.beton", samples())) as data:
        seen, room = batches(data, views, DEVICE)
        assert seen[2].indices.tolist() == [4, -1] and not seen[2].images[-1][1].any()
        assert_same(seen, expected_of(data, views), views)
        rows = data.rows(np.arange(2))
        largest = sum(3 * height * width for height, width in SIZES[2:4])
        assert room is not None and rows.num_bytes.sum() < largest and 0 < room.num_bytes < 1.25 * largest + 4


def test_files_of_a_folder_are_too(tmp_path: Path, on_device: None) -> None:
    """They are one that Pillow decodes, and one that is stored turned."""
    png = file_of(Image.fromarray(photo(0, *SIZES[0])), "PNG")
    files = {"a/0.png": png, "a/1.jpg": jpeg(photo(1, *SIZES[1]), exif=exif(8))}
    with Folder(tree(tmp_path / "folder", files)) as data:
        views = VIEWS["mixed"]
        assert_same(batches(data, views, DEVICE)[0], expected_of(data, views), views)


def test_a_bad_sample_shows_the_next_good_one(tmp_path: Path, on_device: None) -> None:
    stored = samples()
    for i in (1, 4):
        stored[i] = (b"\xff\xd8 no more", *stored[i][1:3], JPG)
    views = VIEWS["mixed"]
    with Beton(write(tmp_path / "x.beton", stored)) as data:
        seen, _ = batches(data, views, DEVICE, 3)
        assert_same(seen, expected_of(data, views, 3), views)
        assert seen[0].indices.tolist() == [0, -1, 2] and torch.equal(
            seen[0].images[1][1], seen[0].images[1][2]
        )
        with pytest.raises(BadSampleError, match="are bad"):
            batches(data, views, DEVICE, 1)


def test_images_that_shrink_much_are_cropped_on_the_cpu(
    tmp_path: Path, on_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are parts of a batch; a bad sample of either kind shows one of the other."""
    views, stored = [ViewSpec(TURNED)], samples()
    for k in (2, 3):
        stored[k] = (b"\xff\xd8 no more", *stored[k][1:3], JPG)
    with Beton(write(tmp_path / "x.beton", stored)) as data:
        rows = data.rows(np.arange(5))
        boxes = with_resampling(TURNED.boxes(Keys(0, 1, rows.indices), rows.height, rows.width), DIAGONAL)
        for limit, num in ((0, 0), (7, 3)):
            monkeypatch.setattr(turbo, "_MOST_CROPS", limit)
            assert (plan_windows(rows, [boxes], [SIZE]).places[:, 2] > 0).tolist() == [
                k < num for k in range(5)
            ]
            assert_same(batches(data, views, DEVICE, 5)[0], expected_of(data, views, 5), views)


def test_the_host_never_waits_for_the_device() -> None:
    views, num = (
        [with_resampling(np.array([[40, 40, 20, 20]] * 3), kind) for kind in (ISOTROPIC, DIAGONAL)],
        3,
    )
    views[1][2, 2:4] = 300  # cropped by the CPU
    rows = SampleTable.empty(np.arange(num))
    rows.height[:], rows.width[:] = 900, 800
    with fake_cuda() as cuda:
        assert fused_form(cuda.device) is not None
        windows = DeviceWindows(rows, views, [SIZE, SIZE], Room(), is_pinned=True)
        images = [torch.empty(4, SIZE, SIZE, 3, dtype=torch.uint8, pin_memory=True) for _ in views]
        assert not windows.has_all(0)
        with cuda.watched() as record:
            crops = windows.crop(images, 4, cuda.device)
        assert all(crop.is_cuda and crop.shape == (4, SIZE, SIZE, 3) for crop in crops)
    assert not record.waits and record.kernels == {"vertical_kernel": 2, "horizontal_kernel": 2}


def test_which_loaders_crop_on_the_device() -> None:
    turbo, other = make("turbo"), make("pillow")
    plain, isotropic = (VIEWS["mixed"][k : k + 1] for k in (0, 1))
    with fake_cuda() as cuda:
        assert crops_on_device(turbo, VIEWS["mixed"], cuda.device)
        assert not crops_on_device(turbo, plain, cuda.device)
        assert not crops_on_device(other, isotropic, cuda.device)
        assert not crops_on_device(turbo, isotropic, torch.device("cpu"))
