"""timm with narrow networks, and a run to export. pytest-xdist's controller imports this file, too."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return timm, whose ResNets and VGGs become as narrow as ours; its import takes 1.5 s."""
    from tests.cheaper import FC_WIDTH, PLANES

    timm = pytest.importorskip("timm")
    make = timm.models.resnet.ResNet.__init__
    widths = [4 * (PLANES,) if value == (64, 128, 256, 512) else value for value in make.__defaults__]
    monkeypatch.setattr(make, "__defaults__", tuple(widths))
    mlp = timm.models.vgg.ConvMlp
    monkeypatch.setattr(
        timm.models.vgg, "ConvMlp", lambda num, _, *more, **rest: mlp(num, FC_WIDTH, *more, **rest)
    )
    return timm


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return the folder of a checkpoint of ResNet-18, and the network."""
    from tests.models.test_export import checkpoint

    folder = tmp_path_factory.mktemp("run")
    return folder, checkpoint(folder, "resnet18")
