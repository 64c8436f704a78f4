"""Splits of the public sets: their committed lists, near duplicates, and the dataset files made of them."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.evidence import splits
from bench.evidence.data import of_split
from bench.evidence.splits import HELD_OUT, SEARCH, SETS, TRAIN, Set, near_duplicates, perceptual_hash
from fastpsl.pipelines.beton.sidecar import read_sidecar
from tests.pipelines.published_files import random_images

SIZES = {"scenes": (14034, 3000, 6), "clothes": (3068, 372, 10), "satellite": (2100, 700, 7),
         "steel": (1440, 360, 6)}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_committed_list_has_each_image_once_and_its_record_its_numbers(name: str) -> None:
    lines = splits.read(name)
    sizes, classes = Counter(line.part for line in lines), {line.label for line in lines}
    assert (sizes[TRAIN] + sizes[SEARCH], sizes[HELD_OUT], len(classes)) == SIZES[name]
    assert len({line.path for line in lines}) == len(lines)
    record = json.loads((splits.FOLDER / "splits.json").read_text())[name]
    assert record["images"] == sizes and record["classes"] == len(classes)
    of_train = Counter(line.label for line in lines if line.part != HELD_OUT)
    assert Counter(line.label for line in lines if line.part == SEARCH) == {
        label: num // 5 for label, num in of_train.items()
    }


def test_a_hash_is_near_that_of_another_size_and_quality_and_far_from_other_images(tmp_path: Path) -> None:
    hashes = []
    for number in range(3):
        small = Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8))
        image = small.resize((160, 120), Image.Resampling.BICUBIC)
        image.save(tmp_path / "a.jpg", quality=95)
        image.resize((96, 72)).save(tmp_path / "b.jpg", quality=50)
        first, second = (perceptual_hash(tmp_path / name) for name in ("a.jpg", "b.jpg"))
        assert (first ^ second).sum() <= splits.NEAR
        hashes.append(first)
    assert all((one ^ other).sum() > 16 for one, other in pairwise(hashes))
    numbers = {TRAIN: [0b0, 0xFFFF], SEARCH: [0xFFFF << 40], HELD_OUT: [0b111111, 0b1111111, (1 << 64) - 1]}
    parts = {
        part: [np.array([number >> bit & 1 for bit in range(64)], bool) for number in of_part]
        for part, of_part in numbers.items()
    }
    assert near_duplicates(parts) == {
        "held-out in train": 1, "held-out in search": 0, "search in train": 0,
    }  # fmt: skip


def test_a_split_is_written_as_listed_and_another_image_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, few = tmp_path / "source", tmp_path / "out", tmp_path / "few"
    for number, image in enumerate(random_images(30, 48)):
        path = source / "root" / ("oGrass", "pField")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (source / "lite0.pth").write_bytes(b"weights")
    monkeypatch.setattr(splits, "SETS", {"own": Set("the page", "CC0", "root", splits._satellite)})
    monkeypatch.setattr(splits, "FOLDER", tmp_path)
    lines = splits.split("own", source)
    rows = [splits.Line._fields, *lines]
    (tmp_path / "own.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    assert splits.read("own") == lines
    for folder, num in ((out, None), (few, 10)):
        folder.mkdir()
        of_split("own", source, folder, num)

    def names(part: str, folder: Path = out) -> set[str]:
        sidecar = read_sidecar(folder / f"{part}.beton")
        assert sidecar is not None
        return {Path(path).name for path in sidecar.source_paths()}

    for part, of, size, size_of_few in (
        ("labelled", TRAIN, 20, 8), ("search", SEARCH, 4, 2), ("held-out", HELD_OUT, 6, 6)
    ):  # fmt: skip
        assert names(part) == {Path(line.path).name for line in lines if line.part == of}
        assert len(names(part)) == size and len(names(part, few)) == size_of_few
        assert names(part, few) <= names(part)
    for folder in (out, few):
        assert names("train", folder) == names("labelled", folder) | names("search", folder)
    (source / "root" / lines[0].path).write_bytes(b"other")
    with pytest.raises(ValueError, match="is another image than the split's"):
        of_split("own", source, tmp_path / "other")
    (source / "root" / lines[0].path).unlink()
    with pytest.raises(ValueError, match="is missing"):
        of_split("own", source, tmp_path / "other")
