"""Test SSL++ with labels in a file: what it says of them, and that it learns them all."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpsl.tasks.pseudo_labels.file import Labels
from fastpsl.tasks.sslpp import sslpp
from tests.programs import ROOT


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("collapsed", [False, True])
def test_labels_that_were_cut_or_have_collapsed_are_warned_of_on_rank_0(
    rank: int,
    cut: bool,
    collapsed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "labels.npz"
    path.touch()
    numbers = np.arange(100, dtype=np.int32)
    labels = np.maximum(numbers - 95, 0) if collapsed else numbers % 60
    file = Labels(labels, 70, "sslpp_iic", 0, np.zeros(100, np.float32), configuration={"cut": cut})
    monkeypatch.setattr(sslpp, "labels_of", lambda *_: file)
    monkeypatch.setattr(sslpp, "own_rank", lambda: rank)
    options: Any = type("Options", (), {"seed": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sslpp._labels(path, options) is file
    expected = [f"{path} was made by a run that --max-steps-per-stage cut short"] * cut
    expected += [f"{path}: collapse: the biggest of 70 classes holds 96.0 %"] * collapsed
    said = [str(warning.message) for warning in caught]
    assert len(said) == (len(expected) if rank == 0 else 0)
    assert all(text.startswith(start) for text, start in zip(said, expected, strict=False))
    shares = ("5", "96.0%") if collapsed else ("60", "2.0%")
    told = "pseudo-labels: {}, by sslpp_iic: {} of 70 classes have images, the biggest {} of them\n"
    assert capsys.readouterr().out == (told.format(path, *shares) if rank == 0 else "")


def test_all_classes_of_a_file_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--num-clusters is the number of coupled clusters and not of a file's classes."""
    path = tmp_path / "labels.npz"
    path.touch()
    numbers = np.arange(100, dtype=np.int32) % 70
    file = Labels(numbers, 70, "sslpp_iic", 0, np.zeros(100, np.float32), configuration={})
    monkeypatch.setattr(sslpp, "labels_of", lambda *_: file)
    parts = runpy.run_path(str(ROOT / "recipes" / "sslpp_rotation.py"))
    options = parts["RECIPE"].with_paper(data="T.beton", pseudo_labels=str(path), num_clusters=5)
    task = parts["build"](options).task
    assert task.num_classes == 70 and np.array_equal(task.given, numbers)
