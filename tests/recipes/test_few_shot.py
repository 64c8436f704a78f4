"""Test recipes/few_shot.py as a user runs it: scores, reused features, two ranks, and errors."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.evaluation.features import Extraction, extract
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.transfer.few_shot import classes_of, draw_episodes, num_hits
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import write_labelled
from tests.recipes.in_process import ran, refused, start, words

RECIPE = "few_shot"
recipe = partial(start, RECIPE)
RANDOM = ("--random-weights", "--backbone", "alexnet")
SMALL = ("--workers", "1", "--size-px", "84", "--episodes", "50")


def test_scores_result_and_figure_of_the_sample(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = recipe("--workers 1 --out", out, "--episodes 200").ok()
    lines = outcome.out.splitlines()
    assert lines[0] == (
        "the embedded sample: size_px 84 (default 224), batch_size 32 (default 256), "
        "episodes 200 (default 10000)"
    )
    assert lines[2] == "5-way 5-shot, 200 episodes of 75 queries, alexnet; 160 images of 8 classes", lines
    result = json.loads((out / "result.json").read_text())
    numbers, blocks = result["numbers"], ("B3", "B4", "B5", "B5_max_pool")
    assert list(numbers) == [f"{what}_{block}" for block in blocks for what in ("accuracy", "interval")]
    for line, block in zip(lines[3:7], blocks, strict=True):
        assert line == f"{block}: {numbers[f'accuracy_{block}']:.2f} ± {numbers[f'interval_{block}']:.2f} %"
        assert 40 < numbers[f"accuracy_{block}"] < 95  # chance is 20
    assert lines[7:] == [f"result {out / 'result.json'}", f"chart {out / 'result.png'}"]
    assert (result["recipe"], result["protocol"], result["cut"]) == ("few_shot", "few_shot", False)
    settings = result["settings"]
    assert [settings[name] for name in ("ways", "shots", "queries", "episodes", "size_px", "source_px")] == [
        5, 5, 15, 200, 84, 84,
    ]  # fmt: skip
    assert "Squashed(size_px=84)" in settings["view"] and len(settings["features"]) == 4
    assert result["data"]["num_train"] == 160 and result["data"]["val"] is None
    with Image.open(out / "result.png") as image:
        assert image.size[0] > 600

    # Computed from the features in the folder, query by query.
    features = np.load(out / "B5.npy").astype(np.float64).reshape(160, -1)
    labels = np.load(out / "B5-labels.npy")
    members = [np.flatnonzero(labels == label) for label in range(8)]
    shares = []
    for support, queries in zip(*draw_episodes(members, 200, 5, 5, 15, 0), strict=True):
        means = features[support].mean(1)
        predictions = [((features[rows][:, None] - means) ** 2).sum(2).argmin(1) for rows in queries]
        shares.append(100 * np.mean([predictions[way] == way for way in range(5)]))
    assert numbers["accuracy_B5"] == pytest.approx(np.mean(shares), abs=0.05)
    assert numbers["interval_B5"] == pytest.approx(1.96 * np.std(shares, ddof=1) / 200**0.5, abs=0.01)

    # With shuffled labels the score is at chance, except for differences between the eight classes.
    shuffled = np.random.default_rng(0).permutation(labels)
    members = [np.flatnonzero(shuffled == label) for label in range(8)]
    right = num_hits(np.load(out / "B5.npy"), draw_episodes(members, 200, 5, 5, 15, 0), torch.device("cpu"))
    assert 16 < 100 * right.mean() / 75 < 26

    written = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    outcome = recipe("--workers 1 --episodes 50 --ways 2 --shots 1 --seed 0 --out", out)
    assert outcome.code == 0 and {path: path.stat().st_mtime_ns for path in written} == written
    assert json.loads((out / "result.json").read_text())["numbers"]["accuracy_B5"] > 55  # chance is 50


def mini_imagenet(root: Path, sizes: dict[str, int], side: int = 84) -> Path:
    """Write test.csv beside images/, in the layout of Ravi and Larochelle's lists."""
    (root / "images").mkdir(parents=True)
    rows = [(f"{name}{i:08}.jpg", name) for name, size in sizes.items() for i in range(size)]
    for number, (file, _) in enumerate(rows):
        (root / "images" / file).write_bytes(jpeg(photo(number, side, side)))
    (root / "test.csv").write_text("filename,label\n" + "".join(f"{file},{name}\n" for file, name in rows))
    return root / "test.csv"


