"""Importing fastpsl changes no state of the process, such as matplotlib's backend."""

import json
import subprocess
import sys

from tests.programs import ROOT
from tests.test_architecture import OPTIONAL

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
        [sys.executable, "-c", PROGRAM, str(ROOT)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
    )
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
