"""Packaging: a wheel from an sdist has every file, a bare checkout can be imported, and links are on top."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools.build_meta import *; import sys; sys.stdout.write(build_{kind}(sys.argv[1]))"
LINKED = ("kernels", "pipelines")


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(kind=kind), str(out)]
    process = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return next(path for path in out.iterdir() if path.suffix in {".gz", ".whl"})


def copied_tree(folder: Path) -> Path:
    leave = shutil.ignore_patterns(".*", "build", "dist", "runs", "__pycache__", "*.egg-info", "*.beton")
    return Path(shutil.copytree(ROOT, folder, ignore=leave, symlinks=True))


def test_wheel_from_sdist_holds_every_file(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path / "tree")
    (tree / "fastpsl" / "kernels" / "new").mkdir()
    (tree / "fastpsl" / "kernels" / "new" / "__init__.py").touch()  # ships without being listed

    source = tmp_path / "unpacked"
    source.mkdir()
    packed = str(build("sdist", tree, tmp_path / "sdist"))
    subprocess.run(["tar", "xf", packed, "-C", str(source), "--strip-components=1"], check=True)
    assert (source / "toolchain/ffcv-shim/include/opencv2/opencv.hpp").exists()
    with zipfile.ZipFile(build("wheel", source, tmp_path / "wheel")) as archive:
        shipped = {name for name in archive.namelist() if name.startswith("fastpsl/")}

    files = (path.relative_to(tree) for path in (tree / "fastpsl").rglob("*") if path.is_file())
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    expected |= {f"fastpsl/recipes/{path.name}" for path in (tree / "recipes").glob("*.py")}
    assert {
        "fastpsl/kernels/new/__init__.py",
        "fastpsl/tables/psl.json",
        "fastpsl/tables/page.html.jinja",
        "fastpsl/recipes/jigsaw_r50.py",
    } <= expected
    assert shipped == expected


def test_a_bare_checkout_is_imported_without_an_install(tmp_path: Path) -> None:
    """Covers a checkout with text files as links, as on file systems without links."""
    tree = copied_tree(tmp_path / "tree")
    for name in LINKED:
        (tree / name).unlink()
        (tree / name).write_text(f"fastpsl/{name}")
    code = "import fastpsl.kernels.draws, fastpsl.pipelines.views as views; print(views.__file__)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.stdout.strip() == str(tree / "fastpsl" / "pipelines" / "views.py"), process.stderr


FIND = """
from fastpsl.engine.recipe_files import find_recipe, recipe_path
print(recipe_path('knn'), find_recipe('knn').name)
"""


def test_recipes_are_found_in_a_checkout_and_in_an_installed_package(tmp_path: Path) -> None:
    """The installed package's own come first, whatever stands beside it."""
    tree = copied_tree(tmp_path / "tree")
    for place in (tree / "recipes", tree / "fastpsl" / "recipes"):
        shutil.copytree(ROOT / "recipes", place, dirs_exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", FIND], cwd=tmp_path / "tree" / "docs",
            env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.split() == [str(place / "knn.py"), "knn"], done.stderr


@pytest.mark.parametrize("name", LINKED)
def test_links_on_top_are_tracked_and_relative(name: str) -> None:
    assert os.readlink(ROOT / name) == f"fastpsl/{name}"
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-s", name], capture_output=True, text=True, check=True
        )
        assert listed.stdout.startswith("120000 "), listed.stdout
