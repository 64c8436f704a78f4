""".npz files as sources: names, shapes, dtypes, splits and damage."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.readers import arrays
from tests.pipelines.readers import refused, samples

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (10, 8, 6, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, 10)


def read_images(path: Path, **options: Any) -> np.ndarray:
    images = [sample.image for sample in samples(path, **options)]
    assert all(isinstance(image, np.ndarray) and image.flags.c_contiguous for image in images)
    return np.stack(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk", [1, 700, 1 << 22])
def test_an_npz_becomes_a_raw_beton(
    save: Any, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", chunk)
    save(tmp_path / "é 1.npz", images=IMAGES, labels=LABELS, more=np.arange(3))
    source = open_source(str(tmp_path / "é 1.npz"))
    assert (source.mode, source.num_samples, source.class_names) == ("raw", 10, None)
    assert source.notes == ["images from images uint8 [10, 8, 6, 3]", "labels from labels int64 [10]"]
    out = tmp_path / "a.beton"
    write_beton(source.samples(), out, num_samples=10, target=Target(mode=source.mode))
    with Beton(out) as beton:
        assert [beton.read(i) for i in range(10)] == [image.tobytes() for image in IMAGES]
        assert list(beton.labels()) == list(LABELS) and beton.name(7) == f"{out} sample 7 (images[7])"
    assert list(verify(out)) == []


@pytest.mark.parametrize(
    "names",
    [
        "images labels", "x y", "X Y", "data targets", "arr_0 arr_1", "x_train y_train",
        "train_images train_labels",
    ],
)  # fmt: skip
def test_names(names: str, tmp_path: Path) -> None:
    images, labels = names.split()
    arrays: dict[str, Any] = {labels: LABELS, images: IMAGES}
    np.savez(tmp_path / "a.npz", **arrays)
    assert (read_images(tmp_path / "a.npz") == IMAGES).all()
    assert [sample.label for sample in samples(tmp_path / "a.npz")] == list(LABELS)


def test_splits(tmp_path: Path) -> None:
    src = tmp_path / "medmnist.npz"
    parts = {"train": slice(None), "val": slice(3)}
    contents: dict[str, Any] = {f"{name}_images": IMAGES[part] for name, part in parts.items()}
    contents |= {f"{name}_labels": LABELS[part, None] for name, part in parts.items()}
    np.savez(src, **contents)
    with pytest.raises(ValueError, match="has several splits; give --split train or val"):
        open_source(str(src))
    with pytest.raises(ValueError, match="--split test is not among its splits; give --split train or val"):
        open_source(str(src), split="test")
    assert [sample.label for sample in samples(src, split="train")] == list(LABELS)
    assert (read_images(src, split="val") == IMAGES[:3]).all()


def test_shapes(tmp_path: Path) -> None:
    src = tmp_path / "a.npz"
    for given, expected in (
        (IMAGES[..., 0], IMAGES[..., :1].repeat(3, axis=3)),
        (IMAGES[..., :1], IMAGES[..., :1].repeat(3, axis=3)),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES),
        (IMAGES[..., :1].transpose(0, 3, 1, 2), IMAGES[..., :1].repeat(3, axis=3)),
    ):
        np.savez(src, images=np.ascontiguousarray(given))
        assert (read_images(src) == expected).all()
        assert [sample.label for sample in samples(src)] == [-1] * 10
    np.savez(src, images=np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    assert "channels first" in open_source(str(src)).notes[0]


def test_labels_of_other_types(tmp_path: Path) -> None:
    src = tmp_path / "a.npz"
    for dtype in (np.uint8, np.int16, ">i4", np.uint64, bool):
        np.savez(src, images=IMAGES, labels=LABELS.astype(dtype))
        assert [sample.label for sample in samples(src)] == LABELS.astype(dtype).tolist()
    whole = LABELS.astype(np.float32)
    whole[3] = np.nan  # as pandas writes a missing number
    for labels in (whole, np.where(np.isnan(whole), "", LABELS.astype(str))):
        np.savez(src, images=IMAGES, labels=labels)
        expected = [-1 if i == 3 else label for i, label in enumerate(LABELS.tolist())]
        assert [sample.label for sample in samples(src)] == expected


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_labels_that_are_text_are_classes(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_CHUNK_BYTES", chunk)
    numbers = np.arange(10) % 4
    names = np.array(["cow", "été", "ant 7", "bee"])
    for labels in (names[numbers], names[numbers][:, None], np.char.encode(names, "utf-8")[numbers]):
        np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
        source = open_source(str(tmp_path / "a.npz"))
        assert source.class_names == ["ant 7", "bee", "cow", "été"] and not source.warnings
        assert [sample.label for sample in source.samples()] == [(2, 3, 0, 1)[label] for label in numbers]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS + 0.5, "holds 0.5, which is neither a whole number nor a name: no labels; give"),
        (np.array(["1", "ant"] * 5), "holds both numbers and names: no labels; give"),
    ],
)
def test_labels_that_are_none_are_said(labels: np.ndarray, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
    source = open_source(str(tmp_path / "a.npz"))
    assert source.warnings[0].startswith(f"labels {words} ") and source.class_names is None
    assert [sample.label for sample in source.samples()] == [-1] * 10


def test_shards_together_are_the_whole(tmp_path: Path) -> None:
    src = tmp_path / "a.npz"
    np.savez_compressed(src, images=IMAGES, labels=LABELS)
    parts = [sample for i in range(3) for sample in samples(src, shard=(i, 3))]
    assert [part.name for part in parts] == [f"images[{i}]" for i in range(10)]
    assert (np.stack([np.asarray(part.image) for part in parts]) == IMAGES).all()
    assert [part.label for part in parts] == list(LABELS)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"images": IMAGES.astype(np.float32)}, "images float32"),
        ({"images": IMAGES.astype(np.int64)}, "images int64"),
        ({"images": IMAGES[..., [0, 1, 2, 0]]}, "of another shape"),
        ({"images": IMAGES[:, :3]}, "channels may be first or last"),
        ({"images": IMAGES[None]}, "of another shape"),
        ({"images": IMAGES[0, 0]}, "none is images [N, H, W, 3] by its name"),
        ({"images": IMAGES[:0]}, "no pixel"),
        ({"images": np.asfortranarray(IMAGES)}, "Fortran"),
        ({"pictures": IMAGES}, "holds pictures uint8 [10, 8, 6, 3]; none is images"),
        ({}, "holds nothing"),
        (
            {"images": IMAGES, "x": IMAGES},
            "both images uint8 [10, 8, 6, 3] and x uint8 [10, 8, 6, 3] are images",
        ),
        ({"images": IMAGES, "labels": LABELS[:9]}, "labels int64 [9] beside"),
        ({"images": IMAGES, "labels": np.zeros((10, 4), int)}, "labels int64 [10, 4] beside"),
        ({"images": IMAGES, "labels": LABELS.astype(complex)}, "labels complex128 [10]"),
        ({"images": IMAGES, "labels": LABELS.astype(float) - 2}, "labels from -2 to"),
        ({"images": IMAGES, "labels": LABELS - 2}, "labels from -2 to"),
        ({"images": IMAGES, "labels": LABELS + 2**31}, "labels from 2147483648"),
        ({"images": IMAGES, "labels": np.array([{}] * 10)}, "labels holds Python objects"),
        ({"images": np.array([{}] * 10)}, "images holds Python objects"),
    ],
)
def test_what_is_refused(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    src = tmp_path / "a.npz"
    np.savez(src, **given)
    with refused(words, src):
        samples(src)


def test_damaged_files(tmp_path: Path) -> None:
    src = tmp_path / "a.npz"
    np.savez(src, images=IMAGES, labels=LABELS)
    src.write_bytes(src.read_bytes()[:500])
    with refused("no sound .npz", src):
        samples(src)
    with zipfile.ZipFile(src, "w") as archive:
        archive.writestr("images.npy", b"no array")
    with pytest.raises(ValueError, match="images is no array"):
        samples(src)
    with zipfile.ZipFile(src, "w") as archive, archive.open("images.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 9, 9, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"x")
    with pytest.raises(ValueError, match="does not have the length"):
        samples(src)