@pytest.mark.slow
def test_two_ranks_on_seven_images_say_what_one_says(tmp_path: Path) -> None:
    """Compare features and numbers byte for byte, from miniImageNet's list with enlarged images."""
    data = mini_imagenet(tmp_path / "mini", {"n01": 4, "n02": 3})
    few = "--workers 1 --episodes 20 --ways 2 --shots 1 --queries 2 --batch-size 2 --decoder pillow --data"
    arguments = words(*RANDOM, few, data)
    results = []
    for name, ranks in (("one", 0), ("two", 2)):
        done = ran(RECIPE, *arguments, "--out", tmp_path / name, ranks=ranks)
        assert "7 images of 2 classes" in done.stdout
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[0]["numbers"] == results[1]["numbers"] and len(results[0]["numbers"]) == 8
    assert results[0]["settings"]["features"] == results[1]["settings"]["features"]
    for block in ("B3", "B4", "B5", "B5_max_pool"):
        one_rank, both_ranks = ((tmp_path / name / f"{block}.npy").read_bytes() for name in ("one", "two"))
        assert one_rank == both_ranks and np.isfinite(np.load(tmp_path / "two" / f"{block}.npy")).all()


@pytest.mark.slow
def test_an_interrupted_pass_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = mini_imagenet(tmp_path / "mini", {"n01": 4, "n02": 4})
    few = "--ways 2 --shots 2 --queries 2 --batch-size 2 --block B3 B5_max_pool --data"
    arguments = (*RANDOM, *SMALL, few, data)
    recipe(*arguments, "--out", tmp_path / "whole").ok()
    of_maps, calls = Extraction.of_maps, [0]

    def stops(work: Extraction, maps: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:  # the third batch's, while those of the second are copied to the host
            raise KeyboardInterrupt
        return of_maps(work, maps)

    monkeypatch.setitem(extract.__wrapped__.__kwdefaults__, "save_every_s", 0.0)  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(Extraction, "of_maps", stops)
        outcome = recipe(*arguments, "--out", tmp_path / "stopped")
        assert outcome.code == 75 and "the same command begins again" in outcome.err
    outcome = recipe(*arguments, "--out", tmp_path / "stopped")
    assert outcome.code == 0 and "goes on from row 2" in outcome.err
    numbers = [
        json.loads((tmp_path / name / "result.json").read_text())["numbers"] for name in ("whole", "stopped")
    ]
    assert numbers[0] == numbers[1] and list(numbers[0])[::2] == ["accuracy_B3", "accuracy_B5_max_pool"]


def test_an_image_that_cannot_be_decoded_is_in_no_episode(tmp_path: Path) -> None:
    data = mini_imagenet(tmp_path / "mini", {"n01": 5, "n02": 5})
    broken = tmp_path / "mini" / "images" / "n0100000002.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    arguments = ("--data", data, *RANDOM, *SMALL, "--ways 2 --shots 2 --block B5 --queries")
    outcome = recipe(*arguments, "2 --out", tmp_path / "a", "--on-bad-sample skip")
    assert outcome.code == 0 and "n0100000002.jpg" in outcome.err, outcome
    outcome = recipe(*arguments, "3 --out", tmp_path / "b")
    refused(outcome, "n0100000002.jpg")
    outcome = recipe(*arguments, "3 --out", tmp_path / "c", "--on-bad-sample skip")
    refused(outcome, "5 images of a class", "class n01 has 4")


def test_data_without_enough_images_are_refused(tmp_path: Path) -> None:
    for name, labels, side_px, texts in (
        ("uneven", [0] * 6 + [1] * 3 + [2] * 6, 84, ("class house has 3",)),
        ("without", [0, 1, -1, 0, 1], 84, ("few-shot classification needs labels", "1 of 5")),
        ("tiny", [0, 1] * 4, 40, ("--source-px 84: the data has images of 40 px",)),
    ):
        data = write_labelled(tmp_path / f"{name}.beton", labels, ["boat", "house", "tree"], side_px=side_px)
        few = ("--ways 2 --shots 2 --queries 2 --data", data, "--out", tmp_path / "out")
        refused(recipe(*SMALL, *RANDOM, *few), *texts)
        assert not list((tmp_path / "out").glob("*.npy"))


def test_the_samples_images_are_enough_for_the_usual_episodes() -> None:
    with Beton(sample_paths().test) as data:
        assert {len(rows) for rows in classes_of(data, 5, 20)} == {20}
