"""Test nearest neighbours, kNN scores, `fastpsl retrieve` and `fastpsl tsne` against plain code."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from fastpsl.evaluation import neighbours
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.neighbours import (
    Scores,
    Search,
    fitting_neighbours,
    nearest_others,
    score,
    score_lines,
)
from fastpsl.evaluation.result import read_result
from fastpsl.evaluation.tsne import same_class, usual_perplexity
from fastpsl.kernels.nearest import (
    Neighbours,
    count_correct,
    majority_scores,
    nearest,
    places,
    weighted_scores,
)
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.plots.charts import MAX_NAMED, draw_map
from fastpsl.plots.neighbours import draw_neighbours
from fastpsl.tables.results import index_runs
from tests.cli import Cli
from tests.engine.tiny import one_process
from tests.pipelines.memory import printed_by
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import write_labelled
from tests.plots.png_pixels import pixels

NUM_CLASSES = 5


def signs(num: int, seed: int, channels: int = 16) -> Tensor:
    """Return rows of ±1 whose norm is a power of two: their cosines are exact, and many are equal."""
    return torch.randint(0, 2, (num, channels), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def noise(num: int, seed: int, channels: int = 12) -> Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def plain(queries: Tensor, bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 similarities in falling order, equal ones by row."""
    a, b = queries.double().numpy(), bank.double().numpy()
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    similarities = a @ b.T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), order


@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"query_chunk": 1, "bank_chunk": 1},
        {"query_chunk": 7, "bank_chunk": 13, "query_part": 20},
        {"query_chunk": 64, "bank_chunk": 3, "query_part": 64},
    ],
)
def test_equal_similarities_come_in_the_order_of_rows_whatever_the_chunks(chunks: dict[str, Any]) -> None:
    queries, bank = signs(50, 1), signs(101, 2)
    similarities, rows = plain(queries, bank, 17)
    assert (np.diff(similarities) == 0).mean() > 0.5  # because the test is about ties
    neighbours = nearest(queries, bank, 17, **chunks)
    assert np.array_equal(neighbours.rows.numpy(), rows)
    assert np.array_equal(neighbours.similarities.numpy(), similarities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_neighbours_are_those_of_the_whole_matrix(dtype: torch.dtype) -> None:
    """Cosines have any size and sign, some queries' are all negative, and half is computed in float32."""
    queries, bank = noise(40, 3).to(dtype), (noise(90, 4) * torch.rand(90, 1) * 50).to(dtype)
    bank[:, 0] = 3 * bank[:, 0].abs()
    queries[:5, 1:], queries[:5, 0] = 0, -1
    similarities, rows = plain(queries, bank, 90)
    assert (similarities[:5] < 0).all()
    neighbours = nearest(queries, bank, 90, bank_chunk=32, query_chunk=16)
    assert np.allclose(neighbours.similarities.numpy(), similarities, atol=3e-7)
    by_row = np.take_along_axis(similarities, rows.argsort(1), 1)
    # Rows with nearly equal cosines may swap places.
    assert np.array_equal(np.sort(neighbours.rows.numpy(), 1), np.sort(rows, 1))
    assert np.allclose(np.take_along_axis(by_row, neighbours.rows.numpy(), 1), similarities, atol=6e-7)


def test_memory_maps_serve_as_well(tmp_path: Any) -> None:
    queries, bank = noise(20, 5), noise(70, 6)
    np.save(tmp_path / "bank.npy", bank.numpy())
    neighbours = nearest(queries.numpy(), np.load(tmp_path / "bank.npy", mmap_mode="r"), 9, bank_chunk=16)
    expected = nearest(queries, bank, 9)
    assert torch.equal(neighbours.rows, expected.rows)
    assert np.array_equal(neighbours.rows.numpy(), plain(queries, bank, 9)[1])


def test_rows_that_are_not_finite_are_nobodys_neighbours() -> None:
    queries, bank = noise(10, 7), noise(30, 8)
    expected = plain(queries, bank[2:], 28)[1] + 2
    bank[0], bank[1, 3] = float("nan"), float("inf")
    assert np.array_equal(nearest(queries, bank, 28, bank_chunk=8).rows.numpy(), expected)


def test_the_precision_of_others_is_left_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        nearest(noise(2, 1), noise(3, 2), 1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 31])
def test_a_k_that_the_bank_has_not_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k {k}: there are 30 features"):
        nearest(noise(2, 1), noise(30, 2), k)


def test_no_queries_have_no_neighbours() -> None:
    assert nearest(noise(0, 1), noise(30, 2), 4).rows.shape == (0, 4)


def labelled(seed: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries and a bank of overlapping clusters, with their labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, 12, generator=random)
    bank_labels = torch.randint(0, NUM_CLASSES, (120,), generator=random)
    labels = torch.randint(0, NUM_CLASSES, (60,), generator=random)
    noises = (1.2 * torch.randn(num, 12, generator=random) for num in (60, 120))
    return centres[labels] + next(noises), labels, centres[bank_labels] + next(noises), bank_labels


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_weighted_votes_are_those_of_a_plain_loop(temperature: float) -> None:
    queries, truth, bank, labels = labelled()
    similarities, rows = plain(queries, bank, 20)
    expected = np.zeros((60, NUM_CLASSES))
    for query in range(60):
        for similarity, row in zip(similarities[query], rows[query], strict=True):
            expected[query, labels[row]] += np.exp(similarity / temperature)
    neighbours = nearest(queries, bank, 20)
    scores = weighted_scores(neighbours, labels, NUM_CLASSES, 20, temperature)
    shares = (scores / scores.sum(1, keepdim=True)).numpy()
    assert np.allclose(shares, expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-9)
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (20,), temperature)
    right = int((expected.argmax(1) == truth.numpy()).sum())
    assert counted["top1_k20"] == right and 24 < right < 60


