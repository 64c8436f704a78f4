"""The 32-byte sectors that the fused kernels touch in memory, from the compiled code; no GPU is needed.

    python -m bench.sectors        in the repository

A warp's load or store moves whole sectors. Touched over needed sectors is 1 if the lanes' values lie side by
side, and 3 if two of three are skipped. The program prints four such ratios for each kernel, the worst kernel
first, of the chain in which it is worst:

    an instruction    each load or store of a warp by itself
    a program         all that a program stores, or loads, together

Stores go to the L2 cache one by one. A ratio above 1 means that sectors arrive in parts. If it is above 1 for
a program too, the parts come from programs that may run far apart. What a load leaves of a sector waits in
the multiprocessor's cache for the next load. So loads burden L2 by programs, and that cache by instructions.

The compiled code for sm_90 says which lanes have which elements (Triton's layouts) and how wide instructions
are (PTX). Triton's interpreter says where the elements lie, in a second process, or in an earlier one whose
notes are given as a file. The two are matched by source lines. The program fails if no chain launches one of
the kernels.
"""

import ast
import itertools
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from triton.runtime import driver, interpreter
from triton.runtime.jit import JITFunction

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused_cuda import (
    area,
    geometric,
    isotropic,
    lars,
    photometric,
    prepared,
    shifted,
    warped,
)
from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.normalise import out_shape
from tests.kernels import launches
from tests.kernels.cubins import Target, check_all_are_launched

SECTOR_BYTES, WIDEST_BYTES, NUM_SAMPLES = 32, 16, 4
# Source lines, from an access outward to the kernel, and whether it is a store.
Place = tuple[tuple[str, ...], bool]
# A chain, the number of one of its launches, and the kernel.
Key = tuple[str, int, str]


class Access(NamedTuple):
    """A load or store of a tensor in the compiled code."""

    place: Place  # where it stands in the source
    numbers: np.ndarray  # those of its elements, int [registers, warps, lanes]
    element_bytes: int
    widths: set[int]  # bytes that a lane moves per instruction, of all of this kind in the kernel


class Note(NamedTuple):
    """A load or store of a tensor that the interpreter has run."""

    program: int
    place: Place
    pointers: np.ndarray
    mask: np.ndarray


class Ratios(NamedTuple):
    """The ratios of touched to needed sectors, 0 if there are none, in the order that sorts kernels."""

    stores_of_program: float
    stores_of_instruction: float
    loads_of_program: float
    loads_of_instruction: float


