"""Values that are fetched are those of the device; who looks one behind sees all, each after the next was made."""

from collections.abc import Iterator

import pytest
import torch

from fastpsl.engine.fetch import Fetch, one_behind


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_values_are_those_given(dtype: torch.dtype) -> None:
    given = torch.arange(6).view(2, 3).to(dtype)
    fetched = Fetch(given)
    assert fetched.values().dtype == dtype and torch.equal(fetched.values(), given)
    assert fetched.numbers() == given.flatten().tolist()


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_each_is_seen_once_and_after_the_next_was_made(num: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(num):
            made.append(number)
            yield number

    seen = []
    for item in one_behind(items()):
        seen.append(item)
        assert len(made) == min(item + 2, num)
    assert seen == list(range(num))
