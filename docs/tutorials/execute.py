"""Run the notebooks and store their outputs: `python docs/tutorials/execute.py`, or with names of some.

Each runs in a temporary folder with example_task.py, so that it leaves nothing behind.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
LIMIT_S = 600  # of a cell


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook in a folder that gets example_task.py, and return it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    shutil.copy(FOLDER / "example_task.py", folder)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=LIMIT_S, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        cell.get("outputs", [])[:] = filter(_says_something, cell.get("outputs", []))
    # Paths as a reader has them. A notebook is text, so that they are replaced wherever they stand.
    text = nbformat.writes(notebook).replace(f"{folder.resolve()}/", "").replace(f"{FOLDER.parents[1]}/", "")
    return nbformat.reads(text, as_version=4)


def _says_something(output: NotebookNode) -> bool:
    """Return whether an output is more than what an ended progress bar leaves, or tqdm's hint."""
    text = output.get("text", output.get("data", {}).get("text/plain", "shown"))
    return bool(text.strip()) and "TqdmWarning" not in text


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        notebook_path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(execute(notebook_path, Path(scratch)), notebook_path)
        print(notebook_path.name, flush=True)
