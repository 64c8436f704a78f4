"""The protocol of linear SVMs on VOC2007, as data.

It is VISSL's (Goyal et al. [23], whom PSL follows in section 4.4.2).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastpsl.evaluation.protocols import PROTOCOLS, Pool

Costs = Literal["vissl", "fsb"]
# VISSL's, and the powers of ten of its predecessor, fair_self_supervision_benchmark.
COSTS: dict[Costs, tuple[float, ...]] = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    "fsb": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The settings that every SVM shares: scikit-learn's LinearSVC with squared hinge loss.

    Attributes:
        loss: Loss of LinearSVC.
        penalty: Penalty of LinearSVC.
        dual: Whether the dual problem is solved.
        positive_weight: Weight of a positive's cost; that of a negative is 1.
        tolerance: Tolerance at which the solver stops.
        max_iterations: Iterations after which the solver stops.
    """

    loss: str = "squared_hinge"
    penalty: str = "l2"
    dual: bool = True
    positive_weight: float = 2.0
    tolerance: float = 1e-4
    max_iterations: int = 2000


@dataclass(frozen=True, kw_only=True)
class SvmProtocol:
    """A protocol of linear SVMs.

    Attributes:
        train: Image sets to learn from (`pipelines.voc.VOC`).
        test: Image sets to score on.
        crop: "squashed": whole images are resized to squares, as by VISSL and its predecessor.
        pools: Pools of B1, B2 and so on.
        norm_epsilon: Added to a sample's L2 norm before its features are divided by it.
        machine: Settings of each SVM.
        folds: Folds of the cross-validation that chooses the cost.
        num_samples: Draws of low-shot learning for each number of shots.
        average_precision: Description of the score.
    """

    train: tuple[str, ...] = ("2007_trainval",)
    test: tuple[str, ...] = ("2007_test",)
    crop: Literal["squashed"] = "squashed"
    pools: tuple[Pool, ...] = PROTOCOLS["vissl"].pools
    norm_epsilon: float = 1e-5
    machine: Machine = Machine()
    folds: int = 3
    num_samples: int = 5
    average_precision: str = "area under the interpolated precision-recall curve"


VISSL = SvmProtocol()


def constants_of(protocol: SvmProtocol, costs: Costs) -> dict[str, Any]:
    """Return the values of the protocol and of the costs, for the settings of result.json."""
    return asdict(protocol) | {"cost_values": list(COSTS[costs])}
