"""A count of the instructions that a GPU issues for SimCLR's T3, from the compiled code; no GPU is needed.

    python -m bench.sass        in the repository

It compiles T3's launches for sm_90 as tests/kernels/cubins.py does, and disassembles them with triton's
nvdisasm. The trip count of a basic block follows from its loops. The share of samples that run it follows
from the source lines of most of its instructions: see KERNELS.

For 256 samples of 224 px it prints registers, and millions of warp instructions, these also per thread and
pixel of all samples. Then come ms at one instruction per cycle and scheduler, and ms of each pipe in PIPES.
These are counts, not times: nothing waits for memory here.
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
# An H200 has 132 SMs with four schedulers each.
CYCLES_PER_MS = 132 * 4 * 1.755e6
# Pipe → a pattern of instruction names (the first match counts) and the cycles that a warp's instruction
# holds the pipe (CUDA's throughput table). Tensor cores: 2 * 16 * 8 * 16 operations each, at the 400 Tflop/s
# that mma.sync is known to reach.
PIPES = {
    "tensor": ("HMMA", 4096 / 400e12 * 1e3 * CYCLES_PER_MS),
    "special": ("MUFU|I2F[.]|F2I", 8.0),
    "memory": ("LD[GS]|ST[GS]|SHFL|LDSM", 4.0),
    "float": ("F(FMA|MUL|ADD)|IMAD|HFMA2|HADD2|HMUL2", 1.0),
    "integer": ("[A-TV-Z]", 2.0),
}
# Shares of the samples: distorted, turned grey, filtered by Sobel, blurred or filtered.
DISTORTED, GREY, SOBEL, NEAR = 0.8, 0.2, 0.2, 0.6


class Kernel(NamedTuple):
    """The execution counts of a kernel's blocks."""

    loops: tuple[float, ...]  # trip counts of the loops, by depth
    # Pattern of source lines → the share of samples, or of a loop's runs, that executes them. The first that
    # matches one of an instruction's lines counts.
    lines: tuple[tuple[str, float], ...]


KERNELS = {
    # On average 1.5 of the four operations come before contrast, each of the three others equally often.
    "mean_pass": Kernel((4, 1.5), (
        (r"shift_hue\(|blend\(", DISTORTED / 3), (r"apply \+ sample|def |= tl.program_id", 1),
        (r"", DISTORTED),
    )),
    # The 49 blocks of a sample are shared by 25 programs.
    "colour_pass": Kernel((49 / 25, 4), (
        (r"shift_hue\(|blend\(", DISTORTED / 4), (r"distort\(", DISTORTED), (r"in_turn\(.*>>", 0.5),
        (r"r = luma|[gb] = r$", GREY), (r"to_plane", NEAR), (r"quads|values|shift_0", 1 - NEAR), (r"", 1),
    )),
    "band_pass": Kernel((2,), ((r"before|after", SOBEL), (r"program_id|is_filtered|def ", 1), (r"", NEAR))),
    # Seven tiles per row, and a step before the first. Lines that two branches share count for samples
    # without Sobel.
    "strip_pass": Kernel((8,), (
        (r"sums|differences|gradient_size", SOBEL),
        (r"rows|weights_[xy]|load_beyond|(to|inside|x_0|value) = |tl.store", NEAR - SOBEL),
        (r"program_id|is_filtered|def ", 1), (r"", NEAR),
    )),
    "interleave_pass": Kernel((), ((r"program_id|is_filtered|def ", 1), (r"", NEAR))),
}  # fmt: skip


class Block:
    """A basic block with its instructions and their source lines."""

    def __init__(self, label: str = "") -> None:
        self.label, self.target = label, ""
        self.instructions: list[tuple[str, str]] = []  # (name, source lines)
        self.depth = 0

    def runs(self, kernel: Kernel) -> float:
        """Return how often one program runs the block."""
        votes = Counter(
            next(part for pattern, part in kernel.lines if re.search(pattern, lines))
            for _, lines in self.instructions
        )
        part = votes.most_common(1)[0][0] if votes else 0.0
        return part * math.prod(kernel.loops[: self.depth])


def blocks(disassembly: str) -> list[Block]:
    """Parse the output of `nvdisasm -c -gi`: each instruction follows its source line and its callers."""
    parsed, chain, in_places = [Block()], "", False
    for line in disassembly.splitlines():
        if re.match(r"\s*//## File", line):
            places = re.findall(r'"([^"]+)", line (\d+)', line)
            source = "\n".join(linecache.getline(path, int(number)).strip() for path, number in places)
            chain, in_places = f"{chain}\n{source}" if in_places else source, True
        elif label := re.match(r"(\.L\w*):", line):
            parsed.append(Block(label[1]))
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            in_places = False
            if match[1] != "NOP":
                parsed[-1].instructions.append((match[1], chain))
            if match[1] in ("BRA", "BRX", "EXIT"):
                target = re.search(r"`\((\.L\w*)\)", line)
                parsed[-1].target = target[1] if target and match[1] == "BRA" else ""
                parsed.append(Block())
    # A backward jump closes a loop. The jump to itself behind the last EXIT is never reached.
    ends: dict[int, int] = {}
    labels = {block.label: index for index, block in enumerate(parsed) if block.label}
    for index, block in enumerate(parsed):
        start = labels.get(block.target, index + 1)
        if start <= index and len(block.instructions) > 1:
            ends[start] = max(index, ends.get(start, 0))
    for start, end in ends.items():
        for block in parsed[start : end + 1]:
            block.depth += 1
    return parsed


def counted(kernel: str, cubin: bytes, programs: int, warps: int) -> dict[str, float]:
    """Return warp instructions for NUM_SAMPLES, "all" and by pipe, in cycles of a scheduler."""
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
