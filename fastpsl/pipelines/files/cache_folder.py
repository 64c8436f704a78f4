"""Where files are kept that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/fastpsl, by default ~/.cache/fastpsl; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the XDG rules have it, what is not absolute does not count.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fastpsl"
