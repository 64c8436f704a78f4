"""An evaluation of a run takes the run's images and their size, where the command gives none."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpsl.cli import main
from fastpsl.evaluation.trained_run import TrainedRun
from fastpsl.models.initial_weights import known_input
from fastpsl.pipelines.views import Input
from fastpsl.scripts.launch import COMMAND, launch
from fastpsl.scripts.recipe_files import find_recipe
from tests.models.test_export import checkpoint
from tests.pipelines.written import photo_tree

PLACES = (".", "checkpoints", "checkpoints/step-00000005.pt")


def run_of(folder: Path, size_px: int = 48, **options: Any) -> Path:
    """Write a run's folder: a checkpoint of nin3, and config.json."""
    checkpoint(folder, "nin3", Input(size_px=size_px))
    (folder / "config.json").write_text(json.dumps({"options": {"data": None, "val": None} | options}))
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for part in ("train", "val"):
        photo_tree(tmp_path / part)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", PLACES)
def test_a_run_is_found_by_each_of_its_places(photos: Path, place: str) -> None:
    folder = run_of(photos / "run", data="train", val="val")
    found = TrainedRun.of(folder / place)
    assert found is not None and found.folder == folder
    assert (found.train_images(), found.val_images()) == ("train", "val")
    record = known_input(str(folder / place))
    assert record is not None and record.size_px == 48


@pytest.mark.parametrize("place", [".", "step-00000005.pt", "../checkpoints/step-00000005.pt"])
def test_a_run_is_found_from_its_folder_of_checkpoints(
    photos: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = run_of(photos / "run", data="train")
    monkeypatch.chdir(folder / "checkpoints")
    found = TrainedRun.of(Path(place))
    assert found is not None and found.folder.samefile(folder) and found.data == "train"


def test_other_weights_belong_to_no_run(photos: Path) -> None:
    (photos / "w.pt").write_bytes(b"")
    assert TrainedRun.of(photos / "w.pt") is None and known_input(str(photos / "w.pt")) is None


def test_weights_from_elsewhere_belong_to_no_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of their path is not looked for, even where the current folder is a run's."""
    monkeypatch.chdir(run_of(photos / "run"))
    for source in ("timm/resnet18", "timm/resnet18.a1_in1k", "hf://timm/resnet18"):
        assert TrainedRun.of(source) is None


def test_images_that_are_not_there_are_named(photos: Path) -> None:
    found = TrainedRun.of(run_of(photos / "run", data="moved", val=None))
    assert found is not None
    with pytest.raises(ValueError, match="^the training images of .*run are not here: moved; give --data$"):
        found.train_images()
    with pytest.raises(ValueError, match="run was trained without validation images: give --queries$"):
        found.val_images("give --queries")
    of_bucket = TrainedRun(photos, "s3://bucket/train-*.beton", "s3://bucket/val.beton")
    assert of_bucket.train_images() == "s3://bucket/train-*.beton"  # looked at when it is opened
    (photos / "run" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json does not say what the run learned from: give --data"):
        TrainedRun.of(photos / "run")


def parsed(recipe: str, *words: object) -> Any:
    return find_recipe(recipe).parse([*map(str, words)], log=lambda line: None)


@pytest.mark.parametrize(
    ("recipe", "size_px", "expected"),
    [
        ("knn", 225, 225), ("knn", 48, 48),
        # A protocol's side is kept, as for the 225 px of a jigsaw, unless the run's is smaller.
        ("linear_probe", 225, 224), ("linear_probe", 48, 48), ("semi_supervised", 64, 64),
        ("block_probe", 48, 32), ("few_shot", 48, 48), ("voc_svm", 48, 48), ("voc_classification", 300, 224),
        ("voc_segmentation", 48, 512),
    ],
)  # fmt: skip
def test_the_size_is_that_of_the_run(photos: Path, recipe: str, size_px: int, expected: int) -> None:
    run = run_of(photos / "run", size_px, data="train", val="val")
    assert parsed(recipe, run).size_px == expected
    assert parsed(recipe, run, "--size-px", 40).size_px == 40


def test_the_images_are_those_of_the_run(photos: Path) -> None:
    run = run_of(photos / "run", data="train", val="val")
    options = parsed("knn", run)
    assert (options.data, options.val, options.k) == ("train", "val", (10, 20, 100, 200))
    assert not options.random_weights and options.checkpoint == str(run)
    options = parsed("knn", run, "--data", "val", "--val", "train")
    assert (options.data, options.val) == ("val", "train")
    options = parsed("few_shot", run)  # learns nothing
    assert (options.data, options.val) == ("val", None)
    assert parsed("voc_svm", run).data is None  # of other images, here generated ones
    options = parsed("knn", run_of(photos / "of_sample"))
    assert (options.data, options.val, options.k, options.size_px) == (None, None, (1, 5, 10, 20), 48)


def test_the_commands_take_what_the_run_has(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()

    def see(options: Any, *_: object, **__: object) -> list[str]:
        seen.append((options.data, options.val, options.size_px))
        return []

    monkeypatch.setattr("fastpsl.evaluation.tsne.make_map", see)
    monkeypatch.setattr("fastpsl.evaluation.neighbours.retrieve", see)
    run = str(run_of(photos / "run", data="train", val="val"))
    main(["tsne", run])
    main(["tsne", run, "--data", "train", "--size-px", "40"])
    main(["retrieve", run])
    main(["retrieve", run, "--queries", "train"])
    main(["retrieve", "--random-weights", "--backbone", "nin3"])
    assert seen == [
        ("val", None, 48), ("train", None, 40), ("train", "val", 48), ("train", "train", 48),
        (None, None, 224),
    ]  # fmt: skip


def test_ranks_say_the_command_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMMAND, "fastpsl eval knn")
    with pytest.raises(SystemExit, match="^2$"):
        launch(find_recipe("knn"), ["--k", "0"])
    assert capsys.readouterr().err.startswith("fastpsl eval knn: --k 0: ")
    monkeypatch.delenv(COMMAND)
    with pytest.raises(SystemExit, match="^2$"):
        launch(find_recipe("knn"), ["--k", "0"])
    assert capsys.readouterr().err.startswith("knn: --k 0: ")


def test_a_share_that_was_held_back_is_scored_within_the_runs_own_images(photos: Path) -> None:
    found = TrainedRun.of(run_of(photos / "run", data="train", val="20%"))
    assert found is not None and found.held_back == 0.2
    assert (found.train_images(), found.val_images(), found.scored()) == ("train", "20%", ("train", "20%"))
    with pytest.raises(ValueError, match="run was scored on 20% of its training images: give --queries$"):
        found.val_data("give --queries")
    of_data = TrainedRun(photos, "train", "val")
    assert (of_data.held_back, of_data.val_data(), of_data.scored()) == (None, "val", ("val", None))
    with pytest.raises(ValueError, match="without validation images"):
        TrainedRun(photos, "train", "none").scored()
