"""The notebooks of the documentation run from top to bottom, and hold the outputs of such a run."""

import contextlib
import importlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpsl.cli import main
from tests.cheaper import publish_resnets
from tests.warm import on_ranks

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|work)/")
needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
# Numbers that the tests replace, by notebook: widths of narrow networks, and shorter loops.
REPLACED = {
    "add_a_task": {"512": "64", "--out runs/same_image": "--out runs/same_image --max-steps-per-stage 4"},
    "cifar10_sslpp": {'"resnet18"}': '"resnet18", "epochs": 1}'},
    "finetune_timm": {
        "(6, 6, 8)": "(1, 1, 1), max_steps_per_stage=2",
        "num_steps=30": "num_steps=5",
        "(5, 31, 5)": "(5, 6)",
    },
    "jigsaw_psl": {"epochs=(4, 4, 4)": "max_steps_per_stage=4", "size_px=96": "size_px=48"},
    "retrieval_tsne": {'"simclr", ': '"simclr", max_steps_per_stage=4, '},
    "simclr_own_loop": {"EPOCHS = 32, 32, 12": "EPOCHS = 32, 32, 2", "512": "64"},
}


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} == REPLACED.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_one_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.output_type != "error" for output in outputs)
    text = "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    )
    assert not MACHINE.search(text), MACHINE.search(text)


def run_cells(_: int, path: Path, folder: Path) -> None:
    """Run a notebook's cells in a folder, with narrow networks and short loops."""
    from IPython.core.interactiveshell import InteractiveShell

    shutil.copy(FOLDER / "example_task.py", folder)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    if path.stem == "finetune_timm":  # whose networks have the published widths
        publish_resnets(pytest.MonkeyPatch())
    shell: Any = InteractiveShell.instance()
    shell.register_magic_function(run_commands, "cell", "bash")
    replaced = REPLACED[path.stem]
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(number in "\n".join(cells) for number in replaced)
    for cell in cells:
        for number, other in replaced.items():
            cell = cell.replace(number, other)
        shell.run_cell(cell).raise_error()


def run_commands(line: str, cell: str) -> None:
    """Run lines such as `fastpsl data write $1 2> log` in this process. `-s` gives what $1 stands for."""
    for number, word in enumerate(shlex.split(line)[1:], 1):
        cell = cell.replace(f"${number}", word)
    for command in cell.splitlines():
        command, _, log = command.partition(" 2> ")
        program, *arguments = shlex.split(command)
        assert program == "fastpsl"
        with open(log or os.devnull, "w") as file, contextlib.redirect_stderr(file):
            try:
                main(arguments)
            except SystemExit as end:
                assert not end.code, command


by_notebook = pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=needs_timm if "timm" in path.stem else (), id=path.stem) for path in NOTEBOOKS],
)


@pytest.mark.slow
@by_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    on_ranks(run_cells, (path, tmp_path), 1)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], Any]:
    """Return the function that runs a notebook in Jupyter's kernel."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    function: Callable[[Path, Path], Any] = importlib.import_module("execute").execute
    return function


@pytest.mark.nightly
@by_notebook
def test_a_notebook_runs_as_printed(path: Path, tmp_path: Path, execute: Callable[[Path, Path], Any]) -> None:
    execute(path, tmp_path)


@pytest.mark.slow
def test_execution_stores_outputs_with_a_readers_paths(
    tmp_path: Path, execute: Callable[[Path, Path], Any]
) -> None:
    code = "from pathlib import Path\nprint(Path('example_task.py').resolve(strict=True))"
    cells = [nbformat.v4.new_code_cell(text) for text in (code, "print()", "1 / 4")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    first, second, third = execute(tmp_path / "a.ipynb", tmp_path).cells
    assert first.outputs[0].text == "example_task.py\n" and not second.outputs
    assert third.outputs[0].data["text/plain"] == "0.25"
