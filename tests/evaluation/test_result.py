"""Test result.json, the options of evaluations, and validation data of other classes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.evaluation.result import data_record, result_line, scores, write_result, write_run, write_val
from fastpsl.evaluation.result_file import read_result
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import Classes, classes_of
from fastpsl.pipelines.datasets.subset import Subset, Synthetic
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.views import Input
from fastpsl.tables.results import index_runs
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree, write_folder
from tests.recipes.in_process import refused, start


def written(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "recipe": "knn", "protocol": "knn/both", "numbers": {"top1": 12.345678}, "settings": {"k": 3},
        "checkpoint": {"kind": "random"}, "data": {"num_train": 4}, "seconds": 1.26, "cut": False,
    }  # fmt: skip
    return write_result(folder, **(values | changes))


def test_a_record_has_its_numbers_to_four_decimals(tmp_path: Path) -> None:
    path = written(tmp_path)
    record = json.loads(path.read_text())
    assert path == tmp_path / "result.json" and read_result(path) == record
    kept = ("format", "protocol", "recipe", "numbers", "settings", "checkpoint", "data", "cut", "seconds")
    assert {name: record[name] for name in kept} == {
        "format": 1, "protocol": "knn/both", "recipe": "knn", "numbers": {"top1": 12.3457},
        "settings": {"k": 3}, "checkpoint": {"kind": "random"}, "data": {"num_train": 4}, "cut": False,
        "seconds": 1.3,
    }  # fmt: skip
    assert result_line(path) == f"result {path}"
    assert "not comparable" in result_line(written(tmp_path, cut=True))
    of_cut = {"kind": "fastpsl", "cut": True}  # which the line of the weights has told
    assert result_line(written(tmp_path, cut=True, checkpoint=of_cut)) == f"result {path}"
    path.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(ValueError, match="no result of format 1"):
        read_result(path)


@pytest.mark.parametrize(
    "change",
    [
        {"numbers": {"top1": "high"}}, {"numbers": [1]}, {"checkpoint": None}, {"checkpoint": {"path": 7}},
        {"checkpoint": {"science": "x"}}, {"settings": {"seed": [1]}}, {"data": {"num_train": -1}},
        {"cut": "no"}, {"protocol": None}, {"recipe": 10**20},
    ],
)  # fmt: skip
def test_a_record_with_a_field_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"result.json cannot be read as a result \(it holds") as refused:
        result_line(path)
    assert len(str(refused.value).splitlines()) == 1
    (found,) = index_runs(tmp_path).unreadable
    assert found == path


def test_the_data_of_both_sides_are_on_record() -> None:
    train, val = Synthetic(12, 3), Synthetic(5, 3)
    assert data_record(train, val) == {
        "train": train.digest(), "val": val.digest(), "num_train": 12, "num_val": 5,
    }  # fmt: skip
    assert data_record(val, None) == {"train": val.digest(), "val": None, "num_train": 5, "num_val": None}


class Seen(str):
    """A stand-in for a view, which the network sees as it is."""

    def seen_by(self, input: Input) -> "Seen":
        return self


@pytest.mark.parametrize(
    ("steps", "base_cut", "cut"),
    [(((4, 4), (2, 2)), False, False), (((3, 4), (2, 2)), False, True), (((4, 4), (2, 2)), True, True)],
)
def test_a_runs_record_is_of_all_its_stages(
    tmp_path: Path, steps: tuple[tuple[int, int], ...], base_cut: bool, cut: bool
) -> None:
    """Seconds add up, a stage cut short counts whichever it is, and scores are the last stage's."""
    summaries = [
        {
            "level": level, "seconds": seconds, "num_steps": num, "num_steps_planned": planned,
            "val": {"loss": 1.0, "top1_B1": share, "top5_B1": 2 * share},
        }
        for level, seconds, share, (num, planned) in zip(
            (1, 2), (2.5, 4.0), (0.125, 0.25), steps, strict=True
        )
    ]  # fmt: skip
    whole = Synthetic(12, 3)
    part = Subset(whole, whole.labels().argsort(kind="stable")[:6])
    run: Any = SimpleNamespace(
        position=SimpleNamespace(summaries=summaries), data=SimpleNamespace(train=part, val=None),
        options=EvaluationOptions(seed=4), folder=tmp_path,
    )  # fmt: skip
    numbers = scores(run)
    assert numbers == {"top1_B1": 25.0, "top5_B1": 50.0}
    names: dict[str, Any] = {"recipe": "r", "protocol": "p", "checkpoint": {"cut": base_cut}}
    write_run(run, numbers=numbers, settings={"lr": 0.5}, **names)
    record = read_result(tmp_path / "result.json")
    assert (record["seconds"], record["cut"], record["numbers"]) == (6.5, cut, numbers)
    assert (record["settings"]["lr"], record["settings"]["seed"]) == (0.5, 4)
    assert (record["data"]["train"], record["data"]["whole_train"]) == (part.digest(), whole.digest())
    assert record["data"]["train"] != record["data"]["whole_train"] and record["data"]["num_train"] == 6
    names["checkpoint"] |= {"input": Input().as_dict()}
    task: Any = SimpleNamespace(
        views=lambda level: (Seen(f"crop {level}"),),
        val_views=lambda level: (Seen(f"left {level}"), Seen(f"right {level}")),
    )
    write_val(task, run, constants={"lr": 0.5}, **names)
    again = read_result(tmp_path / "result.json")
    assert (again["numbers"], again["cut"], again["settings"]["lr"]) == (numbers, cut, 0.5)
    assert again["settings"]["train_view"] == "'crop 2'"
    assert again["settings"]["val_view"] == "'left 2' and 'right 2'"


