"""The training engine: tasks, stage plans, train steps, runs, resume and reports."""

import lazy_loader

from fastpsl.console.offered import offer_only_all

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
offer_only_all(__name__)
