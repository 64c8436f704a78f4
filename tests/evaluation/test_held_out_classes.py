"""Validation data of other classes is refused before weights and images are read."""

from pathlib import Path

import pytest

from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
from fastpsl.pipelines.datasets.open import Classes, classes_of
from tests.pipelines.folders import tree, write_folder
from tests.pipelines.photos import jpeg, photo
from tests.recipes.in_process import refused, starter


@pytest.mark.parametrize("recipe", ["knn", "linear_probe", "semi_supervised", "block_probe", "supervised"])
def test_other_classes_are_refused_first(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the weights nor any image here could be read."""
    weights = () if recipe == "supervised" else ("--checkpoint", tree(tmp_path, {"w.pt": b"x"}) / "w.pt")
    train = tree(tmp_path / "train", {"cat/0.jpg": b"x", "dog/0.jpg": b"x"})
    val = tree(tmp_path, {"0.jpg": b"x", "1.jpg": b"x", "val.txt": b"0.jpg cat\n1.jpg fox\n"}) / "val.txt"
    outcome = starter(recipe, monkeypatch, capsys)("--data", train, "--val", val, *weights)
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
