"""The 32-byte sectors that the fused kernels touch in memory, from the compiled code; no GPU is needed.

    python -m bench.sectors        in the repository

A warp's load or store moves whole sectors. Touched over needed sectors is 1 if the lanes' values lie side by
side, and 3 if every third one is skipped. For each chain and kernel the program prints four such ratios:

    instructions    each load or store of a warp by itself
    programs        all that a program loads, or stores, together

What an instruction leaves of a loaded sector waits in the multiprocessor's cache for the next one, so loads
cost bandwidth by programs. Stores go on at once and in parts, so they cost it by instructions. A sector that
no program fills is written back in parts, and is the worst.

The compiled code (Triton's layouts, the width of PTX's instructions) says which lanes have which elements.
Triton's interpreter says where they point, in a second process. Both are matched by source lines.
"""

import ast
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from triton.runtime import driver, interpreter
from triton.runtime.jit import JITFunction

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.fused_cuda import geometric, isotropic, photometric, prepared, shifted, warped
from tests.kernels import launches
from tests.kernels.cubins import Target

SECTOR = 32
WIDEST = 16
NUM_SAMPLES = 4
# Source lines, from an access outward to the kernel; and whether it is a store.
Place = tuple[tuple[str, ...], bool]


class Access(NamedTuple):
    """A load or store of the compiled code.

    Attributes:
        place: Where it stands in the source.
        index: Numbers of elements, int [registers, warps, lanes].
        element_bytes: The bytes of an element.
    """

    place: Place
    index: np.ndarray
    element_bytes: int


class Ratios(NamedTuple):
    """Touched over needed sectors; NaN if nothing is loaded or stored."""

    loads: float
    stores: float
    loads_of_programs: float
    stores_of_programs: float


