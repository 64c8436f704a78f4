"""The subcommands of `fastpsl`, one file each: a dataclass of options with a method `run()`.

They import their libraries in `run()`, because `fastpsl --help` must not wait for torch, numba or matplotlib.
For what a user gave, `run()` raises ValueError with one line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
