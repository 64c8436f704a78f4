"""Samples of sources, and refusals of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastpsl.pipelines.datasets.open import open_source
from fastpsl.pipelines.interface.source import Sample


def samples(src: object, **options: Any) -> list[Sample]:
    source = open_source(str(src), **options)
    results = list(source.samples())
    assert len(results) == source.num_samples
    return results


@contextmanager
def refused(*words: object, by: type[Exception] = ValueError) -> Iterator[None]:
    """Check that an error of one line with all words is raised."""
    with pytest.raises(by) as caught:
        yield
    line = str(caught.value)
    assert "\n" not in line and all(str(word) in line for word in words), line
