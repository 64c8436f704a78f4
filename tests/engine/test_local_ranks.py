"""Test the processes of one run on one machine: how many have a place, and that all get a signal."""

import subprocess
import sys

import pytest

from fastpsl.scripts import local_ranks


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


# A process of its own: a test's process has other children, and may have been told to ignore the signal.
FORWARDS = """
import os, signal, subprocess
from fastpsl.scripts import local_ranks

signal.signal(signal.SIGTERM, signal.SIG_DFL)
children = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
try:
    with local_ranks._forwarding():
        os.kill(os.getpid(), signal.SIGTERM)
    assert [child.wait(60) for child in children] == 2 * [-signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
finally:
    for child in children:
        child.kill()
"""


def test_every_process_gets_a_signal_of_the_first() -> None:
    done = subprocess.run([sys.executable, "-c", FORWARDS], check=False, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
