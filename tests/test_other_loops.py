"""Libraries' loops that need an environment of their own train as docs/how_to/drop_in_loaders.md shows."""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest

from tests.pipelines.photos import jpeg, photo

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"^<!-- test in an environment of (.+?) -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCKS = dict(BLOCK.findall((ROOT / "docs/how_to/drop_in_loaders.md").read_text()))
SOLO_LEARN = "https://github.com/vturrisi/solo-learn@9187ea39c2c3f43c455ab06664d2b019a9802954"
INSTALLS: dict[str, tuple[list[tuple[str, ...]], str]] = {  # pip's arguments, and what the block prints
    "solo-learn": ([("setuptools<81",), ("--no-build-isolation", f"git+{SOLO_LEARN}")], "train_nce_loss"),
    "LightlyTrain": ([("lightly-train==0.18.0",)], "Model exported"),
    "stable-pretraining": ([("stable-pretraining==0.1.8",)], "tensor("),
}


def python_with(library: str, folder: Path) -> Path:
    """Make an environment with a library above this one, whose packages serve where their versions do."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    of_it = folder / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (of_it / "below.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    for arguments in INSTALLS[library][0]:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            pytest.skip(f"pip does not install {arguments[-1]}: {process.stderr.strip()[-300:]}")
    return python


def test_each_library_has_its_block() -> None:
    assert BLOCKS.keys() == INSTALLS.keys()


@pytest.mark.nightly
@pytest.mark.parametrize("library", INSTALLS)
def test_a_library_trains_on_our_loader(library: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(16):
        (tmp_path / f"photos/{number}.jpg").write_bytes(jpeg(photo(number, 40, 50)))
    (tmp_path / "block.py").write_text(BLOCKS[library])
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    with tempfile.TemporaryDirectory() as folder:  # some 500 MB, which pytest would keep
        process = subprocess.run(
            [python_with(library, Path(folder)), "block.py"],
            cwd=tmp_path,
            env=os.environ | own,
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 0, process.stderr[-3000:]
    assert INSTALLS[library][1] in process.stdout + process.stderr
