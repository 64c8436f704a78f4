"""Checks of the limit on a process's addresses (`ulimit -v`), on which libraries otherwise abort or hang."""

import os
import resource
import sys
from pathlib import Path

_NEEDED = 1 << 30  # bytes for numba, scipy's OpenBLAS and the decoders, which are loaded after the start
_NEEDED_BY_TORCH = 5 << 30  # bytes to load it and to train a little, with two cores and no GPU
_REMEDY = "raise it, or give `ulimit -v unlimited`"


def warn_about_low_limit() -> None:
    """Print a line to stderr, on rank 0, if torch will hardly load, because its own error names no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= _NEEDED_BY_TORCH or "torch" in sys.modules:
        return
    if os.environ.get("RANK", "0") == "0" and sys.stderr is not None:
        print(
            f"fastpsl: memory is limited to {limit / 1e9:.1f} GB of addresses (`ulimit -v`), and torch takes "
            f"{_NEEDED_BY_TORCH / 1e9:.0f} GB, with CUDA far more: {_REMEDY}",
            file=sys.stderr,
        )


def require_address_space() -> None:
    """Check that there are enough addresses for the libraries that a command loads after its start.

    Raises:
        ValueError: Less than 1 GB is left. OpenBLAS, which numba loads with the first compiled function,
            would try forever to allocate its memory and ignore signals.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    left = limit - num_pages * resource.getpagesize()
    if left < _NEEDED:
        raise ValueError(
            f"memory is limited to {limit / 1e9:.1f} GB of addresses (`ulimit -v`), of which "
            f"{max(left, 0) / 1e9:.1f} GB are left, and at least {_NEEDED / 1e9:.1f} GB are needed: "
            f"{_REMEDY}"
        )
