"""An sdist of the tree makes a wheel that holds every module under the name it is imported by."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools.build_meta import *; import sys; sys.stdout.write(build_{kind}(sys.argv[1]))"


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(path for path in out.iterdir() if path.suffix in {".gz", ".whl"})


def test_wheel_from_sdist_holds_every_module(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    leave = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info", "*.beton")
    shutil.copytree(ROOT, tree, ignore=leave)
    (tree / "kernels" / "new").mkdir()
    (tree / "kernels" / "new" / "__init__.py").write_text("")  # a new subpackage ships without being listed

    source = tmp_path / "unpacked"
    source.mkdir()
    unpack = [
        "tar",
        "xf",
        str(build("sdist", tree, tmp_path / "sdist")),
        "-C",
        str(source),
        "--strip-components=1",
    ]
    subprocess.run(unpack, check=True)
    assert (source / "toolchain/ffcv-shim/include/opencv2/opencv.hpp").exists()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as archive:
        shipped = {name for name in archive.namelist() if name.endswith(".py")}

    prefix = {"fastpsl": "", "pipelines": "fastpsl/", "kernels": "fastpsl/"}
    expected = {
        prefix[folder] + path.relative_to(tree).as_posix()
        for folder in prefix
        for path in (tree / folder).rglob("*.py")
    }
    assert "fastpsl/kernels/new/__init__.py" in expected
    assert shipped == expected
