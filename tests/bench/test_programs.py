"""What all programs of bench/ have in common."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_POLICY = sorted(
    path for path in (ROOT / "bench").glob("*.py") if 'setdefault("OMP_WAIT_POLICY"' in path.read_text()
)


@pytest.mark.parametrize("path", WITH_POLICY, ids=lambda path: path.stem)
def test_barriers_are_told_to_sleep_before_torch_comes(path: Path) -> None:
    """libgomp reads it when it is loaded: after that it says PASSIVE in the result, and spins."""
    for node in ast.parse(path.read_text()).body:
        if "OMP_WAIT_POLICY" in ast.unparse(node):
            break
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        ours = [name for name in names if name.split(".")[0] not in sys.stdlib_module_names]
        assert not ours, f"{path.name} imports {ours} first"


def test_the_policy_reaches_libgomp() -> None:
    """As libgomp itself says, from bench/throughput.py's first lines."""
    assert ROOT / "bench" / "throughput.py" in WITH_POLICY
    done = subprocess.run(
        [sys.executable, "bench/throughput.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={"PATH": "/usr/bin:/bin", "OMP_DISPLAY_ENV": "VERBOSE"},
    )  # fmt: skip
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this torch brings another library of threads")
    assert done.returncode == 0 and "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
