"""Test kNN scores and `fastpsl retrieve` against plain code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastpsl.evaluation import neighbours, untrained
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.neighbours import (
    Scores,
    Search,
    fitting_neighbours,
    nearest_others,
    score,
    score_lines,
)
from fastpsl.evaluation.result_file import read_result
from fastpsl.kernels.nearest import Neighbours
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.plots.neighbours import draw_neighbours
from fastpsl.tables.results import index_runs
from tests.cli import Cli
from tests.engine.tiny import one_process
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree, write_labelled, write_raw
from tests.plots.png_pixels import pixels


def features(path: Path, rows: list[list[float]], labels: list[int], bad: Sequence[int] = ()) -> FeatureFile:
    np.save(path, np.array(rows, np.float32))
    np.save(path.with_name(f"{path.stem}-labels.npy"), np.array(labels, np.int32))
    record = {"labels": f"{path.stem}-labels.npy", "shape": [len(rows), 2], "bad": list(bad)}
    return FeatureFile(path, record)


def test_a_bank_may_be_smaller_than_a_row_of_the_chart(tmp_path: Path) -> None:
    """No image of the bank has the last query's class, so that it is never right."""
    bank = features(tmp_path / "bank.npy", [[1, 0], [0, 1], [1, 1]], [0, 1, 0])
    queries = features(tmp_path / "queries.npy", [[3, 1], [1, 4], [5, 4], [0, 1]], [0, 1, 1, 2])
    scores = score(bank, queries, (1, 3), 0.07, one_process())
    assert (scores.correct["top1_k1"], scores.correct["top1_k3_majority"]) == (2, 1)
    chosen, rows, similarities = scores.shown(seed=0)
    assert rows.shape == similarities.shape == (4, 3)
    assert rows[chosen.argsort()].tolist() == [[0, 2, 1], [1, 2, 0], [2, 0, 1], [1, 2, 0]]


def test_images_that_could_not_be_decoded_are_in_no_count(tmp_path: Path) -> None:
    bank = features(tmp_path / "bank.npy", [[1, 0], [0, 1], [4, 1]], [0, 1, 0])
    queries = features(tmp_path / "queries.npy", [[3, 1], [1, 4], [5, 4], [0, 1]], [0, 1, 0, 1], bad=(1,))
    scores = score(bank, queries, (1,), 0.07, one_process())
    assert (scores.num, scores.num_bank, scores.correct["top1_k1"]) == (3, 3, 3)
    assert scores.queries.tolist() == [0, 2, 3]


def test_all_training_images_may_be_neighbours() -> None:
    with Beton(sample_paths().train_32) as train, Beton(sample_paths().test_32) as val:
        assert fitting_neighbours(train, val, (5, 480), (1,)) == (5, 480)
        assert fitting_neighbours(train, val, (5, 481), (5, 481)) == (5,)
        with pytest.raises(ValueError, match="--k 481: the training data has 480 images"):
            fitting_neighbours(train, val, (481, 5), (1,))


def test_a_table_has_means_over_blocks_and_over_ks() -> None:
    empty = Neighbours(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64))

    def scored(*counts: int) -> Scores:
        names = "top1_k5", "top5_k5", "top1_k20", "top5_k20", "top1_k5_majority", "top1_k20_majority"
        return Scores(dict(zip(names, counts, strict=True)), 50, 400, np.arange(50), empty)

    scores = [scored(10, 40, 20, 45, 15, 5), scored(30, 41, 25, 46, 35, 15)]
    lines = score_lines(scores, ["B4", "B5"], "both", "resnet18")
    assert lines[0] == "50 validation images, neighbours of 400; B4, B5 of resnet18"
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "weighted % k 5 k 20 mean", "B4 20.0 40.0 30.0", "B5 60.0 50.0 55.0", "mean 40.0 45.0 42.5",
        "majority % k 5 k 20 mean", "B4 30.0 10.0 20.0", "B5 70.0 30.0 50.0", "mean 50.0 20.0 35.0",
    ]  # fmt: skip
    votes, blocks = ("", "_majority"), ("B4", "B5")
    floor = {f"top1_k{k}{vote}_{block}": 5.0 for k in (5, 20) for vote in votes for block in blocks}
    beside = score_lines(scores, ["B4", "B5"], "weighted", "resnet18", None, floor | {"top1_k20_B5": 15.0})
    assert [" ".join(line.split()) for line in beside[2:]] == [
        "B4 20.0 40.0 30.0", "B5 60.0 50.0 55.0", "mean 40.0 45.0 42.5", "untrained B4 5.0 5.0 5.0",
        "untrained B5 5.0 15.0 10.0",
    ]  # fmt: skip
    one = score_lines(scores[:1], ["B4"], "majority", "resnet18")
    assert [" ".join(line.split()) for line in one[1:]] == ["majority % k 5 k 20 mean", "B4 30.0 10.0 20.0"]


RANDOM = ("--random-weights", "--backbone", "resnet18")
SMALL = ("--size-px", "32", "--whole", "--workers", "1", "--batch-size", "40")


