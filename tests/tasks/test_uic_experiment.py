"""UIC's experiment around the task: what a fine-tuning may go on from, and the labels that a run leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.tasks.pseudo_labels import uic
from fastpsl.tasks.pseudo_labels.file import read_labels


def test_what_cannot_be_fine_tuned_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    science = {"recipe": "uic", "backbone": "alexnet", "num_clusters": 16, "input_channels": "SobelXY"}
    monkeypatch.setattr(uic, "read_checkpoint", lambda _: {"science": science, "train_step": {}})

    def trained(**changed: Any) -> dict[str, Any]:
        options: Any = SimpleNamespace(**{**science, "plan": "end_to_end", **changed})
        return uic._trained(tmp_path / "step.pt", options)[1]["science"]

    assert trained() == science
    for name, value in (("backbone", "vgg16"), ("num_clusters", 8), ("input_channels", "RGB")):
        flag, needed = name.replace("_", "-"), science[name]
        with pytest.raises(ValueError, match=f"has {flag} {needed}, not {value}: give --{flag} {needed}"):
            trained(**{name: value})
    with pytest.raises(ValueError, match="give --plan end_to_end, not psl"):
        trained(plan="psl")
    del science["num_clusters"]
    with pytest.raises(ValueError, match="a checkpoint of uic, which has no pseudo-labels"):
        trained(num_clusters=16)


def test_the_file_of_labels_has_the_last_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the number of classes that were split, which makes the labels comparable, and the science."""
    current = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0, 2], dtype=torch.int32)
    state = {"task": {"store": {"current": current, "num_split": 2}}}
    monkeypatch.setattr(uic, "read_checkpoint", lambda _: state)
    data = Synthetic(12, 3)
    run: Any = SimpleNamespace(
        folder=tmp_path, last_checkpoint=lambda: None, data=SimpleNamespace(train=data),
        science={"recipe": "uic_r50", "seed": 4},
    )  # fmt: skip
    task: Any = SimpleNamespace(num_classes=3)
    assert uic.leave_labels(task, run) == [f"labels {tmp_path / 'labels.npz'}"]
    labels = read_labels(tmp_path / "labels.npz", data)
    assert labels.labels.tolist() == current.tolist()
    assert (labels.num_classes, labels.num_split, labels.made_by) == (3, 2, "uic_r50")
    assert labels.configuration == {"recipe": "uic_r50", "seed": 4, "source": "uic_r50"}
