"""Write docs/llms.txt from the pages.

Start it by `python -m docs.reference.generate`. The file is committed. With --check nothing is written, and
the exit code is 1 if it would change.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from docs.reference.generate.llms import llms_text

FILE = Path(__file__).resolve().parents[2] / "llms.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file would change")
    check = parser.parse_args(arguments).check
    text = llms_text()
    if FILE.exists() and FILE.read_text() == text:
        return 0
    print("docs/llms.txt")
    if not check:
        FILE.write_text(text)
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
