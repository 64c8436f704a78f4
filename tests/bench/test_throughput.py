"""bench/throughput.py at its smallest, as people call it: every row is there. No figure is judged."""

import json
import os
import subprocess
import tarfile
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import interleaved, peers
from bench.peers.files import copy_out
from bench.recipe_stages import recipe_options, stage_experiment
from bench.schema import validate
from bench.throughput import _row
from bench.throughput_options import Options
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from tests.engine.tiny import one_process
from tests.programs import ROOT, run

SMALLEST = [
    "--recipe", "jigsaw", "simclr", "--decoders", "pillow", "synthetic", "--stages", "S2", "--backbone",
    "resnet18", "--batch-size", "2", "--repeats", "1", "--seconds", "0.001",
]  # fmt: skip


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "bench" / "throughput.py", *arguments, environment={"COLUMNS": "120"})


@pytest.mark.slow
def test_a_run_writes_three_rows_their_ratios_and_a_chart(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    process = call(*SMALLEST, "--no-peers", "--out", str(out))
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    keys = {(row["recipe"], row["measured"], row["decoder"], row["num_views"]) for row in result["rows"]}
    expected: set[Any] = set()
    for recipe, num_views in (("jigsaw", 1), ("simclr", 2)):
        expected.add((recipe, "step", None, num_views))
        for decoder in ("pillow", "synthetic"):
            expected |= {(recipe, measured, decoder, num_views) for measured in ("loader", "both")}
    assert keys == expected
    values = {(row["recipe"], row["measured"], row["decoder"]): row["values"][0] for row in result["rows"]}
    assert len(result["ratios"]) == 2 * 2 * 2
    for ratio in result["ratios"]:
        recipe, decoder = ratio["recipe"], ratio["decoder"]
        step = values[recipe, "step", None]
        below = min(step, values[recipe, "loader", decoder]) if "min" in ratio["what"] else step
        assert ratio["median"] == pytest.approx(values[recipe, "both", decoder] / below, rel=1e-4)
    for row in result["rows"]:
        assert 0 < row["cores_used"] < 1.5 * os.cpu_count()  # type: ignore[operator]
        assert row["first_batch_s"] > 0 if row["measured"] == "loader" else row["graph"] == "off"
    assert result["data"]["num_distinct"] == result["data"]["num_samples"] == 480
    reasons = [missing["reason"] for missing in result["not_measured"]]
    assert reasons == ["left out by --no-peers"] * len(peers.PEERS)
    assert "trained / step" in process.stdout and str(out) in process.stdout.replace("\n", "")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_an_error_of_the_user_is_one_line_and_exit_2(tmp_path: Path) -> None:
    process = call("--data", "absent.beton", "--out", str(tmp_path / "result.json"))
    assert process.returncode == 2
    assert "absent.beton" in process.stderr and len(process.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (Options(batch_size=0), "--batch-size 0"),
        (Options(seconds=-1.0), "--seconds -1"),
        (Options(views=(1, 0)), "--views"),
        (Options(stages=()), "--stages"),
        (Options(epochs=-1.0), "--epochs -1"),
        (Options(recipe=(), peers=False), "nothing is left"),
        (Options(stages=("S4",)), "--stages jigsaw:S4"),
        (Options(stages=("sim:S1",)), "--stages sim:S1"),
    ],
)
def test_values_that_cannot_be_are_refused(options: Options, says: str) -> None:
    Options().check()
    assert Options(stages=("S1", "simclr:E")).pairs() == [("jigsaw", "S1"), ("simclr", "E")]
    assert Options(recipe=(), stages=("simclr:E",)).pairs() == [("simclr", "E")]
    with pytest.raises(ValueError, match=says):
        options.check()


def work(kind: str, data: Path) -> peers.Work:
    return peers.Work(kind, str(data), str(data.parent / "files"), 4, 1, size_px=32, device="cpu")


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "small.beton"
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (48, 56, 3), np.uint8) for _ in range(9)]
    samples = (Sample(str(i), image, i % 2) for i, image in enumerate(images))
    write_beton(samples, path, num_samples=9, class_names=["a", "b"])
    assert copy_out(str(path), path.parent / "files", num_shards=2) == (9, 9)
    return path


