"""A failure of all ranks is reported by rank 0; the others wait, so that it is first."""

import sys
from pathlib import Path

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


def test_one_of_several_ranks_exits_at_once_with_all_that_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(f"at once with {code}")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(recipe_process.os, "_exit", leave)
    path = tmp_path / "out"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print("the last line")
        with pytest.raises(SystemExit, match="at once with 3"):
            recipe_process._exit_now(3)
        assert path.read_text() == "the last line\n"
