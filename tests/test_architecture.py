"""Rules of the tree: imports between rooms and what they change, access to files, and lengths of files."""

import ast
import functools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import lazy_loader  # type: ignore[import-untyped]
import pytest
from typing_extensions import override

from tests.warm import on_ranks
from toolchain.size import sizes

ROOT = Path(__file__).resolve().parent.parent
# A room imports from itself and from those before it.
ROOMS = (
    "console", "kernels", "files", "pipelines", "plots", "models", "engine", "scripts", "tasks",
    "evaluation", "transfer", "tables", "doctor", "commands",
)  # fmt: skip
# The same of the folders of pipelines, with the file views.py.
SUB_ROOMS = (
    "interface", "image", "beton", "views", "decoders", "readers", "datasets", "loader", "embedded",
)  # fmt: skip
# The modules of fastpsl/ outside the rooms: the command, and what `import fastpsl` hands out.
API = {"backbones", "dataloader", "embedding", "evaluate", "losses", "model", "ops", "optim", "plot",
       "pretext", "records", "replaying", "training", "views"}  # fmt: skip
FLAT = {"__init__", "cli", *API}
MAX_LINES = {"recipes": 120, "fastpsl": 600}
MIN_LINES = 60
# Lines of code. A change may lower them, or raise them with a row in CONTRIBUTING.md: what paid for it.
MOST_CODE = {"fastpsl": 48_046, "tests": 62_103, "bench": 7_901}
OPTIONAL = (
    "datasets", "pyarrow", "fsspec", "s3fs", "gcsfs", "aiohttp", "huggingface_hub", "ffcv", "nvidia",
    "wandb", "apex", "safetensors", "onnxruntime", "pycocotools", "torchmetrics", "timm", "IPython",
    "pi_heif",
)  # fmt: skip
FILE_MODULES = {"pathlib", "os", "io", "tempfile", "shutil", "glob", "json", "mmap", "pickle"}
FILE_CALLS = re.compile(r"open|(np|torch)\.(load|save|savez|fromfile|memmap|loadtxt|savetxt)|.*\.tofile")


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the full dotted names that a file imports, also in functions and by import_module."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) == "import_module":
            names |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return frozenset(names)


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules(folder: str = "fastpsl") -> dict[str, Path]:
    return {module_of(path): path for path in python_files(folder)}


def imported_modules(path: Path, folder: str = "fastpsl") -> frozenset[str]:
    """Return the modules of a folder that a file imports. An imported name counts as its module."""
    known = modules(folder).keys()
    names = imports(path) | {name.rpartition(".")[0] for name in imports(path) if name not in known}
    return (names & known) - {folder, module_of(path)}


def room_of(module: str) -> str:
    return module.split(".")[1]


def sub_room_of(module: str) -> str | None:
    """Return "beton" for fastpsl.pipelines.beton.shard, and None for another room or pipelines itself."""
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["pipelines"] and len(parts) > 2 else None


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_those_before_it(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(f"fastpsl/{room}")
        for name in imported_modules(path)
        if room_of(name) not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("room", SUB_ROOMS)
def test_a_folder_of_pipelines_imports_from_those_before_it(room: str) -> None:
    allowed = SUB_ROOMS[: SUB_ROOMS.index(room) + 1]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for module, path in modules().items()
        if sub_room_of(module) == room
        for name in imported_modules(path)
        if room_of(name) == "pipelines" and sub_room_of(name) not in (None, *allowed)
    ]
    assert not wrong


def test_every_module_of_pipelines_stands_in_a_folder() -> None:
    found = {sub_room_of(module) for module in modules() if module.startswith("fastpsl.pipelines.")}
    assert found == set(SUB_ROOMS)


def test_files_of_c_call_each_other_one_way() -> None:
    texts = {path.stem: path.read_text() for path in (ROOT / "fastpsl").rglob("*.c")}
    function = re.compile(
        r"^(?!static|INLINE|FOR_EACH_CPU)[A-Za-z].*?(\w+)\([^;]*?\) \{$", re.MULTILINE | re.DOTALL
    )
    defined = {name: stem for stem, text in texts.items() for name in function.findall(text)}
    assert {"turbo_take_over", "fastpsl_area_resize"} <= defined.keys()
    calls = {
        stem: {defined[name] for name in re.findall(r"\w+(?=\()", text) if name in defined} - {stem}
        for stem, text in texts.items()
    }
    TopologicalSorter(calls).prepare()


def test_every_file_stands_in_a_room() -> None:
    others = {path.stem for path in (ROOT / "fastpsl").glob("*.py")}
    rooms = {path.parent.name for path in (ROOT / "fastpsl").glob("*/__init__.py")}
    assert (others, rooms) == (FLAT, set(ROOMS))


