"""bench/all.sh: its parts fit, its cheapest one runs, one command's failure does not end a part. Packed pictures are the same again."""

import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from bench.pack_pictures import pack, unpack

ROOT = Path(__file__).resolve().parents[2]
PART_S = 480


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "bench/all.sh", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def test_every_part_fits_eight_minutes_and_its_programs_are_there() -> None:
    done = call("--list")
    assert done.returncode == 0 and not done.stderr
    seconds: defaultdict[str, int] = defaultdict(int)
    names = set()
    titles, *lines = done.stdout.splitlines()
    assert titles.split("\t") == ["part", "name", "seconds", "command"]
    for line in lines:
        part, name, limit, command = line.split("\t")
        seconds[part] += int(limit)
        assert (part, name) not in names
        names.add((part, name))
        for word in shlex.split(command):
            if word.startswith(("bench/", "tests/")):
                assert (ROOT / word).exists(), command
    (versions,) = (line.split("\t")[3] for line in lines if line.startswith("smoke\tversions\t"))
    assert shlex.split(versions)[1:] == [
        "-c", "import sys, torch, fastpsl; print(sys.version, torch.__version__, torch.cuda.is_available())",
    ]  # fmt: skip
    assert len(seconds) >= 10 and max(seconds.values()) <= PART_S
    script = (ROOT / "bench" / "all.sh").read_text()
    for path in (ROOT / "bench").glob(
        "*.py"
    ):  # whatever has a command line of its own for a GPU is in a part
        if "out: Path = RUNS" in path.read_text():
            assert path.stem in script


def test_the_cheapest_part_runs_and_says_what_it_did(tmp_path: Path) -> None:
    done = call("smoke", OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("\t") for line in (tmp_path / "out" / "smoke.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["versions", "0"], ["photos-8", "0"]]
    assert (tmp_path / "work" / "photos-8.beton").exists()


def test_a_failure_is_told_and_does_not_end_the_part(tmp_path: Path) -> None:
    python = tmp_path / "python"  # the first command fails, the rest does not
    python.write_text(f'#!/bin/bash\n[[ "$*" == *"sys.version"* ]] && exit 3\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = call("smoke", OUT=str(tmp_path / "out"), WORK=str(tmp_path / "work"), PYTHON=str(python))
    assert done.returncode == 1
    lines = [line.split("\t") for line in (tmp_path / "out" / "smoke.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["versions", "3"], ["photos-8", "0"]]


def test_unknown_parts_are_refused() -> None:
    done = call("everything")
    assert done.returncode == 2 and "unknown part 'everything'" in done.stderr


@pytest.mark.parametrize("num", [None, 1030])
def test_packed_pictures_are_the_same_again(num: int | None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (1100, 6, 8, 3), np.uint8), random.integers(0, 9, 1100)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    wanted = num or 1100
    assert pack(tmp_path / "a.npz", tmp_path / "a.packed", num) == wanted
    assert unpack(tmp_path / "a.packed", tmp_path / "b.npz") == wanted
    with np.load(tmp_path / "b.npz") as found:
        assert (found["images"] == images[:wanted]).all() and (found["labels"] == labels[:wanted]).all()
