"""Define the scales at which a table is measured: the paper's, and a tiny one for two cores.

The numbers of a paper stand in the recipes' PAPER, those of small runs in their SAMPLE. A paper's module
(psl, uic, sslpp) has what differs in a row or an evaluation. A result counts only if it was made with exactly
these values.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastpsl.engine.experiment import Experiment
from fastpsl.engine.options import PretrainOptions, RunOptions
from fastpsl.evaluation.options import EvaluationOptions
from fastpsl.scripts.recipe import Recipe
from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables.paper_file import MODULES
from fastpsl.tables.rows import COUPLED, Evaluation, Weights
from fastpsl.transfer.classification.task import MultiLabelProtocol, constants_of

Values = Mapping[str, Any]

# Options that follow from the weights of a row (`rows.Weights`), so they are no values of a recipe here.
_OF_WEIGHTS = ("backbone", "plan")
# Pages and reasons name these options first, then those of PAPER, then the other fields of the options.
_UIC = "epochs batch_size lr weight_decay dropout"
_SSLPP = "weight_decay size_px crop proxy num_clusters"
_FIRST = {
    "jigsaw_r50": "epochs batch_size lr intervals counts grid short_side cell_px tile_px",
    **dict.fromkeys(("uic_alexnet", "uic_r50", "deepcluster_alexnet"), _UIC),
    **dict.fromkeys((f"sslpp_{task}" for task in ("colorization", "context", "rotation", "aet")), _SSLPP),
    "sslpp_iic": "epochs batch_size lr num_clusters num_heads second_clusters num_sub_heads",
    "linear_probe": "protocol size_px", "semi_supervised": "protocol percent size_px",
    "voc_classification": "protocol layers size_px", "voc_segmentation": "protocol size_px",
    "voc_svm": "costs low_shot", "few_shot": "block ways shots queries episodes source_px",
    "knn": "block k temperature vote size_px whole",
}  # fmt: skip


@cache
def options_of(recipe: str, /, **given: Any) -> RunOptions:
    """Return the options of a command with the given ones and with data."""
    script = find_recipe(recipe)
    variant = script.variant(script.with_paper(**given))
    options: RunOptions = script.with_paper(**{**variant, **given})
    return options


def usual_values(recipe: str, given: Values) -> dict[str, Any]:
    """Return the defaults of a recipe's options for a command with --data and the `given` options.

    Some defaults depend on the given options.
    """
    script = find_recipe(recipe)
    defaults = {each.name: each.default for each in dataclasses.fields(script.options)}
    sample = script.sample if given.get("preset") == "sample" else {}
    return {**defaults, **script.paper, **script.variant(script.with_paper(**given)), **sample}


def values_of(recipe: str, given: Values) -> dict[str, Any]:
    """Return the values of a recipe, by option.

    They are those of its own options that are science, and of all that PAPER or `given` names. Where an
    option is None, its protocol's value stands, or the one that follows from other options.
    """
    options, script = options_of(recipe, **given), find_recipe(recipe)
    science = options.science()
    follow = {name: value for name, value in science.items() if getattr(options, name, value) is None}
    values = {**vars(options), **follow, **_constants(options), "batch_size": options.batch_size}
    base = PretrainOptions if isinstance(options, PretrainOptions) else EvaluationOptions
    names = [*_FIRST.get(recipe, "").split(), *script.paper, "batch_size", *script.variant(options), *given]
    names += [name for name in science if name not in base.__dataclass_fields__]
    return {name: values[name] for name in dict.fromkeys(names) if name not in _OF_WEIGHTS}


def experiment_of(recipe: str, given: Values) -> Experiment:
    """Return the experiment of a recipe that trains, without memory for its weights.

    Its plan, its length and its backbone are PAPER's; neither the task nor the science depends on them.
    """
    shared = PretrainOptions.__dataclass_fields__.keys() | _OF_WEIGHTS
    return _experiment(recipe, **{name: value for name, value in given.items() if name not in shared})


@cache
def _experiment(recipe: str, /, **given: Any) -> Experiment:
    script = find_recipe(recipe)
    assert isinstance(script, Recipe)
    with torch.device("meta"):
        return script.build(options_of(recipe, **given))


def _constants(options: Any) -> dict[str, Any]:
    """Return the values of the protocol that the options name, if they name one."""
    protocol = options.constants() if hasattr(options, "constants") else {}
    if isinstance(protocol, MultiLabelProtocol):
        return constants_of(protocol, options.layers)
    return protocol if isinstance(protocol, dict) else dataclasses.asdict(protocol)


# Results that are averaged may differ in these, which change no expected value.
FREE = frozenset({"seed", "data_digest", "precision", "order", "lanes", "apex", "accumulate"})


@dataclass(frozen=True, eq=False)
class Scale:
    """The values of all trainings, labels and evaluations at one scale.

    Commands give the options that replace the recipe's values: `given` has them by `recipe`,
    `recipe/variant`, `labels/source` or the name of an evaluation.
    """

    name: str
    seeds: tuple[int, ...]
    of_sample: bool  # whether a recipe's SAMPLE replaces its PAPER, and commands give it
    comparable: bool  # whether a difference to the paper's number means anything
    about: Mapping[str, str]  # the sizes in words, by paper
    num_processes: Mapping[str, int]  # of a command, by paper
    given: Mapping[str, Values]

    def training_flags(self, weights: Weights) -> dict[str, Any]:
        """Return the options that the command of a training gives, without the backbone and the plan."""
        assert weights.recipe
        return {**self._recipe_flags(weights.recipe), **self.variant_values(weights)}

    def recipe_values(self, recipe: str) -> dict[str, Any]:
        """Return the values of a recipe that trains, where no variant changes them."""
        return values_of(recipe, self._recipe_flags(recipe))

    def variant_values(self, weights: Weights) -> dict[str, Any]:
        """Return the values that the variant of a training changes.

        If it fine-tunes, the recipe itself changes some.
        """
        assert weights.recipe
        if weights.variant is None:
            return {}
        recipe = find_recipe(weights.recipe)
        fine_tuning = recipe.variant(recipe.with_paper(fine_tune=Path("base"))) if weights.base else {}
        return {**fine_tuning, **self.given.get(f"{weights.recipe}/{weights.variant}", {})}

    @cache  # noqa: B019 - there are two scales
    def training_science(self, weights: Weights) -> dict[str, Any]:
        """Return what the science of the run that made the weights must hold."""
        assert weights.recipe
        flags = self.training_flags(weights) | {"backbone": weights.backbone, "plan": weights.plan}
        options = options_of(weights.recipe, **flags)
        known, values = options.science(), values_of(weights.recipe, self.training_flags(weights))
        science = {name: known[name] for name in PretrainOptions().science()}
        science |= {name: value for name, value in values.items() if name in known}
        if hasattr(options, "permutations"):  # because those of a file do not count
            science["permutations"] = experiment_of(weights.recipe, flags).science["permutations"]
        return _compared(science | {"recipe": weights.recipe, "backbone": weights.backbone})

    def channels(self, weights: Weights) -> str:
        """Return the channels that the network sees, such as RGB."""
        return str(self.input_of(weights)["channels"]) if weights.recipe else weights.channels

    @cache  # noqa: B019 - there are two scales
    def input_of(self, weights: Weights) -> dict[str, Any]:
        """Return the input that the run of a training records: its channels, its size and so on."""
        assert weights.recipe
        labels = {"pseudo_labels": COUPLED} if weights.labels else {}  # because it may learn nothing else
        task = experiment_of(weights.recipe, self.training_flags(weights) | labels).task
        return task.input_record(task.num_levels)

    def label_flags(self, source: str) -> Values:
        """Return the options that a command of `fastpsl labels` gives."""
        return self.given.get(f"labels/{source}", {})

    def label_values(self, source: str) -> dict[str, Any]:
        """Return the values of `fastpsl labels`."""
        return {**COMMANDS[f"labels/{source}"], **self.label_flags(source)}

    def label_science(self, labels: Weights | str) -> dict[str, Any]:
        """Return what the record of the learned pseudo-labels must hold."""
        if isinstance(labels, Weights):
            return self.training_science(labels)
        return _compared(self.label_values(labels))

    def evaluation_flags(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the options that the command of an evaluation gives."""
        flags: dict[str, Any] = {}
        if not evaluation.command:
            flags = self._recipe_flags(evaluation.recipe)
            protocol = evaluation.protocol.partition("/")[2]
            if protocol and "protocol" in find_recipe(evaluation.recipe).paper:
                flags["protocol"] = protocol
        return {**flags, **self.given.get(evaluation.name, {})}

    def evaluation_values(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return the values of an evaluation."""
        flags = self.evaluation_flags(evaluation)
        if evaluation.command:
            return {**COMMANDS[evaluation.name], **flags}
        return values_of(evaluation.recipe, flags)

    def usual_values_on(self, weights: Weights, evaluation: Evaluation) -> dict[str, Any]:
        """Return the defaults of an evaluation's options for the command that evaluates these weights."""
        script = None if evaluation.command else find_recipe(evaluation.recipe)
        usual = {"seed": 0, **COMMANDS.get(evaluation.name, {})}
        if script is not None:
            usual = usual_values(evaluation.recipe, self.evaluation_flags(evaluation))
        if weights.recipe and (script is None or script.options.size_from_run):
            size_px, paper = self.input_of(weights)["size_px"], {} if script is None else script.paper
            usual["size_px"] = min(size_px, paper.get("size_px", size_px))
        return usual

    @cache  # noqa: B019 - there are two scales
    def evaluation_settings(self, evaluation: Evaluation) -> dict[str, Any]:
        """Return what the settings of a result must hold."""
        settings: dict[str, Any] = {}
        if not evaluation.command:
            options = options_of(evaluation.recipe, **self.evaluation_flags(evaluation))
            settings = {name: options.science()[name] for name in EvaluationOptions().science()}
        return _compared(settings | self.evaluation_values(evaluation))

    def _recipe_flags(self, recipe: str) -> dict[str, Any]:
        sample = find_recipe(recipe).sample if self.of_sample else {}
        own = {name: value for name, value in sample.items() if name not in _OF_WEIGHTS}
        return {**own, **self.given.get(recipe, {})}


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def _compared(values: Values) -> dict[str, Any]:
    return {name: plain(value) for name, value in values.items() if name not in FREE}


# The defaults of the commands of `fastpsl`, by the name of an evaluation or `labels/source`.
COMMANDS: dict[str, Values] = {
    "clusters": {"nmi_average": "arithmetic"},
    "retrieval": {"block": "final", "k": 8, "size_px": 224, "whole": False},
    "tsne": {"block": "final", "num": 1000, "perplexity": 30.0, "size_px": 224, "whole": False},
    "labels/true": {},
    "labels/random": {"num_clusters": 70},
    "labels/k-means": {"num_clusters": 70, "pca_width": 64, "size_px": 32},
}


def _merged(*parts: Mapping[str, Values]) -> dict[str, Values]:
    """Return the entries of all parts; the values of later parts replace those of earlier ones."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: {k: v for part in parts for k, v in part.get(name, {}).items()} for name in names}


_VALUES = _merged(*(module.VALUES for module in MODULES.values()))
_TINY = _merged(*(module.TINY for module in MODULES.values()))
PAPER = Scale(
    name="paper",
    seeds=(0,),
    of_sample=False,
    comparable=True,
    about={paper: module.ABOUT for paper, module in MODULES.items()},
    num_processes={paper: module.NUM_PROCESSES for paper, module in MODULES.items()},
    given=_VALUES,
)
TINY = Scale(
    name="tiny",
    seeds=(0, 1, 2),
    of_sample=True,
    comparable=False,
    about={paper: module.ABOUT_TINY for paper, module in MODULES.items()},
    num_processes=dict.fromkeys(MODULES, 1),
    given=_merged(_VALUES, _TINY),
)

SCALES = {scale.name: scale for scale in (PAPER, TINY)}
