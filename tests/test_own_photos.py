"""The page from photos to a classifier: its Python runs as printed, on few photos."""

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import fastpsl
from tests.pipelines.photos import jpeg, photo
from tests.pipelines.written import tree
from tests.programs import ROOT


def test_the_classifier_of_the_page_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher and the student are trained for a step. The photos' colours tell their classes."""
    page = (ROOT / "docs/get_started/own_photos.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (labelled,) = re.findall(r"^(for folder in .*?^done)$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    colours = torch.tensor([[90, 0, 0], [0, 90, 0], [0, 0, 90]])
    for part, num in (("train", 12), ("test", 4)):
        files = {
            f"{'abc'[k]}/{i}.jpg": jpeg((photo(i, 40, 44) // 3 + colours[k].numpy()).astype("uint8"))
            for k in range(3)
            for i in range(num)
        }
        tree(tmp_path / "clothes" / part, files)
    given: dict[str, Any] = {
        "preset": "sample", "batch_size": 4, "epochs": 1, "max_steps_per_stage": 1, "workers": 1,
    }  # fmt: skip
    teacher = fastpsl.pretrain("simclr", "clothes/train", backbone="resnet18", **given).folder
    run = fastpsl.pretrain("distill", "clothes/train", teacher=str(teacher), out="runs/clothes", **given)
    run.load().export("resnet18.pth", to="torchvision")
    subprocess.run(["bash", "-c", labelled], check=True)
    assert sorted(path.name for path in Path("labelled").iterdir()) == ["a", "b", "c"]
    assert len([*Path("labelled/b").iterdir()]) == 10
    capsys.readouterr()
    Path("classify.py").write_text(code)
    found = runpy.run_path("classify.py")
    images, _ = found["test"][0]
    pixels = images * torch.tensor(run.load().input.std)[:, None, None]
    pixels += torch.tensor(run.load().input.mean)[:, None, None]
    assert images.shape == (3, 32, 32) and 0 <= pixels.min() < pixels.max() <= 1
    assert re.fullmatch(r"[\d.]+% of 12 photos are named rightly\n", capsys.readouterr().out)
