"""What a machine without a GPU does: tests marked `gpu` are skipped, and Triton's kernels run under its interpreter.

Triton reads TRITON_INTERPRET when it is imported, and torchvision imports it: so it is set here, before any test is.
"""

import os
from collections.abc import Sequence

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
