"""What bench/beton_size.py measures of betons, against Pillow and plain arithmetic."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import beton_size
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.sources.folder import image_folder
from tests.pipelines.folders import tree
from tests.pipelines.photos import jpeg, photo, pil_decode


def test_psnr_is_that_of_the_images_that_changed(tmp_path: Path) -> None:
    images = [jpeg(photo(i, 40, 50), quality=97) for i in range(3)]
    images.append(jpeg(photo(9, 40, 50), quality=20))  # stays, because quality 50 makes it no smaller
    source = image_folder(tree(tmp_path / "photos", {f"{i}.jpg": data for i, data in enumerate(images)}))
    beton = tmp_path / "a.beton"
    write_beton(source.samples(), beton, num_samples=4, target=Target(quality=50, reencode="all"))
    values, by_pillow = list[float](), list[float]()
    with Beton(beton) as stored:
        for i, data in enumerate(images[:3]):
            image = pil_decode(data).astype(float)
            for made, each in ((stored.read(i), values), (jpeg(pil_decode(data), quality=50), by_pillow)):
                each.append(20 * np.log10(255) - 10 * np.log10(((pil_decode(made) - image) ** 2).mean()))
    assert beton_size.psnr_db(source, beton) == pytest.approx(sorted(values)[1], abs=0.01)
    assert all(by_pillow[i] < values[i] < by_pillow[i] + 1 for i in range(3))
    write_beton(source.samples(), beton, num_samples=4, overwrite=True)
    assert beton_size.psnr_db(source, beton) is None


def test_its_table_has_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tree(tmp_path / "photos", {f"{i}.jpg": jpeg(photo(i % 4, 20, 20)) for i in range(50)})
    out = tmp_path / "result.json"
    words = ["beton_size", "--photos", str(photos), "--out", str(out), "--repeats", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", words)
    beton_size.main()
    result = json.loads(out.read_text())
    (size,) = result["rows"][0]["values"]
    first = beton_size.sizes_table({"a": result}).splitlines()[2]
    assert first == f"| as is | {size / 1e3:.0f} KB | {size * 1_281_167 / 1e9:.0f} GB | 100.0% | - | 1.00 |"
    assert [row["measured"] for row in result["rows"]] == [ratio["target"] for ratio in result["ratios"]]
