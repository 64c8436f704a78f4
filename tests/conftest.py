"""Where there is no GPU, Triton's kernels run under its interpreter.

Triton reads TRITON_INTERPRET when it is imported, and torchvision imports it: so it is set here, before any test is.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
