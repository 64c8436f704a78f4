"""The subcommands of `fastpsl`, one a file: a dataclass of options whose `run()` does the work.

Each imports what it needs in `run()`, because `fastpsl --help` must not wait for torch, numba or matplotlib.
"""