def test_an_untrained_network_finds_beside_it(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its precision is that of random weights, and is kept in the cache; there is none without labels."""
    monkeypatch.setattr(untrained, "cache_folder", lambda: tmp_path / "cache")
    paths, weights = sample_paths(), tmp_path / "net.pth"
    torch.manual_seed(1)
    torch.save(make_backbone("resnet18").state_dict(), weights)
    sets = ("--backbone", "resnet18", "--gallery", paths.train_32, "--queries", paths.test_32, *SMALL)

    def found(*given: object) -> tuple[dict[str, float], str]:
        code, shown, errors = cli("retrieve", *given, "--out", tmp_path / "out")
        assert code == 0, errors
        return read_result(tmp_path / "out" / "result.json")["numbers"], shown

    (random, _), (numbers, shown) = found("--random-weights", *sets), found(weights, *sets)
    (own,), (floor,) = [*numbers.values()][:1], random.values()
    assert list(random) == ["precision_top8"] and own != floor
    assert numbers == {"precision_top8": own, "untrained_precision_top8": floor}
    assert (
        f": {own:.1f} % of the nearest 8 are of the query's class (untrained {floor:.1f} %, chance 1" in shown
    )
    (kept,) = (tmp_path / "cache/untrained").iterdir()
    kept.write_text(json.dumps({"block": "", "numbers": {"precision_top8": 77.0}}))
    assert found(weights, *sets)[0]["untrained_precision_top8"] == 77
    kept.write_text("{")
    assert found(weights, *sets)[0] == numbers
    assert found(weights, *sets, "--no-floor")[0] == {"precision_top8": own}
    write_raw(tmp_path / "photos.beton", [photo(seed, 40, 40) for seed in range(9)], [-1] * 9)
    photos = ("--gallery", tmp_path / "photos.beton", "--queries", tmp_path / "photos.beton")
    numbers, shown = found(weights, *sets[:2], *photos, *SMALL)
    assert numbers == {} and "(untrained" not in shown


def refused(cli: Cli, out: Path, words: tuple[str, ...], command: str, *arguments: object) -> None:
    """Check for one line with the words, and no folder."""
    code, _, errors = cli(command, *SMALL, *arguments, "--out", out)
    assert code == 2 and errors.count("\n") == 1 and errors.startswith("fastpsl "), (arguments, errors)
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
    assert 5 < precision < 95
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
        numbers.append(record["numbers"]["precision_top8"])  # the seed is the untrained network's, too
        times.add((out / "gallery.npy").stat().st_mtime_ns)
    assert len(charts[0]) == len(charts[1]) == 4 and charts[0] != charts[1] and charts[2] == [7, 3, 7]
    assert numbers[0] == numbers[1] == numbers[2] and len(times) == 1
    assert json.loads((out / "gallery.json").read_text())["block"] == "B2"


def folder(path: Path, num: int, classes: tuple[str, ...] = ()) -> Path:
    places = classes or (".",)
    return tree(path, {f"{places[i % len(places)]}/{i:02d}.jpg": jpeg(photo(i, 40, 50)) for i in range(num)})


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
    own = np.arange(12) if same else None
    found = Search(gallery, queries, 3, own, torch.device("cpu")).precision(one_process())
    assert found == pytest.approx((100 * np.mean(hits), 100 * np.mean(shares)))


def test_the_same_names_with_other_pixels_are_other_images(tmp_path: Path, cli: Cli) -> None:
    """Names, labels and sizes agree. Of a copy with other labels, no query finds its own image."""
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    labels, out = [0, 1] * 5, tmp_path / "out"
    gallery = write_raw(tmp_path / "gallery.beton", images, labels)
    other = images.copy()
    other[3:, 0, 0] ^= 255
    cases = ((other, labels, 3), (images, labels[::-1], 10))
    for number, (queries, truth, num) in enumerate(cases):
        path = write_raw(tmp_path / f"{number}.beton", queries, truth)
        sets = ("--gallery", gallery, "--queries", path, "--k", 9, "--num", 10)
        code, lines, errors = cli("retrieve", *RANDOM, *SMALL, *sets, "--out", out)
        assert code == 0, errors
        settings, of_all = read_result(out / "result.json")["settings"], num == 10
        assert settings["shared_images"] == num and settings["queries_in_gallery"] == of_all
        told = (
            "9 other images;"
            if of_all
            else "10 images (3 of the queries are among them, and find themselves);"
        )
        assert f"10 queries, each among {told}" in lines
        found = {each["query"]: each["neighbours"] for each in settings["shown"]}
        if of_all:
            assert all(set(rows) == set(range(10)) - {query} for query, rows in found.items())
            precision = read_result(out / "result.json")["numbers"]["precision_top9"]
            right = [labels[row] == truth[query] for query, rows in found.items() for row in rows]
            assert precision == pytest.approx(100 * np.mean(right), abs=1e-4)
            assert f"(chance {precision:.1f} %)" in lines  # all others are found
        else:
            assert [found[query][0] for query in range(3)] == [0, 1, 2]


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
        ((*sets,), ("RUN", "--random-weights")),
        ((foreign, *RANDOM, *sets), ("RUN", "--random-weights")),
        (("--random-weights", *sets), ("--backbone",)),
        ((foreign, *sets), ("foreign.pth does not say which backbone", "--backbone")),
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
