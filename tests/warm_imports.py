"""The imports of `tests.warm`'s server before it forks. They must not start a thread or choose a device."""

import contextlib
import gc
from importlib import import_module

for name in (
    "matplotlib.backends.backend_agg", "matplotlib.figure", "pytest", "scipy.sparse", "sklearn.metrics",
    "tests.warm", "torch.distributed.run", "torch.utils.tensorboard", "torchvision.transforms.v2",
    "fastpsl.commands.data", "fastpsl.cli", "fastpsl.evaluation.features", "fastpsl.tasks.pseudo_labels.iic",
    "fastpsl.tasks.pseudo_labels.k_means", "fastpsl.scripts.launch", "fastpsl.pipelines.beton.verify",
    "fastpsl.pipelines.decoders.ffcv", "fastpsl.pipelines.loader.loader", "fastpsl.plots.contact_sheet",
    "fastpsl.commands.show_tasks", "fastpsl.tasks.sslpp.sslpp", "fastpsl.tasks.jigsaw",
    "fastpsl.tasks.contrastive.moco", "fastpsl.tasks.sslpp.rotnet", "fastpsl.tasks.pseudo_labels.uic",
):  # fmt: skip
    import_module(name)
with contextlib.suppress(ImportError):
    import_module("nvidia.dali.fn")
gc.collect()
gc.freeze()  # the children's garbage collection skips imported objects
