"""The recipes with labels as a user runs them: supervised training, and fine-tuning on few labels."""

from pathlib import Path

import pytest
import torch

from fastpsl.engine.optim.schedules import Moment
from fastpsl.evaluation.few_labels import draw_label_list
from fastpsl.evaluation.result_file import read_result
from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from tests.pipelines.written import write_labelled
from tests.programs import newest_checkpoint
from tests.recipes.in_process import built, differences, refused, start, words

SMALL_SUPERVISED = words(
    "--data",
    sample_paths().train_32,
    "--size-px 32 --batch-size 32 --workers 1 --no-tensorboard --backbone resnet18",
    "--epochs 2 --max-steps-per-stage 2",
)


def test_a_run_is_on_record_and_its_weights_can_be_probed(tmp_path: Path) -> None:
    start("supervised", *SMALL_SUPERVISED, "--val", sample_paths().test_32, "--out", tmp_path).ok()
    record = read_result(tmp_path / "result.json")
    val = newest_checkpoint(tmp_path)["position"]["summaries"][0]["val"]
    assert record["numbers"] == pytest.approx({name: 100 * val[name] for name in ("top1", "top5")})
    assert (record["protocol"], record["recipe"], record["cut"]) == ("supervised", "supervised", True)
    checkpoint = record["checkpoint"]
    assert (checkpoint["kind"], checkpoint["run_step"], checkpoint["cut"]) == ("fastpsl", 2, True)
    assert checkpoint["science"]["lr"] == 0.1 and record["settings"]["epochs"] == [2]
    loaded = load_pretrained(tmp_path)
    assert loaded.record == checkpoint and loaded.input.size_px == 32
    trained = newest_checkpoint(tmp_path)["backbone"]
    assert all(torch.equal(value, trained[name]) for name, value in loaded.backbone.state_dict().items())


def test_without_validation_images_it_trains_and_says_so(tmp_path: Path) -> None:
    outcome = start("supervised", *SMALL_SUPERVISED, "--val none --out", tmp_path)
    assert outcome.code == 0 and "no result: without --val" in outcome.out
    assert not (tmp_path / "result.json").exists()


def test_the_schedule_is_the_usual_one() -> None:
    _, experiment = built("supervised", backbone="resnet18", batch_size=512)
    (stage,) = experiment.stages
    assert (stage.level, stage.first_learning, stage.last_block, stage.epochs) == (1, 1, 5, 90)
    for epoch in range(90):
        rate = experiment.schedule(Moment(epoch * 10, 900, 0, 90, 90))
        assert rate == pytest.approx(0.2 * 0.1 ** ((epoch >= 30) + (epoch >= 60) + (epoch >= 80)))
    named = [(name, torch.nn.Parameter(torch.zeros(3))) for name in ("a.weight", "a.bias")]
    decayed, rest = experiment.optimiser(iter(named)).param_groups
    assert len(decayed["params"]) == 2 and not rest["params"]
    assert (decayed["weight_decay"], decayed["momentum"], decayed["nesterov"]) == (1e-4, 0.9, False)


def test_small_images_are_padded_and_scored_whole() -> None:
    for crop, train, val, ops in (
        ("random_resized", RandomResizedCrop(32), ShorterSideCrop(37, 32, "center"), ["Flip"]),
        ("padded", ShorterSideCrop(32, 32, "center"), ShorterSideCrop(32, 32, "center"), ["Shift", "Flip"]),
    ):
        small = {"backbone": "nin4", "size_px": 32, "plan": "end_to_end", "epochs": (1,)}
        options, experiment = built("supervised", crop=crop, **small)  # type: ignore[arg-type]
        assert (experiment.task.train_view.crop, experiment.task.val_view.crop) == (train, val)
        assert [type(op).__name__ for op in experiment.task.train_view.ops] == ops
        assert options.science()["crop"] == crop and not experiment.task.has_own_order


