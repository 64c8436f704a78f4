"""bench/throughput.py at its smallest, as people call it: every row is there; no figure is judged."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench import peers
from bench.schema import validate
from bench.throughput import Options
from bench.variants import Bench, PuzzlePerView
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.beton_convert import Target
from fastpsl.pipelines.beton_write import write_beton
from fastpsl.pipelines.sources import Sample
from fastpsl.stage import Trunk
from fastpsl.tasks.jigsaw import Jigsaw
from recipes import jigsaw_r50

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = ["--decoders", "torchvision", "synthetic", "--views", "2", "--stages", "S2", "--backbone", "resnet18", "--batch-size", "2", "--repeats", "1", "--seconds", "0.001"]  # fmt: skip


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bench/throughput.py", *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}, check=False, timeout=200,
    )  # fmt: skip


def test_a_run_writes_three_rows_their_ratio_and_a_chart(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = call(*SMALLEST, "--no-peers", "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    validate(result)
    keys = {(row["measured"], row["decoder"], row["num_views"], row["stage"]) for row in result["rows"]}
    expected: set[Any] = {("step", None, 2, "S2")}
    for decoder in ("torchvision", "synthetic"):
        expected |= {("loader", decoder, 2, None), ("both", decoder, 2, "S2")}
    assert keys == expected
    values = {(row["measured"], row["decoder"]): row["values"][0] for row in result["rows"]}
    for ratio in result["ratios"]:
        decoder = ratio["decoder"]
        slower = min(values["loader", decoder], values["step", None])
        assert ratio["median"] == pytest.approx(values["both", decoder] / slower, rel=1e-4)
    assert all(row["first_batch_s"] > 0 for row in result["rows"] if row["measured"] == "loader")
    assert [missing["reason"] for missing in result["not_measured"]] == ["left out by --no-peers"] * 4
    assert "both / min" in done.stdout and str(out) in done.stdout.replace("\n", "")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = call("--data", "absent.beton", "--out", str(tmp_path / "result.json"))
    assert done.returncode == 2
    assert "absent.beton" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(batch_size=0), "--batch-size 0"),
        (Options(seconds=-1.0), "--seconds -1"),
        (Options(views=(1, 0)), "--views"),
        (Options(stages=()), "--stages"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    with pytest.raises(ValueError, match=says):
        options.check()


def work(kind: str, data: Path) -> peers.Work:
    return peers.Work(kind, str(data), str(data.parent / "files"), 4, 1, size_px=32, device="cpu")


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "small.beton"
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (48, 56, 3), np.uint8) for _ in range(9)]
    samples = (Sample(str(i), picture, i % 2) for i, picture in enumerate(pictures))
    write_beton(samples, path, num_samples=9, class_names=["a", "b"])
    assert peers.copy_out(str(path), path.parent / "files", num_shards=2) == 9
    return path


def test_pictures_are_copied_out_as_they_are(beton: Path) -> None:
    """Each sample's own bytes and label, once as a file and once in a shard."""
    with Beton(beton) as data:
        expected = {index: (data.read(index), index % 2) for index in range(9)}
    images = beton.parent / "files" / "images"
    found = {int(path.stem): (path.read_bytes(), int(path.parent.name)) for path in images.glob("*/*.jpg")}
    assert found == expected
    members: dict[str, bytes] = {}
    for shard in sorted((beton.parent / "files" / "shards").iterdir()):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members == {
        name: content
        for index, (jpeg, label) in expected.items()
        for name, content in ((f"{index:09}.jpg", jpeg), (f"{index:09}.cls", str(label).encode()))
    }


@pytest.mark.parametrize("kind", peers.TITLES)
def test_peers_are_measured_or_named(kind: str, beton: Path) -> None:
    package = {"ffcv_loader": "ffcv", "dali_reader": "nvidia", "webdataset": "webdataset"}.get(kind, "torch")
    if find_spec(package) is None:
        assert peers.why_missing(kind, str(beton)) == "not installed"
        return
    assert peers.why_missing(kind, str(beton)) is None
    peer = peers.Peer(work(kind, beton))
    try:
        assert peer.first_batch_s > 0
        assert peer.samples_per_s(1, 0.0) > 0 and peer.samples_per_s(2, 0.0) > 0
    finally:
        peer.close()


def test_raw_pictures_are_no_work_for_readers_of_files(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    path = tmp_path / "raw.beton"
    write_beton([Sample("0", picture, 0)], path, num_samples=1, class_names=["a"], target=Target(mode="raw"))
    for kind in peers.NEED_FILES:
        reason = peers.why_missing(kind, str(path))
        assert reason in ("it reads JPEGs, and these are raw pictures", "not installed")


def test_a_peer_that_ends_says_why(beton: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere.beton"):
        peers.Peer(work("dataloader", beton.with_name("nowhere.beton")))


def test_shards_are_no_work_for_ffcvs_loader(beton: Path) -> None:
    beton.with_name("small-2.beton").write_bytes(beton.read_bytes())
    reason = peers.why_missing("ffcv_loader", str(beton.with_name("small*.beton")))
    assert reason in ("it reads one file, and these are 2 shards", "not installed")


class MeanOfTiles(nn.Module):
    """A trunk in shape only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3), keepdim=True)


def test_each_view_is_a_puzzle_of_its_own() -> None:
    """The loss over two views is the mean of jigsaw's own losses of each."""
    task = Jigsaw(np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), (2,), grid=2, embedding_width=5)
    torch.manual_seed(3)
    head, trunk = task.head(1, 3).eval(), MeanOfTiles()
    draws: Any = [
        ({}, {"permutation": torch.tensor([[0], [1], [1]])}),
        ({}, {"permutation": torch.tensor([[1], [1], [0]])}),
    ]
    indices = torch.arange(3)
    inputs = [torch.rand(12, 3, 8, 8), torch.rand(12, 3, 8, 8)]
    batch = Batch(inputs, draws, indices, indices, 0, 0)  # type: ignore[arg-type]
    each = [
        task.loss(trunk, head, [images], Batch([images], [draw], indices, indices, 0, 0))[0]  # type: ignore[arg-type, list-item]
        for images, draw in zip(inputs, draws, strict=True)
    ]
    both, _ = PuzzlePerView(task).loss(trunk, head, inputs, batch)  # type: ignore[arg-type]
    assert float(both.detach()) == pytest.approx(float((each[0] + each[1]).detach()) / 2)
    assert float(each[0].detach()) != float(each[1].detach())


def test_the_step_is_the_stages_own() -> None:
    """What is timed moves the stage's blocks and no other, with the views that were asked for."""
    bench = Bench(
        None, ("S2",), "resnet18", "cpu", "fp32", batch_size=2, num_threads=1, repeats=1, seconds=0.001
    )
    trunk = bench.learners["S2"].module.trunk
    assert isinstance(trunk, Trunk)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    bench.step_alone(2, "S2")
    views = bench.learners["S2"].views
    (view,) = jigsaw_r50.build(bench.recipe).task.views(2)
    # The recipe's, but for the crop that every peer has.
    assert list(views) == [replace(view, crop=RandomResizedCrop(96))] * 2 and view.crop.size_px == 96
    moved = {
        name.split(".")[0] for name, value in trunk.state_dict().items() if not value.equal(before[name])
    }
    assert moved == {"learning"}
    bench.data.close()
