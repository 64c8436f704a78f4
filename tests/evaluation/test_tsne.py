"""Test `fastpsl tsne` against scikit-learn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import fastpsl
from fastpsl.evaluation.result_file import read_result
from fastpsl.evaluation.tsne import embed, fitting_perplexity, same_class
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.plots.charts import MAX_NAMED, draw_map
from fastpsl.tables.results import index_runs
from tests.cli import Cli
from tests.evaluation.test_neighbours import SMALL, folder, refused
from tests.pipelines.written import write_labelled
from tests.plots.png_pixels import pixels


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute with one thread, because sums in another order give another map."""
    with threadpool_limits(1):
        yield


NIN3 = ("--random-weights", "--backbone", "nin3")


def share_by_hand(points: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share point by point."""
    right = 0
    for i in range(len(points)):
        distances = ((points.astype(np.float64) - points[i]) ** 2).sum(1)
        distances[i] = np.inf
        right += labels[distances.argmin()] == labels[i]
    return right / len(points)


def test_few_images_have_a_low_perplexity() -> None:
    assert [fitting_perplexity(None, num) for num in (3, 60, 90, 1000)] == [1, 20, 30, 30]


def test_the_map_is_scikit_learns(tmp_path: Path, cli: Cli) -> None:
    data, out = sample_paths().test_32, tmp_path / "out"
    options = (*NIN3, *SMALL, *f"--data {data} --num 60 --block B2 --seed 3 --out {out}".split())
    code, lines, _ = cli("tsne", *options, "--perplexity", 7.5)
    assert code == 0, lines
    indices, points, features = (
        np.load(out / f"{name}.npy") for name in ("tsne-indices", "tsne", "features")
    )
    assert len(set(indices.tolist())) == 60 and indices.min() >= 0 and indices.max() < 160
    assert features.dtype == np.float32 and features.shape == (60, 192)
    scikit = TSNE(perplexity=7.5, init="pca", random_state=3)
    expected = scikit.fit_transform(features)
    assert points.dtype == np.float32 and np.array_equal(points, expected)
    with Beton(data) as opened:
        labels, digest = opened.labels()[indices], opened.digest()
    assert np.array_equal(np.load(out / "features-labels.npy"), labels)
    record = read_result(out / "result.json")
    assert (record["recipe"], record["protocol"], record["cut"]) == ("tsne", "tsne", False)
    share = 100 * share_by_hand(points, labels)
    assert record["numbers"] == {"same_class_2d": pytest.approx(share, abs=1e-4)} and 15 < share < 100
    settings = record["settings"]
    assert settings | {"num": 60, "perplexity": 7.5, "init": "pca", "block": "B2", "seed": 3} == settings
    assert settings["kl_divergence"] == pytest.approx(scikit.kl_divergence_, abs=1e-4)
    assert record["data"]["train"] == digest
    counts = np.bincount(labels)
    chance = 100 * sum(count * (count - 1) for count in counts) / (60 * 59)
    assert f"{share:.1f} % have a point of their class nearest in the map (chance {chance:.1f} %)" in lines
    assert lines.splitlines()[-2:] == [f"map {out / 'tsne.png'}", f"result {out / 'result.json'}"]
    assert [result.record["protocol"] for result in index_runs(out).results] == ["tsne"]

    before = (out / "features.npy").stat().st_mtime_ns
    assert cli("tsne", *options, "--perplexity", 5)[0] == 0
    assert (out / "features.npy").stat().st_mtime_ns == before
    assert not np.array_equal(np.load(out / "tsne.npy"), points)


def test_the_seed_draws_images(tmp_path: Path, cli: Cli) -> None:
    indices = []
    for name, seed, num in (("a", 0, 20), ("b", 2**32 - 1, 20), ("c", 0, 20), ("all", 0, 1000)):
        options = (*NIN3, *SMALL, "--data", sample_paths().test_32, "--num", num, "--perplexity", 4)
        assert cli("tsne", *options, "--seed", seed, "--out", tmp_path / name)[0] == 0
        indices.append(np.load(tmp_path / name / "tsne-indices.npy").tolist())
    assert indices[0] == indices[2] != indices[1] and indices[3] == list(range(160))
    maps = [(tmp_path / name / "tsne.npy").read_bytes() for name in ("a", "b", "c")]
    assert maps[0] == maps[2] != maps[1]


@pytest.mark.parametrize("some", [False, True])
def test_nothing_is_counted_unless_all_have_labels(tmp_path: Path, cli: Cli, some: bool) -> None:
    """Without any label, all points are grey."""
    if some:
        data = write_labelled(tmp_path / "some.beton", [-1 if i == 7 else i % 2 for i in range(12)])
    else:
        data = folder(tmp_path / "data", 12)
    out = tmp_path / "out"
    words = f"--data {data} --num 12 --perplexity 3 --out {out}".split()
    code, lines, _ = cli("tsne", *NIN3, *SMALL, *words)
    assert code == 0 and "not every image has a label, so nothing is counted" in lines
    assert read_result(out / "result.json")["numbers"] == {}
    chart = pixels(out / "tsne.png")
    assert some or ((chart.max(2) - chart.min(2)).max() == 0 and (chart == 0).any())  # the title is black


def test_a_broken_image_is_no_point(tmp_path: Path, cli: Cli) -> None:
    data, out = folder(tmp_path / "data", 12), tmp_path / "out"
    broken = data / "05.jpg"
    broken.write_bytes(b"\0" * broken.stat().st_size)
    options = (*NIN3, *SMALL, "--data", data, "--num", 12, "--on-bad-sample", "skip", "--out", out)
    code, lines, _ = cli("tsne", *options, "--perplexity", 3)
    assert code == 0 and "11 images; " in lines
    assert np.load(out / "tsne.npy").shape == (11, 2)
    assert np.load(out / "tsne-indices.npy").tolist() == [i for i in range(12) if i != 5]
    code, _, errors = cli("tsne", *options, "--perplexity", 11)
    assert code == 2 and "11 images could be decoded" in errors.splitlines()[-1]


def test_shares_by_hand_also_where_points_are_equal() -> None:
    random = np.random.default_rng(0)
    points, labels = random.normal(size=(80, 2)).astype(np.float32), random.integers(0, 3, 80)
    assert same_class(points, labels) == pytest.approx(share_by_hand(points, labels))
    twice = np.array([[0, 0], [0, 0], [5, 0], [5, 0]], np.float32)
    assert same_class(twice, np.array([1, 1, 2, 2])) == 1
    assert same_class(twice, np.array([1, 2, 1, 2])) == 0  # a point is not its own neighbour


@pytest.mark.parametrize("num", [1, 30])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_features_that_do_not_differ_are_refused(num: int, value: float) -> None:
    """scikit-learn's map of zeros is NaN, which kills the process; others would be rounding errors."""
    features = np.full((num, 8), value, np.float32)
    with pytest.raises(
        ValueError, match=f"^the features of {num} images? do not differ, so t-SNE has no map"
    ):
        embed(features, num / 3, 0)
    with pytest.raises(ValueError, match="do not differ"):
        fastpsl.plot.tsne(features)


def near(chart: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(chart - colour).max(2) < 40).sum())


