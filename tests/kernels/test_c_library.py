"""A C library that was built is opened, and one that was not is an error."""

import pytest
import torch

from fastpsl.kernels.c_library import open_library


def test_a_library_is_opened_by_its_modules_name() -> None:
    """torch has one in every set-up."""
    assert open_library("torch._C")._name == torch._C.__file__


def test_what_was_not_built_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"fastpsl\.kernels\._none was not built"):
        open_library("fastpsl.kernels._none")
