"""Which results a table uses, and what it computes of them."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.tables.page import markdown
from fastpsl.tables.results import index_runs
from fastpsl.tables.rows import FEW_LABELS, MOCO, MORE_LABELS, Weights
from tests.cli import Cli, refused
from tests.tables.table_results import BLOCKS, DIGESTS, END_TO_END, PAPER, PSL, ours, put, report


@pytest.mark.parametrize("name", ["config.json", "status.json", "results.json"])
def test_a_run_whose_record_is_nested_without_end(tmp_path: Path, name: str) -> None:
    for file, text in (
        ("config.json", '{"options": {}, "science": {}}'),
        ("status.json", '{"state": "finished"}'),
    ):
        (tmp_path / file).write_text(text)
    assert len(index_runs(tmp_path).runs) == 1
    (tmp_path / name).write_text("[" * 200_000)
    index = index_runs(tmp_path)
    assert not index.runs and list(index.unreadable) == [tmp_path / "config.json"]


@pytest.mark.parametrize("num_train", [float("inf"), float("nan"), "many", None, []])
def test_a_result_with_a_number_that_is_none(tmp_path: Path, num_train: object) -> None:
    path = put(tmp_path)
    record = json.loads(path.read_text())
    record["data"]["num_train"] = num_train
    path.write_text(json.dumps(record))
    assert list(index_runs(tmp_path).unreadable) == [path]


def test_a_result_that_is_nested_without_end(tmp_path: Path) -> None:
    path = put(tmp_path)
    assert len(index_runs(tmp_path).results) == 1
    path.write_text('{"a":' * 200_000)
    assert "cannot be read" in index_runs(tmp_path).unreadable[path]


def test_mean_and_standard_deviation_over_the_seeds(tmp_path: Path) -> None:
    for seed, b4 in enumerate((40.0, 41.0, 45.0)):
        put(tmp_path, seed=seed, numbers=BLOCKS | {"top1_B4": b4})
    put(tmp_path, END_TO_END, seed=1)
    made = report(tmp_path)
    # mean 42, squares 4 + 1 + 9 over two degrees of freedom
    assert ours(made, "PSL")[3] == "42.0 ± 2.6 (3)" and ours(made, "PSL")[0] == "10.0 ± 0.0 (3)"
    assert ours(made, "Jigsaw") == ["10.0", "20.0", "30.0", "40.0", "35.0"]
    assert ours(made, "SL") == ["None"] * 5
    gains = {gain.row.method: gain for gain in made.gains}
    assert gains["PSL"].ours[3] == 2.0 and gains["PSL"].paper[3] == pytest.approx(5.2)
    assert gains["SL"].ours == (None,) * 5


def test_the_best_block_is_one_for_all_seeds(tmp_path: Path) -> None:
    put(tmp_path, seed=0, numbers=BLOCKS | {"top1_B4": 50.0, "top1_B3": 10.0})
    put(tmp_path, seed=1, numbers=BLOCKS | {"top1_B4": 20.0, "top1_B3": 48.0})
    made = report(tmp_path, "psl/4").cells["Jigsaw+PSL"][0].ours
    # B5 has 35, too, and comes later.
    assert made and (made.name, made.mean, made.seeds) == ("top1_B4", 35.0, (0, 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale": PAPER}, "epochs 60 60 60, here 3 3 3"),
        ({"cut": True}, "cut short"),
        ({"checkpoint": {"backbone": "resnet18"}}, "backbone resnet18, here resnet50"),
        ({"science": {"plan": "other"}}, "plan other"),
        ({"science": {"levels": [2, 1, 3]}}, "levels 2 1 3, here default"),
        ({"science": {"partition": ["1-2", "3-5"]}}, "partition 1-2 3-5"),
        ({"science": {"frozen_batchnorm": "train"}}, "frozen_batchnorm train"),
        ({"science": {"data_digest": "f" * 32}}, "pre-trained on other images"),
        ({"science": {"permutations": "of a file"}}, "pre-trained with permutations of a file"),
        ({"settings": {"size_px": 64}}, "evaluated with size_px 64, here 96"),
        ({"checkpoint": {"input": {"channels": "L"}}}, "sees L, here RGB"),
        ({"data": {"train": "a" * 32, "val": "a" * 32}}, "scored on the images that it learned from"),
        (
            {"settings": {"shared_images": 160}},
            "scored on images that it learned from, by their stored bytes",
        ),
        ({"numbers": {"top1_B1": 1.0}}, "it has no top1_B2, top1_B3"),
    ],
)
def test_what_does_not_fit_is_listed_and_not_used(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = put(tmp_path, **change)
    right = put(tmp_path, seed=1)
    made = report(tmp_path)
    assert [result.path for _, _, result in made.used] == [right]
    assert why in made.matches.unused[path]


def test_others_results_are_counted_and_broken_ones_named(tmp_path: Path) -> None:
    put(tmp_path, Weights("resnet50", "simclr_r50", "psl"), MOCO, {"top1_final": 1.0})
    put(tmp_path, PSL, checkpoint={"kind": "torchvision", "science": None})
    broken = put(tmp_path)
    broken.write_text(broken.read_text()[:100])
    made = report(tmp_path)
    assert made.matches.num_other == 2 and list(made.matches.unused) == [broken]
    assert not made.used


def test_fine_tuning_on_parts_is_of_one_data_set(tmp_path: Path) -> None:
    """Each seed learns from labels of its own, so the records differ, though the images are the same."""
    for seed, weights in ((0, PSL), (1, PSL), (0, Weights("resnet50"))):
        part = {"train": f"{seed}" * 32, "val": DIGESTS["val"]}
        science = {"data_digest": DIGESTS["train"]}
        put(tmp_path, weights, FEW_LABELS, {"top5": 50.0 + seed}, seed=seed, data=part, science=science)
    made = report(tmp_path, "psl/7")
    assert ours(made, "Jigsaw+PSL")[0] == "50.5 ± 0.7 (2)" and ours(made, "Supervised")[0] == "50.0"
    put(tmp_path, PSL, MORE_LABELS, {"top5": 1.0}, data=DIGESTS | {"val": "9" * 32})
    with pytest.raises(ValueError, match="2 data sets"):
        report(tmp_path, "psl/7")


def test_variants_are_rows_of_their_own(tmp_path: Path) -> None:
    reversed_ = Weights("resnet50", "jigsaw_r50", "psl", "reversed")
    put(tmp_path, reversed_), put(tmp_path, PSL, numbers=BLOCKS | {"top1_B4": 38.0})
    made = report(tmp_path, "psl/ablations")
    assert ours(made, "G3, G2, G1")[3] == "40.0" and made.cells["G3, G2, G1"][3].paper is None
    gain = next(gain for gain in made.gains if gain.row.method == "G3, G2, G1")
    assert gain.ours[3] == 2.0 and gain.paper == (None,) * 5
    assert ours(report(tmp_path), "PSL")[3] == "38.0"
    written = markdown(made)
    name = "**G3, G2, G1** (from the hardest level to the easiest; ours alone: not in the paper)"
    assert f"| {name} | R50 | ours |" in written
    assert "| G3, G2, G1 − PSL | ours | +0.0 |" in written


def test_the_newest_of_one_seed_counts(tmp_path: Path) -> None:
    older, newer = put(tmp_path, numbers=BLOCKS), put(tmp_path, numbers=BLOCKS | {"top1_B4": 70.0})
    record = json.loads(older.read_text())
    older.write_text(json.dumps(record | {"date": "2020-01-01T00:00:00+00:00"}))
    made = report(tmp_path)
    assert ours(made, "PSL")[3] == "70.0" and "the same seed again" in made.matches.unused[older]
    assert str(newer) in made.matches.unused[older]


def test_data_sets_are_never_mixed(tmp_path: Path) -> None:
    other = {"train": "e" * 32, "val": "b" * 32}
    one, two = put(tmp_path), put(tmp_path, seed=1, data=other)
    with pytest.raises(ValueError, match="results of 2 data sets must not be mixed"):
        report(tmp_path)
    made = report(tmp_path, asked={"train": "e" * 32})
    assert [result.path for _, _, result in made.used] == [two]
    assert "of other images (aaaaaaaa/bbbbbbbb" in made.matches.unused[one]
    assert not report(tmp_path, asked={"train": "0" * 32}).used
    assert not report(tmp_path, asked={"train": "e" * 32, "val": "0" * 32}).used


def test_the_data_that_is_named_decides(tmp_path: Path, cli: Cli) -> None:
    paths = sample_paths()
    with closing(open_data(paths.train_32)) as train, closing(open_data(paths.test_32)) as val:
        mine = {"train": train.digest(), "val": val.digest()}
    runs = tmp_path / "runs"
    put(runs), put(runs, seed=1, data=mine, name="mine")
    words = ("table", "psl/5", "--runs", runs, "--out", tmp_path / "out", "--scale", "tiny")
    refused(cli(*words), "--data")
    for given, num in (
        (("--data", paths.train_32, "--val", paths.test_32), 1),
        (("--val", paths.test_32), 1),  # one of the two is enough
        (("--val", paths.train_32), 0),
    ):
        assert f"{num} of 15 results" in cli(*words, *given).out
