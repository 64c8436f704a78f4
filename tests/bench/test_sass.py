"""Instruction counts in disassembled code: blocks, their source lines and the loops around them."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bench.sass import Kernel, blocks

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
