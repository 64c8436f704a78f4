"""A low `ulimit -v` leads to a message with a remedy, at a command's start and before torch fails to load."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fastpsl.console.terminal import require_address_space
from tests.pipelines.memory import own_memory
from tests.programs import ENVIRONMENT, ROOT


def python(kib: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter with a limit on its address space."""
    command = ("bash", "-c", f'ulimit -v {kib}; exec "$@"', "-", sys.executable, *words)
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(("left", "enough"), [(None, True), (2 << 30, True), (500 << 20, False), (-1, False)])
def test_a_command_starts_where_enough_is_left(
    left: int | None, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = resource.RLIM_INFINITY if left is None else own_memory("VmSize") + left
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    if enough:
        require_address_space()
    else:
        left_gb = "0.5 GB are left" if left == 500 << 20 else "0.0 GB are left"
        with pytest.raises(ValueError, match=left_gb):
            require_address_space()


def test_a_write_is_refused_at_once(tmp_path: Path) -> None:
    """Without the check it would hang: OpenBLAS, which numba loads in a worker's thread, retries forever."""
    start = "import sys; from fastpsl.cli import main; main(sys.argv[1:])"
    process = python("650000", "-c", start, "data", "write", str(tmp_path), str(tmp_path / "x.beton"))
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("fastpsl: memory is limited to 0.7 GB of addresses")
    assert "`ulimit -v unlimited`" in process.stderr


def test_what_torch_says_follows_what_can_be_done() -> None:
    process = python("2000000", "-c", "import fastpsl, torch")
    assert process.returncode == 1 and "ulimit -v unlimited" in process.stderr.splitlines()[0]
    process = python("2000000", "-c", "import sys; sys.modules['torch'] = sys; import fastpsl")
    assert process.returncode == 0 and not process.stderr
    process = python("unlimited", "-c", "import fastpsl")
    assert process.returncode == 0 and not process.stderr
