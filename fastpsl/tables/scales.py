"""The sizes at which a table is measured: the paper's, and tiny ones for two cores.

The values are each paper's (psl_sizes, uic_sizes, sslpp_sizes), which this file alone reads: all others ask a `Scale`. A result counts only where it was made with exactly these values; the commands of `tiny` spell all of them, those of `paper` only
what a recipe does not do by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from fastpsl.engine.options import PretrainOptions
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.kernels.permutations import permutation_set
from fastpsl.tables import psl_sizes, sslpp_sizes, uic_sizes
from fastpsl.tables.needs import Evaluation, Weights
from fastpsl.tables.sizes import Sizes
from fastpsl.tasks.permutation_files import permutations_digest

# May differ between results that are averaged: what a seed or a machine decides, and what changes no expected value.
FREE = frozenset({"seed", "data_digest", "precision", "order", "lanes", "apex", "accumulate"})


@dataclass(frozen=True)
class Scale:
    """sizes: by paper. spells_all: whether commands give every value. comparable: whether a difference to the paper's number means
    anything.
    """

    name: str
    seeds: tuple[int, ...]
    spells_all: bool
    comparable: bool
    sizes: Mapping[str, Sizes]

    @cached_property
    def values(self) -> dict[str, Mapping[str, Any]]:
        """Recipe, or an evaluation's name → option → value, of all papers."""
        merged: dict[str, Mapping[str, Any]] = {}
        for sizes in self.sizes.values():
            assert not merged.keys() & sizes.values.keys()
            merged |= sizes.values
        return merged

    def about(self, paper: str) -> str:
        """Return the sizes of a paper's tables in words."""
        return self.sizes[paper].about

    def num_processes(self, paper: str) -> int:
        """Return how many processes a paper's commands start where the user does not say it."""
        return self.sizes[paper].num_processes

    def spelled(self, name: str) -> dict[str, Any]:
        """Option → value, as a command gives them for a recipe or an evaluation."""
        values = self.values[name]
        if self.spells_all:
            return dict(values)
        names = next((sizes.flags[name] for sizes in self.sizes.values() if name in sizes.flags), ())
        return {key: values[key] for key in names}

    def training_science(self, weights: Weights) -> dict[str, Any]:
        """What must stand in the science of the run that made the weights."""
        assert weights.recipe
        ours = {"recipe": weights.recipe, "backbone": weights.backbone, "plan": weights.plan}
        values = {name: plain(value) for name, value in self.training_values(weights).items()}
        if weights.recipe == "jigsaw_r50":  # not those of a file
            values["permutations"] = _made_permutations(values["grid"] ** 2, tuple(values["counts"]))
        return {k: v for k, v in (PretrainOptions().science() | values | ours).items() if k not in FREE}

    def training_values(self, weights: Weights) -> dict[str, Any]:
        """Of the recipe, with those of the variant in their place."""
        assert weights.recipe
        return {**self.values[weights.recipe], **self._of_variant(weights)}

    def training_flags(self, weights: Weights) -> dict[str, Any]:
        """Option → value, as the command gives them."""
        assert weights.recipe
        return self.spelled(weights.recipe) | dict(self._of_variant(weights))

    def _of_variant(self, weights: Weights) -> Mapping[str, Any]:
        return self.values[f"{weights.recipe}/{weights.variant}"] if weights.variant else {}

    def label_science(self, labels: Weights | str) -> dict[str, Any]:
        """What must stand in the record of the pseudo-labels that were learned from."""
        if isinstance(labels, Weights):
            return self.training_science(labels)
        return {name: plain(value) for name, value in self.values[f"labels/{labels}"].items()}

    def channels(self, weights: Weights) -> str:
        """What the network must see."""
        if weights.recipe is None:
            return weights.channels
        values = self.training_values(weights)
        if weights.recipe == "sslpp_colorization":
            return "L"
        if weights.recipe == "sslpp_iic":
            return "SobelXY" if values["transforms"] == "sobel" else "RGB"
        return str(values.get("channels", "RGB"))

    def evaluation_settings(self, evaluation: Evaluation) -> dict[str, Any]:
        """What must stand in the settings of a result."""
        values = {name: plain(value) for name, value in self.values[evaluation.name].items()}
        options = {} if evaluation.command else EvaluationOptions().science()
        return {k: v for k, v in (options | values).items() if k not in FREE}


@cache
def _made_permutations(num_pieces: int, counts: tuple[int, ...]) -> str:
    return permutations_digest(permutation_set(num_pieces, counts).permutations)


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [plain(part) for part in value] if isinstance(value, tuple) else value


PAPER = Scale(
    name="paper",
    seeds=(0,),
    spells_all=False,
    comparable=True,
    sizes={"psl": psl_sizes.PAPER, "uic": uic_sizes.PAPER, "sslpp": sslpp_sizes.PAPER},
)
# Of UIC and PSL, lengths in px are a quarter of the paper's, so that 64-px pictures serve; SSL++'s pictures have its own 32 px. Rates, epochs
# and levels suit some hundred pictures.
TINY = Scale(
    name="tiny",
    seeds=(0, 1, 2),
    spells_all=True,
    comparable=False,
    sizes={"psl": psl_sizes.TINY, "uic": uic_sizes.TINY, "sslpp": sslpp_sizes.TINY},
)

SCALES = {scale.name: scale for scale in (PAPER, TINY)}
