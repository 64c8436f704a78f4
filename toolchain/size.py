"""Count the lines of code of fastpsl, tests and bench: `python -m toolchain.size`.

A line counts that holds more than a comment or a part of a docstring, in files of Python and C.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fastpsl", "tests", "bench")
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
_OF_C = re.compile(r'"(?:\\.|[^"\\])*"|/\*.*?\*/|//[^\n]*', re.DOTALL)


def lines_of_python(source: str) -> int:
    """Return the number of lines of code of a file of Python."""
    texts = [
        node.body[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    ]
    docstrings = {line for text in texts for line in range(text.lineno, (text.end_lineno or 0) + 1)}
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= {*range(token.start[0], token.end[0] + 1)}
    return len(lines - docstrings)


def lines_of_c(source: str) -> int:
    """Return the number of lines of code of a file of C."""
    without = _OF_C.sub(lambda found: found[0] if found[0][0] == '"' else "\n" * found[0].count("\n"), source)
    return sum(bool(line.strip()) for line in without.splitlines())


def sizes(root: Path) -> dict[str, int]:
    """Return the lines of code by folder."""
    ways = {".py": lines_of_python, ".c": lines_of_c, ".h": lines_of_c}
    return {
        folder: sum(
            ways[path.suffix](path.read_text())
            for path in sorted((root / folder).rglob("*"))
            if path.suffix in ways
        )
        for folder in FOLDERS
    }


if __name__ == "__main__":
    for name, number in sizes(ROOT).items():
        print(f"{name} {number:,}")
