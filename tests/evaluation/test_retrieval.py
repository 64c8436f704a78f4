"""Test `fastpsl retrieve` and `fastpsl tsne`: values against plain code, charts, refused options."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fastpsl.evaluation import neighbours
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.neighbours import Search, nearest_others
from fastpsl.evaluation.result import read_result
from fastpsl.evaluation.tsne import same_class
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.plots.charts import MAX_NAMED, draw_map
from fastpsl.plots.neighbours import draw_neighbours
from fastpsl.tables.results import index_runs
from tests.cli import Cli
from tests.engine.tiny import one_process
from tests.pipelines.labelled import write_labelled
from tests.pipelines.photos import jpeg, photo
from tests.plots.png_pixels import pixels

RANDOM = ("--random-weights", "--backbone", "resnet18")
SMALL = ("--size-px", "32", "--whole", "--workers", "1", "--batch-size", "40")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, because sums in another order give another map."""
    with threadpool_limits(1):
        yield


def refused(cli: Cli, out: Path, words: tuple[str, ...], command: str, *arguments: object) -> None:
    """Check for one line with the words, and no folder."""
    code, _, errors = cli(command, *SMALL, *arguments, "--out", out)
    assert code == 2 and errors.count("\n") == 1 and errors.startswith("fastpsl: "), (arguments, errors)
    assert all(word in errors for word in words) and not out.exists(), errors


