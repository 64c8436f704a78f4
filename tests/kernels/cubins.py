"""The compilation of the fused modules' launches without a GPU: `python -m tests.kernels.cubins 90 80 100`.

The launches of training are compiled for all of these architectures, the others for the first. With
--training, others are compiled only if no launch of training has their kernel. The modules' own code runs on
CPU tensors. Triton itself derives from each launch what to compile: types, alignments, constants. Only the
launch is left out.

The program prints one JSON list with {"arch", "name", "registers", "shared", "spills", "error"} for each
distinct kernel and architecture. Shared memory and spills are in bytes. They are null if triton's ptxas does
not know the architecture. Registers and spills are also null if triton ships no cuobjdump. The program fails
if nothing launches one of the kernels.
"""

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastpsl.kernels import fused_cuda
from tests.kernels.launches import Launch, launches

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Target:
    """The part of a driver that Triton queries before a launch."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        """Return the architecture, because Triton caches compiled kernels by device."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


class Compiler:
    """A replacement for launches that compiles and collects one row per distinct kernel."""

    def __init__(self) -> None:
        self.launch = JITFunction.run
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.kernels: set[JITFunction] = set()

    def compile(self, arch: int, launch: Launch, only_new: bool) -> None:
        """Compile a launch's kernels, with `only_new` those that no launch before it has."""

        def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
            if only_new and kernel in self.kernels:
                return
            self.kernels.add(kernel)
            name = f"{kernel.__name__}, {launch.name}"
            row: dict[str, Any] = {"arch": arch, "name": name, "error": None}
            row |= dict.fromkeys(("registers", "shared", "spills"))
            try:
                binary = self.launch(kernel, *args, grid=grid, warmup=True, **constants)
            except Exception as error:  # noqa: BLE001 - of the compiler and of ptxas: many types
                # ptxas names the GPU if it is too old for the architecture.
                row["error"] = None if "gpu-name" in str(error) else str(error)[-300:]
                self.rows[arch, name] = row
                return
            if (arch, binary.hash) not in self.rows:
                row["shared"] = binary.metadata.shared
                self.rows[arch, binary.hash] = row | measured(binary.asm["cubin"])

        driver.set_active(Target(arch))
        JITFunction.run = run
        launch.call()


def measured(cubin: bytes) -> dict[str, int]:
    """Return the registers and the bytes of stack, which kernels here use for spilled registers only."""
    if not CUOBJDUMP.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert match, usage
    registers, stack, local = map(int, match.groups())
    return {"registers": registers, "spills": stack + local}


def used_by(function: JITFunction) -> Iterator[JITFunction]:
    """Yield the function and all jitted functions that it calls."""
    yield function
    for node in ast.walk(ast.parse(textwrap.dedent(function.src))):
        callee = function.fn.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        if isinstance(callee, JITFunction) and callee is not function:
            yield from used_by(callee)


def check_all_are_launched(kernels: set[JITFunction]) -> None:
    reachable = {function.fn for kernel in kernels for function in used_by(kernel)}
    for submodule in pkgutil.iter_modules(fused_cuda.__path__):
        module = importlib.import_module(f"{fused_cuda.__name__}.{submodule.name}")
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and value.fn not in reachable:
                raise SystemExit(f"{module.__name__}.{name}: nothing launches or calls it")


def main() -> None:
    archs = [int(arch) for arch in sys.argv[1:] if arch != "--training"]
    is_short = "--training" in sys.argv
    compiler = Compiler()
    for launch in sorted(launches(), key=lambda launch: not launch.on_all):
        for arch in archs if launch.on_all else archs[:1]:
            compiler.compile(arch, launch, only_new=is_short and not launch.on_all)
    check_all_are_launched(compiler.kernels)
    print(json.dumps(list(compiler.rows.values())))


if __name__ == "__main__":
    main()
