"""What a GPU issues for SimCLR's T3, counted in the compiled code: `python -m bench.sass` in the repository, no GPU needed.

Compiles T3's launches for sm_90 as tests/kernels/cubins.py does, and disassembles them by triton's nvdisasm. A basic block runs
as often as its loops, in the part of the samples in which the source lines run that most of its instructions come from: KERNELS.

Prints, of 256 samples of 224 px: registers; millions of warps' instructions; the same by thread and pixel of all samples;
ms at one instruction a cycle and scheduler; ms of each pipe, by PIPES. These are counts, not times: nothing waits for memory here.
"""

import linecache
import math
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastpsl.kernels.fused_cuda import photometric
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


class Kernel(NamedTuple):
    """loops: how often a loop runs, by depth. lines: in what part of the samples, or of a loop's runs, a line is run, by pattern;
    the first that fits one of the lines that an instruction stands for.
    """

    loops: tuple[float, ...]
    lines: tuple[tuple[str, float], ...]


KERNELS = {
    # Of the four operations one and a half come before contrast; each of three as often.
    "mean_pass": Kernel(
        (4, 1.5),
        (
            (r"shift_hue\(|blend\(", DISTORTED / 3),
            (r"apply \+ sample|def |= tl.program_id", 1),
            (r"", DISTORTED),
        ),
    ),
    # Seven tiles in a column are of four programs.
    "colour_pass": Kernel(
        (7 / 4, 4),
        (
            (r"shift_hue\(|blend\(", DISTORTED / 4),
            (r"distort\(", DISTORTED),
            (r"in_turn\(.*>>", 0.5),
            (r"r = luma|[gb] = r$", GREY),
            (r"to_plane", NEAR),
            (r"to_out|shift_0", 1 - NEAR),
            (r"", 1),
        ),
    ),
    "band_pass": Kernel((2,), ((r"before|after", SOBEL), (r"program_id|is_filtered|def ", 1), (r"", NEAR))),
    # Seven tiles in a row, and a step before the first. What two branches share by text is of samples without Sobel.
    "strip_pass": Kernel(
        (8,),
        (
            (r"sums|differences|gradient_size", SOBEL),
            (r"rows|weights_[xy]|load_beyond|(to|inside|x_0|value) = |tl.store", NEAR - SOBEL),
            (r"program_id|is_filtered|def ", 1),
            (r"", NEAR),
        ),
    ),
}


class Block:
    def __init__(self, label: str = "") -> None:
        self.label, self.target = label, ""
        self.instructions: list[tuple[str, str]] = []  # name; its source lines
        self.depth = 0

    def runs(self, kernel: Kernel) -> float:
        """Of a program."""
        votes = Counter(
            next(part for pattern, part in kernel.lines if re.search(pattern, lines))
            for _, lines in self.instructions
        )
        part = votes.most_common(1)[0][0] if votes else 0.0
        return part * math.prod(kernel.loops[: self.depth])


def blocks(disassembly: str) -> list[Block]:
    """From `nvdisasm -c -gi`: each instruction follows the file and line that it comes from, and the calls of that line."""
    found, chain, fresh = [Block()], "", False
    for line in disassembly.splitlines():
        if re.match(r"\s*//## File", line):
            places = re.findall(r'"([^"]+)", line (\d+)', line)
            here = "\n".join(linecache.getline(path, int(number)).strip() for path, number in places)
            chain, fresh = f"{chain}\n{here}" if fresh else here, True
        elif label := re.match(r"(\.L\w*):", line):
            found.append(Block(label[1]))
        elif named := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            fresh = False
            if named[1] != "NOP":
                found[-1].instructions.append((named[1], chain))
            if named[1] in ("BRA", "BRX", "EXIT"):
                target = re.search(r"`\((\.L\w*)\)", line)
                found[-1].target = target[1] if target and named[1] == "BRA" else ""
                found.append(Block())
    # A jump back closes a loop; the one behind the last EXIT, to itself, is never reached.
    ends: dict[int, int] = {}
    labels = {block.label: index for index, block in enumerate(found) if block.label}
    for index, block in enumerate(found):
        start = labels.get(block.target, index + 1)
        if start <= index and len(block.instructions) > 1:
            ends[start] = max(index, ends.get(start, 0))
    for start, end in ends.items():
        for block in found[start : end + 1]:
            block.depth += 1
    return found


def counted(kernel: str, cubin: bytes, programs: int, warps: int) -> dict[str, float]:
    """Instructions of warps of all programs of NUM_SAMPLES, "all" and by pipe, in cycles of a scheduler."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [NVDISASM, "-c", "-gi", file.name], capture_output=True, text=True, check=True
        ).stdout
    cycles: dict[str, float] = defaultdict(float)
    for block in blocks(text):
        runs = block.runs(KERNELS[kernel]) * programs * NUM_SAMPLES / LAUNCHED_SAMPLES * warps
        for name, _ in block.instructions:
            cycles["all"] += runs
            pipe = next((pipe for pipe, (names, _) in PIPES.items() if re.match(names, name)), None)
            if pipe:
                cycles[pipe] += runs * PIPES[pipe][1]
    return cycles


def main() -> None:
    launch: Callable[..., Any] = JITFunction.run
    total: dict[str, float] = defaultdict(float)
    print("| launch | registers | M instructions | a pixel | ms | " + " | ".join(PIPES) + " |")
    print("|---" * (5 + len(PIPES)) + "|")

    def row(name: str, registers: object, cycles: dict[str, float]) -> None:
        a_pixel = cycles["all"] * 32 / (NUM_SAMPLES * SIDE_PX**2)
        ms = " | ".join(f"{cycles[key] / CYCLES_PER_MS:.4f}" for key in ("all", *PIPES))
        print(f"| {name} | {registers} | {cycles['all'] / 1e6:.1f} | {a_pixel:.1f} | {ms} |")

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        binary = launch(kernel, *args, grid=grid, warmup=True, **constants)
        cycles = counted(kernel.__name__, binary.asm["cubin"], math.prod(grid), constants["num_warps"])
        row(kernel.__name__, measured(binary.asm["cubin"])["registers"], cycles)
        for key, value in cycles.items():
            total[key] += value

    driver.set_active(Target(90))
    JITFunction.run = run
    _launch("T3", photometric, T3, torch.float16, (SIDE_PX, SIDE_PX)).call()
    row("sum", "", total)


if __name__ == "__main__":
    main()
