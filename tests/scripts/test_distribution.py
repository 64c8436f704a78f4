"""The installed distribution: its version as a line, and another project's files in our folder."""

import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import fastpsl
from fastpsl.console.installed import reinstall
from fastpsl.doctor.checks import check_software
from fastpsl.scripts import distribution
from fastpsl.scripts.distribution import OTHER, REMEDY, stranger, version_line
from tests.programs import interpreted


def install(folder: Path, name: str, *files: str, listed_in: str) -> None:
    """Put a distribution's metadata into a folder of packages, with its files in RECORD or SOURCES.txt."""
    is_wheel = listed_in == "RECORD"
    info = folder / f"{name.replace('-', '_')}-7.1.{'dist' if is_wheel else 'egg'}-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.4\nName: {name}\nVersion: 7.1\n"
    (info / ("METADATA" if is_wheel else "PKG-INFO")).write_text(text)
    (info / listed_in).write_text("".join(f"{file},,\n" if is_wheel else f"{file}\n" for file in files))


def test_the_version_line_needs_no_torch() -> None:
    code = (
        "import sys; from fastpsl.scripts.distribution import version_line; "
        "print(version_line()); print('torch' in sys.modules)"
    )
    line, has_torch = interpreted(code).stdout.splitlines()
    versions = f"Python {platform.python_version()}, torch {metadata.version('torch')}"
    assert line == version_line() == f"fastpsl-vision {fastpsl.__version__}, {versions}"
    assert has_torch == "False"


def test_the_version_line_where_little_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_there)
    assert version_line().endswith(", torch not installed")
    monkeypatch.delattr(fastpsl, "__version__")  # another project's __init__.py has none
    assert version_line().startswith("fastpsl-vision unknown, ")


@pytest.mark.parametrize(
    ("name", "files", "listed_in", "is_strange"),
    [
        ("fastpsl", ("fastpsl/__init__.py", "fastpsl-7.1.dist-info/METADATA"), "RECORD", True),
        ("FastPSL", ("fastpsl/fastpsl.so",), "RECORD", True),
        # Ours by its former name, editable: it has no files in the folder.
        ("fastpsl", ("__editable__.fastpsl-7.1.pth", "../../../bin/fastpsl"), "RECORD", False),
        # A checkout of ours by that name: sources, not what is installed.
        ("fastpsl", ("fastpsl/__init__.py",), "SOURCES.txt", False),
        ("fastpsl", (), "RECORD", False),
        ("fastpsl-vision", ("fastpsl/__init__.py",), "RECORD", False),
        ("fastpsl-other", ("fastpsl/__init__.py",), "RECORD", False),
    ],
)
def test_another_distribution_with_our_folder_is_found(
    name: str, files: tuple[str, ...], listed_in: str, is_strange: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    install(tmp_path, name, *files, listed_in=listed_in)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert (stranger() is not None) == is_strange
    if is_strange:
        assert stranger() == "fastpsl 7.1 is another project, and its files lie among those of fastpsl-vision"


@pytest.mark.parametrize("name", ["fastpsl.cpython-311-x86_64-linux-gnu.so", "fastpsl.pyd"])
def test_compiled_files_among_ours_are_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # no metadata
    monkeypatch.setattr(fastpsl, "__file__", str(tmp_path / "fastpsl" / "__init__.py"))
    (tmp_path / "fastpsl").mkdir()
    (tmp_path / "fastpsl" / "cli.py").touch()
    assert stranger() is None
    (tmp_path / "fastpsl" / name).touch()
    line = stranger()
    assert line is not None and name in line and "\n" not in line


def test_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    check = check_software(torch.device("cpu"), 1)[0]
    assert (check.name, check.state, check.text) == ("fastpsl", "ok", version_line())
    monkeypatch.setattr(distribution, "stranger", lambda: "theirs")
    check = check_software(torch.device("cpu"), 1)[0]
    assert (check.state, check.text, check.remedy) == ("broken", "theirs", REMEDY)
    assert f"pip uninstall {OTHER}" in REMEDY
    assert reinstall() in REMEDY
