"""Test how many processes of one run a machine has places for."""

import pytest

from fastpsl.engine import local_ranks


@pytest.mark.parametrize(("num_gpus", "most"), [(0, 3), (2, 2)])
def test_each_process_has_a_gpu_or_a_core(
    num_gpus: int, most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local_ranks.os, "sched_getaffinity", lambda _: {0, 1, 2})
    local_ranks._require_places(most, num_gpus)
    told = "fastpsl: no GPU that torch can use is here; 3 processes run on the CPU\n"
    assert capsys.readouterr().err == ("" if num_gpus else told)
    with pytest.raises(ValueError, match=f"--gpus {most + 1}: .*; give {most} or less"):
        local_ranks._require_places(most + 1, num_gpus)
