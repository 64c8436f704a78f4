"""What a recipe says on its way."""

import warnings

import pytest

from fastpsl.launch import _say_warnings_in_one_line


@pytest.mark.parametrize("rank", [0, 1])
def test_warnings_are_one_line_said_once_by_rank_0(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _say_warnings_in_one_line("jigsaw", rank)
        for _ in range(2):
            warnings.warn("decoding by torchvision,\nwhich is slower", stacklevel=1)
    expected = "jigsaw: warning: decoding by torchvision, which is slower\n" if rank == 0 else ""
    assert capsys.readouterr().err == expected