def test_colours_and_legend(tmp_path: Path) -> None:
    """Two classes are blue and orange with a legend, unlabelled points grey; many classes have no legend."""
    random = np.random.default_rng(0)
    points = random.normal(size=(90, 2)).astype(np.float32)
    labels = np.repeat([0, 4, -1], 30)
    names = ["ant", "bee", "cat", "dog", "eel"]
    chart = pixels(draw_map(tmp_path / "named.png", points, labels, names, "title"))
    plain = pixels(draw_map(tmp_path / "plain.png", points, np.full(90, -1), names, "title"))
    assert near(chart, (31, 119, 180)) > 300 and near(chart, (255, 127, 14)) > 300
    assert near(plain, (31, 119, 180)) == near(plain, (255, 127, 14)) == 0
    assert chart.shape[1] - plain.shape[1] == pytest.approx(1.6 * 120, abs=3)  # the legend's column
    for num, legend in ((MAX_NAMED, True), (MAX_NAMED + 1, False)):
        labels = np.arange(90) % num
        width = pixels(draw_map(tmp_path / "many.png", points, labels, None, "title")).shape[1]
        assert (width > plain.shape[1] + 100) == legend


@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (0, 0)])
def test_maps_of_any_shape_are_drawn(tmp_path: Path, shape: tuple[float, float]) -> None:
    points = (np.random.default_rng(0).random((25, 2)) * shape).astype(np.float32)
    chart = pixels(draw_map(tmp_path / "map.png", points, np.arange(25), None, "title"))
    assert min(chart.shape[:2]) >= 3.5 * 120


def test_maps_that_cannot_be_are_one_line(tmp_path: Path, cli: Cli) -> None:
    data, out = sample_paths().test_32, tmp_path / "out"
    cases: list[tuple[tuple[Any, ...], tuple[str, ...]]] = [
        ((*NIN3, "--perplexity", 160), ("--perplexity 160 of 160 images: ",)),
        ((*NIN3, "--num", 30, "--perplexity", 30), ("--perplexity 30 of 30 images: ",)),
        ((*NIN3, "--num", 20, "--perplexity", 30), ("--perplexity 30 of 20 images: ",)),
        ((*NIN3, "--num", 1, "--perplexity", 0.5), ("--num 1: ", "2 images or more")),
        ((*NIN3, "--num", 0), ("--num 0",)),
        ((*NIN3, "--num", 50, "--perplexity", 0), ("--perplexity 0",)),
        ((*NIN3, "--num", 50, "--perplexity", "nan"), ("--perplexity nan",)),
        ((*NIN3, "--num", 50, "--block", "B4"), ("--block B4", "B1 to B3")),
        ((*NIN3, "--num", 50, "--seed", -2), ("--seed -2",)),
        ((*NIN3, "--num", 50, "--seed", 2**32), ("--seed 4294967296",)),
        (("--num", 50), ("RUN", "--random-weights")),
        ((tmp_path / "none.pt", "--num", 50), ("none.pt",)),
    ]
    for arguments, words in cases:
        refused(cli, out, words, "tsne", *arguments, "--data", data)
