"""Options of the tests. pytest-xdist's controller imports nothing else, because torch takes seconds."""

from collections.abc import Sequence

import pytest

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
