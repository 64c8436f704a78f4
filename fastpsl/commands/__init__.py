"""The subcommands of `fastpsl`, one file each: a dataclass of options with a method `run()`.

They import their libraries in `run()`, because `fastpsl --help` must not wait for torch, numba or matplotlib.
extraction_options, show_tasks and slurm_job are parts of subcommands.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
