"""SSL++: a pretext task, and beside it the image's semantic pseudo-label as a second target (sslpp.txt, section IV)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastpsl.epochs import Figures
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.rows import Data
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plan import Stage
from fastpsl.stage import Metrics, Trunk, call_if_there
from fastpsl.tasks.classify import average_and_linear, masked_cross_entropy


class Proxy(Protocol):
    """A pretext task of which SSL++ makes a `Task` (section IV.C): V1 of the paper's figure 2 is its head.

    It may also have, as a task may (`fastpsl.stage.Task`): check_data, warm_up_batches, warm_up, end_of_epoch, state_dict and
    load_state_dict, chance, captions.
    """

    images_per_sample: int
    """How many of --batch-size's images one sample makes."""

    def view(self) -> ViewSpec:
        """What the network sees of each sample; its last op is the task's own. It may make several pictures of one, image-major."""
        ...

    def head(self, channels: int) -> nn.Module:
        """V1, on `channels` feature maps of the last block."""
        ...

    def loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Mean over samples with `batch.indices >= 0`; features [n * B, C, h, w] of all pictures that the view makes, image-major.

        Held out (`head.training` is False), metrics hold `loss_constant` too: what the best answer that looks at no picture would cost.
        """
        ...


class SSLPlusPlus:
    """L = Ls + weight * Lc (equation 5): the proxy's loss, and the cross-entropy of a linear classifier on pseudo-labels.

    proxy: None for the pseudo-labels alone ("SPL", Table XI), of `view`. labels: int [N], 0 to num_classes - 1; None for the proxy alone.
    Paper: V2, "a parameterized classifier", is no more than that: here it is linear on the average-pooled features.
    Paper: which pictures V2 sees is not said. Here all that the network sees: each turn of an image, both of AET's, the masked one.
    """

    num_levels = 1
