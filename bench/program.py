"""How the programs of this folder end: the user's errors are one line, and exit status 2."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Leave the process with what `main` answers (None: 0); 2 for ValueError and OSError, 130 for Ctrl-C."""
    name = Path(sys.argv[0]).stem
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
