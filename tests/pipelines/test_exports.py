"""The packages export their public names, and documented imports keep working."""

from importlib import import_module

import pytest

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader


@pytest.mark.parametrize("name", ["", ".beton", ".data", ".files", ".loader", ".sample", ".voc"])
def test_every_public_name_is_there(name: str) -> None:
    package = import_module(f"fastpsl.pipelines{name}")
    for public in package.__all__:
        assert getattr(package, public).__name__ == public
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Nothing'"):
        _ = package.Nothing


def test_documented_paths() -> None:
    from fastpsl.pipelines import batch, beton, loader, views

    assert (beton.Beton, loader.Loader) == (Beton, Loader)
    assert batch.Batch.__name__ == "Batch" and views.ViewSpec.__name__ == "ViewSpec"