def chains() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield names and calls of what is looked at: each kernel at a size that 32 divides, small and half."""
    t3, flip = launches.T3, launches.FLIP
    for name, module, ops, side in (
        ("T1", photometric, (flip,), 96),
        ("SimCLR T3", photometric, t3, 96),
        ("T3, 51 taps", photometric, (*t3[:3], launches.WIDE_BLUR, launches.SOBEL), 96),
        ("T3, lightness", photometric, (*t3[:3], launches.LIGHTNESS, *t3[3:]), 96),
        ("UIC", photometric, (flip, launches.XY), 96),
        ("UIC, strong", photometric, (*t3[:-1], launches.XY), 96),
        ("jigsaw", geometric, (flip, launches.JigsawTiles(3, 75, 64)), 225),
        ("all turns", geometric, (launches.AllTurns(4),), 96),
        ("turns", geometric, (flip, launches.Rotate90(4)), 96),
        ("SSL++, context", shifted, (launches.SHIFT, flip, launches.Hole()), 32),
        ("SSL++, colorization", shifted, (launches.SHIFT, flip, launches.LIGHTNESS), 32),
        ("SSL++, AET", warped, (launches.SHIFT, flip, launches.WarpPair(32)), 32),
        ("shift, flip", prepared, (launches.SHIFT, flip), 32),
        ("enlarge", prepared, (launches.Enlarge(128, 96),), 64),
    ):
        yield name, partial(_run, module, ops, side)
    images = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    boxes = torch.tensor([[2, 4, 90, 90, 0], [10, 40, 64, 64, 45]])
    yield "isotropic windows", partial(isotropic.crop, images, boxes, 64)
    yield "BatchNorms", partial(launches._batch_norms, 64, torch.float16, False)


def _run(module: Any, ops: tuple[Any, ...], side: int) -> None:
    """Run a chain whose samples differ in every choice: all, none, all but the last, the first alone."""
    channels_last = torch.channels_last
    images = torch.zeros(NUM_SAMPLES, 3, side, side, dtype=torch.uint8).contiguous(memory_format=channels_last)
    draws = [op.draw(Keys(0, 0, np.arange(NUM_SAMPLES, dtype=np.int64))) for op in ops]
    for number, draw in enumerate(draws):
        for name, values in draw.items():
            if values.dtype == bool:
                draw[name] = np.array([True, False, number < len(ops) - 1, number == 0])
            elif name == "turns":
                draw[name] = np.arange(NUM_SAMPLES).astype(values.dtype)
    tensors = [{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in draw.items()} for draw in draws]
    batch, *shape = module.out_shape(ops, images.shape)
    out = torch.empty((batch, *shape), dtype=torch.float16).contiguous(memory_format=channels_last)
    module.run(images, ops, tensors, (0.5,) * shape[0], (0.25,) * shape[0], out)


class Compiler:
    """A replacement for launches that compiles, and collects the accesses of each launch of each chain."""

    def __init__(self) -> None:
        self.launch = JITFunction.run
        self.accesses: dict[tuple[str, int, str], list[Access]] = {}

    def compile(self, chain: str, call: Callable[[], object]) -> None:
        numbers = iter(range(1000))

        def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
            binary = self.launch(kernel, *args, grid=grid, warmup=True, **constants)
            found = list(accesses(binary.asm["ttgir"]))
            self.accesses[chain, next(numbers), kernel.__name__] = found

        driver.set_active(Target(90))
        JITFunction.run = run
        call()


def accesses(ttgir: str) -> Iterator[Access]:
    """Yield the loads and stores of tensors in a kernel's compiled code."""
    layouts = dict(re.findall(r"^(#\w+) = (#ttg\.\w+<\{.*\}>)$", ttgir, re.MULTILINE))
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttgir, re.MULTILINE))
    pattern = r"(tt\.load|tt\.store|ttg\.async_copy_global_to_local) .*?: tensor<([\dx]+)x!tt\.ptr<\w*?(\d+)>, (.*)"
    for kind, size, bits, rest in re.findall(pattern, ttgir):
        lines = tuple(_lines(re.findall(r"loc\((#loc\d*)\)$", rest)[0], places))
        shape = tuple(map(int, size.split("x")))
        layout = re.split(r"> (?:->|loc)", rest)[0]
        elements = _elements(layout, shape, layouts)
        index = np.ravel_multi_index(tuple(np.moveaxis(elements, -1, 0)), shape)
        _, first = np.unique(index.reshape(len(index), -1), axis=0, return_index=True)
        index = index[np.sort(first)]  # because registers that repeat others are left out
        yield Access((lines, kind == "tt.store"), index, max(int(bits) // 8, 1))


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


def _elements(layout: str, shape: tuple[int, ...], layouts: dict[str, str]) -> np.ndarray:
    """Return the elements of a layout as indices, int [registers, warps, lanes, dimensions of `shape`]."""
    layout = layouts.get(layout, layout)
    if match := re.match(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>", layout):
        axis = int(match[1])
        parent = _elements(match[2], (*shape[:axis], 1, *shape[axis:]), layouts)
        return np.delete(parent, axis, axis=-1)
    fields = {name: ast.literal_eval(v) for name, v in re.findall(r"(\w+) = (\[.*?\])(?=, \w+ =|\})", layout)}
    if layout.startswith("#ttg.linear"):
        bases = [np.array(fields[name]).reshape(-1, len(shape)) for name in ("register", "warp", "lane")]
        registers, warps, lanes = (_combined(part) for part in bases)
        return registers[:, None, None] ^ warps[None, :, None] ^ lanes[None, None, :]
    assert layout.startswith("#ttg.blocked"), layout
    each, lanes, warps = (fields[f"{n}"] for n in ("sizePerThread", "threadsPerWarp", "warpsPerCTA"))
    tile = [e * lane * warp for e, lane, warp in zip(each, lanes, warps, strict=True)]
    repeats = [max(size // part, 1) for size, part in zip(shape, tile, strict=True)]
    repeat, register, warp, lane = (
        _counted(sizes, fields["order"]) for sizes in (repeats, each, warps, lanes)
    )
    within = (warp[:, None] * lanes + lane[None, :]) * each
    place = repeat[:, None, None, None] * tile + within + register[:, None, None]
    return place.reshape(-1, *within.shape) % shape


def _counted(sizes: list[int], order: list[int]) -> np.ndarray:
    """Return all indices below `sizes`, int [N, D], those of the axis order[0] fastest."""
    slowest_first = order[::-1]
    indices = np.indices([sizes[axis] for axis in slowest_first]).reshape(len(sizes), -1).T
    return indices[:, np.argsort(slowest_first)]


def _combined(bases: np.ndarray) -> np.ndarray:
    """Return all combinations by exclusive or of `bases`, int [2^N, D]."""
    values = np.zeros((1, bases.shape[1]), int)
    for base in bases:
        values = np.concatenate([values, values ^ base])
    return values


# By chain, number of the launch and kernel: (program, place, pointers, mask).
Pointers = dict[tuple[str, int, str], list[tuple[int, Place, np.ndarray, np.ndarray]]]


def interpreted() -> Pointers:
    """Run all chains by Triton's interpreter and return the pointers of all loads and stores of tensors."""
    found: Pointers = defaultdict(list)
    builder: Any = interpreter.interpreter_builder
    load, store, run = builder.create_masked_load, builder.create_masked_store, interpreter.InterpretedFunction.run
    key, numbers, folder = ("", 0, ""), iter(()), str(Path(photometric.__file__).parent)

    def note(pointers: Any, mask: Any, is_store: bool) -> None:
        if not pointers.data.ndim or pointers.data.size == 1:
            return
        frame, lines = sys._getframe(), []
        while frame.f_code is not interpreter.GridExecutor.__call__.__code__:
            if frame.f_code.co_filename.startswith(folder):
                lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            assert frame.f_back
            frame = frame.f_back
        program = int(np.ravel_multi_index(builder.grid_idx, builder.grid_dim))
        found[key].append((program, (tuple(lines), is_store), pointers.data.copy(), mask.data.copy()))

    def noting_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, False)
        return load(pointers, mask, *rest)

    def noting_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, True)
        return store(pointers, value, mask, *rest)

    def noting_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal key
        key = (chain, next(numbers), self.__name__)
        return run(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = noting_load, noting_store
    interpreter.InterpretedFunction.run = noting_run  # type: ignore[method-assign]
    for chain, call in chains():
        numbers = iter(range(1000))
        call()
    return found


def side_by_side(access: Access, places: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """Return how many elements a lane's instruction moves: side by side, aligned, all or none masked out."""
    num, size = 1, np.uint64(access.element_bytes)
    while 2 * num * access.element_bytes <= WIDEST and len(access.index) % (2 * num) == 0:
        index = access.index.reshape(-1, 2 * num, *access.index.shape[1:])
        for pointers, mask in places:
            where, here = pointers.ravel()[index], mask.ravel()[index]
            steps = np.arange(2 * num, dtype=np.uint64)[:, None, None] * size
            aligned = where[:, :1] % (size * np.uint64(2 * num)) == 0
            if ((where != where[:, :1] + steps) | ~aligned)[here].any() or (here != here[:, :1]).any():
                return num
        num *= 2
    return num


def touched(
    access: Access, num: int, pointers: np.ndarray, mask: np.ndarray
) -> tuple[int, int]:
    """Return the sectors that instructions touch, and those that their bytes would fill."""
    _, num_warps, num_lanes = access.index.shape
    index = access.index.reshape(-1, num, num_warps, num_lanes).transpose(0, 2, 3, 1)
    index = index.reshape(-1, num_lanes * num)
    if access.place[1]:  # warps that repeat others do not store
        index = np.unique(index, axis=0)
    pointers, mask = pointers.ravel()[index], mask.ravel()[index]
    sectors = _distinct(pointers // np.uint64(SECTOR), mask)
    needed = _distinct(pointers, mask) * access.element_bytes
    return int(sectors.sum()), int((-(-needed // SECTOR)).sum())


def _distinct(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how many distinct values each row has where the mask is set."""
    values = np.sort(np.where(mask, values, np.uint64(0)), axis=1)  # no pointer is 0
    return (np.diff(values, axis=1, prepend=np.uint64(0)) != 0).sum(1)


def ratios(accesses: list[Access], pointers: list[tuple[int, Place, np.ndarray, np.ndarray]]) -> Ratios:
    of_place: dict[Place, list[Access]] = defaultdict(list)
    for access in accesses:
        of_place[access.place].append(access)
    noted: dict[tuple[Place, int], list[tuple[int, np.ndarray, np.ndarray]]] = defaultdict(list)
    for program, place, where, mask in pointers:
        noted[place, where.size].append((program, where, mask))
    sums = np.zeros((2, 2))
    bytes_of: dict[tuple[int, bool], list[np.ndarray]] = defaultdict(list)
    for (place, size), records in noted.items():
        # A loop that was unrolled or begun ahead has copies of an access.
        here = [access for access in of_place.pop(place, []) if access.index.max() + 1 == size]
        if not here:
            print("not in the code:", place, size, file=sys.stderr)
            continue
        for access in here:
            num = side_by_side(access, [record[1:] for record in records])
            part = sum(np.array(touched(access, num, *record[1:])) for record in records) / len(here)
            if "-v" in sys.argv:
                print("   ", place, access.index.shape, access.element_bytes * num, part, part[0] / part[1])
            sums[int(place[1])] += part
        of_byte = np.arange(here[0].element_bytes, dtype=np.uint64)
        for program, where, mask in records:
            bytes_of[program, place[1]].append(np.unique((where[mask][:, None] + of_byte).ravel()))
    if of_place:
        print("not run:", list(of_place), file=sys.stderr)
    of_programs = np.zeros((2, 2))
    for (_, is_store), parts in bytes_of.items():
        values = np.unique(np.concatenate(parts))
        of_programs[int(is_store)] += len(np.unique(values // np.uint64(SECTOR))), len(values) / SECTOR
    with np.errstate(invalid="ignore"):
        return Ratios(*sums[:, 0] / sums[:, 1], *of_programs[:, 0] / of_programs[:, 1])


def main() -> None:
    if "--pointers" in sys.argv:
        sys.stdout.buffer.write(pickle.dumps(dict(interpreted())))
        return
    command = [sys.executable, "-W", "ignore", "-m", "bench.sectors", "--pointers"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout
    pointers: Pointers = pickle.loads(output)
    compiler = Compiler()
    for chain, call in chains():
        compiler.compile(chain, call)
    for key, found in compiler.accesses.items():
        print(key, ratios(found, pointers.get(key, [])))


if __name__ == "__main__":
    main()
