"""Packed coefficients: by their definition in plain loops, by libjpeg, and in what reads dataset files."""

import ctypes
import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.cli import main
from fastpsl.models.checkpoint import read_checkpoint
from fastpsl.pipelines.beton import encode
from fastpsl.pipelines.beton.encode import Stored, Target, convert, store_array
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import COEFFICIENTS
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.choose import choose_decoder, open_decoder, reason_of
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.codec import Codec
from fastpsl.pipelines.image.coefficients import OtherVersion, to_jpeg
from fastpsl.pipelines.image.jpeg import jpeg_header
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.readers import dataset_files
from tests.cli import Cli
from tests.faults.mutations import mutated
from tests.pipelines import interrupted
from tests.pipelines.decoding import Samples, decode, make, whole
from tests.pipelines.jpeg_kinds import KINDS, Kind, coefficients
from tests.pipelines.jpeg_kinds import whole as whole_jpeg
from tests.pipelines.photos import JPG, exif, jpeg, photo, pil_decode, write
from tests.pipelines.test_turbo import check_part

pytestmark = pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")

SIZES = [(1, 1), (7, 9), (33, 17), (64, 48), (120, 211)]
PACK = Target(mode="coefficients")
# T.81, figure A.6: by diagonals, up and down in turn.
ZIGZAG = sorted(range(64), key=lambda k: (k // 8 + k % 8, k // 8 if (k // 8 + k % 8) % 2 else k % 8))
NUM_KINDS = 0 if libturbo.why_missing() else libturbo.library().fastpsl_unpack_best() + 1


@pytest.fixture(params=range(NUM_KINDS))
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Take the decoder in plain C, with AVX2 and with AVX-512 in turn, as far as this machine has them."""
    kind = ctypes.c_int.in_dll(libturbo.library(), "fastpsl_unpack_kind")
    kind.value = request.param
    yield
    kind.value = -1


def jpeg_of(sample: bytes) -> bytes:
    """Return the JPEG of packed coefficients, of the size that they tell."""
    _, height, width, *_ = jpeg_header(sample, len(sample))
    return to_jpeg(sample, height, width)


def pack(data: bytes) -> bytes:
    sample = Codec().pack(data)
    assert sample
    return sample


def nibbles(values: list[int]) -> bytes:
    """Return two nibbles a byte, the first one lower."""
    values = values + [0] * (len(values) % 2)
    return bytes(low | high << 4 for low, high in zip(values[::2], values[1::2], strict=True))


def packed(segments: bytes, rows: list[list[tuple[int, np.ndarray | None]]]) -> bytes:
    """Pack blocks by the words of coefficients.h.

    A row of MCUs has the component of each block and its coefficients in natural order, or None for a filler.
    """
    heads, masks, values, extras, escapes, wides = (list[int]() for _ in range(6))
    table = b""
    for row in rows:
        table += struct.pack("<5I", len(masks), len(values), len(extras), len(escapes), len(wides))
        before = [0, 0, 0]
        for component, block in row:
            if block is None:
                heads.append(0)
                continue
            difference, before[component] = int(block[0]) - before[component], int(block[0])
            ordered = [int(block[k]) for k in ZIGZAG[1:]]
            num = max((i // 4 + 1 for i, value in enumerate(ordered) if value), default=0)
            num = 16 if num == 15 else num
            masks += [
                sum((i < 63 and ordered[i] != 0) << i % 4 for i in range(4 * k, 4 * k + 4))
                for k in range(num)
            ]
            heads.append(min(num, 15) | (difference & 15 if -7 <= difference <= 7 else 8) << 4)
            if not -7 <= difference <= 7:
                escapes.append(difference if -127 <= difference <= 127 else -128)
                wides += [difference] if escapes[-1] == -128 else []
            for value in filter(None, ordered):
                size, sign = abs(value), 8 * (value < 0)
                values.append(size + sign if size < 7 else 7 + sign if size < 23 else 0 if size < 128 else 8)
                extras += [size - 7] if 7 <= size < 23 else []
                escapes += [value] if 23 <= size < 128 else []
                wides += [value] if size >= 128 else []
    table += struct.pack("<5I", len(masks), len(values), len(extras), len(escapes), len(wides))
    parts = [
        segments, struct.pack("<2I", 1, len(rows)), table, bytes(heads), nibbles(masks), nibbles(values),
        nibbles(extras), struct.pack(f"<{len(escapes)}b", *escapes), struct.pack(f"<{len(wides)}h", *wides),
    ]  # fmt: skip
    sample = b""
    for i, part in enumerate(parts):
        # The table follows the prologue at a multiple of 16, and so does each stream.
        sample += bytes(-len(sample) % 16) + part
        assert i or len(sample) == len(segments)
    return sample


def random_rows(height: int, width: int, seed: int) -> list[list[tuple[int, np.ndarray | None]]]:
    """Return blocks of a 4:2:0 image with values of all sizes, some blocks full and some empty."""
    random = np.random.default_rng(seed)
    edges = np.array([0, 0, 0, 1, 2, 6, 7, 8, 22, 23, 24, 127, 128, 129, 1023])
    rows = []
    for y in range(-(-height // 16)):
        row = list[tuple[int, np.ndarray | None]]()
        for x in range(-(-width // 16)):
            for component, down, across in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (2, 0, 0)]:
                is_luma = component == 0
                is_there = not is_luma or (2 * y + down < -(-height // 8) and 2 * x + across < -(-width // 8))
                block = random.choice(edges, 64) * random.choice([-1, 1], 64)
                block[ZIGZAG[int(random.integers(1, 65)) :]] = 0  # nothing behind
                block[0] = random.choice([-1024, -1000, -130, -8, -7, 0, 1, 7, 8, 120, 127, 128, 1023])
                row.append((component, block if is_there else None))
        rows.append(row)
    return rows


@pytest.mark.parametrize("size", [(16, 16), (40, 50), (130, 33)])
def test_packing_is_that_of_the_definition(size: tuple[int, int], processor: None) -> None:
    segments_of = pack(jpeg(photo(0, *size), subsampling="4:2:0"))
    segments = segments_of[: segments_of.index(b"\xff\xda") + 14]
    for seed in range(3):
        rows = random_rows(*size, seed)
        sample = packed(segments, rows)
        data = jpeg_of(sample)
        assert Codec().pack(data) == sample
        _, found = coefficients(data, size[0] * size[1])
        expected = [block for c in range(3) for block in placed(rows, c, *size)]
        np.testing.assert_array_equal(found, expected)
        check_part(sample, size, 1, (0, 0, *size), whole_jpeg(data, *size), is_packed=True)


def placed(
    rows: list[list[tuple[int, np.ndarray | None]]], component: int, height: int, width: int
) -> list[np.ndarray]:
    """Return the blocks of a component of a 4:2:0 image, row by row."""
    found = []
    factor = 1 if component else 2
    for y in range(-(-height // (8 if factor == 2 else 16))):
        for x in range(-(-width // (8 if factor == 2 else 16))):
            own = [block for c, block in rows[y // factor] if c == component]
            block = own[x // factor * factor**2 + y % factor * factor + x % factor]
            assert block is not None
            found.append(block)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_jpeg_is_packed_without_loss(kind: str, processor: None) -> None:
    """Parts at 1/1 to 1/8 are bit for bit those of the JPEG, and so is the JPEG that is made again."""
    image, random = photo(3, 120, 211), np.random.default_rng(0)
    for height, width in SIZES:
        data = KINDS[kind].encode(image[:height, :width])
        sample = pack(data)
        again = jpeg_of(sample)
        for one, other in zip(
            coefficients(again, height * width), coefficients(data, height * width), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(pil_decode(again), pil_decode(data))
        for denominator in (1, 2, 4, 8):
            expected = whole_jpeg(data, height, width, denominator)
            rows, columns = expected.shape[:2]
            top, left = int(random.integers(rows)), int(random.integers(columns))
            tall, wide = int(random.integers(1, rows - top + 1)), int(random.integers(1, columns - left + 1))
            for region in ((0, 0, rows, columns), (top, left, tall, wide)):
                check_part(sample, (height, width), denominator, region, expected, is_packed=True)


def test_what_is_kept_and_what_is_encoded() -> None:
    """A JPEG keeps its coefficients where nothing else is wanted; others are packed after their encoding."""
    image = photo(0, 60, 80)
    progressive, plain = jpeg(image, progressive=True), jpeg(image)
    for data, target, how, expected in [
        (plain, PACK, "passed", pil_decode(plain)),
        (progressive, PACK, "passed", pil_decode(progressive)),
        (jpeg(image[..., 0]), PACK, "passed", pil_decode(jpeg(image[..., 0]))),
        (jpeg(image, restart_marker_blocks=2), PACK, "passed", pil_decode(plain)),
        (jpeg(image, exif=exif(6)), PACK, "encoded", None),
        (plain, Target(mode="coefficients", short_side=30), "encoded", None),
        (jpeg(image, quality=100), Target(mode="coefficients", reencode="all"), "encoded", None),
        (plain[:-2] + bytes(20) + plain[-2:], PACK, "mended", None),
    ]:
        stored = convert(data, target)
        assert (stored.mode, stored.how) == (COEFFICIENTS, how)
        as_jpeg = convert(data, Target(short_side=target.short_side, reencode=target.reencode))
        np.testing.assert_array_equal(
            pil_decode(jpeg_of(stored.data)), pil_decode(as_jpeg.data) if expected is None else expected
        )
    stored = store_array(image, PACK)
    assert (stored.mode, jpeg_of(stored.data)) == (COEFFICIENTS, jpeg_of(pack(plain)))


def test_what_does_not_fit_stays_a_jpeg() -> None:
    """Coefficients that no usual JPEG has, and progressive JPEGs that lack scans."""
    sample = pack(jpeg(photo(0, 16, 16), subsampling="4:2:0"))
    segments, ((_, *others),) = sample[: sample.index(b"\xff\xda") + 14], random_rows(16, 16, 0)
    for dc in (1024, -1025):
        block = np.array([dc, *[0] * 63])
        data = jpeg_of(packed(segments, [[(0, block), *others]]))
        assert Codec().pack(data) is None
        assert convert(data, PACK) == Stored(data, 16, 16, JPG, "passed")
    block = np.array([0, 1024, *[0] * 62])
    with pytest.raises(BadImage, match="damaged"):  # no JPEG has it
        jpeg_of(packed(segments, [[(0, block), *others]]))
    # 18 blocks are too many for an MCU of all components.
    large = Kind(((3, 2), (3, 2), (3, 2)), is_interleaved=False).encode(photo(0, 60, 80))
    assert Codec().pack(large) is None and convert(large, PACK).mode == JPG
    # Without the last component's scan, libjpeg has no tables for it.
    apart = KINDS["4:2:0 a scan a component"].encode(photo(0, 60, 80))
    assert Codec().pack(apart[: apart.rindex(b"\xff\xda")] + b"\xff\xd9") is None
    progressive = jpeg(photo(0, 60, 80), progressive=True)
    scans = [i for i in range(len(progressive)) if progressive[i : i + 2] == b"\xff\xda"]
    incomplete = progressive[: scans[3]] + b"\xff\xd9"
    assert Codec().pack(progressive) and Codec().pack(incomplete) is None
    assert convert(incomplete, PACK).how == "encoded"


@pytest.mark.parametrize("name", ["turbo", "pillow"])
def test_crops_are_those_of_the_jpeg(name: str, tmp_path: Path) -> None:
    images = [photo(i, 90 + i, 130 - i) for i in range(6)]
    jpegs = [jpeg(image, subsampling=i % 3) for i, image in enumerate(images)]
    jpegs[3] = jpeg(images[3][..., 0])
    sides = [image.shape[:2] for image in images]
    stored = [convert(data, PACK).data for data in jpegs]
    random = np.random.default_rng(0)
    heights, widths = random.integers(1, 90, (2, 6))
    boxes = np.stack([random.integers(0, 91 - heights), random.integers(0, 91 - widths), heights, widths], 1)
    results = []
    for mode, samples in ((JPG, jpegs), (COEFFICIENTS, stored)):
        table = [(data, *size, mode) for data, size in zip(samples, sides, strict=True)]
        rows = Samples(tmp_path / str(mode), table).rows
        status, outs = decode(make(name), rows, [boxes, whole(rows)], [40, 11])
        assert not status.any()
        results.append(outs)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["turbo", "pillow"])
def test_damaged_coefficients_are_told(name: str, tmp_path: Path, processor: None) -> None:
    """Each cut, and flips by seed, give the image or a code; a good sample beside it stays good."""
    image = photo(0, 40, 56)
    good, random = pack(jpeg(image)), Random(0)
    bad = [good[:stop] for stop in range(0, len(good), 37)] + [mutated(good, random) for _ in range(300)]
    table = [(data, 40, 56, COEFFICIENTS) for item in bad for data in (item, good)]
    rows = Samples(tmp_path / "samples", table).rows
    status, (out,) = decode(make(name), rows, [whole(rows)], [40])
    assert not status[1::2].any() and (out[1::2] == out[1]).all()
    # What is whole and what is cut is good and bad whatever the flips are.
    assert status[: 2 * len(range(0, len(good), 37)) : 2].all()
    assert all(reason_of(int(status[i]), rows, i) for i in np.flatnonzero(status).tolist())


def test_a_damaged_sample_is_named(cwd: Path, cli: Cli) -> None:
    good = pack(jpeg(photo(0, 40, 56)))
    samples = [(good, 40, 56), (good[:-9], 40, 56), (good, 41, 56), (good, 40, 56)]
    path = write(cwd / "a.beton", [(*sample, COEFFICIENTS) for sample in samples])
    code, out, _ = cli("data", "verify", path)
    assert code == 2 and "sample 1: packed coefficients that are damaged" in out
    assert "sample 2: a JPEG of 56 x 40 px, 56 x 41 by the table" in out and "sample 3" not in out
    with Beton(path) as data:
        for index in (1, 2):
            with pytest.raises(ValueError, match=f"sample {index}: packed coefficients that are damaged"):
                data.read(index)
    code, _, err = cli("data", "write", path, "b.beton", "--max-bad", 2)
    assert code == 0, err
    assert (cwd / "b.beton.bad.csv").read_text().count("packed coefficients that are damaged") == 2
    with Beton(cwd / "b.beton") as data:
        assert (data.num_samples, data.is_packed) == (2, True)


@pytest.mark.parametrize("name", ["turbo", "pillow"])
def test_a_row_ends_where_the_table_says(name: str, tmp_path: Path, processor: None) -> None:
    sample = pack(jpeg(photo(0, 32, 16), subsampling="4:2:0"))
    table = -(-(sample.index(b"\xff\xda") + 14) // 16) * 16 + 16
    for stream, change in itertools.product(range(5), (-1, 1)):
        changed = bytearray(sample)
        at = table + 20 + 4 * stream  # where the second row of MCUs begins
        value = int.from_bytes(changed[at : at + 4], "little") + change
        if value >= 0:
            changed[at : at + 4] = value.to_bytes(4, "little")
            rows = Samples(tmp_path / "samples", [(bytes(changed), 32, 16, COEFFICIENTS)]).rows
            assert decode(make(name), rows, [whole(rows)], [8])[0].tolist() == [codes.CORRUPT], stream


def test_another_version_is_refused_by_name(tmp_path: Path, cli: Cli) -> None:
    sample = pack(jpeg(photo(0, 40, 56)))
    at = -(-(sample.index(b"\xff\xda") + 14) // 16) * 16
    assert sample[at : at + 4] == bytes([1, 0, 0, 0])
    other = sample[:at] + bytes([7]) + sample[at + 1 :]
    with pytest.raises(OtherVersion, match="version 7 of their layout, and this fastpsl reads 1"):
        jpeg_of(other)
    rows = Samples(tmp_path / "samples", [(other, 40, 56, COEFFICIENTS)]).rows
    for name in ("turbo", "pillow"):
        status, _ = decode(make(name), rows, [whole(rows)], [8])
        assert status.tolist() == [codes.OTHER_VERSION]
    path = write(tmp_path / "a.beton", [(other, 40, 56, COEFFICIENTS)])
    code, out, _ = cli("data", "verify", path)
    assert code == 2 and "version 7" in out


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return a folder of JPEGs and a PNG in two classes, and dataset files of it: JPEGs and coefficients."""
    root = tmp_path_factory.mktemp("coefficients")
    for i in range(24):
        (root / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        image, name = photo(i, 50 + i, 64), root / "photos" / f"class{i % 2}" / f"{i:02}"
        if i == 5:
            Image.fromarray(image).save(f"{name}.png")
        else:
            Path(f"{name}.jpg").write_bytes(jpeg(image, progressive=i % 3 == 0, subsampling=i % 3))
    for mode in ("jpg", "coefficients"):
        main(["data", "write", str(root / "photos"), str(root / f"{mode}.beton"), "--mode", mode])
    return root / "photos", root / "jpg.beton", root / "coefficients.beton"


def images_of(path: Path) -> list[np.ndarray]:
    with Beton(path) as data:
        return [pil_decode(data.read(i)) for i in range(len(data))]


def test_dataset_files_go_both_ways(
    betons: tuple[Path, Path, Path], cwd: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, jpg, coefficients = betons
    monkeypatch.setattr(dataset_files, "_CHUNK", 7)  # the tables are read in several parts
    code, out, _ = cli("data", "info", coefficients)
    assert code == 0 and "0 JPEG, 0 raw, 24 packed coefficients, which ffcv cannot read" in out
    assert "all sound" in cli("data", "verify", coefficients).out
    # Progressive JPEGs are encoded anew as JPEGs, so they alone may differ.
    originals = [pil_decode(path.read_bytes()) for path in sorted(photos.rglob("*.jpg"))]
    kept = [image for i, image in enumerate(images_of(coefficients)) if i != 14]
    for one, other in zip(kept, originals, strict=True):
        np.testing.assert_array_equal(one, other)
    for source, mode in ((coefficients, "jpg"), (jpg, "coefficients"), (coefficients, "coefficients")):
        code, out, err = cli("data", "write", source, "again.beton", "--mode", mode, "--overwrite")
        assert code == 0, err
        assert ("24 packed coefficients, 0 kept as JPEGs" in out) == (mode == "coefficients")
        for one, other in zip(images_of(Path("again.beton")), images_of(source), strict=True):
            np.testing.assert_array_equal(one, other)
        with Beton("again.beton") as written, Beton(source) as before:
            assert list(written.names()) == list(before.names())
            assert (written.labels() == before.labels()).all()
            assert written.class_names == before.class_names
    code, out, _ = cli("data", "write", coefficients, "x.beton", "--mode", "coefficients", "--dry-run")
    assert code == 0 and "24 of them as packed coefficients" in out
    code, out, err = cli("data", "append", photos, "again.beton")
    assert code == 0 and "24 packed coefficients, 0 kept" in out, err
    code, _, err = cli("data", "write", jpg, "s.beton", "--mode", "coefficients", "--shard-mb", 16)
    assert code == 0 and images_of(Path("s-00000-of-00001.beton"))[3].shape == images_of(jpg)[3].shape
    code, _, err = cli("data", "show", coefficients, "--out", "sheet.png", "--num", 4)
    assert code == 0 and Path("sheet.png").exists(), err
    monkeypatch.setattr(encode, "why_missing", lambda: "no compiler")
    code, _, err = cli("data", "write", photos, "y.beton", "--mode", "coefficients")
    assert code == 2 and "--mode coefficients: no compiler" in err and "or give --mode jpg" in err


@pytest.mark.usefixtures("often")
def test_an_interrupted_packing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_file, out = tmp_path / "whole" / "a.beton", tmp_path / "out" / "a.beton"
    target = Target(mode="coefficients", min_px=20)
    for path in (whole_file, out):
        path.parent.mkdir()
    report = interrupted.write(whole_file, target=target)
    assert (report.num_coefficients, report.num_samples) == (10, 10)
    with monkeypatch.context() as patch:
        interrupted.interrupt_at(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            interrupted.write(out, target=target)
    report = interrupted.write(out, target=target, resume=True)
    assert (report.num_coefficients, report.num_before) == (10, 6)
    assert interrupted.files(out.parent) == interrupted.files(whole_file.parent)


def test_all_commands_see_the_same_pixels(betons: tuple[Path, Path, Path], cwd: Path, cli: Cli) -> None:
    """What reads DATA does so with coefficients as with the JPEGs that are made of them."""
    assert cli("data", "write", betons[2], "jpg.beton", "--mode", "jpg").code == 0
    cpu = ("--device", "cpu", "--workers", 1)
    found = []
    for data in (betons[2], "jpg.beton"):
        run = f"run-{Path(data).stem}"
        both = ("--data", data, "--val", data)
        for words in (
            ("train", "simclr", *both, "--backbone", "resnet18", "--size-px", 32, "--epochs", 1,
             "--batch-size", 8, "--plan", "end_to_end", "--no-tensorboard", *cpu, "--out", run),
            ("replay", run, "--step", 1, "--out", f"{run}-replay"),
            ("eval", "knn", run, *both, "--no-floor", *cpu, "--out", f"{run}-knn"),
            ("eval", "linear", run, *both, "--epochs", 1, "--batch-size", 8, *cpu, "--out", f"{run}-linear"),
            ("eval", "few-labels", run, *both, "--labels-per-class", 2, "--no-floor", *cpu,
             "--out", f"{run}-few"),
            ("retrieve", run, "--queries", data, *cpu, "--out", f"{run}-near"),
            ("tsne", run, "--data", data, *cpu, "--out", f"{run}-map"),
            ("features", run, "--data", data, *cpu, "--out", f"{run}-features.npy"),
            ("labels", "k-means", "--data", data, "--num-clusters", 2, "--pca-width", 8,
             "--out", f"{run}-labels.npz"),
        ):  # fmt: skip
            code, _, err = cli(*words)
            assert code == 0, err
        code, _, err = cli("eval", "detect", run, "--data", data, "--device", "cpu", "--out", f"{run}-detect")
        assert code == 2 and "no folder of PASCAL VOC" in err
        weights = read_checkpoint(Path(run) / "checkpoints" / "step-00000003.pt")["backbone"]
        numbers = [
            json.loads((Path(f"{run}-{name}") / "result.json").read_text()).get("numbers")
            for name in ("knn", "linear", "few", "near", "map")
        ]
        found.append(
            (weights, numbers, np.load(f"{run}-features.npy"), np.load(f"{run}-labels.npz")["labels"])
        )
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])
    assert found[0][1] == found[1][1] and all(found[0][1])
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_decoders_that_cannot_read_them_are_refused(betons: tuple[Path, Path, Path]) -> None:
    cpu, gpu = torch.device("cpu"), SimpleNamespace(type="cuda")
    with Beton(betons[2]) as data:
        for device in (cpu, gpu):
            name, why = choose_decoder("auto", data, device, num_threads=1)  # type: ignore[arg-type]
            assert (name, why) == ("turbo", "it unpacks coefficients")
        for name in ("ffcv", "dali"):
            with pytest.raises(ValueError, match=f"decoder '{name}' does not read .* --mode jpg"):
                choose_decoder(name, data, cpu)
        with pytest.raises(ValueError, match="some images are JPEGs or their coefficients; use turbo"):
            open_decoder("resident", data)