def test_random_weights_are_those_of_the_seed() -> None:
    options = [EvaluationOptions(random_weights=True, backbone="nin3", seed=seed) for seed in (0, 0, 1)]
    weights = [each.pretrained().backbone for each in options]
    first, again, other = (next(backbone.parameters()).detach() for backbone in weights)
    assert first.equal(again) and not first.equal(other)


def test_the_side_of_the_pictures_is_part_of_a_given_input() -> None:
    values: dict[str, Any] = {"input_channels": "L", "input_mean": (0.5,), "input_std": (0.25,)}
    options = EvaluationOptions(size_px=96, random_weights=True, **values)
    given = options.given_input()
    assert given is not None
    assert (given.channels, given.mean, given.std, given.size_px) == ("L", (0.5,), (0.25,), 96)
    assert EvaluationOptions(size_px=96).given_input() is None


@pytest.mark.parametrize("recipe", ["knn", "linear_probe", "semi_supervised", "block_probe", "supervised"])
def test_other_classes_are_refused_first(recipe: str, tmp_path: Path) -> None:
    """Neither the weights nor any image here could be read."""
    weights = () if recipe == "supervised" else (tree(tmp_path, {"w.pt": b"x"}) / "w.pt",)
    train = tree(tmp_path / "train", {"cat/0.jpg": b"x", "dog/0.jpg": b"x"})
    val = tree(tmp_path, {"0.jpg": b"x", "1.jpg": b"x", "val.txt": b"0.jpg cat\n1.jpg fox\n"}) / "val.txt"
    few = ("--preset small",) if recipe == "supervised" else ()
    outcome = start(recipe, "--data", train, "--val", val, *weights, *few)
    line = (
        f"{recipe}: {val}: other classes than in training (2 classes, {train} 2; class 1 is 'fox', in the "
        "training data 'dog'); give validation images of the same ones, numbered by `fastpsl data write SRC "
        f"OUT --classes {train}`"
    )
    refused(outcome, recipe, line)
    assert "weights:" not in outcome.out


def test_the_classes_of_each_kind_of_data(tmp_path: Path) -> None:
    image = jpeg(photo(0, 30, 30))
    folder = tree(tmp_path / "pets", {"dog/0.jpg": image, "cat/1.jpg": image})
    (folder / "ant").mkdir()
    assert classes_of(folder) == Classes(["ant", "cat", "dog"], 3)
    write_folder(folder, tmp_path / "pets.beton")
    assert classes_of(str(tmp_path / "p*.beton")) == Classes(["ant", "cat", "dog"], 3)
    write_beton([Sample("a", image, 4)], tmp_path / "numbers.beton", num_samples=1)
    assert classes_of(tmp_path / "numbers.beton") == Classes(None, 5)
    tree(tmp_path, {"numbers.txt": b"a.jpg 0\nb.jpg 6\n", "names.csv": b"a.jpg z\n", "paths.txt": b"a.jpg\n"})
    assert classes_of(tmp_path / "numbers.txt") == Classes(None, 7)
    assert classes_of(tmp_path / "names.csv") == Classes(["z"], 1)
    assert classes_of(tmp_path / "paths.txt") == classes_of(folder / "cat") == Classes(None, 0)
    with pytest.raises(ValueError, match=r"none\.beton: no such file or folder"):
        classes_of(tmp_path / "none.beton")