def ranked(queries: np.ndarray, gallery: np.ndarray, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sort the whole matrix: the gallery's rows by falling cosine, and the cosines, without the query."""
    a, b = (rows.astype(np.float64) for rows in (queries, gallery))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    cosines = a @ b.T
    if same:
        np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return order, np.take_along_axis(cosines, order, 1)


@pytest.mark.parametrize("same", [False, True])
def test_neighbours_precision_and_figure(tmp_path: Path, cli: Cli, same: bool) -> None:
    paths, out = sample_paths(), tmp_path / "out"
    gallery, queries = (paths.test_32, paths.test_32) if same else (paths.train_32, paths.test_32)
    options = (*RANDOM, *SMALL, *f"--gallery {gallery} --queries {queries} --k 5 --num 3".split())
    code, lines, _ = cli("retrieve", *options, "--out", out)
    assert code == 0, lines
    bank = np.load(out / "gallery.npy")
    query_features = bank if same else np.load(out / "queries.npy")
    assert (out / "queries.npy").exists() != same and len(bank) == (160 if same else 480)
    rows, cosines = ranked(query_features, bank, same)
    with Beton(gallery) as data, Beton(queries) as others:
        labels, truth, digests = data.labels(), others.labels(), (data.digest(), others.digest())
    right = labels[rows[:, :5]] == truth[:, None]
    record = read_result(out / "result.json")
    assert (record["recipe"], record["protocol"], record["cut"]) == ("retrieve", "retrieval", False)
    (precision,) = record["numbers"].values()
    # Nearly equal cosines may swap places. If each query found itself, 20 % would differ.
    assert list(record["numbers"]) == ["precision_top5"] and abs(precision - 100 * right.mean()) < 0.3
    assert 15 < precision < 95
    assert (record["data"]["train"], record["data"]["val"]) == digests
    settings = record["settings"]
    written = [out / f"{name}.json" for name in ("gallery", "gallery" if same else "queries")]
    assert settings["features"] == [json.loads(path.read_text())["digest"] for path in written]
    assert settings["queries_in_gallery"] == same and settings["block"] == "B5" and settings["whole"]
    entries = settings["shown"]
    assert len({each["query"] for each in entries}) == 3
    for each in entries:
        query, neighbours = each["query"], each["neighbours"]
        assert each["similarities"] == pytest.approx(cosines[query, :5], abs=2e-6)
        place = [rows[query].tolist().index(row) for row in neighbours]
        assert cosines[query, place] == pytest.approx(cosines[query, :5], abs=2e-6)
        assert len(set(neighbours)) == 5
        assert not same or query not in neighbours
    chance = 100 * np.mean([(labels == label).sum() - same for label in truth]) / (len(labels) - same)
    assert f"{precision:.1f} % of the nearest 5 are of the query's class (chance {chance:.1f} %)" in lines
    assert lines.splitlines()[-2:] == [f"retrieval {out / 'retrieval.png'}", f"result {out / 'result.json'}"]
    sheet = pixels(out / "retrieval.png")
    assert sheet.shape == (3 * 158 + 6, 6 * 126 + 18, 3)
    judged = [labels[each["neighbours"]] == truth[each["query"]] for each in entries]
    for i in range(3):
        for j in range(5):
            red, green, _ = sheet[8 + i * 158 + 30, 18 + 1 + (j + 1) * 126]
            assert (green > red) == judged[i][j]
    assert np.any(judged) and not np.all(judged)
    assert [result.record["protocol"] for result in index_runs(out).results] == ["retrieval"]


def test_the_seed_draws_and_indices_choose(tmp_path: Path, cli: Cli) -> None:
    """The precision stays the same. Weights are from a file, because the seed draws random ones."""
    data, out, weights = sample_paths().test_32, tmp_path / "out", tmp_path / "nin3.pth"
    torch.manual_seed(0)
    torch.save(make_backbone("nin3").state_dict(), weights)
    words = (
        f"--backbone nin3 --input-channels RGB --input-mean .5 .5 .5 --input-std .2 .2 .2 --block block2 "
        f"--num 4 --gallery {data} --queries {data}"
    )
    common = (weights, *words.split(), *SMALL, "--out", out)
    charts, numbers, times = [], [], set()
    for more in (("--seed", 0), ("--seed", 1), ("--query-indices", 7, 3, 7)):
        assert cli("retrieve", *common, *more)[0] == 0
        record = read_result(out / "result.json")
        charts.append([each["query"] for each in record["settings"]["shown"]])
        assert record["settings"]["num"] == len(charts[-1])
        numbers.append(record["numbers"])
        times.add((out / "gallery.npy").stat().st_mtime_ns)
    assert len(charts[0]) == len(charts[1]) == 4 and charts[0] != charts[1] and charts[2] == [7, 3, 7]
    assert numbers[0] == numbers[1] == numbers[2] and len(times) == 1
    assert json.loads((out / "gallery.json").read_text())["block"] == "B2"


def folder(path: Path, num: int, classes: tuple[str, ...] = ()) -> Path:
    for i in range(num):
        place = path / classes[i % len(classes)] if classes else path
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02d}.jpg").write_bytes(jpeg(photo(i, 40, 50)))
    return path


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ((), "images of the queries have no label"),
        (("boat", "ship"), "gallery and queries have different classes"),
    ],
)
def test_queries_without_labels_or_of_other_classes(
    tmp_path: Path, cli: Cli, classes: tuple[str, ...], reason: str
) -> None:
    queries, out = folder(tmp_path / "queries", 6, classes), tmp_path / "out"
    sets = ("--gallery", sample_paths().test_32, "--queries", queries)
    code, lines, errors = cli("retrieve", *RANDOM, *SMALL, *sets, "--k", 3, "--out", out)
    assert code == 0 and f"no precision, as {reason}" in lines, errors
    assert read_result(out / "result.json")["numbers"] == {}
    sheet = pixels(out / "retrieval.png")
    assert sheet.shape[0] == 6 * 158 + 6
    for j in range(3):
        assert (sheet[8 + 30, 18 + 1 + (j + 1) * 126] == 48).all()  # no frame


