"""The values that a recipe works with when it is given data and some options."""

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import PretrainOptions, RunOptions
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.transfer.classification.protocols import MultiLabelProtocol, constants_of

# `needs.Weights` has these.
_OF_WEIGHTS = ("backbone", "plan")
# Pages and reasons name these options first, then those of PAPER, then the other fields of the options.
_UIC = "epochs batch_size lr weight_decay dropout"
_SSLPP = "weight_decay size_px crop proxy num_clusters"
_FIRST = {
    "jigsaw_r50": "epochs batch_size lr intervals counts grid",
    **dict.fromkeys(("uic_alexnet", "uic_r50", "deepcluster_alexnet"), _UIC),
    **dict.fromkeys((f"sslpp_{task}" for task in ("colorization", "context", "rotation", "aet")), _SSLPP),
    "sslpp_iic": "epochs batch_size lr num_clusters num_heads second_clusters num_sub_heads",
    "linear_probe": "protocol size_px",
    "semi_supervised": "protocol percent size_px",
    "voc_classification": "protocol layers size_px",
    "voc_segmentation": "protocol size_px",
    "voc_svm": "costs low_shot",
    "few_shot": "block ways shots queries episodes source_px",
    "knn": "block k temperature vote size_px whole",
}


def sample_of(recipe: str) -> dict[str, Any]:
    """Return the values of a recipe's SAMPLE, but for the backbone."""
    return {name: value for name, value in find_recipe(recipe).sample.items() if name not in _OF_WEIGHTS}


def options_of(recipe: str, given: Mapping[str, Any]) -> RunOptions:
    """Return the options of a command with the given ones and with data."""
    return _options(recipe, tuple(given.items()))


@cache
def _options(recipe: str, given: tuple[tuple[str, Any], ...]) -> RunOptions:
    script = find_recipe(recipe)
    variant = script.variant(script.with_paper(**dict(given)))
    options: RunOptions = script.with_paper(**{**variant, **dict(given)})
    return options


def values_of(recipe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, by option.

    They are those of its own options and of all that PAPER or `given` names. Where an option is None, its
    protocol's value stands.

    Args:
        recipe: The name of the recipe.
        given: The options of the command.
    """
    options = options_of(recipe, given)
    values = {**vars(options), **_constants(options), "batch_size": options.batch_size}
    script = find_recipe(recipe)
    names = [*_FIRST.get(recipe, "").split(), *script.paper, "batch_size", *script.variant(options)]
    names += [*given, *_own_names(options)]
    return {name: values[name] for name in dict.fromkeys(names) if name not in _OF_WEIGHTS}


def experiment_of(recipe: str, given: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a recipe that trains, without memory for its weights.

    Its plan, its length and its backbone are PAPER's; neither the task nor the science depends on them.

    Args:
        recipe: The name of the recipe.
        given: The options of the command.
    """
    shared = PretrainOptions.__dataclass_fields__.keys() | _OF_WEIGHTS
    return _experiment(recipe, tuple((name, value) for name, value in given.items() if name not in shared))


@cache
def _experiment(recipe: str, given: tuple[tuple[str, Any], ...]) -> Experiment:
    script = find_recipe(recipe)
    assert isinstance(script, Recipe)
    with torch.device("meta"):
        return script.build(_options(recipe, given))


def _own_names(options: RunOptions) -> Iterable[str]:
    """Return the recipe's own options that are science."""
    base = PretrainOptions if isinstance(options, PretrainOptions) else EvaluationOptions
    return [name for name in options.science() if name not in base.__dataclass_fields__]


def _constants(options: Any) -> dict[str, Any]:
    """Return the values of the protocol that the options name, if they name one."""
    protocol = options.constants() if hasattr(options, "constants") else {}
    if isinstance(protocol, MultiLabelProtocol):
        return constants_of(protocol, options.layers)
    return protocol if isinstance(protocol, dict) else dataclasses.asdict(protocol)
