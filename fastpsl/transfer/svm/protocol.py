"""The protocol of linear SVMs on VOC2007, as data: VISSL's (Goyal et al. [23], which psl.txt's section 4.4.2 follows)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastpsl.evaluation.protocols import PROTOCOLS, Pool

Costs = Literal["vissl", "fsb"]
# Of VISSL, and of its predecessor, fair_self_supervision_benchmark: powers of ten.
COSTS: dict[Costs, tuple[float, ...]] = {
    "vissl": (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    "fsb": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What every SVM shares: squared hinge loss, L2 penalty, solved in the dual (scikit-learn's LinearSVC).

    positive_weight: of a positive's cost, negatives have 1. tolerance, max_iterations: when the solver ends.
    """

    loss: str = "squared_hinge"
    penalty: str = "l2"
    dual: bool = True
    positive_weight: float = 2.0
    tolerance: float = 1e-4
    max_iterations: int = 2000


@dataclass(frozen=True, kw_only=True)
class SvmProtocol:
    """train, test: image sets (`pipelines.voc.VOC`). crop: "squashed", the whole picture to a square, as VISSL and its predecessor
    have it. pools: of B1, B2, …. norm_epsilon: added to a sample's L2 norm, by which its features are divided. folds: of the
    cross-validation that chooses the cost. num_samples: of low-shot learning, for each number of shots.
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
    """The protocol's values as plain ones, for the settings of result.json."""
    return asdict(protocol) | {"cost_values": list(COSTS[costs])}
