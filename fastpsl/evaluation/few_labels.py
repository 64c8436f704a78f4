"""Learn from the first images of each class, in epochs of all images' length (SSL++, Table VIII)."""

from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from fastpsl.evaluation.label_lists import first_of_each_class
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.order import sort_keys
from fastpsl.tasks.classify import Classify


@dataclass(kw_only=True)
class FewLabels(Classify):
    """A classification task that repeats the first images of each class; an epoch keeps its number of steps.

    RotNet's semi-supervised experiments on CIFAR-10, which SSL++ follows, do the same: an epoch of 50,000
    images passes many times over the first K of each class. They shuffle the whole epoch; here each pass is
    shuffled (`repeated_order`).

    Attributes:
        labels_per_class: Number of images of each class.
        seed: Seed of the orders.
        chosen: The images' indices in the data set, int64 [n].
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
    """Return an order, int64 [num]: passes over `chosen` (indices, int64 [n]), each shuffled anew.

    The last pass may be cut short. The order is a function of (seed, epoch). In any prefix of it, the counts
    of two images differ by at most one.
    """
    num_passes = -(-num // len(chosen))
    keys = sort_keys(seed, epoch, num_passes * len(chosen)).reshape(num_passes, len(chosen))
    order: np.ndarray = chosen[keys.argsort(1, kind="stable").ravel()[:num]]
    return order
