"""The house's rules: which folder may import which, who touches files, how long a file may be."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "recipes": {"recipes", "fastpsl", "pipelines", "kernels"},
    "fastpsl": {"fastpsl", "pipelines", "kernels"},
    "pipelines": {"pipelines", "kernels"},
    "kernels": {"kernels"},
}
SHIPPED = ("fastpsl", "pipelines", "kernels")
MAX_LINES = {"recipes": 120, "fastpsl": 320, "pipelines": 320, "kernels": 320}
OPTIONAL = (
    "datasets",
    "pyarrow",
    "ffcv",
    "nvidia",
    "wandb",
    "apex",
    "safetensors",
    "pycocotools",
    "torchmetrics",
)
FILE_MODULES = {"pathlib", "os", "io", "tempfile", "shutil", "glob", "json", "mmap", "pickle"}
FILE_CALLS = re.compile(r"open|(np|torch)\.(load|save|savez|fromfile|memmap|loadtxt|savetxt)|.*\.tofile")


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Full dotted names that a file imports; fastpsl.kernels and fastpsl.pipelines are named by their folders."""
    here = list(path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            start = ".".join(above + ([node.module] if node.module else []))
            names |= {f"{start}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            names |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return {re.sub(r"^fastpsl\.(kernels|pipelines)\b", r"\1", name) for name in names}


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder: str) -> None:
    forbidden = {*MAY_IMPORT, "bench", "tests"} - MAY_IMPORT[folder]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(folder)
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong


def test_kernels_touch_no_files() -> None:
    wrong = []
    for path in python_files("kernels"):
        wrong += [
            f"{path.name} imports {name}" for name in imports(path) if name.split(".")[0] in FILE_MODULES
        ]
        nodes = ast.walk(ast.parse(path.read_text()))
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        wrong += [f"{path.name} calls {name}" for name in calls if FILE_CALLS.fullmatch(name)]
    assert not wrong


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_package_has_one_door(package: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for folder in (*SHIPPED, "recipes")
        for path in python_files(folder)
        if any(name.split(".")[0] == package for name in imports(path))
    ]
    assert len(users) <= 1, f"{package} is imported in {users}"


def test_tritons_door_is_the_folder_of_its_kernels() -> None:
    users = {
        path.relative_to(ROOT).parent.as_posix()
        for folder in (*SHIPPED, "recipes")
        for path in python_files(folder)
        if any(name.split(".")[0] == "triton" for name in imports(path))
    }
    assert users == {"kernels/fused"}


@pytest.mark.parametrize("folder", MAX_LINES)
def test_files_are_short(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(folder)
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES[folder]}


def test_nothing_is_called_utils() -> None:
    assert not [
        path
        for folder in MAY_IMPORT
        for path in python_files(folder)
        if "utils" in path.parts or path.stem == "utils"
    ]


def test_no_path_of_anybodys_machine() -> None:
    """Code, documents and results name no home or work folder."""
    folders = (*MAY_IMPORT, "bench", "tests", "docs", "toolchain")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in
             {".py", ".md", ".sh", ".txt", ".json", ".toml"}]  # fmt: skip
    texts += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    machine = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    assert not [str(path) for path in texts if machine.search(path.read_text(errors="replace"))]
