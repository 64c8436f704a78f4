"""Writing a folder for the Hugging Face Hub: it is whole or absent, and others' files stay."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastpsl.models import export as module
from fastpsl.models.export import export
from fastpsl.models.weights import load_pretrained
from tests.models.test_export import checkpoint

pytest.importorskip("safetensors")

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("run")
    return folder, checkpoint(folder, "resnet18")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(folder: Path, network: nn.Module) -> None:
    assert json.loads((folder / "config.json").read_text())["architecture"] == "resnet18"
    assert "library_name: timm" in (folder / "README.md").read_text()
    state = load_pretrained(folder / "model.safetensors").backbone.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["nin3", "resnet18_cifar"])
def test_what_timm_has_not_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, name)
    with pytest.raises(ValueError, match=f"hf has no {name}: --to safetensors writes it"):
        export(tmp_path, "hf", tmp_path / "hf")
    assert names(tmp_path) == ["checkpoints"]


def test_overwriting_replaces_our_files_and_no_others(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export(run[0], "hf", out)
    with pytest.raises(ValueError, match=r"hf: exists already; give --overwrite"):
        export(run[0], "hf", out)
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("old")
    (out / "config.json").unlink()  # as after an interruption
    export(run[0], "hf", out, overwrite=True)
    assert names(tmp_path) == ["hf"] and names(out) == sorted([*FILES, "notes.txt"])
    assert (out / "notes.txt").read_text() == "mine" and "timm" in (out / "README.md").read_text()
    assert_whole(out, run[1])


def test_an_empty_folder_needs_overwrite(
    run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").mkdir()
    monkeypatch.chdir(tmp_path / "hf")
    with pytest.raises(ValueError, match="exists already"):
        export(run[0], "hf", Path())
    export(run[0], "hf", Path(), overwrite=True)
    assert names(tmp_path) == ["hf"] and "# hf\n" in (tmp_path / "hf" / "README.md").read_text()
    assert names(tmp_path / "hf") == FILES


@pytest.mark.parametrize("name", FILES)
def test_others_files_of_the_same_name_are_not_replaced(
    name: str, run: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """A run's folder, say, has a config.json, too."""
    (tmp_path / name).write_text("another's")
    with pytest.raises(ValueError, match=f"{name} is no file of an export to hf, so it is not replaced"):
        export(run[0], "hf", tmp_path, overwrite=True)
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "another's"


def test_a_file_is_no_folder(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("")
    with pytest.raises(ValueError, match="hf is a file, and --to hf writes a folder"):
        export(run[0], "hf", tmp_path / "hf", overwrite=True)


@pytest.mark.parametrize(
    ("number", "error"), [(1, KeyboardInterrupt()), (2, OSError(28, "No space left on device"))]
)
def test_a_new_folder_is_whole_or_absent(
    number: int,
    error: BaseException,
    run: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at(number, "write_atomically", module, error, monkeypatch)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ValueError) as excinfo:
        export(run[0], "hf", tmp_path / "hf")
    if isinstance(error, OSError):
        assert str(excinfo.value) == (
            f"{tmp_path / 'hf'}: cannot be written (No space left on device); free some space or choose "
            "another disk"
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [0, 2])
def test_an_interrupted_replacement_is_no_mixture(
    number: int, run: tuple[Path, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hf"
    export(run[0], "hf", out)
    with monkeypatch.context() as patch:
        # Only the moves into the folder, not those of the files beside it.
        patch.setattr(module, "os", Counted(number))
        with pytest.raises(KeyboardInterrupt):
            export(run[0], "hf", out, overwrite=True)
    assert names(tmp_path) == ["hf"]
    assert "config.json" not in names(out)  # without which timm loads nothing
    export(run[0], "hf", out, overwrite=True)
    assert_whole(out, run[1])


class Counted:
    """The module os, whose `replace` is interrupted at its call of a number."""

    def __init__(self, number: int):
        self.left = number

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, old: Path, new: Path) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        os.replace(old, new)


def stop_at(number: int, function: str, module: Any, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    right, calls = getattr(module, function), iter(range(100))

    def stopping(*arguments: Any) -> None:
        if next(calls) == number:
            raise error
        right(*arguments)

    patch.setattr(module, function, stopping)


def test_a_place_that_cannot_be_written_is_named(run: tuple[Path, nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "no" / "hf"
    with pytest.raises(ValueError) as excinfo:
        export(run[0], "hf", out)
    assert str(excinfo.value) == (
        f"{out}: cannot be written (No such file or directory); choose a folder that can be written"
    )
