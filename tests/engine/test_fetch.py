"""Fetched values equal the device's, and one_behind yields each item once, after the next one was drawn."""

from collections.abc import Iterator

import pytest
import torch

from fastpsl.engine.gpu import AsyncCopy, one_behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_values_are_those_given(dtype: torch.dtype) -> None:
    values = torch.arange(6).view(2, 3).to(dtype)
    fetch = AsyncCopy(values)
    assert fetch.values().dtype == dtype and torch.equal(fetch.values(), values)
    assert fetch.numbers() == values.flatten().tolist()


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_each_is_seen_once_and_after_the_next_was_made(num: int) -> None:
    drawn_items: list[int] = []

    def items() -> Iterator[int]:
        for number in range(num):
            drawn_items.append(number)
            yield number

    results = []
    for item in one_behind(items()):
        results.append(item)
        assert len(drawn_items) == min(item + 2, num)
    assert results == list(range(num))
