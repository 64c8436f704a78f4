"""Launches of the fused modules compile for their GPUs without one, and spill no register."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpsl.files.caches import cache_folder

pytest.importorskip("triton", reason="triton is not installed: nothing to compile")

# H100 and H200, for which everything is compiled; T4; A100; RTX 3090; RTX 4090 and L40S; B200; RTX 5090.
ARCHITECTURES = (90, 75, 80, 86, 89, 100, 120)
# These have fewer registers for a tile, or other instructions. What spills there is slower, and runs.
MAY_SPILL = (75, 120)
# No task has this chain. ptxas takes 128 registers and 8 bytes of stack for it, and 138 and none for the same
# chain at 97 x 97 px.
SPILLED = {"neighbourhood_pass, T3, lightness, 51 taps, float32, 64 x 97 px"}


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """Return the rows that `tests.kernels.cubins` prints in its own process, after looking at each.

    This process may run kernels by the interpreter, which cannot compile them. Triton's cache outlives the
    test: its keys contain the sources, so only what has changed is compiled (all of it takes ten minutes).
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache_folder() / "cubins")
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.cubins", *arguments]
    root = Path(__file__).parents[2]
    process = subprocess.run(
        command, check=False, cwd=root, capture_output=True, text=True, env=environment, timeout=7900
    )
    assert process.returncode == 0, process.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(process.stdout)
    print("\n| kernel | registers | shared memory, bytes |\n|---|---|---|")
    for row in rows:
        print(f"| sm_{row['arch']}: {row['name']} | {row['registers']} | {row['shared']} |")
    failed = [f"sm_{row['arch']}, {row['name']}: {row['error']}" for row in rows if row["error"]]
    assert not failed, "\n".join(failed)
    # Newer architectures may have null, if Triton's ptxas does not know them.
    assert all(row["shared"] is not None for row in rows if row["arch"] < 100)
    spilled = [row for row in rows if row["spills"] and row["arch"] not in MAY_SPILL]
    assert not [row for row in spilled if row["name"] not in SPILLED]
    return rows


@pytest.mark.slow
def test_each_kernel_and_what_training_launches_compile() -> None:
    rows = compiled("--training", str(ARCHITECTURES[0]))
    names = " ".join(row["name"] for row in rows)
    assert all(chain in names for chain in ("SimCLR T3", "jigsaw", "SSL++, AET", "enlarge", "BatchNorms"))


@pytest.mark.nightly
def test_all_launches_compile() -> None:
    """This is one test because workers that share a file's tests would each compile."""
    rows = compiled(*map(str, ARCHITECTURES))
    names = {arch: {row["name"] for row in rows if row["arch"] == arch} for arch in ARCHITECTURES}
    others = [names[arch] for arch in ARCHITECTURES[1:]]
    assert all(each == names[80] for each in others), "what training launches is compiled for all"
    assert names[80] < names[90]
    assert len(names[80]) >= 12 and len(names[90]) >= 100