def test_a_small_temperature_does_not_overflow() -> None:
    neighbours = Neighbours(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 2]]))
    scores = weighted_scores(neighbours, torch.tensor([1, 0, 0]), 2, 3, temperature=1e-4)
    assert scores.isfinite().all() and int(scores.argmax()) == 1


def majority_by_hand(votes: list[int]) -> int:
    """Return the class with the most votes; of equal classes the one with the nearest vote."""
    most = max(votes.count(label) for label in votes)
    return next(label for label in votes if votes.count(label) == most)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 15, 20])
def test_majority_goes_to_the_nearer_of_equal_classes(k: int) -> None:
    queries, truth, bank, labels = labelled()
    neighbours = nearest(queries, bank, 20)
    predicted = majority_scores(neighbours, labels, NUM_CLASSES, k).argmax(1)
    votes = labels[neighbours.rows[:, :k]].tolist()
    assert predicted.tolist() == [majority_by_hand(row) for row in votes]
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (k,), 0.07)
    assert counted[f"top1_k{k}_majority"] == int((predicted == truth).sum())


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ([2, 0, 1], 2),
        ([0, 2, 1], 0),
        ([1, 2, 0], 1),
        ([3, 0, 0, 3], 3),  # by the nearest member, and not by the farthest
        ([0, 3, 3, 0], 0),
        ([4, 1, 2, 2, 1], 1),
        ([4, 2, 1, 1, 2], 2),
        ([0, 1, 1, 1, 2, 3, 4, 0, 0], 0),  # by one member, and not by the mean of all
        ([3, 0, 0], 0),  # no tie: two votes outweigh the nearest
    ],
)
def test_the_nearest_neighbour_decides_a_tie(votes: list[int], winner: int) -> None:
    k = len(votes)
    neighbours = Neighbours(torch.linspace(0.9, 0.1, k)[None], torch.arange(k)[None])
    labels = torch.tensor(votes)
    assert int(majority_scores(neighbours, labels, NUM_CLASSES, k).argmax()) == winner
    for truth in range(NUM_CLASSES):
        counted = count_correct(neighbours, labels, torch.tensor([truth]), NUM_CLASSES, (k,), 0.07)
        assert counted[f"top1_k{k}_majority"] == (truth == winner)


def test_places_count_classes_ahead() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0, 0.0, 3.0]]).double().expand(6, 6)
    # Class 5 leads. Of the equal 1 and 2 the lower is first. 0 and 4 have no vote and come last.
    assert places(scores, torch.arange(6)).tolist() == [6, 1, 2, 3, 6, 0]


def test_top_5_and_several_k_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, truth, bank, labels = labelled()
    neighbours = nearest(queries, bank, 30)
    scores = weighted_scores(neighbours, labels, NUM_CLASSES, 30, 0.07)
    voted = (scores.gather(1, truth[:, None]) > 0).sum()
    monkeypatch.setattr("fastpsl.kernels.nearest._VOTE_CHUNK", 7)
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (1, 30), 0.07)
    assert counted["top5_k30"] == int(voted)  # five classes, so a class with a vote is in the top five
    assert counted["top1_k30"] == int((scores.argmax(1) == truth).sum())
    assert counted["top1_k1"] == counted["top1_k1_majority"] == counted["top5_k1"]
    nothing = Neighbours(neighbours.similarities[:0], neighbours.rows[:0])
    assert count_correct(nothing, labels, truth[:0], NUM_CLASSES, (1, 30), 0.07) == dict.fromkeys(counted, 0)


@pytest.mark.slow
def test_the_matrix_of_similarities_is_never_made() -> None:
    """6,000 x 24,000 similarities would take 550 MiB in float32, and twice that again as keys."""
    script = """
import torch
from fastpsl.kernels.nearest import nearest
torch.set_num_threads(1)
queries, bank = torch.randn(6000, 8), torch.randn(24000, 8)
nearest(queries[:600], bank[:600], 5, bank_chunk=512, query_chunk=256)
before = peak_mib()
nearest(queries, bank, 5, bank_chunk=4096, query_chunk=512)
print(peak_mib() - before)
"""
    (grown,) = printed_by(script)
    assert grown < 300  # 512 x 4,096 x 16 B are 32 MiB, and the allocator holds more


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
    one = score_lines(scores[:1], ["B4"], "majority", "resnet18")
    assert [" ".join(line.split()) for line in one[1:]] == ["majority % k 5 k 20 mean", "B4 30.0 10.0 20.0"]


RANDOM = ("--random-weights", "--backbone", "resnet18")
SMALL = ("--size-px", "32", "--whole", "--workers", "1", "--batch-size", "40")


@pytest.fixture
def cli(cli: Cli) -> Iterator[Cli]:
    """Compute with one thread, because sums in another order give another map."""
    with threadpool_limits(1):
        yield cli


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
        ((*sets,), ("RUN", "--random-weights")),
        ((foreign, *RANDOM, *sets), ("RUN", "--random-weights")),
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


def test_few_images_have_a_low_perplexity() -> None:
    assert [usual_perplexity(num) for num in (3, 60, 90, 1000)] == [1, 20, 30, 30]


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
