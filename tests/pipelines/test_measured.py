"""Data sets of more than 8 bits: what is measured, told and recorded, in folders and in dataset files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

import fastpsl
from fastpsl import cli
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import sidecar_path
from fastpsl.pipelines.datasets import measured
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.decoders.pillow import PillowDecoder
from fastpsl.pipelines.decoders.turbo import TurboDecoder
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.test_depth import by_hand

pytestmark = pytest.mark.usefixtures("cache")
RAMP = np.linspace(0, 4095, 64 * 64).reshape(64, 64)


def scans(root: Path, num: int = 24, dtype: Any = np.uint16) -> tuple[Path, list[np.ndarray]]:
    """Write TIFFs of a gradient from 0 to 4,095, each moved by some pixels, in two classes."""
    images = [np.roll(RAMP, 5 * i).astype(dtype) for i in range(num)]
    for i, image in enumerate(images):
        path = root / ("a" if i < num / 2 else "b") / f"{i:02}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, byteorder=">" if i % 2 else "<")
    return root, images


def opened(source: Path | str, reading: Reading = PLAIN, reading_of: str = "") -> Any:
    return open_data(source, reading=reading, reading_of=reading_of)


def pixels(data: Dataset, decoder: str = "pillow") -> np.ndarray:
    """Return all images, uint8 [N, 64, 64, 3]."""
    num = data.num_samples
    out = np.empty((num, 64, 64, 3), np.uint8)
    boxes = np.tile(np.array([0, 0, 64, 64, 0], np.int32), (num, 1))
    codes = (TurboDecoder() if decoder == "turbo" else PillowDecoder()).decode(
        data.rows(np.arange(num)), [boxes], [out]
    )
    assert not codes.any()
    return out


def write(*words: object) -> None:
    cli.main(["data", "write", *map(str, words)])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("option", ["auto", "0:4095", "-50:3000.5"])
def test_folder_and_dataset_file_have_the_same_pixels(tmp_path: Path, option: str) -> None:
    root, images = scans(tmp_path / "scans")
    low, high = (0, 4095) if option == "auto" else map(float, option.split(":"))
    if high < 4095:
        with pytest.warns(UserWarning, match=r"24 of 24 images looked at have values outside of --range -50"):
            folder = opened(root, reading=Reading.of(option))
    else:
        folder = opened(root, reading=Reading.of(option))
    expected = np.stack([by_hand(image, low, high) for image in images])
    assert folder.reading == Reading((low, high))
    for decoder in ("pillow", "turbo"):
        np.testing.assert_array_equal(pixels(folder, decoder), expected)
    write(root, tmp_path / "x.beton", "--range", option, "--mode", "raw")
    with Beton(tmp_path / "x.beton") as beton:
        np.testing.assert_array_equal(pixels(beton), expected)
        assert beton.reading == folder.reading
    record = json.loads(sidecar_path(tmp_path / "x.beton").read_text())["written"]
    assert record["range"] == ("0:4095" if option == "auto" else option)
    assert record["num_clipped"] == 24 * (high < 4095)
    assert record["num_clipped_values"] == sum(int((image > high).sum()) for image in images)
    folder.close()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_auto_measures_values_of_any_type(tmp_path: Path, dtype: Any) -> None:
    root, images = scans(tmp_path / "scans", 4, dtype)
    for image, path in zip(images, sorted(root.rglob("*.tif")), strict=True):
        tifffile.imwrite(path, image - dtype(100))
    with opened(root, reading=Reading.of("auto")) as data:
        assert data.reading == Reading((-100, 3995))
        np.testing.assert_array_equal(pixels(data)[1], by_hand(images[1], 0, 4095))


def test_a_normalised_12_bit_image_has_a_std_of_about_one(tmp_path: Path) -> None:
    root, _ = scans(tmp_path / "scans")
    with pytest.warns(UserWarning, match="nearly black; give range auto, or range 0:4095") as told:
        dark = fastpsl.loader(root, batch_size=24, train=False, size_px=64)
    assert len(told) == 1
    write(root, tmp_path / "x.beton", "--range", "auto")
    std = []
    for loader in (
        dark,
        fastpsl.loader(root, batch_size=24, train=False, size_px=64, range="auto"),
        fastpsl.loader(root, batch_size=24, train=False, size_px=64, range=(0, 4095)),
        fastpsl.loader(tmp_path / "x.beton", batch_size=24, train=False, size_px=64),
    ):
        with loader:
            std += [float(inputs.std()) for inputs, _ in loader]
    assert std[0] < 0.16 and all(0.9 < each < 1.2 for each in std[1:]) and std[1] == std[2]


def test_a_measurement_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, images = scans(tmp_path / "scans")
    monkeypatch.setattr(measured, "NUM_MEASURED", 7)
    monkeypatch.setattr("fastpsl.pipelines.datasets.open_folder.NUM_MEASURED", 7)
    looked, look = [], measured.look_at_values

    def counting(*given: object) -> object:
        looked.append(given)
        return look(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(measured, "look_at_values", counting)
    tifffile.imwrite(root / "a" / "01.tif", images[1] + 1000)  # not among those that are spread
    for _ in range(2):
        with opened(root, reading=Reading.of("auto")) as data:
            assert data.reading == Reading((0, 4095)) and len(looked) == 7
    (kept,) = (tmp_path / "cache").rglob("values.json")
    assert len(json.loads(kept.read_text())["deep"]) == 7
    kept.write_text("{")  # as after a crash
    tifffile.imwrite(root / "a" / "00.tif", images[0] + 500)
    with opened(root, reading=Reading.of("auto")) as data:
        assert data.reading == Reading((0, 4595)) and len(looked) == 14


def test_images_of_8_bits_need_no_range(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(photo(i, 64, 64)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.jpg").write_bytes(jpeg(photo(3, 64, 64)))
    with opened(tmp_path) as plain, opened(tmp_path, reading=Reading((0, 9))) as scaled:
        np.testing.assert_array_equal(pixels(plain), pixels(scaled))
    with pytest.raises(ValueError, match="--range auto, and none of 4 images looked at has more than 8 bits"):
        opened(tmp_path, reading=Reading.of("auto"))


@pytest.mark.parametrize(("largest", "is_told"), [(4095, True), (16383, True), (16384, False)])
@pytest.mark.parametrize("kind", ["png", "colours", "pgm"])
def test_dark_images_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], largest: int, is_told: bool, kind: str
) -> None:
    image = np.linspace(0, largest, 64 * 64).reshape(64, 64).astype(np.uint16)
    (tmp_path / "d").mkdir()
    if kind == "pgm":  # which says its largest value
        (tmp_path / "d" / "0.pgm").write_bytes(b"P5\n64 64\n%d\n" % largest + image.astype(">u2").tobytes())
        is_told = False
    elif kind == "colours":
        tifffile.imwrite(tmp_path / "d" / "0.tif", np.dstack([image] * 3), photometric="rgb")
    else:
        Image.fromarray(image).save(tmp_path / "d" / "0.png")
    line = f"values 0 to {largest:,} and are read as 0 to 65,535, nearly black; "
    line += f"give --range auto, or --range 0:{largest}"
    if is_told:
        with pytest.warns(UserWarning, match=line):
            opened(tmp_path / "d").close()
    else:
        opened(tmp_path / "d").close()
    write(tmp_path / "d", tmp_path / "d.beton")
    assert (line in capsys.readouterr().err) == is_told
    write(tmp_path / "d", tmp_path / "e.beton", "--dry-run")
    assert (line in capsys.readouterr().err) == is_told


def test_a_dataset_file_has_its_own_range(tmp_path: Path) -> None:
    root, _ = scans(tmp_path / "scans", 4)
    path = tmp_path / "x.beton"
    write(root, path, "--range", "0:4095")
    for reading in (PLAIN, Reading((0, 4095)), Reading.of("auto")):
        with opened(path, reading=reading) as data:
            assert data.reading == Reading((0, 4095))
    with pytest.raises(ValueError, match="was written with --range 0:4095, so --range 0:1 comes too late"):
        opened(path, reading=Reading((0, 1)))
    with pytest.warns(UserWarning, match="was written with --range 0:4095, the run had --range 0:1"):
        opened(path, reading=Reading((0, 1)), reading_of="the run").close()
    write(root, tmp_path / "plain.beton", "--mode", "raw")
    with pytest.raises(ValueError, match="was written without --range and --bands, so --range 0:1 comes"):
        opened(tmp_path / "plain.beton", reading=Reading((0, 1)))
    other, _ = scans(tmp_path / "other", 4)
    write(other, tmp_path / "y.beton", "--range", "0:2000")
    with pytest.raises(
        ValueError, match=r"y\.beton: was written with --range 0:2000, .*x\.beton with --range"
    ):
        opened(str(tmp_path / "[xy].beton"))
    sidecar_path(path).unlink()
    with opened(path, reading=Reading((0, 1))) as data:
        assert data.reading == Reading((0, 1))  # the user knows it
    with pytest.raises(ValueError, match="so --range auto comes too late"):
        opened(path, reading=Reading.of("auto"))


def test_appended_images_and_shards_have_one_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, images = scans(tmp_path / "scans", 4)
    more, _ = scans(tmp_path / "more", 4)
    write(root, tmp_path / "x.beton", "--range", "0:2000", "--mode", "raw")
    cli.main(["data", "append", str(more), str(tmp_path / "x.beton")])
    with Beton(tmp_path / "x.more-00001.beton") as beton:
        np.testing.assert_array_equal(pixels(beton)[0], by_hand(images[0], 0, 2000))
    for i, limits in ((0, "0:2000"), (1, "0:4095")):
        write(root, tmp_path / f"s-{i}.beton", "--shard", f"{i}/2", "--range", limits)
    with pytest.raises(
        ValueError, match=r"s-1\.beton: was written with --range 0:4095, .* with --range 0:2000"
    ):
        opened(str(tmp_path / "s-*.beton"))
    with pytest.raises(SystemExit):
        write(root, tmp_path / "s.beton", "--shard", "0/2", "--range", "auto")
    assert "each would measure its own; give LOW:HIGH" in capsys.readouterr().err


def test_other_pixels_are_other_data(tmp_path: Path) -> None:
    root, _ = scans(tmp_path / "scans", 4)
    with (
        opened(root, reading=Reading.of("auto")) as one,
        opened(root, reading=Reading((0, 4095))) as same,
    ):
        assert one.digest() == same.digest()
        with pytest.warns(UserWarning), opened(root) as other:
            assert other.digest() != one.digest()


def test_an_open_data_set_takes_no_range(tmp_path: Path) -> None:
    root, _ = scans(tmp_path / "scans", 4)
    data = opened(root, reading=Reading.of("auto"))
    with pytest.raises(ValueError, match="range or bands were given for an open data set"):
        fastpsl.loader(data, batch_size=2, range="auto")
    data.close()


def test_bands_are_chosen_in_folders_and_dataset_files_alike(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    images = [np.stack([np.roll(RAMP, 9 * band + i) * (band + 1) for band in range(4)], 2) for i in range(3)]
    for i, image in enumerate(images):
        tifffile.imwrite(
            tmp_path / "d" / f"{i}.tif",
            image.astype(np.uint16),
            photometric="minisblack",
            planarconfig="contig",
        )
    eight = photo(3, 64, 64)
    Image.fromarray(eight).save(tmp_path / "d" / "3.png")
    with pytest.warns(UserWarning, match="3 of 4 .* a TIFF of 4 bands of uint16; choose one or three"):
        opened(tmp_path / "d").close()
    write(tmp_path / "d", tmp_path / "x.beton", "--range", "auto", "--bands", "3,2,1", "--mode", "raw")
    values = [image.astype(np.uint16)[..., [2, 1, 0]] for image in images]
    expected = [by_hand(each, 0, float(np.max(values))) for each in values] + [eight[..., ::-1]]
    with opened(tmp_path / "d", Reading.of("auto", "3,2,1")) as folder, opened(tmp_path / "x.beton") as beton:
        assert folder.reading == beton.reading == Reading((0, 3 * 4095), (3, 2, 1))
        for data in (folder, beton):
            np.testing.assert_array_equal(pixels(data), np.stack(expected))
    record = json.loads(sidecar_path(tmp_path / "x.beton").read_text())["written"]
    assert (record["range"], record["bands"]) == ("0:12285", "3,2,1")


@pytest.mark.parametrize("decoder", ["pillow", "turbo"])
def test_bands_of_jpegs_are_chosen_too(tmp_path: Path, decoder: str) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(photo(0, 64, 64)))
    with opened(tmp_path) as plain, opened(tmp_path, Reading(bands=(3, 2, 1))) as swapped:
        np.testing.assert_array_equal(pixels(swapped, decoder), pixels(plain)[..., ::-1])
