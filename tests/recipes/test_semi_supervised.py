"""Test fine-tuning with few labels as a user runs it: recorded and given lists of images, and errors."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.few_labels import draw_label_list
from fastpsl.evaluation.result import read_result
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.sample.betons import sample_paths
from tests.pipelines.labelled import write_labelled
from tests.programs import ROOT, newest_checkpoint
from tests.recipes.in_process import Start, refused, starter

DATA = ("--data", sample_paths().train_32, "--val", sample_paths().test_32)
SMALL = (
    *("--size-px", "32", "--batch-size", "16", "--workers", "1", "--no-tensorboard"),
    *("--random-weights", "--backbone", "resnet18", "--epochs", "1"),
)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    return starter("semi_supervised", monkeypatch, capsys)


def test_a_drawn_list_is_on_record_and_can_be_given_again(recipe: Start, tmp_path: Path) -> None:
    drawn, given = tmp_path / "drawn", tmp_path / "given"
    outcome = recipe(*DATA, *SMALL, "--percent", "10", "--seed", "3", "--out", drawn)
    assert outcome.code == 0, outcome
    with Beton(sample_paths().train_32) as data:
        chosen = draw_label_list(data.labels(), 8, 10, 3)
        part = Subset(data, chosen)
        whole, digest, names = data.digest(), part.digest(), [data.name(i).split("(")[1][:-1] for i in chosen]
    assert [int(line) for line in (drawn / "label-list.txt").read_text().split()] == chosen.tolist()
    record = read_result(drawn / "result.json")
    assert (record["protocol"], record["recipe"]) == ("semi_supervised", "semi_supervised")
    assert set(record["numbers"]) == {"top1", "top5"} and not record["cut"]
    assert (record["data"]["train"], record["data"]["num_train"], record["data"]["num_val"]) == (
        digest,
        48,
        160,
    )
    assert record["data"]["whole_train"] == whole
    settings = record["settings"]
    assert (settings["percent"], settings["lr"], settings["epochs"], settings["weight_decay"]) == (
        10,
        0.01,
        1,
        0,
    )
    assert settings["protocol"] == "pirl" and settings["intervals"] == [30, 40]
    position = newest_checkpoint(drawn)["position"]
    assert position["run_step"] == 3  # 48 images in batches of 16
    assert f"{record['numbers']['top1']:.1f} %" in outcome.out + outcome.err
    assert f"labelled images {drawn / 'label-list.txt'}" in outcome.out

    # The same images, given by their names, yield the same network.
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert (
        recipe(*DATA, *SMALL, "--seed", "3", "--label-list", tmp_path / "names.txt", "--out", given).code == 0
    )
    weights = [newest_checkpoint(folder)["backbone"] for folder in (drawn, given)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    again = read_result(given / "result.json")
    assert again["numbers"] == record["numbers"] and again["settings"]["percent"] is None
    outcome = recipe(*DATA, *SMALL, "--percent", "20", "--seed", "3", "--out", drawn)
    refused(outcome, "semi_supervised", "the data: its digest", "percent (10.0 there, 20.0 now)")


def test_protocols_are_pirls_and_simclrs() -> None:
    parts: dict[str, Any] = runpy.run_path(str(ROOT / "recipes" / "semi_supervised.py"))
    for protocol, lr in (("pirl", 0.01), ("simclr", 0.05)):
        options = parts["RECIPE"].with_paper(
            protocol=protocol, random_weights=True, backbone="resnet18", batch_size=128
        )
        experiment = parts["build"](options)
        (stage,) = experiment.stages
        assert (stage.first_learning, stage.last_block, stage.epochs) == (1, 5, 70)
        for epoch in range(70):
            rate = experiment.schedule(Moment(epoch * 10, 700, 0, 70, 70))
            assert rate == pytest.approx(lr / 2 * (0.1 if epoch >= 30 else 1))
        groups = experiment.optimiser(
            iter([("blocks.0.weight", torch.nn.Parameter(torch.zeros(3)))])
        ).param_groups
        assert (
            [g["weight_decay"] for g in groups] == [0, 0]
            and groups[0]["nesterov"]
            and groups[0]["momentum"] == 0.9
        )


def test_small_images_are_scored_whole() -> None:
    parts: dict[str, Any] = runpy.run_path(str(ROOT / "recipes" / "semi_supervised.py"))
    for whole, shorter_px in ((False, 37), (True, 32)):
        options = parts["RECIPE"].with_paper(
            random_weights=True, backbone="resnet18", size_px=32, whole=whole
        )
        (view,) = parts["build"](options).task.val_views(1)
        assert view.crop == ShorterSideCrop(shorter_px, 32, "center")


def test_impossible_requests_are_refused(recipe: Start, tmp_path: Path) -> None:
    outs: list[Path] = []

    def is_refused(*arguments: object, words: tuple[str, ...]) -> None:
        outs.append(tmp_path / f"out-{len(outs)}")
        refused(recipe(*SMALL, "--out", outs[-1], *arguments), "semi_supervised", *words)
        assert not outs[-1].exists()

    dogs = write_labelled(tmp_path / "dogs.beton", [0] * 300 + [1] * 3, ["cat", "dog"])
    both = ("--data", dogs, "--val", dogs)
    is_refused(
        *both, "--percent", "1", words=("dog, which has 3 images", "--percent 33.3 or more", "--label-list")
    )
    (tmp_path / "list.txt").write_text("p1\nn01440764_10026.JPEG\nn01440764_9.JPEG\n")
    absent = ("n01440764_10026.JPEG", "not in the data", "2 of 3 names")
    is_refused(*both, "--label-list", tmp_path / "list.txt", words=absent)
    is_refused(*both, "--label-list", tmp_path / "absent.txt", words=("absent.txt",))
    is_refused(*DATA, "--percent", "1", words=("which has 60 images", "--percent 1.67 or more"))
    is_refused(
        *DATA, "--percent", "2", words=("9 training images are fewer than one batch of 16", "--batch-size")
    )
    is_refused(*DATA, "--percent", "0", words=("--percent 0",))
    is_refused(*DATA, "--order", "quasi_random", words=("--order quasi_random",))
    is_refused(*DATA[:2], words=("give --val",))
    val = ("--data", sample_paths().train_32, "--val", dogs, "--percent", "50", "--out", tmp_path / "val")
    refused(recipe(*SMALL, *val), "semi_supervised", "class 0 is 'cat', in the training data 'balloon'")
