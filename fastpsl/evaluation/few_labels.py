"""Learning from the first few images of each class, in epochs that are as long as those of all images (sslpp.txt, Table VIII)."""

from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from fastpsl.evaluation.label_lists import first_of_each_class
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.order import sort_keys
from fastpsl.tasks.classify import Classify


@dataclass(kw_only=True)
class FewLabels(Classify):
    """The first `labels_per_class` images of each class, again and again: an epoch keeps its number of steps.

    As RotNet's semi-supervised experiments on CIFAR-10, which SSL++ follows: their epochs of 50,000 images pass over the first K of each
    class. There the whole epoch is shuffled; here every pass over them is (`repeated_order`). seed: of the orders.
    """

    has_own_order = True

    labels_per_class: int
    seed: int
    chosen: np.ndarray = field(init=False)
    num_samples: int = field(init=False)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        super().check_data(data, batch_size)
        self.num_samples = data.num_samples
        self.chosen = first_of_each_class(
            data.labels(), data.num_classes, self.labels_per_class, data.class_names
        )

    @override
    def epoch_order(self, epoch: int) -> np.ndarray:
        return repeated_order(self.chosen, self.num_samples, self.seed, epoch)


def repeated_order(chosen: np.ndarray, num: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num]: pass after pass over `chosen` (dataset indices, int64 [n]), each shuffled anew; the last one may be cut short.

    A function of (seed, epoch). In every beginning of it, each image stands as often as any other, or once more.
    """
    num_passes = -(-num // len(chosen))
    keys = sort_keys(seed, epoch, num_passes * len(chosen)).reshape(num_passes, len(chosen))
    order: np.ndarray = chosen[keys.argsort(1, kind="stable").ravel()[:num]]
    return order
