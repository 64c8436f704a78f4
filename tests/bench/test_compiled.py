"""What is counted in compiled code: instructions of blocks in loops, and sectors of loads and stores."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bench import sectors
from bench.sass import Kernel, blocks
from bench.sectors import Access, Note, Ratios, elements, ratios
from fastpsl.files.caches import cache_folder

ROWS = "sizePerThread = [1, 2], threadsPerWarp = [8, 4], warpsPerCTA = [2, 1], order = [1, 0]"
COLUMNS = "sizePerThread = [2, 1], threadsPerWarp = [4, 8], warpsPerCTA = [1, 2], order = [0, 1]"
LINEAR = "register = [[0, 1], [1, 0]], lane = [[0, 2], [0, 4], [2, 0], [4, 0], [8, 0]], warp = []"


def test_elements_of_layouts() -> None:
    """Each axis counts its registers, then its lanes, then its warps, and then begins anew."""
    layouts = {"#rows": f"#ttg.blocked<{{{ROWS}}}>"}
    rows = elements("#rows", (32, 8), layouts)
    columns = elements(f"#ttg.blocked<{{{COLUMNS}}}>", (8, 32), layouts)
    assert rows.shape == columns.shape == (4, 2, 32, 2)
    for warp in range(2):
        for lane in range(32):
            y, x = 8 * warp + lane // 4, 2 * (lane % 4)
            expected = [[y, x], [y, x + 1], [y + 16, x], [y + 16, x + 1]]
            assert rows[:, warp, lane].tolist() == expected
            assert columns[:, warp, lane].tolist() == [at[::-1] for at in expected]
    lanes = np.arange(32)
    # Lanes that share a row have the same element of a column.
    column = elements("#ttg.slice<{dim = 1, parent = #rows}>", (32,), layouts)
    assert (column[0, 1, :, 0] == 8 + lanes // 4).all()
    last = elements(f"#ttg.linear<{{{LINEAR}}}>", (16, 8), layouts)[3, 0]
    assert (last == np.stack([1 + lanes // 4 * 2, 1 + lanes % 4 * 2], axis=1)).all()


@pytest.mark.parametrize(
    "step, widths, expected",
    [(1, {2, 8}, 1.0), (1, {2}, 1.0), (3, {2}, 3.0), (16, {2}, 16.0)],
    ids=["side by side", "value by value", "every third", "down a column"],
)
def test_sectors_of_halves(step: int, widths: set[int], expected: float) -> None:
    """128 halves of two warps, with a step between them; a second program has none."""
    place = (("strips.py:1",), True)
    index = np.arange(256).reshape(2, 32, 4).transpose(2, 0, 1)
    if widths == {2}:
        index = np.arange(256).reshape(4, 2, 32)
    pointers = np.uint64(4096) + np.arange(256, dtype=np.uint64) * np.uint64(2 * step)
    notes = [Note(program, place, pointers, np.full(256, program == 0)) for program in range(2)]
    assert ratios([Access(place, index, 2, widths)], notes) == Ratios(min(expected, 16), expected, 0, 0)


@pytest.mark.slow
def test_kernels_touch_memory_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    if os.environ.get("TRITON_INTERPRET"):  # this process has imported all
        builder = sectors.interpreter.interpreter_builder
        for of, name in (
            (builder, "create_masked_load"),
            (builder, "create_masked_store"),
            (sectors.interpreter.InterpretedFunction, "run"),
        ):
            monkeypatch.setattr(of, name, getattr(of, name))
        sectors.write_notes(notes)
    else:
        sectors.interpreted(notes)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache_folder() / "cubins")
    command = [sys.executable, "-W", "ignore", "-m", "bench.sectors", str(notes)]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    print(f"\n{process.stdout}")
    rows = [line.strip("| ").split(" | ") for line in process.stdout.splitlines()[2:]]
    found = {name: Ratios(*(0 if x == "-" else float(x) for x in numbers)) for name, *numbers, _ in rows}
    # It stores bytes of turned windows, which no words line up with.
    windows = found.pop("isotropic.horizontal_kernel")
    assert windows.stores_of_program < 1.2 and windows.stores_of_instruction < 3
    assert all(max(row[:2]) <= 1.01 for row in found.values()), "a sector is stored in parts"
    assert all(row.loads_of_program < 1.5 for row in found.values()), "much is loaded that is not needed"


SOURCE = "once = 1\nagain = 2\nseldom = 3\n"
DISASSEMBLY = """
.text.kernel:
	//## File "{path}", line 1
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_0:
	//## File "{path}", line 3 inlined at "{path}", line 2
	//## File "{path}", line 2
        /*0010*/                   IADD3 R2, R1, 0x1, RZ ;
        /*0020*/              @!P0 FMUL R2, R2, 6 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
	//## File "{path}", line 2
        /*0040*/                   IADD3 R2, R1, 0x1, RZ ;
        /*0050*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   NOP ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
"""


def test_blocks_run_as_often_as_their_loops_and_lines(tmp_path):
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    parsed = [block for block in blocks(DISASSEMBLY.format(path=path)) if block.instructions]
    names = [[name for name, _ in block.instructions] for block in parsed]
    assert names == [["LDC"], ["IADD3", "FMUL", "BRA"], ["IADD3", "BRA"], ["EXIT"], ["BRA"]]
    assert [block.depth for block in parsed] == [0, 1, 1, 0, 0]
    kernel = Kernel((7,), (("seldom", 0.25), ("again", 0.5), ("", 1)))
    assert [block.runs(kernel) for block in parsed] == [1, 7 * 0.25, 7 * 0.5, 0.5, 0.5]
