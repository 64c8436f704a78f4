"""Options of the tests. pytest-xdist's controller imports nothing else, because torch takes seconds."""

import os
from collections.abc import Sequence

import pytest

# Expected values are those of float32, which a CPU with instructions for bf16 does not train in by itself.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

SLOW_TEST_S = 8000  # the timeout of slow and nightly tests; the longest one takes 390 s on idle cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--add-to-seeds", type=int, default=0, metavar="N", help="other seeds: each plus N")


def pytest_configure(config: pytest.Config) -> None:
    is_controller = config.getoption("dist", "no") != "no"  # a worker's option is "no"
    if not is_controller:
        config.pluginmanager.import_plugin("tests.process")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        is_slow = item.get_closest_marker("slow") or item.get_closest_marker("nightly")
        if is_slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_S))