def chains() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield names and calls that launch each kernel, for halves and few pixels."""
    t3, flip, shift = launches.T3, launches.FLIP, launches.SHIFT
    for name, module, ops, side in (
        ("T1", photometric, (flip,), 64),
        ("SimCLR T3", photometric, t3, 64),
        ("T3, 51 taps", photometric, (*t3[:3], launches.WIDE_BLUR, launches.SOBEL), 64),
        ("T3, lightness", photometric, (*t3[:3], launches.LIGHTNESS, *t3[3:]), 64),
        ("UIC", photometric, (flip, launches.XY), 64),
        ("UIC, strong", photometric, (*t3[:-1], launches.XY), 64),
        ("jigsaw", geometric, (flip, launches.JigsawTiles(3, 75, 64)), 225),
        ("all turns", geometric, (launches.AllTurns(4),), 64),
        ("turns", geometric, (flip, launches.Rotate90(4)), 64),
        ("SSL++, context", shifted, (shift, flip, launches.Hole()), 32),
        ("SSL++, colorization", shifted, (shift, flip, launches.LIGHTNESS), 32),
        ("SSL++, AET", warped, (shift, flip, launches.WarpPair(32)), 32),
        ("shift, flip", prepared, (shift, flip), 32),
        ("enlarge", prepared, (launches.Enlarge(128, 96),), 64),
    ):
        yield name, partial(_run, module, ops, side)
    images = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    boxes = torch.tensor([[2, 4, 90, 90, 0], [10, 40, 64, 64, DIAGONAL]])
    yield "isotropic windows", partial(isotropic.crop, images, boxes, 64)
    whole = torch.tensor([[0, 0, 96, 128, 0]] * 2, dtype=torch.int32)
    yield "crops by area", partial(area.crop, images, torch.arange(2), whole, 64)
    yield "BatchNorms", partial(launches._batch_norms, 64, torch.float16, False)
    yield "LARS", partial(launches._lars, 0, 16 * lars.BLOCK + 8)


def _run(module: ModuleType, ops: tuple[Any, ...], side: int) -> None:
    """Run a chain on samples that differ in every choice: all, none, all but the last, the first alone."""
    channels_last = torch.channels_last
    images = torch.zeros(NUM_SAMPLES, 3, side, side, dtype=torch.uint8)
    images = images.contiguous(memory_format=channels_last)
    draws = [op.draw(Keys(0, 0, np.arange(NUM_SAMPLES, dtype=np.int64))) for op in ops]
    for number, draw in enumerate(draws):
        for name, values in draw.items():
            if values.dtype == bool:
                draw[name] = np.array([True, False, number < len(ops) - 1, number == 0])
            elif name == "turns":
                draw[name] = np.arange(NUM_SAMPLES).astype(values.dtype)
    tensors = [{name: launches._tensor(values) for name, values in draw.items()} for draw in draws]
    batch, *shape = out_shape(ops, images.shape)
    out = torch.empty((batch, *shape), dtype=torch.float16).contiguous(memory_format=channels_last)
    module.run(images, ops, tensors, (0.5,) * shape[0], (0.25,) * shape[0], out)


class Compiler:
    """A replacement for launches that compiles, and collects the accesses of each launch of each chain."""

    def __init__(self) -> None:
        self.launch = JITFunction.run
        self.accesses: dict[Key, list[Access]] = {}
        self.kernels: set[JITFunction] = set()

    def run(self, chain: str, call: Callable[[], object]) -> None:
        numbers = itertools.count()

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
            self.kernels.add(kernel)
            binary = self.launch(kernel, *args, grid=grid, warmup=True, **constants)
            found = list(accesses(binary.asm["ttgir"], binary.asm["ptx"]))
            self.accesses[chain, next(numbers), _name(kernel)] = found

        driver.set_active(Target(90))
        JITFunction.run = run
        call()


class Interpreter:
    """A replacement for interpreted launches that notes the loads and stores of each launch of each chain."""

    def __init__(self) -> None:
        self.builder: Any = interpreter.interpreter_builder
        self.launch = interpreter.InterpretedFunction.run
        self.load, self.store = self.builder.create_masked_load, self.builder.create_masked_store
        self.notes: dict[Key, list[Note]] = defaultdict(list)

    def run(self, chain: str, call: Callable[[], object]) -> None:
        numbers = itertools.count()

        def run(kernel: Any, *args: Any, **options: Any) -> None:
            notes = self.notes[chain, next(numbers), _name(kernel)]

            def load(pointers: Any, mask: Any, *rest: Any) -> Any:
                self._note(notes, pointers.data, mask.data, is_store=False)
                return self.load(pointers, mask, *rest)

            def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
                self._note(notes, pointers.data, mask.data, is_store=True)
                return self.store(pointers, value, mask, *rest)

            self.builder.create_masked_load, self.builder.create_masked_store = load, store
            self.launch(kernel, *args, **options)

        interpreter.InterpretedFunction.run = run  # type: ignore[method-assign]
        call()

    def _note(self, notes: list[Note], pointers: np.ndarray, mask: np.ndarray, is_store: bool) -> None:
        if pointers.ndim == 0:
            return
        frame, lines = sys._getframe(), []
        while frame.f_code is not interpreter.GridExecutor.__call__.__code__:
            path = Path(frame.f_code.co_filename)
            if path.parent.name == "fused_cuda":
                lines.append(f"{path.name}:{frame.f_lineno}")
            assert frame.f_back
            frame = frame.f_back
        program = int(np.ravel_multi_index(self.builder.grid_idx, self.builder.grid_dim))
        notes.append(Note(program, (tuple(lines), is_store), pointers.copy(), mask.copy()))


def _name(kernel: Any) -> str:
    """Return module and name, because two kernels are called gradient_pass."""
    return f"{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"


def accesses(ttgir: str, ptx: str) -> Iterator[Access]:
    """Yield the loads and stores of tensors in a kernel's compiled code."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<\{.*\}>)$", ttgir, re.MULTILINE))
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))
    operations = r"(tt\.load|tt\.store|ttg\.async_copy_global_to_local) .*?"
    pattern = operations + r": tensor<([\dx]+)x!tt\.ptr<\w*?(\d+)>, (.*?)> (?:->.* )?loc\((#loc\d*)\)$"
    for kind, size, bits, layout, place in re.findall(pattern, ttgir, re.MULTILINE):
        shape, is_store = tuple(map(int, size.split("x"))), kind == "tt.store"
        at = elements(layout, shape, layouts)
        index = np.ravel_multi_index(tuple(np.moveaxis(at, -1, 0)), shape)
        _, first = np.unique(index.reshape(len(index), -1), axis=0, return_index=True)
        index = index[np.sort(first)]  # without registers that repeat others
        place_of = (tuple(_lines(place, places)), is_store)
        yield Access(place_of, index, max(int(bits) // 8, 1), _widths(ptx, is_store))


def _lines(name: str, places: dict[str, str]) -> Iterator[str]:
    """Yield the source lines of a location, from the innermost call outward."""
    text = places[name]
    if match := re.match(r"callsite\((#loc\d*) at (#loc\d*)\)", text):
        yield from _lines(match[1], places)
        yield from _lines(match[2], places)
    elif match := re.match(r'"[^"]*"\((#loc\d*)\)', text):
        yield from _lines(match[1], places)
    elif match := re.match(r'"([^"]+)":(\d+):', text):
        yield f"{Path(match[1]).name}:{match[2]}"


def _widths(ptx: str, is_store: bool) -> set[int]:
    kind = "st" if is_store else "ld"
    vectors = re.findall(rf"\b{kind}\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+) ", ptx)
    copies = [] if is_store else re.findall(r"\bcp\.async\.c[ag].*\], 0x(\w+)", ptx)
    return {int(num or 1) * int(bits) // 8 for num, bits in vectors} | {int(size, 16) for size in copies}


def elements(layout: str, shape: tuple[int, ...], layouts: dict[str, str]) -> np.ndarray:
    """Return each lane's elements of a tensor by its layout or its name, int [registers, warps, lanes, D]."""
    layout = layouts.get(layout, layout)
    if match := re.match(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout):
        axis = int(match[1])
        parent = elements(match[2], (*shape[:axis], 1, *shape[axis:]), layouts)
        return np.delete(parent, axis, axis=-1)
    fields = {name: ast.literal_eval(text) for name, text in re.findall(r"(\w+) = (\[[^a-z]*\])", layout)}
    if layout.startswith("#ttg.linear"):
        parts = [np.array(fields[name], int).reshape(-1, len(shape)) for name in ("register", "warp", "lane")]
        registers, warps, lanes = map(_combined, parts)
        return registers[:, None, None] ^ warps[None, :, None] ^ lanes[None, None, :]
    assert layout.startswith("#ttg.blocked"), layout
    sizes = [np.array(fields[name]) for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")]
    tile = np.prod(sizes, axis=0)
    repeats = np.maximum(np.array(shape) // tile, 1)
    each, lane, warp, repeat = (_counted(size, fields["order"]) for size in (*sizes, repeats))
    within = (warp[:, None] * sizes[1] + lane[None, :]) * sizes[0]
    at = repeat[:, None, None, None] * tile + each[:, None, None] + within
    return at.reshape(-1, *within.shape) % shape


def _counted(sizes: np.ndarray, order: list[int]) -> np.ndarray:
    """Return all indices below `sizes`, int [N, D], those of the axis order[0] fastest."""
    slowest_first = order[::-1]
    indices = np.unravel_index(np.arange(sizes.prod()), sizes[slowest_first].tolist())
    return np.stack(indices, axis=-1)[:, np.argsort(slowest_first)]


def _combined(bases: np.ndarray) -> np.ndarray:
    """Return all combinations of `bases` by exclusive or, int [2^N, D]."""
    values = np.zeros((1, bases.shape[1]), int)
    for base in bases:
        values = np.concatenate([values, values ^ base])
    return values


def side_by_side(access: Access, notes: list[Note]) -> int:
    """Return how many elements a lane's instruction moves: side by side, aligned, all or none masked out.

    The compiler knows less, so the kernel must have an instruction of this width.
    """
    num, size, widest = 1, np.uint64(access.element_bytes), 1
    while 2 * num * access.element_bytes <= WIDEST_BYTES and len(access.numbers) % (2 * num) == 0:
        num *= 2
        index = access.numbers.reshape(-1, num, *access.numbers.shape[1:])
        steps = np.arange(num, dtype=np.uint64)[:, None, None] * size
        for note in notes:
            pointers, mask = note.pointers.ravel()[index], note.mask.ravel()[index]
            is_aligned = pointers[:, :1] % (size * np.uint64(num)) == 0
            fits = (pointers == pointers[:, :1] + steps) & is_aligned
            if not fits[mask].all() or (mask != mask[:, :1]).any():
                return widest
        if num * access.element_bytes in access.widths:
            widest = num
    return widest


def touched(access: Access, num: int, note: Note) -> tuple[int, int]:
    """Return the sectors that instructions of `num` elements touch, and those that their bytes would fill."""
    _, num_warps, num_lanes = access.numbers.shape
    registers = access.numbers.reshape(-1, num, num_warps, num_lanes)
    index = registers.transpose(0, 2, 3, 1).reshape(-1, num_lanes * num)
    if access.place[1]:  # warps that repeat others do not store
        index = np.unique(index, axis=0)
    pointers, mask = note.pointers.ravel()[index], note.mask.ravel()[index]
    sectors = _distinct(pointers // np.uint64(SECTOR_BYTES), mask)
    needed = _distinct(pointers, mask) * access.element_bytes
    return int(sectors.sum()), int((-(-needed // SECTOR_BYTES)).sum())


def _distinct(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how many distinct values each row has where the mask is set."""
    values = np.sort(np.where(mask, values, np.uint64(0)), axis=1)  # no pointer is 0
    return (np.diff(values, axis=1, prepend=np.uint64(0)) != 0).sum(1)


def ratios(accesses: list[Access], notes: list[Note]) -> Ratios:
    """Return a launch's ratios."""
    compiled: dict[tuple[Place, int], list[Access]] = defaultdict(list)
    for access in accesses:
        compiled[access.place, int(access.numbers.max()) + 1].append(access)
    run: dict[tuple[Place, int], list[Note]] = defaultdict(list)
    for note in notes:
        run[note.place, note.pointers.size].append(note)
    if missing := compiled.keys() - run.keys():
        raise SystemExit(f"compiled, but never run: {sorted(missing)}")
    sectors = np.zeros((2, 2, 2))  # of stores or loads; of programs or instructions; touched or needed
    addresses: dict[tuple[int, bool], list[np.ndarray]] = defaultdict(list)
    for key, copies in compiled.items():
        is_load = not key[0][1]
        # Loops that are unrolled or load ahead have copies of an access.
        for access in copies:
            num = side_by_side(access, run[key])
            for note in run[key]:
                sectors[int(is_load), 1] += np.array(touched(access, num, note)) / len(copies)
        of_byte = np.arange(copies[0].element_bytes, dtype=np.uint64)
        for note in run[key]:
            addresses[note.program, is_load].append((note.pointers[note.mask][:, None] + of_byte).ravel())
    for (_, is_load), parts in addresses.items():
        values = np.unique(np.concatenate(parts))
        num_touched = len(np.unique(values // np.uint64(SECTOR_BYTES)))
        sectors[int(is_load), 0] += num_touched, -(-len(values) // SECTOR_BYTES)
    return Ratios(*(sectors[..., 0] / np.maximum(sectors[..., 1], 1)).ravel())


def write_notes(path: Path) -> None:
    """Run all chains by the interpreter, and write what it has noted."""
    runs = Interpreter()
    for chain, call in chains():
        runs.run(chain, call)
    path.write_bytes(pickle.dumps(runs.notes))


def interpreted(path: Path) -> Path:
    """Write the notes in a process of its own, because Triton reads the variable on import."""
    code = f"from bench import sectors; sectors.write_notes(sectors.Path({str(path)!r}))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)
    return path


def worst(notes: Mapping[Key, list[Note]]) -> dict[str, tuple[Ratios, str]]:
    """Return each kernel's largest ratios and the chain that has them."""
    compiler = Compiler()
    for chain, call in chains():
        compiler.run(chain, call)
    check_all_are_launched(compiler.kernels)
    found: dict[str, tuple[Ratios, str]] = {}
    for (chain, number, kernel), of_launch in compiler.accesses.items():
        here = ratios(of_launch, notes[chain, number, kernel]), chain
        found[kernel] = max(here, found.get(kernel, here))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if sys.argv[1:] else interpreted(Path(folder, "notes"))
        notes = pickle.loads(file.read_bytes())
    print("| kernel | stores: a program | an instruction | loads: a program | an instruction | chain |")
    print("|---|--:|--:|--:|--:|---|")
    for kernel, (found, chain) in sorted(worst(notes).items(), key=lambda item: item[1], reverse=True):
        numbers = (f"{ratio:.2f}" if ratio else "-" for ratio in found)
        print(f"| {kernel} | {' | '.join(numbers)} | {chain} |")


if __name__ == "__main__":
    main()
