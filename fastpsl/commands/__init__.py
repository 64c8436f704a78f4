"""The subcommands of `fastpsl`, one a file: a dataclass of options whose `run()` does the work.

Each imports what it needs in `run()`, because `fastpsl --help` must not wait for torch, numba or matplotlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
