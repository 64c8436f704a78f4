"""What a GPU issues for SimCLR's T3, counted in the compiled code: `python -m bench.sass` in the repository, no GPU needed.

Compiles T3's launches for sm_90 as tests/kernels/cubins.py does, and disassembles them by triton's nvdisasm. A basic block runs
as often as the source lines from which most of its instructions come; RUNS says how often those run, by the draws of T3.

Prints, of 256 samples of 224 px: registers; millions of warps' instructions; the same by thread and pixel of all samples;
ms at one instruction a cycle and scheduler; ms of each pipe, by RATES. These are counts, not times: nothing waits for memory here.
"""

import linecache
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.kernels.cubins import Target, measured
from tests.kernels.launches import T3, _launch

NVDISASM = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
NUM_SAMPLES, LAUNCHED_SAMPLES, SIDE_PX = 256, 2, 224
# H200: 132 SMs of four schedulers.
CYCLES_PER_MS = 132 * 4 * 1.755e6
# Cycles that an instruction of a warp holds its pipe for (CUDA's table of throughputs), by patterns of names, the first that
# fits. Tensor cores: 2 * 16 * 8 * 16 operations each, at the 400 Tflop/s that mma.sync is known to reach.
PIPES = {
    "tensor": ("HMMA", 4096 / 400e12 * 1e3 * CYCLES_PER_MS),
    "special": ("MUFU|I2F[.]|F2I", 8.0),
    "memory": ("LD[GS]|ST[GS]|SHFL|LDSM", 4.0),
    "float": ("F(FMA|MUL|ADD)|IMAD|HFMA2|HADD2|HMUL2", 1.0),
    "integer": ("[A-TV-Z]", 2.0),
}
# Of the samples: distorted, turned grey, filtered by Sobel, blurred or filtered.
DISTORTED, GREY, SOBEL, NEAR = 0.8, 0.2, 0.2, 0.6
# How often a program runs a line, by kernel and pattern; the first pattern that fits one of the lines that an instruction stands
# for. Of the three other operations half come before contrast, which the mean needs.
MEAN_STEPS = 4
# Of seven tiles in a column: four programs.
COLOUR_STEPS = 7 / 4
# Tiles of a row, and a step before the first.
STRIP_STEPS = 8
RUNS: dict[str, list[tuple[str, float]]] = {
    "mean_pass": [
        (r"shift_hue\(|blend\(", 0.5 * MEAN_STEPS * DISTORTED),
        (r"in range\(num_ops\)|op = ", 1.5 * MEAN_STEPS * DISTORTED),
        (r"load_rgb\(|luma\(|distort\(", MEAN_STEPS * DISTORTED),
        (r"apply \+ sample|def |= tl.program_id", 1.0),
        (r"", DISTORTED),
    ],
    "colour_pass": [
        (r"shift_hue\(|blend\(", COLOUR_STEPS * DISTORTED),
        (r"in range\(num_ops\)|op = ", COLOUR_STEPS * 4 * DISTORTED),
        (r"distort\(", COLOUR_STEPS * DISTORTED),
        (r"in_turn\(.*>>", COLOUR_STEPS * 0.5),
        (r"r = luma|[gb] = r$", COLOUR_STEPS * GREY),
        (r"to_plane", COLOUR_STEPS * NEAR),
        (r"to_out|shift_0", COLOUR_STEPS * (1 - NEAR)),
        (r"load_rgb\(|for y_0|y = y_0|inside = |at = ", COLOUR_STEPS),
        (r"", 1.0),
    ],
    "band_pass": [(r"before|after", SOBEL), (r"program_id|is_filtered|def ", 1.0), (r"", NEAR)],
    "strip_pass": [
        (r"sums|differences|gradient_size", STRIP_STEPS * SOBEL),
        (r"rows|weights_[xy]|load_beyond|for step|(to|inside|x_0|value) = |tl.store", STRIP_STEPS * (NEAR - SOBEL)),
        (r"program_id|is_filtered|def ", 1.0),
        (r"", NEAR),
    ],
}


class Block:
    def __init__(self) -> None:
        self.instructions: list[tuple[str, str]] = []  # name; its source lines, joined

    def runs(self, rules: list[tuple[str, float]]) -> float:
        votes = Counter(
            next(runs for pattern, runs in rules if re.search(pattern, lines)) for _, lines in self.instructions
        )
        return votes.most_common(1)[0][0] if votes else 0.0


def blocks(disassembly: str) -> Iterator[Block]:
    """From `nvdisasm -c -gi`: each instruction follows the file and line that it comes from, and the calls of that line."""
    block, chain, fresh = Block(), [], False
    for line in disassembly.splitlines():
        if found := re.match(r'\s*//## File "(.+?)", line (\d+)', line):
            chain = chain if fresh else []
            chain += [linecache.getline(path, int(n)).strip() for path, n in re.findall(r'"([^"]+)", line (\d+)', line)]
            fresh = True
        elif re.match(r"\.L\w*:", line):
            yield block
            block = Block()
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            fresh = False
            if found[1] == "NOP":
                continue
            block.instructions.append((found[1], "\n".join(chain)))
            if found[1] in ("BRA", "EXIT"):
                yield block
                block = Block()
    yield block


def counted(kernel: str, cubin: bytes, programs: int, warps: int) -> dict[str, float]:
    """Instructions of warps of all programs of NUM_SAMPLES, "all" and by pipe, in cycles of a scheduler."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([NVDISASM, "-c", "-gi", file.name], capture_output=True, text=True, check=True).stdout
    cycles: Counter[str] = Counter()
    for block in blocks(text):
        runs = block.runs(RUNS[kernel]) * programs * NUM_SAMPLES / LAUNCHED_SAMPLES * warps
        for name, _ in block.instructions:
            cycles["all"] += runs
            pipe = next((pipe for pipe, (names, _) in PIPES.items() if re.match(names, name)), None)
            if pipe:
                cycles[pipe] += runs * PIPES[pipe][1]
    return cycles


def main() -> None:
    launch: Callable[..., Any] = JITFunction.run
    total: Counter[str] = Counter()
    print("| launch | registers | M instructions | a pixel | ms | " + " | ".join(PIPES) + " |")
    print("|---" * (5 + len(PIPES)) + "|")

    def row(name: str, registers: object, cycles: Counter[str]) -> None:
        a_pixel = cycles["all"] * 32 / (NUM_SAMPLES * SIDE_PX**2)
        ms = " | ".join(f"{cycles[key] / CYCLES_PER_MS:.4f}" for key in ("all", *PIPES))
        print(f"| {name} | {registers} | {cycles['all'] / 1e6:.1f} | {a_pixel:.1f} | {ms} |")

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        binary = launch(kernel, *args, grid=grid, warmup=True, **constants)
        programs = 1
        for size in grid:
            programs *= size
        cycles = counted(kernel.__name__, binary.asm["cubin"], programs, constants["num_warps"])
        row(kernel.__name__, measured(binary.asm["cubin"])["registers"], cycles)
        total.update(cycles)

    driver.set_active(Target(90))
    JITFunction.run = run
    _launch("T3", __import__("fastpsl.kernels.fused.photometric", fromlist=["run"]), T3, torch.float16, (SIDE_PX, SIDE_PX)).call()
    row("sum", "", total)


if __name__ == "__main__":
    main()
