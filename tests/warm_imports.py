"""What the server of `tests.warm` has imported before it forks: nothing here may start a thread or choose a device."""

import contextlib
import gc
from importlib import import_module

for name in (
    "matplotlib.pyplot",
    "pytest",
    "scipy.sparse",
    "sklearn.metrics",
    "tests.warm",
    "torch.utils.tensorboard",
    "torchvision.transforms.v2",
    "fastpsl.beton_command",
    "fastpsl.cli",
    "fastpsl.evaluation.features",
    "fastpsl.iic_job",
    "fastpsl.k_means",
    "fastpsl.launch",
    "fastpsl.pipelines.beton_verify",
    "fastpsl.pipelines.decoders.ffcv",
    "fastpsl.pipelines.loader",
    "fastpsl.show",
    "fastpsl.sslpp_job",
    "fastpsl.tasks.jigsaw",
    "fastpsl.tasks.moco",
    "fastpsl.tasks.rotnet",
    "fastpsl.uic_job",
):
    import_module(name)
with contextlib.suppress(ImportError):
    import_module("nvidia.dali.fn")
gc.collect()
gc.freeze()  # what is imported stays: the children do not look through it for garbage
