"""A failure of all ranks is reported by rank 0; the others wait, so that it is first."""

import pytest

from fastpsl.engine import recipe_process


@pytest.mark.parametrize(
    ("rank", "waits", "printed"),
    [
        (0, [], "out of memory\n"),
        (1, [1.0], "rank 1: out of memory\n"),
        (2, [1.0], "rank 2: out of memory\n"),
    ],
)
def test_rank_0_reports_at_once_and_the_others_name_themselves(
    rank: int,
    waits: list[float],
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(recipe_process.time, "sleep", slept.append)
    recipe_process._report_failure([], rank, "out of memory", "out of memory")
    assert (slept, capsys.readouterr().err) == (waits, printed)