def test_fewer_queries_than_are_wanted_are_all_shown_as_the_network_sees_them(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[dict[str, Any]]()

    def draw(*arguments: Any, **options: Any) -> Path:
        drawn.append(options)
        return draw_neighbours(*arguments, **options)

    monkeypatch.setattr(neighbours, "draw_neighbours", draw)
    data, out = folder(tmp_path / "flat", 3), tmp_path / "out"
    options = (*RANDOM, *SMALL, "--gallery", data, "--queries", data, "--k", 2, "--out", out)
    assert cli("retrieve", *options, "--whole", "--num", 100)[0] == 0  # the most
    assert [options["whole"] for options in drawn] == [True]
    assert pixels(out / "retrieval.png").shape[0] == 3 * 142 + 6  # without a line for the class
    entries = read_result(out / "result.json")["settings"]["shown"]
    assert sorted(each["query"] for each in entries) == [0, 1, 2]
    assert all(sorted([each["query"], *each["neighbours"]]) == [0, 1, 2] for each in entries)


def test_a_broken_image_is_no_query_and_no_neighbour(tmp_path: Path, cli: Cli) -> None:
    data = folder(tmp_path / "data", 6, ("one", "two"))
    broken = sorted(data.rglob("*.jpg"))[2]
    broken.write_bytes(b"\0" * broken.stat().st_size)
    options = (*RANDOM, *SMALL, "--gallery", data, "--queries", data, "--on-bad-sample", "skip")
    out = ("--out", tmp_path / "out")
    assert cli("retrieve", *options, "--k", 4, *out)[0] == 0
    entries = read_result(tmp_path / "out" / "result.json")["settings"]["shown"]
    assert len(entries) == 5 and all(2 not in (each["query"], *each["neighbours"]) for each in entries)
    for more, words in (
        (("--k", 5), "--k 5: the gallery has only 4 neighbours"),
        (("--k", 2, "--query-indices", 2), "query 2 could"),
    ):
        code, _, errors = cli("retrieve", *options, *more, *out)
        assert code == 2 and words in errors.splitlines()[-1]


@pytest.mark.parametrize("same", [False, True])
def test_precision_and_chance_count_no_image_that_could_not_be_decoded(tmp_path: Path, same: bool) -> None:
    random, bad = np.random.default_rng(0), [0, 4, 5]
    classes = np.array([0, 0, 1, 2, 0, 0, 1, 2, 2, 2, 1, 0], np.int32)
    files = []
    for name, labels in (("gallery", classes), ("queries", classes[::-1].copy())):
        rows = random.normal(size=(12, 4)).astype(np.float32)
        rows[bad] = np.nan
        np.save(tmp_path / f"{name}.npy", rows)
        np.save(tmp_path / f"{name}-labels.npy", labels)
        record = {"labels": f"{name}-labels.npy", "shape": [12, 4], "bad": bad}
        files.append(FeatureFile(tmp_path / f"{name}.npy", record))
    gallery, queries = files[0], files[0] if same else files[1]
    truth = queries.labels()
    assert truth is not None
    good = [i for i in range(12) if i not in bad]
    hits, shares = [], []
    for query in good:
        cosines = {
            row: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for row in good
            if not (same and row == query)
            for a, b in [(queries.features()[query], gallery.features()[row])]
        }
        right = {row: classes[row] == truth[query] for row in cosines}
        hits += [right[row] for row in sorted(cosines, key=lambda row: -cosines[row])[:3]]
        shares.append(np.mean(list(right.values())))
    found = Search(gallery, queries, 3, same, torch.device("cpu")).precision(one_process())
    assert found == pytest.approx((100 * np.mean(hits), 100 * np.mean(shares)))


def test_an_image_is_left_out_of_its_own_neighbours_among_equals() -> None:
    """Nine rows are equal. The last ones are not among the first four found, so one too many is dropped."""
    rows = np.concatenate([np.ones((9, 4)), -np.ones((2, 4))]).astype(np.float32)
    rows_found = nearest_others(rows, rows, 3, np.arange(11), torch.device("cpu")).rows.tolist()
    for i in range(9):
        assert rows_found[i] == [j for j in range(9) if j != i][:3]
    assert rows_found[9] == [10, 0, 1] and rows_found[10] == [9, 0, 1]
    some = np.array([8, 0, 10])
    again = nearest_others(rows[some], rows, 3, some, torch.device("cpu")).rows.tolist()
    assert again == [rows_found[i] for i in some]


def test_what_cannot_be_is_one_line(tmp_path: Path, cli: Cli) -> None:
    paths, out = sample_paths(), tmp_path / "out"
    foreign = tmp_path / "foreign.pth"
    torch.save(make_backbone("nin3").state_dict(), foreign)
    sets = ("--gallery", paths.train_32, "--queries", paths.test_32)
    gallery_and_queries = ("--gallery", paths.test_32, "--queries", paths.test_32)
    cases: list[tuple[tuple[Any, ...], tuple[str, ...]]] = [
        ((*RANDOM, *sets, "--k", 481), ("--k 481", "480 neighbours")),
        ((*RANDOM, *gallery_and_queries, "--k", 160), ("--k 160", "159 neighbours")),
        ((*RANDOM, *sets, "--k", 0), ("--k 0", "1 or more")),
        ((*RANDOM, *sets, "--block", "B6"), ("--block B6", "B1 to B5", "conv5_x")),
        ((*RANDOM, *sets, "--block", "fc7"), ("--block fc7", "B1 to B5")),
        ((*RANDOM, *sets, "--num", 0), ("--num 0", "1 to 100")),
        ((*RANDOM, *sets, "--num", 101), ("--num 101", "1 to 100")),
        ((*RANDOM, *sets, "--query-indices", 4, 160), ("--query-indices 160", "0 to 159")),
        ((*RANDOM, *sets, "--query-indices", -1), ("--query-indices -1",)),
        ((*RANDOM, *sets, "--seed", -1), ("--seed -1",)),
        ((*RANDOM, *sets, "--workers", 0), ("--workers 0",)),
        ((*sets,), ("CKPT", "--random-weights")),
        ((foreign, *RANDOM, *sets), ("CKPT", "--random-weights")),
        (("--random-weights", *sets), ("--backbone",)),
        ((foreign, *sets), ("foreign.pth", "--input-channels", "--input-mean")),
        ((foreign, "--backbone", "nin3", *sets), ("foreign.pth", "--input-channels")),
        ((tmp_path / "none.pt", *sets), ("none.pt",)),
        ((*RANDOM, "--gallery", tmp_path / "none.beton", "--queries", paths.test_32), ("none.beton",)),
        ((*RANDOM, "--gallery", paths.test_32), ("--queries",)),
    ]
    for arguments, words in cases:
        refused(cli, out, words, "retrieve", *arguments)
    (tmp_path / "file").touch()
    code, _, errors = cli("retrieve", *RANDOM, *sets, *SMALL, "--out", tmp_path / "file")
    assert code == 2 and "is a file: give a folder" in errors


def test_classes_by_number_alone(tmp_path: Path, cli: Cli) -> None:
    """Betons have no class names, and equal numbers are equal classes."""
    for name, labels in (("a", [0, 1, 0, 1, 0, 1, 1]), ("b", [0, 1, 1]), ("c", [0, 2, 1])):
        write_labelled(tmp_path / f"{name}.beton", labels)
    for queries, judged in (("b", True), ("c", False)):
        out = tmp_path / queries
        sets = ("--gallery", tmp_path / "a.beton", "--queries", tmp_path / f"{queries}.beton")
        assert cli("retrieve", *RANDOM, *SMALL, *sets, "--k", 7, "--out", out)[0] == 0
        expected = {"precision_top7": pytest.approx(100 * (3 + 4 + 4) / 21, abs=1e-4)} if judged else {}
        assert read_result(out / "result.json")["numbers"] == expected


NIN3 = ("--random-weights", "--backbone", "nin3")


def share_by_hand(points: np.ndarray, labels: np.ndarray) -> float:
    """Compute the share point by point."""
    right = 0
    for i in range(len(points)):
        distances = ((points.astype(np.float64) - points[i]) ** 2).sum(1)
        distances[i] = np.inf
        right += labels[distances.argmin()] == labels[i]
    return right / len(points)


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
        ((*NIN3, "--num", 30), ("--perplexity 30 of 30 images: ",)),
        ((*NIN3, "--num", 20), ("--perplexity 30 of 20 images: ",)),
        ((*NIN3, "--num", 1, "--perplexity", 0.5), ("--num 1: ", "2 images or more")),
        ((*NIN3, "--num", 0), ("--num 0",)),
        ((*NIN3, "--num", 50, "--perplexity", 0), ("--perplexity 0",)),
        ((*NIN3, "--num", 50, "--perplexity", "nan"), ("--perplexity nan",)),
        ((*NIN3, "--num", 50, "--block", "B4"), ("--block B4", "B1 to B3")),
        ((*NIN3, "--num", 50, "--seed", -2), ("--seed -2",)),
        ((*NIN3, "--num", 50, "--seed", 2**32), ("--seed 4294967296",)),
        (("--num", 50), ("CKPT", "--random-weights")),
        ((tmp_path / "none.pt", "--num", 50), ("none.pt",)),
    ]
    for arguments, words in cases:
        refused(cli, out, words, "tsne", *arguments, "--data", data)