# Those that hand out no names in common have a module for each thing.
PACKAGES = [
    *(room for room in ROOMS if room not in ("console", "files", "tables", "doctor")),
    *("engine.optim", "pipelines.beton", "pipelines.loader"),
    *(f"transfer.{name}" for name in ("classification", "detection", "segmentation", "svm")),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_hands_out_its_public_names(package: str) -> None:
    """The stub beside `__init__.py` lists them; the import runs when a name is asked for."""
    public = import_module(f"fastpsl.{package}")
    assert public.__all__
    for name in public.__all__:
        value = getattr(public, name)
        assert name.isupper() or value.__module__.startswith(public.__name__)  # constants have no module
    assert not hasattr(public, "no_such_name")


class Shuffled(set[str]):
    """A set that stands for lazy_loader's, which are iterated in an order that hashes decide."""

    seed = 0

    @override
    def __or__(self, others: Iterable[str]) -> list[str]:  # type: ignore[override]
        names = sorted({*self, *others})
        return random.Random(self.seed).sample(names, len(names))


def import_eagerly(_: int, num_orders: int) -> None:
    """Import fastpsl anew, with all names of its packages, in some orders."""
    os.environ["EAGER_IMPORT"] = "1"
    vars(lazy_loader)["set"] = Shuffled
    for Shuffled.seed in range(num_orders):
        for name in [*sys.modules]:
            if name.partition(".")[0] == "fastpsl":
                del sys.modules[name]
        assert import_module("fastpsl.commands").__all__


def test_packages_can_import_all_of_their_names_at_once() -> None:
    """The variable EAGER_IMPORT makes lazy_loader do so: no circle may be hidden by laziness."""
    on_ranks(import_eagerly, (3,), 1)


def test_what_is_installed_imports_nothing_that_is_not() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in ("fastpsl", "recipes")
        for path in python_files(folder)
        for name in imports(path)
        if name.split(".")[0] in {"bench", "tests", "docs", "kernels", "pipelines",
                                  *({"recipes"} if folder == "fastpsl" else ())}
    ]  # fmt: skip
    assert not wrong


def test_the_tree_grows_by_nothing_that_is_not_paid_for() -> None:
    found = sizes(ROOT)
    assert all(found[folder] <= most for folder, most in MOST_CODE.items()), found


@pytest.mark.parametrize("folder", ["fastpsl", "bench"])
def test_files_import_each_other_one_way(folder: str) -> None:
    """Imports between files have no cycle."""
    of_folder = modules(folder).items()
    TopologicalSorter({name: imported_modules(path, folder) for name, path in of_folder}).prepare()


ONE_MODULE_EACH = {
    "hashlib": "files/digest.py", "flock": "files/locks.py", "F_OFD_SETLK": "files/locks.py",
    "Unpickler": "files/untrusted.py", "get_close_matches": "console/words.py",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_MODULE_EACH)
def test_one_module_uses(name: str) -> None:
    """What locks, digests, unpickles or guesses names does so in one way."""
    users = {
        path.relative_to(ROOT / "fastpsl").as_posix()
        for path in python_files("fastpsl")
        if re.search(rf"(^(import|from) |\.){name}\b", path.read_text(), re.MULTILINE)
    }
    assert users == {ONE_MODULE_EACH[name]}


def test_a_runs_config_is_opened_in_one_module() -> None:
    """Others name it in messages, within a longer text; two are about the Hub's file of that name."""
    allowed = {"files/run_folder.py", "models/export.py", "models/initial_weights.py"}
    found = {
        path.relative_to(ROOT / "fastpsl").as_posix()
        for path in python_files("fastpsl")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"/?config\.json", str(node.value))
    }
    assert found <= allowed and "files/run_folder.py" in found


def test_kernels_touch_no_files() -> None:
    wrong = []
    for path in python_files("fastpsl/kernels"):
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
        for folder in ("fastpsl", "recipes")
        for path in python_files(folder)
        if any(name.split(".")[0] == package for name in imports(path))
    ]
    assert len(users) <= 1, f"{package} is imported in {users}"


def test_tritons_door_is_the_folder_of_its_kernels() -> None:
    """The file that checks whether Triton works imports it, too."""
    users = {
        path.relative_to(ROOT / "fastpsl" / "kernels").parts[0]
        for folder in ("fastpsl", "recipes")
        for path in python_files(folder)
        if any(name.split(".")[0] == "triton" for name in imports(path))
    }
    assert users == {"fused_cuda", "fused.py"}


@pytest.mark.parametrize("folder", MAX_LINES)
def test_files_are_short(folder: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files(folder)
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES[folder]}