def test_images_are_copied_out_as_they_are(beton: Path) -> None:
    """Each sample's bytes and label are written once as a file and once in a shard."""
    with Beton(beton) as data:
        expected = {index: (data.read(index), index % 2) for index in range(9)}
    images = beton.parent / "files" / "images"
    written = {int(path.stem): (path.read_bytes(), int(path.parent.name)) for path in images.glob("*/*.jpg")}
    assert written == expected
    members: dict[str, bytes] = {}
    for shard in sorted((beton.parent / "files" / "shards").iterdir()):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members == {
        name: content
        for index, (jpeg, label) in expected.items()
        for name, content in ((f"{index:09}.jpg", jpeg), (f"{index:09}.cls", str(label).encode()))
    }


@pytest.mark.nightly
@pytest.mark.parametrize("kind", peers.PEERS)
def test_peers_are_measured_or_named(kind: str, beton: Path) -> None:
    package = kind.partition("_")[0].replace("dali", "nvidia").replace("dataloader", "torch")
    if find_spec(package) is None:
        assert peers.why_missing(kind, str(beton)) == "not installed"
        return
    assert peers.why_missing(kind, str(beton)) is None
    if kind == "spdl_ffmpeg" and find_library("avcodec") is None:
        return
    process = interleaved.Process(work(kind, beton))
    try:
        assert process.first_batch_s > 0
        assert process.measure(1, 0.0)[0] > 0 and process.measure(2, 0.0, num_batches=9)[0] > 0
    finally:
        process.close()


def test_raw_images_are_no_work_for_readers_of_files(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    path = tmp_path / "raw.beton"
    write_beton([Sample("0", image, 0)], path, num_samples=1, class_names=["a"], target=Target(mode="raw"))
    for kind in (kind for kind, peer in peers.ALL.items() if peer.needs_files):
        reason = peers.why_missing(kind, str(path))
        assert reason in ("it reads JPEGs, and these are raw images", "not installed")


@pytest.mark.nightly
def test_loaders_alone_are_rows_beside_each_other(beton: Path) -> None:
    works = {f"decoder {kind}": work(kind, beton) for kind in ("pillow", "dataloader", "nobody")}
    rates, missing, notes = interleaved.measure(
        works, (1, 2), repeats=2, seconds=0.0, deadline=float("inf"), log=lambda line: None
    )
    rows = [_row(each) for each in rates]
    names = [(row["measured"], row["decoder"], row["num_views"], len(row["values"])) for row in rows]
    assert sorted(names) == [("loader", "pillow", 1, 2), ("loader", "torchvision", 2, 2),
                             ("peer", "dataloader", 1, 2), ("peer", "dataloader", 2, 2)]  # fmt: skip
    assert all(row["crop"] == "RandomResizedCrop" and row["first_batch_s"] > 0 for row in rows)
    assert all(row["cores_used"] > 0 for row in rows)
    assert [line["what"] for line in missing] == ["decoder nobody"] and not notes


@pytest.mark.parametrize("recipe", ["jigsaw", "rotation", "simclr", "moco"])
def test_every_recipe_has_its_stages(recipe: str) -> None:
    """The options have the paper's values with a small batch, to which MoCo's key groups shrink."""
    options = recipe_options(recipe, is_sample=False, batch_size=16, backbone="resnet18", device=None)
    assert options.batch_size == 16 and options.device == "auto"
    for name, last in (("S2", 4), ("E", 5)):
        experiment, number = stage_experiment(recipe, name, options, one_process())
        assert (experiment.stages[number].name, experiment.stages[number].last_block) == (name, last)
    with pytest.raises(ValueError, match="S1, S2, S3, E"):
        stage_experiment(recipe, "S4", options, one_process())


def test_a_peer_that_ends_says_why(beton: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere.beton"):
        interleaved.Process(work("dataloader", beton.with_name("nowhere.beton")))


def test_shards_are_no_work_for_ffcvs_loader(beton: Path) -> None:
    beton.with_name("small-2.beton").write_bytes(beton.read_bytes())
    reason = peers.why_missing("ffcv_loader", str(beton.with_name("small*.beton")))
    assert reason in ("it reads one file, and these are 2 shards", "not installed")
