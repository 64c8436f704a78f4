"""AlexNet and VGG with narrow fc6 and fc7, for all tests but those of their widths: 60 million weights take a second to draw."""

from collections.abc import Iterator

import pytest

from fastpsl.backbones.alexnet import AlexNet
from fastpsl.backbones.vgg import VGG

NARROW, PUBLISHED = 32, 4096


def set_widths(patch: pytest.MonkeyPatch, width: int) -> None:
    for network in (AlexNet, VGG):
        patch.setitem(network.__init__.__kwdefaults__, "fc_width", width)  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def narrow_fc() -> Iterator[None]:
    """For networks that this process makes; recipes in processes of their own have the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        set_widths(patch, NARROW)
        yield


@pytest.fixture
def published_widths(narrow_fc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """fc6 and fc7 as they are published, within a test."""
    set_widths(monkeypatch, PUBLISHED)
