"""Compiles what the fused modules launch, without a GPU: `python -m tests.kernels.cubins 90 80 100`;
launches of training for all of these architectures, the others for the first.

The modules' own code runs, on CPU tensors, and Triton itself derives from each launch what to compile: types, alignments,
constants. Only the launch is left out.

Prints one JSON list: {"arch", "name", "registers", "shared", "spills", "error"} for each kernel that differs and architecture;
shared memory and spills in bytes, null where triton's ptxas does not know the architecture; registers and spills are null too
where triton ships no cuobjdump. Fails where a module has a kernel that nothing launches.
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
    """As much of a driver as Triton asks for before it launches."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        """Triton keeps what it has compiled by device."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


class Compiler:
    """Takes the place of launching: compiles, and keeps the first row of what differs."""

    def __init__(self) -> None:
        self.launch = JITFunction.run
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.kernels: set[JITFunction] = set()

    def compile(self, arch: int, launch: Launch) -> None:
        def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
            self.kernels.add(kernel)
            name = f"{kernel.__name__}, {launch.name}"
            row: dict[str, Any] = {"arch": arch, "name": name, "error": None}
            row |= dict.fromkeys(("registers", "shared", "spills"))
            try:
                binary = self.launch(kernel, *args, grid=grid, warmup=True, **constants)
            except Exception as error:  # noqa: BLE001 - of the compiler and of ptxas: many types
                # Of ptxas: an architecture that it is too old for.
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
    """Registers, and the bytes of stack, to which registers are spilled: no kernel here has another use for it."""
    if not CUOBJDUMP.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spills": stack + local}


def used_by(function: JITFunction) -> Iterator[JITFunction]:
    """The function and all jitted ones that it names."""
    yield function
    for node in ast.walk(ast.parse(textwrap.dedent(function.src))):
        named = function.fn.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        if isinstance(named, JITFunction) and named is not function:
            yield from used_by(named)


def check_all_are_launched(kernels: set[JITFunction]) -> None:
    used = {function.fn for kernel in kernels for function in used_by(kernel)}
    for found in pkgutil.iter_modules(fused_cuda.__path__):
        module = importlib.import_module(f"{fused_cuda.__name__}.{found.name}")
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and value.fn not in used:
                raise SystemExit(f"{module.__name__}.{name}: nothing in launches.py launches or calls it")


def main() -> None:
    archs = [int(arch) for arch in sys.argv[1:]]
    compiler = Compiler()
    for launch in launches():
        for arch in archs if launch.on_all else archs[:1]:
            compiler.compile(arch, launch)
    check_all_are_launched(compiler.kernels)
    print(json.dumps(list(compiler.rows.values())))


if __name__ == "__main__":
    main()
