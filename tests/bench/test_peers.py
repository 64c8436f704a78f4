"""What peers and ours make of images, and the parts that need no process of their own."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from ctypes.util import find_library
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench.interleaved import measure
from bench.peers import FLOATS, Work, why_missing
from bench.peers.peer import MEAN, STD, copy_out
from bench.peers.serve import tree_usage
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.interface.source import Sample
from tests.programs import ROOT

NUM, SIZE_PX = 16, 32
# Prints of the first batch, by view: shape, dtype, and each image's pixels' lowest, mean and highest value.
FIRST_BATCH = """
import json, os, sys
from bench.peers import FLOATS, Work, ours
work, num_views = Work(**json.loads(sys.argv[1])), int(sys.argv[2])
views = next((FLOATS[work.kind].batches if work.kind in FLOATS else ours.batches)(work, num_views))
views = [(list(v.shape), str(v.dtype), v.float().flatten(2).double(), v) for v in views]
print("views", json.dumps([
    [shape, dtype, v.amin(2).tolist(), v.mean(2).tolist(), v.amax(2).tolist(),
     (view[:, 0, :, -4:].mean((1, 2)) - view[:, 0, :, :4].mean((1, 2))).tolist()]
    for shape, dtype, v, view in views
]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of images that get redder from left to right, each with a green of its own."""
    path = tmp_path_factory.mktemp("graded") / "graded.beton"
    image = np.zeros((80, 96, 3), np.uint8)
    image[..., 0] = np.linspace(40, 200, 96)

    def samples() -> Iterator[Sample]:
        for i in range(NUM):
            image[..., 1] = 20 + 12 * i
            yield Sample(str(i), image.copy(), i % 2)

    write_beton(samples(), path, num_samples=NUM, class_names=["a", "b"])
    copy_out(str(path), path.parent / "files", num_shards=2)
    return path


def normalised(pixels: float, channel: int) -> float:
    return (pixels / 255 - MEAN[channel]) / STD[channel]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["pillow", "folder", *FLOATS])
def test_floats_are_normalised_crops(kind: str, beton: Path) -> None:
    from_folder = kind == "folder"
    kind = "pillow" if from_folder else kind
    if kind in FLOATS and (reason := why_missing(kind, str(beton))):
        pytest.skip(reason)
    if kind == "spdl_ffmpeg" and find_library("avcodec") is None:
        pytest.skip("FFmpeg is not installed")
    check_floats(kind, beton, from_folder)


def check_floats(kind: str, beton: Path, from_folder: bool) -> None:
    """Hold two views to crops, half of them flipped, of one image each, normalised to float32."""
    files = str(beton.parent / "files")
    work = Work(kind, str(beton), files, NUM, 1, SIZE_PX, "cpu", floats=True, from_folder=from_folder)
    process = subprocess.run(
        [sys.executable, "-c", FIRST_BATCH, json.dumps(asdict(work)), "2"], cwd=ROOT, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    line = next((line for line in process.stdout.splitlines() if line.startswith("views ")), None)
    assert line, process.stderr[-500:]
    views = json.loads(line.removeprefix("views "))
    assert len(views) == 2
    greens = []
    for shape, dtype, low, mean, high, _ in views:
        assert (shape, dtype) == ([NUM, 3, SIZE_PX, SIZE_PX], "torch.float32")
        lowest, means, highest = (np.array(each) for each in (low, mean, high))
        assert (highest - lowest)[:, 1:].max() < 0.3  # green and blue are constant
        assert lowest[:, 0].min() > normalised(30, 0) and highest[:, 0].max() < normalised(210, 0)
        assert np.allclose(means[:, 2], normalised(0, 2), atol=0.1)
        greens.append(means[:, 1])
    # Both views are of the same images, which differ by 0.21. WebDataset may draw one twice.
    assert np.allclose(greens[0], greens[1], atol=0.05)
    expected = np.array([normalised(20 + 12 * i, 1) for i in range(NUM)])
    numbers = np.abs(greens[0][:, None] - expected).argmin(1)
    assert np.allclose(greens[0], expected[numbers], atol=0.08)
    assert len({*numbers.tolist()}) == NUM or (kind == "webdataset" and len({*numbers.tolist()}) > NUM / 4)
    slopes = np.array([slope for *_, slope in views])
    assert (slopes > 0).any() and (slopes < 0).any()  # flipped, and not


def test_images_are_copied_out_as_they_are(beton: Path) -> None:
    """Each sample's bytes and label are written once as a file and once in a shard."""
    with Beton(beton) as data:
        expected = {index: (data.read(index), index % 2) for index in range(NUM)}
    files = beton.parent / "files"
    images = [*(files / "images").glob("*/*.jpg")]
    assert {int(path.stem): (path.read_bytes(), int(path.parent.name)) for path in images} == expected
    members: dict[str, bytes] = {}
    for shard in sorted((files / "shards").iterdir()):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members == {
        name: content
        for index, (jpeg, label) in expected.items()
        for name, content in ((f"{index:09}.jpg", jpeg), (f"{index:09}.cls", str(label).encode()))
    }


def test_loaders_alone_are_measured_in_turn_and_those_that_fail_are_named(beton: Path) -> None:
    works = {
        kind: Work(kind, str(beton), str(beton.parent / "files"), 4, 1, SIZE_PX, "cpu")
        for kind in ("pillow", "nobody")
    }
    rates, missing, notes = measure(
        works, (1, 2), repeats=2, seconds=0.0, deadline=float("inf"), log=lambda line: None
    )
    assert [(each.name, each.num_views, len(each.values)) for each in rates] == [
        ("pillow", 1, 2), ("pillow", 2, 2)
    ]  # fmt: skip
    assert all(each.first_batch_s > 0 and min(each.cores) > 0 for each in rates)
    assert [line["what"] for line in missing] == ["nobody"] and not notes


def test_cpu_time_is_that_of_the_whole_tree() -> None:
    """A child's work counts while it lives and after it has ended, and a sleeper's does not grow."""
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    before = tree_usage(os.getpid()).cpu_s
    child = subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "done\n"
    alive = tree_usage(os.getpid()).cpu_s - before
    assert alive >= 0.48  # ticks of 10 ms
    assert tree_usage(child.pid).cpu_s >= 0.48
    child.communicate("\n")
    assert tree_usage(os.getpid()).cpu_s - before >= alive - 0.05
    started = time.process_time()
    assert tree_usage(os.getpid()).cpu_s >= started