def test_a_nin_learns_from_few_labels_and_goes_on_as_it_began(tmp_path: Path) -> None:
    val = ("--val", sample_paths().test_32)
    nin = words(*SMALL_SUPERVISED[:2], *val, "--size-px 16 --batch-size 16 --workers 1")
    steps = ("--no-tensorboard", "--backbone", "nin3", "--epochs", "1", "--max-steps-per-stage", "3")
    chosen = ("--crop", "padded", "--labels-per-class", "2")
    outcome = start("supervised", *nin, *steps, *chosen, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert differences(tmp_path / "out")["crop"] == ["padded", "random_resized"]
    record = read_result(tmp_path / "out" / "result.json")
    science = record["checkpoint"]["science"]
    assert (science["crop"], science["labels_per_class"]) == ("padded", 2)
    assert (record["settings"]["crop"], record["data"]["num_train"]) == ("padded", 480)
    assert "3 of 30 steps" in outcome.err  # as many steps as with all 480 images in batches of 16
    outcome = start("supervised", *nin, *steps, "--out", tmp_path / "out")
    refused(outcome, "crop (padded there, random_resized now)")
    refused(start("supervised", *nin, *steps, "--labels-per-class 61 --out", tmp_path / "b"), "has 60 images")


RANDOM = {"random_weights": True, "backbone": "resnet18"}
DATA = ("--data", sample_paths().train_32, "--val", sample_paths().test_32)
SMALL_SEMI = words(
    "--size-px 32 --batch-size 16 --workers 1 --no-tensorboard --random-weights",
    "--backbone resnet18 --epochs 1",
)


def test_a_drawn_list_is_on_record_and_can_be_given_again(tmp_path: Path) -> None:
    drawn, given = tmp_path / "drawn", tmp_path / "given"
    outcome = start("semi_supervised", *DATA, *SMALL_SEMI, "--percent 10 --seed 3 --out", drawn).ok()
    with Beton(sample_paths().train_32) as data:
        chosen = draw_label_list(data.labels(), 8, 10, 3)
        part = Subset(data, chosen)
        whole, digest, names = data.digest(), part.digest(), [data.name(i).split("(")[1][:-1] for i in chosen]
    assert [int(line) for line in (drawn / "label-list.txt").read_text().split()] == chosen.tolist()
    record = read_result(drawn / "result.json")
    assert (record["protocol"], record["recipe"]) == ("semi_supervised", "semi_supervised")
    assert set(record["numbers"]) == {"top1", "top5"} and not record["cut"]
    learned = record["data"]
    assert (learned["train"], learned["num_train"], learned["num_val"]) == (digest, 48, 160)
    assert record["data"]["whole_train"] == whole
    settings = record["settings"]
    assert (settings["percent"], settings["lr"], settings["epochs"], settings["weight_decay"]) == (
        10, 0.01, 1, 0,
    )  # fmt: skip
    assert settings["protocol"] == "pirl" and settings["intervals"] == [30, 40]
    position = newest_checkpoint(drawn)["position"]
    assert position["run_step"] == 3  # 48 images in batches of 16
    assert f"{record['numbers']['top1']:.1f} %" in outcome.out + outcome.err
    assert f"labelled images {drawn / 'label-list.txt'}" in outcome.out

    # The same images, given by their names, yield the same network.
    (tmp_path / "names.txt").write_text("\n".join(names))
    by_list = ("--label-list", tmp_path / "names.txt")
    start("semi_supervised", *DATA, *SMALL_SEMI, "--seed 3", *by_list, "--out", given).ok()
    weights = [newest_checkpoint(folder)["backbone"] for folder in (drawn, given)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    again = read_result(given / "result.json")
    assert again["numbers"] == record["numbers"] and again["settings"]["percent"] is None
    outcome = start("semi_supervised", *DATA, *SMALL_SEMI, "--percent 20 --seed 3 --out", drawn)
    refused(outcome, "the data: its digest", "percent (10.0 there, 20.0 now)")


def test_the_list_of_a_part_is_read_within_the_same_part(tmp_path: Path) -> None:
    """A share of --data is held back, so positions in the part are not those in the whole."""
    held_back, digests = ("--data", sample_paths().train_32, "--val", "20%"), []
    lists = ("--percent 10", ("--label-list", tmp_path / "0/label-list.txt"))
    for place, images in enumerate(lists):
        words = (images,) if isinstance(images, str) else images
        start("semi_supervised", *held_back, *SMALL_SEMI, *words, "--out", tmp_path / str(place)).ok()
        digests.append(read_result(tmp_path / str(place) / "result.json")["data"]["train"])
    assert digests[0] == digests[1]


def test_protocols_are_pirls_and_simclrs() -> None:
    for protocol, lr in (("pirl", 0.01), ("simclr", 0.05)):
        values = {"protocol": protocol, "batch_size": 128}
        _, experiment = built("semi_supervised", "cpu", **RANDOM, **values)  # type: ignore[arg-type]
        (stage,) = experiment.stages
        assert (stage.first_learning, stage.last_block, stage.epochs) == (1, 5, 70)
        for epoch in range(70):
            rate = experiment.schedule(Moment(epoch * 10, 700, 0, 70, 70))
            assert rate == pytest.approx(lr / 2 * (0.1 if epoch >= 30 else 1))
        named = iter([("blocks.0.weight", torch.nn.Parameter(torch.zeros(3)))])
        groups = experiment.optimiser(named).param_groups
        assert [g["weight_decay"] for g in groups] == [0, 0] and groups[0]["nesterov"]
        assert groups[0]["momentum"] == 0.9


def test_small_images_are_scored_whole() -> None:
    for whole, shorter_px in ((False, 37), (True, 32)):
        values = {"size_px": 32, "whole": whole}
        _, experiment = built("semi_supervised", "cpu", **RANDOM, **values)  # type: ignore[arg-type]
        (view,) = experiment.task.val_views(1)
        assert view.crop == ShorterSideCrop(shorter_px, 32, "center")


def test_lists_and_classes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dogs = write_labelled(tmp_path / "dogs.beton", [0] * 300 + [1] * 3, ["cat", "dog"])
    (tmp_path / "list.txt").write_text("p1\nn01440764_10026.JPEG\nn01440764_9.JPEG\n")
    both, few = ("--data", dogs, "--val", dogs), "dog, which has 3 images"
    for arguments, texts in (
        ((*both, "--percent 1"), (few, "--percent 33.3 or more", "--label-list")),
        (
            (*both, "--label-list", tmp_path / "list.txt"),
            ("n01440764_10026.JPEG", "not in the data", "2 of 3 names"),
        ),
        ((*both, "--label-list", tmp_path / "absent.txt"), ("absent.txt",)),
    ):
        refused(start("semi_supervised", *SMALL_SEMI, *arguments, "--out", tmp_path / "out"), *texts)
        assert not (tmp_path / "out").exists()
    val = ("--data", sample_paths().train_32, "--val", dogs, "--percent 50 --out", tmp_path / "val")
    refused(start("semi_supervised", *SMALL_SEMI, *val), "class 0 is 'cat', in the training data 'bricks'")


@pytest.mark.parametrize(
    ("recipe", "more", "num"),
    [
        ("supervised", "--backbone resnet18 --labels-per-class 2", 16),
        ("linear_probe", "--random-weights --backbone resnet18 --protocol moco", 480),
        ("block_probe", "--random-weights --backbone nin4 --heads fc1_B2 --labels-per-class 3", 24),
        ("semi_supervised", "--random-weights --backbone resnet18 --percent 10", 48),
    ],
)
def test_validation_images_that_are_learned_from_are_told(
    tmp_path: Path, recipe: str, more: str, num: int
) -> None:
    """Only those are whose labels are used. They are scored as before."""
    data = ("--data", sample_paths().train_32, "--val", sample_paths().train_32, "--size-px 32 --epochs 1")
    cut = "--batch-size 32 --workers 1 --no-tensorboard --max-steps-per-stage 1 --out"
    outcome = start(recipe, *data, more, cut, tmp_path).ok()
    words_of = "validation images are training images (the same stored bytes): the score is too high"
    line = f"{num} of 480 {words_of}"
    assert outcome.err.count(line) == 1
    assert read_result(tmp_path / "result.json")["settings"]["shared_images"] == num
