"""Cheaper networks, runs and a cheaper Triton interpreter for all tests that do not depend on them.

The monitor looks at features in runs with --probe-every alone.

They apply to the tests' process and to ranks that it starts. Processes of `tests.warm` take `for_good`.
"""

import functools
import inspect
import os
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torchvision.models.resnet import ResNet

from fastpsl.engine import trainer
from fastpsl.engine.online_probe import is_probed
from fastpsl.engine.run import Run
from fastpsl.engine.task import Task
from fastpsl.models.convolutional import VGG, AlexNet
from fastpsl.models.resnet import VARIANTS

# As published, fc6 and fc7 of AlexNet and VGG have 60 million weights.
FC_WIDTH, PUBLISHED_FC_WIDTH = 32, 4096
PLANES = 64  # for all four layers of a ResNet; the last one has 512 as published, and most of the weights
PUBLISHED = {name: variant.channels for name, variant in VARIANTS.items()}
_make_resnet, _make_layer = ResNet.__init__, ResNet._make_layer


def make_cheaper(patch: pytest.MonkeyPatch) -> None:
    _set_fc_width(patch, FC_WIDTH)
    patch.setattr(ResNet, "__init__", _narrow_resnet)
    patch.setattr(ResNet, "_make_layer", _narrow_layer)
    for name, variant in VARIANTS.items():
        first, second, *others = variant.channels
        patch.setitem(VARIANTS, name, variant._replace(channels=(first, second, *[second] * len(others))))
    patch.setattr(trainer, "is_probed", _is_probed)
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        remember_tritons_builtins(patch)


def for_good() -> None:
    """Make this process's networks cheaper until it ends."""
    make_cheaper(pytest.MonkeyPatch())


@pytest.fixture(scope="session", autouse=True)
def cheaper() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_cheaper(patch)
        yield


@pytest.fixture
def published_widths(cheaper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the published widths of networks within a test."""
    _set_fc_width(monkeypatch, PUBLISHED_FC_WIDTH)
    publish_resnets(monkeypatch)


def publish_resnets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ResNet, "__init__", _make_resnet)
    patch.setattr(ResNet, "_make_layer", _make_layer)
    for name, channels in PUBLISHED.items():
        patch.setitem(VARIANTS, name, VARIANTS[name]._replace(channels=channels))


def _is_probed(run: Run, task: Task) -> bool:
    return bool(getattr(run.options, "probe_every", 0)) and is_probed(run, task)


def _set_fc_width(patch: pytest.MonkeyPatch, width: int) -> None:
    for network in (AlexNet, VGG):
        patch.setitem(network.__init__.__kwdefaults__, "fc_width", width)  # type: ignore[arg-type]


def _narrow_resnet(
    self: ResNet, block: Any, layers: list[int], num_classes: int = 1000, **options: Any
) -> None:
    _make_resnet(self, block, layers, num_classes, **options)
    self.fc = nn.Linear(PLANES * block.expansion, num_classes)


def _narrow_layer(self: ResNet, block: Any, planes: int, *arguments: Any, **options: Any) -> nn.Sequential:
    return _make_layer(self, block, PLANES, *arguments, **options)


def remember_tritons_builtins(patch: pytest.MonkeyPatch) -> None:
    """Cache the result of Triton's interpreter's search for builtins, which is equal at each launch."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @functools.cache
    def builtins(of: object) -> list[tuple[str, Any]]:
        return [(name, member) for name, member in inspect.getmembers(of) if is_builtin(member)]

    patch.setattr(interpreter, "inspect", SimpleNamespace(**{**vars(inspect), "getmembers": builtins}))
