"""Options of the tests, and what pytest-xdist's controller knows of them: it runs none, and spends no seconds on torch's import."""

from collections.abc import Sequence

import pytest

SLOW_TEST_S = 8000  # of one marked `slow`: the longest takes 390 s on calm cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--add-to-seeds", type=int, default=0, metavar="N", help="other seeds: each plus N")


def pytest_configure(config: pytest.Config) -> None:
    is_controller = config.getoption("dist", "no") != "no"  # a worker's option is "no"
    if not is_controller:
        config.pluginmanager.import_plugin("tests.process")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_S))