def test_a_short_file_has_two_importers() -> None:
    """What one file alone imports at its top stands in that file; what is imported when needed need not."""
    users = dict.fromkeys(modules(), 0)
    for path in (*python_files("fastpsl"), *python_files("recipes")):
        at_top = {
            f"{node.module}.{alias.name}"
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for name in imported_modules(path):
            is_at_top = any(name in (each, each.rpartition(".")[0]) for each in at_top)
            users[name] += 1 if is_at_top else 2
    short = {name for name, path in modules().items() if len(path.read_text().splitlines()) < MIN_LINES}
    public = {"__init__", *API}  # whose importers are programs
    assert not {name for name in short if users[name] == 1 and modules()[name].stem not in public}


def test_pinned_memory_is_asked_for_where_its_end_is_caught() -> None:
    def is_request(node: ast.Call) -> bool:
        has_option = "pin_memory" in {keyword.arg for keyword in node.keywords}
        return called(node) == "pin_memory" or (has_option and ast.unparse(node.func).startswith("torch."))

    users = {
        path.name
        for path in python_files("fastpsl")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and is_request(node)
    }
    assert users == {"memory.py"}


def test_nothing_is_called_utils() -> None:
    assert not [
        path
        for folder in MAX_LINES
        for path in python_files(folder)
        if "utils" in path.parts or path.stem == "utils"
    ]


def test_no_path_of_anybodys_machine() -> None:
    """Code, documents and results contain no paths of home or work folders."""
    folders = (*MAX_LINES, "bench", "tests", "docs", "toolchain")
    texts = [path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in
             {".py", ".md", ".sh", ".txt", ".json", ".toml"}]  # fmt: skip
    texts += [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), ROOT / "Makefile"]
    machine = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    assert not [str(path) for path in texts if machine.search(path.read_text(errors="replace"))]


PROGRAM = """
import json, logging, os, random, signal, sys, threading, warnings
from importlib import import_module
from pathlib import Path

import absl.flags  # tensorboard's: adds a finder to sys.meta_path
import dateutil.parser  # matplotlib's: so does the six of its version 2
import matplotlib, numpy, torch, torchvision
import rich.style  # draws from random for its styles
import tensorboard.compat.tensorflow_stub  # imports botocore where it is installed, which filters a warning
from torch.backends import cuda, cudnn


def state():
    logs = [logging.getLogger(name) for name in (None, "fastpsl", "torch", "matplotlib", "numba", "PIL")]
    return {
        # By dict's own method, because rcParams["backend"] would choose one.
        "matplotlib": {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams},
        "pyplot": "matplotlib.pyplot" in sys.modules,
        "cuDNN": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "matrix products": [torch.get_float32_matmul_precision(), cuda.matmul.allow_tf32,
                            cuda.matmul.allow_bf16_reduced_precision_reduction],
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's default": [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()],
        "torch's threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "CUDA": torch.cuda.is_initialized(),
        "numpy's settings": [numpy.geterr(), numpy.get_printoptions()],
        "warnings": [warnings.filters, warnings.showwarning, warnings.formatwarning],
        "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook],
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "environment": dict(os.environ),
        "random": [hash(random.getstate()), numpy.random.get_state(), hash(bytes(torch.get_rng_state()))],
        "logging": [logging.root.manager.disable] + [[log.level, log.handlers, log.disabled] for log in logs],
        # The finder of fastpsl's own modules finds no others.
        "sys.path": [sys.path, [f for f in sys.meta_path if type(f).__name__ != "GuardedImports"]],
        "working directory": os.getcwd(),
        "threads": [thread.name for thread in threading.enumerate()],
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }


def texts():
    return {name: repr(value) for name, value in state().items()}


before = texts()
root, missing = Path(sys.argv[1]), set()
for path in sorted((root / "fastpsl").rglob("*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        missing.add(error.name.partition(".")[0])
after = texts()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps({"changed": changed, "missing": sorted(missing)}))
"""


def test_importing_every_module_changes_nothing_of_the_process() -> None:
    """The home folder must be writable; otherwise `pipelines.files.caches` sets folders for compiled code."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True,
        timeout=240,
    )  # fmt: skip
    result = json.loads(process.stdout)
    assert not result["changed"] and set(result["missing"]) <= {*OPTIONAL, "triton"}


def test_a_training_imports_no_large_library_before_it_is_needed() -> None:
    """Each takes 0.3 s to 3 s: Kornia, torchvision, matplotlib's figures, and torch's compiler."""
    large = {"kornia", "torchvision", "matplotlib.figure", "sklearn", "torch._dynamo"}
    modules = "fastpsl.scripts.recipe_process, fastpsl.kernels.fused_cpu.photometric"
    program = f"import sys, {modules}; print(*{large} & sys.modules.keys())"
    process = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=240
    )
    assert process.stdout.split() == []
