"""Compiles every variant of every fused kernel for the given architectures, without a GPU: `python cubins.py 80 90 100`.

Prints one JSON list: {"arch", "module", "name", "registers", "shared", "spills"} a variant and architecture, in bytes and
instructions; registers and spills are null where triton ships no cuobjdump or nvdisasm, all three where its ptxas does not know
the architecture. Fails where a module has a kernel that no variant launches.
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
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fastpsl.kernels import fused

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def modules() -> list[ModuleType]:
    names = sorted(found.name for found in pkgutil.iter_modules(fused.__path__))
    return [importlib.import_module(f"{fused.__name__}.{name}") for name in names]


def used_by(function: JITFunction) -> Iterator[JITFunction]:
    """The function and all jitted ones that it names."""
    yield function
    for node in ast.walk(ast.parse(textwrap.dedent(function.src))):
        named = function.fn.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        if isinstance(named, JITFunction) and named is not function:
            yield from used_by(named)


def check_all_are_launched(found: list[ModuleType]) -> None:
    kernels = [variant.kernel for module in found for variant in getattr(module, "VARIANTS", ())]
    used = {function.fn for kernel in kernels for function in used_by(kernel)}
    for module in found:
        for name, value in vars(module).items():
            if isinstance(value, JITFunction) and value.fn not in used:
                raise SystemExit(f"{module.__name__}.{name}: no variant of VARIANTS launches or calls it")


def compiled(variant: Any, arch: int) -> Any:
    signature, constants, attributes = {}, {}, {}
    assert set(variant.arguments) == set(variant.kernel.arg_names), (variant.name, variant.kernel.arg_names)
    for place, name in enumerate(variant.kernel.arg_names):
        given = variant.arguments[name]
        is_type = isinstance(given, str) and name not in constexprs(variant.kernel)
        signature[name], _, divisor = given.partition(":") if is_type else ("constexpr", "", "")
        if not is_type:
            constants[name] = given
        if divisor:
            attributes[(place,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def constexprs(kernel: JITFunction) -> set[str]:
    return {kernel.arg_names[place] for place in kernel.constexprs}


def tool(name: str, *arguments: str) -> str | None:
    path = TOOLS / name
    if not path.exists():
        return None
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measured(cubin: bytes) -> dict[str, int | None]:
    """Registers, and the instructions that load or store local memory: what a spill turns into."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        code = tool("nvdisasm", "-c", file.name)
    registers = None if usage is None else max(int(n) for n in re.findall(r"REG:(\d+)", usage))
    spills = None if code is None else len(re.findall(r"\b(?:STL|LDL)\b", code))
    return {"registers": registers, "spills": spills}


def main() -> None:
    found = modules()
    check_all_are_launched(found)
    rows = []
    for arch in map(int, sys.argv[1:]):
        for module in found:
            for variant in getattr(module, "VARIANTS", ()):
                row = {"arch": arch, "module": module.__name__.rpartition(".")[2], "name": variant.name}
                try:
                    binary = compiled(variant, arch)
                except Exception as error:
                    # Of ptxas: an architecture that it is too old for.
                    if "gpu-name" not in str(error):
                        raise
                    rows.append(row | {"registers": None, "shared": None, "spills": None})
                    continue
                rows.append(row | {"shared": binary.metadata.shared} | measured(binary.asm["cubin"]))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
