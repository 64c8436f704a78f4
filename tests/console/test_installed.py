"""The commands that errors propose work from this installation."""

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastpsl.console import installed
from fastpsl.console.installed import NAME, install, reinstall

REQUIRES = [
    "torch>=2",
    'timm>=1.0; extra == "timm"',
    'onnx>=1; extra == "onnx"',
    'onnxscript; extra == "onnx"',
]


def came_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    text = None if origin is None else json.dumps(origin)
    ours = SimpleNamespace(read_text=lambda name: {"direct_url.json": text}[name])
    monkeypatch.setattr(metadata, "distribution", {NAME: ours}.__getitem__)
    monkeypatch.setattr(metadata, "requires", {NAME: REQUIRES}.__getitem__)


def test_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    origin: dict[str, Any] = {"url": folder.as_uri(), "dir_info": {}}
    came_from(monkeypatch, origin)
    assert install("timm") == "pip install 'timm>=1.0'"  # the folder holds no sources any more
    (folder / "pyproject.toml").touch()
    assert install("timm") == f"pip install '{folder}[timm]'"
    came_from(monkeypatch, origin | {"dir_info": {"editable": True}})
    assert install("timm") == f"pip install -e '{folder}[timm]'"
    assert reinstall() == f"pip install --force-reinstall --no-deps -e '{folder}'"


def test_from_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    url, git = "https://example.org/fastpsl", {"vcs": "git", "commit_id": "0" * 40}
    came_from(monkeypatch, {"url": url, "vcs_info": git})
    assert install("onnx") == f"pip install '{NAME}[onnx] @ git+{url}'"
    came_from(monkeypatch, {"url": url, "vcs_info": git | {"requested_revision": "v2"}})
    assert reinstall() == f"pip install --force-reinstall --no-deps '{NAME} @ git+{url}@v2'"


@pytest.mark.parametrize("origin", [None, {"url": "file:///x/a.whl", "archive_info": {}}])
def test_from_elsewhere_the_packages_are_named(
    origin: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_from(monkeypatch, origin)
    assert install("onnx") == "pip install 'onnx>=1' onnxscript"
    assert reinstall() == f"pip install --force-reinstall --no-deps {NAME}"


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    root = Path(installed.__file__).parents[2]
    assert install("timm") == f"pip install '{root}[timm]'"


def test_every_extra_is_known_to_this_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_source", lambda extras: None)
    extras = metadata.metadata(NAME).get_all("Provides-Extra")
    assert extras and "timm" in extras
    for extra in extras:
        assert install(extra) != "pip install "
