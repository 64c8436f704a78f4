"""bench/sizes.py: the drawn images' form and weight, its ratios and tables, and a run at its smallest."""

import io
import json
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from bench.interleaved import Rates
from bench.peers import Work
from bench.photos import Fields, photo
from bench.schema import validate
from bench.size_data import SIZES, crop_px, drawn, own
from bench.size_tables import CPU, RATE, best_table, ratios_of, rows_of, size_tables
from bench.sizes import Options, Size
from fastpsl.pipelines.beton.reader import Beton
from tests.programs import ROOT, run


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "sizes.py", *arguments, environment={"COLUMNS": "120"})


def test_crops_are_224_px_at_most() -> None:
    assert get_args(Size) == tuple(SIZES)
    assert [crop_px(size) for size in SIZES] == [64, 160, 224, 224, 224, 224]


def test_shapes_are_those_of_the_named_sets() -> None:
    means = {}
    for size, form in SIZES.items():
        assert sum(share for *_, share in form.sides) == pytest.approx(1)
        means[size] = [sum(side[axis] * side[2] for side in form.sides) for axis in (0, 1)]
        if size in ("64", "224"):
            assert means[size] == [int(size), int(size)]
        elif size in ("160", "256"):
            assert {min(side[:2]) for side in form.sides} == {int(size)}
    assert means["originals"] == pytest.approx([387, 469], rel=0.02)
    assert max(side for form in SIZES.values() for sides in form.sides for side in sides[:2]) <= 1024


@pytest.fixture(scope="module")
def fields() -> Fields:
    return Fields(1)


@pytest.mark.parametrize("size", ["64", "224", "500"])
def test_drawn_images_are_as_heavy_as_real_ones(size: str, fields: Fields) -> None:
    form = SIZES[size]
    densities = []
    for index in range(8):
        jpeg = photo(fields, index, form.bytes_per_pixel, form.sides, form.quality)
        width, height = Image.open(io.BytesIO(jpeg)).size
        assert (height, width) in {sides[:2] for sides in form.sides}
        target = np.random.default_rng((1, 10, index))
        target.choice(len(form.sides), p=[share for *_, share in form.sides])
        drawn_factor = np.exp(0.35 * target.standard_normal() - 0.35**2 / 2)
        densities.append(len(jpeg) / (height * width) / drawn_factor)
    assert np.median(densities) == pytest.approx(form.bytes_per_pixel, rel=0.05)


def rates(kind: str, values: list[float], cores: list[float]) -> Rates:
    return Rates(kind, Work(kind, "", "", 8, 2, 64, "cpu"), 1, 1.0, values, cores)


def test_ratios_are_over_each_peers_better_form_and_tables_over_the_best_peer() -> None:
    measured = [
        rates("ffcv", [1000.0, 1200.0], [1.0, 1.2]),
        rates("torchvision", [9000.0, 9000.0], [1.0, 1.0]),
        rates("spdl_cv2", [500.0, 600.0], [2.0, 2.4]),
        rates("spdl_ffmpeg", [400.0, 400.0], [0.8, 0.8]),
        rates("webdataset", [800.0, 800.0], [4.0, 4.0]),
    ]
    ratios = ratios_of(measured, "64", "ffcv")
    found = {(ratio["what"], ratio["peer"]): (ratio["form"], ratio["values"]) for ratio in ratios}
    assert found == {
        (RATE, "SPDL"): ("spdl_cv2", [2.0, 2.0]),
        (CPU, "SPDL"): ("spdl_ffmpeg", [2.0, 2.0]),
        (RATE, "WebDataset"): ("webdataset", [1.25, 1.5]),
        (CPU, "WebDataset"): ("webdataset", [5.0, 5.0]),
    }
    result = {
        "bench": "sizes", "rows": rows_of(measured, "64"), "ratios": ratios,
        "environment": {"gpu": None, "cpu": "a CPU", "num_cores": 2},
        "settings": {"batch_size": 8, "num_threads": 2},
    }  # fmt: skip
    assert "| 64 | 1.38x WebDataset | 2.00x SPDL |" in best_table({"a.json": result})
    table = size_tables({"a.json": result})
    assert "| 1 | ours, `ffcv` | 1,100, 1 ms |" in table
    assert "| 1 | SPDL, its FFmpeg | 400, 2 ms |" in table
    assert best_table({}) == "" and size_tables({}).startswith("Not measured yet")


@pytest.mark.nightly
def test_a_run_with_your_own_images_writes_every_cell(tmp_path: Path) -> None:
    out, folder = tmp_path / "result.json", tmp_path / "own" / "a class"
    folder.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (90, 70 + number)).save(folder / f"{number}.jpg")
    arguments = ["--sizes", "originals", "--data", str(tmp_path / "own"), "--crops", "1", "2"]
    arguments += ["--num", "2", "--batch-size", "2"]
    arguments += ["--decoders", "torchvision", "--peers", "dataloader", "--repeats", "2", "--workers", "1"]
    arguments += ["--seconds", "0.01", "--drawn", str(tmp_path / "drawn"), "--out", str(out)]
    process = call(*arguments)
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    keys = {(row["measured"], row["decoder"], row["size"], row["num_views"]) for row in result["rows"]}
    assert keys == {
        (measured, kind, "originals", num)
        for kind, rate in (("torchvision", "loader"), ("dataloader", "peer"))
        for measured in (rate, "cpu")
        for num in (1, 2)
    }
    assert len(result["ratios"]) == 2 * 2
    assert result["data"]["num_samples"] == 6 and result["data"]["mean_pixels_originals"] == 6525
    assert not (tmp_path / "drawn").exists()


def test_images_are_drawn_once(tmp_path: Path) -> None:
    path = drawn("64", 3, tmp_path)
    written = path.stat().st_mtime_ns
    with Beton(path) as data:
        assert data.num_samples == 3 and data.image_sizes() == (64, 64, 64, 64)
    assert drawn("64", 3, tmp_path) == path and path.stat().st_mtime_ns == written


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--data .*empty: .+"):
        own(str(tmp_path / "empty"), tmp_path)
    assert own("a.beton", tmp_path) == "a.beton"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(sizes=()), "--sizes"),
        (Options(crops=(0,)), "--crops"),
        (Options(peers=("nobody",)), "--peers nobody"),
        (Options(data="a", sizes=("64",)), "--data a"),
        (Options(num=3, batch_size=4), "--num 3"),
        (Options(repeats=0), "--repeats 0"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()
