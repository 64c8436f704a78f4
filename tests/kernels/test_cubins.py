"""Every fused kernel compiles for the GPUs that it is for, on a machine without one, and spills no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: nothing to compile")

# A100, H100 and H200, B200.
ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In a process of its own: this one may run kernels by the interpreter, which cannot compile them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("cubins.py")
    command = [sys.executable, "-W", "ignore", str(script), *map(str, ARCHITECTURES)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_each_is_compiled_for_each(rows):
    names = {arch: [(r["module"], r["name"]) for r in rows if r["arch"] == arch] for arch in ARCHITECTURES}
    assert names[80] == names[90] == names[100] and len(names[80]) == len(set(names[80])) >= 12
    assert all(row["shared"] is not None for row in rows if row["arch"] < 100)


def test_no_register_is_spilled(rows):
    print("\n| kernel | " + " | ".join(f"sm_{arch}" for arch in ARCHITECTURES) + " |")
    print("|---|" + "---|" * len(ARCHITECTURES))
    for module, name in dict.fromkeys((row["module"], row["name"]) for row in rows):
        mine = [row for row in rows if (row["module"], row["name"]) == (module, name)]
        cells = [f"{row['registers']} registers, {row['shared']} bytes" for row in mine]
        print(f"| {module}: {name} | " + " | ".join(cells) + " |")
    assert not [row for row in rows if row["spills"]]
