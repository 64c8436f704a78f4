"""The training engine: tasks, stage plans, train steps, runs, resume and reports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
