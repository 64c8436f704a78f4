"""The presets: defaults that suit the images' number and the machine, and the share that is held back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastpsl.console.words import number_of
from fastpsl.engine.options import (
    PerStage,
    PretrainOptions,
    RunOptions,
    TrainingOptions,
    at_end,
    names_val,
    per_stage,
    share_of,
)
from fastpsl.files.json_records import NoRecord
from fastpsl.files.paths import named_files
from fastpsl.files.remote.address import is_remote
from fastpsl.files.run_folder import CONFIG, recorded_options
from fastpsl.files.system_errors import input_errors
from fastpsl.models.names import is_module, is_own
from fastpsl.scripts.advice import FEW_STEPS, MAX_BATCH_SHARE

if TYPE_CHECKING:
    from fastpsl.pipelines.datasets.open import Glance

MIN_STEPS = 2000  # of a stage of `small`
SMALL_BELOW = 100_000  # images, for which `auto` takes `small`
MIN_IMAGES = 50  # fewer are mostly another folder than the one that was meant
HELD_BACK = "10%"
_SHOWN = 3  # folders and endings of a data set that is refused
_SAMPLE_IMAGES = 480  # of the sample; a recipe's values for the sample are chosen for so many
_ON_CPU = {"resnet50": "resnet18", "revnet50": "resnet18"}  # networks that take hours without a GPU


class CpuPreset(NamedTuple):
    """A preset for machines without a GPU: a recipe's values for the sample, larger and longer."""

    side: float  # factor of the sample's size of images, at most to the paper's
    length: int  # factor of the images that a training on the sample sees


# From the longest, of which a run takes the first that ends in about half an hour.
CPU_PRESETS = {
    "cpu-large": CpuPreset(2.0, 12), "cpu-medium": CpuPreset(1.5, 6), "cpu-small": CpuPreset(1.0, 3),
}  # fmt: skip


def small_values(
    paper: Mapping[str, Any], at_most: Mapping[str, float], num_images: int,
    batch_size: PerStage | None = None, *, scales_rate: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the values of --preset small that differ from the paper's.

    Sizes are limited as `_limited` does. The stages become so long that each has 2,000 steps.
    """
    values = _limited(paper, at_most, num_images, batch_size, scales_rate)
    sizes = per_stage(values.get("batch_size", paper["batch_size"]))
    epochs = [-(-MIN_STEPS // max(1, num_images // size)) for size in sizes]
    if len(epochs) != len(paper["epochs"]):
        epochs = [max(epochs)] * len(paper["epochs"])
    longer = tuple(map(max, paper["epochs"], epochs))
    if longer != tuple(paper["epochs"]):
        values["epochs"] = longer
    return values


def cpu_values(
    preset: CpuPreset, paper: Mapping[str, Any], sample: Mapping[str, Any], at_most: Mapping[str, float],
    num_images: int, batch_size: PerStage | None = None, *, scales_rate: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return the values of a preset for machines without a GPU that differ from the paper's.

    They are the sample's, with sizes that are limited as `_limited` does. A stage sees as many images as on
    the sample, times the preset's length, in `FEW_STEPS` or more.
    """
    usual = {**paper, **sample, **{name: paper[name] for name in at_most}}
    if (network := usual.get("backbone")) in _ON_CPU:
        usual["backbone"] = _ON_CPU[network]
    for name in {"size_px", "short_side"} & usual.keys():
        usual[name] = min(paper[name], int(preset.side * usual[name]))
    usual |= _limited(usual, at_most, num_images, batch_size, scales_rate)
    seen = preset.length * _SAMPLE_IMAGES * sum(sample["epochs"])
    # The plans of paper and sample may have different numbers of stages. The paper's lengths then divide the
    # images.
    shares = sample["epochs"] if len(sample["epochs"]) == len(paper["epochs"]) else paper["epochs"]
    per_epoch = max(1, num_images // at_end(usual["batch_size"]))
    least = -(-FEW_STEPS // per_epoch)
    usual["epochs"] = tuple(max(least, round(seen * share / sum(shares) / num_images)) for share in shares)
    if "warmup_epochs" in usual:
        usual["warmup_epochs"] = min(usual["warmup_epochs"], sum(usual["epochs"]) / 10)
    return {name: value for name, value in usual.items() if name not in paper or value != paper[name]}


def _limited(
    usual: Mapping[str, Any], at_most: Mapping[str, float], num_images: int, batch_size: PerStage | None,
    scales_rate: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return smaller values for the sizes that are too large for so many images, and the rate for the batch.

    The batch, unless one is given, becomes a power of two of at most a tenth of the images. `lr`, if there is
    one that the recipe does not scale itself, changes in proportion to the last stage's batch. Other sizes
    become powers of two.
    """
    values = dict[str, Any]()
    for name, share in {"batch_size": MAX_BATCH_SHARE, **at_most}.items():
        limit = int(share * num_images)
        if usual[name] > limit:
            values[name] = 1 << max(1, limit.bit_length() - 1)
    if batch_size is not None:
        values["batch_size"] = batch_size
    last = per_stage(values.get("batch_size", usual["batch_size"]))[-1]
    if last != usual["batch_size"] and "lr" in usual and not scales_rate:
        values["lr"] = usual["lr"] * last / usual["batch_size"]
    return values


def preset_values(
    options: PretrainOptions,
    recipe: str,
    paper: Mapping[str, Any],
    sample: Mapping[str, Any],
    at_most: Mapping[str, float],
    *,
    scales_rate: bool,
    by_machine: bool,
) -> dict[str, Any]:
    """Return the preset, --val and the values by which the preset replaces the paper's.

    A run that goes on keeps the preset and --val of its start. Data that are not there give the paper's
    values, because an error follows when they are opened. With `by_machine`, and without a GPU, `auto` stays
    until the machine has chosen one of `CPU_PRESETS`.

    Raises:
        ValueError: There are too few images for `auto`, or the data cannot be read.
    """
    found, earlier = None, _earlier_options(options, recipe)
    preset = earlier.get("preset", "auto") if options.preset == "auto" else options.preset
    val = earlier.get("val") if options.val is None else options.val
    needed = {"batch_size", "epochs", *sample}
    defaults = {each.name: each.default for each in fields(options) if each.name in needed}
    paper = defaults | {**paper}  # a recipe need not set them
    given = {"data": options.data}  # because options with a share as --val need --data
    if options.goes_on() and earlier.get("first_learning"):
        given["first_learning"] = earlier["first_learning"]
    if preset == "auto" and (options.data is None or earlier):  # `earlier` is of an old version
        preset = "sample" if options.data is None else "paper"
    named = (options.data, options.val if names_val(options) else None)
    is_there = options.data is not None and all(map(_is_there, filter(None, named)))
    if preset == "auto" and is_there:
        found = _found(options, SMALL_BELOW)
        preset = "small" if found.num_samples < SMALL_BELOW else "paper"
        if found.num_samples < MIN_IMAGES and options.batch_size == paper["batch_size"]:
            raise _too_few(str(options.data), found)
        if by_machine and "epochs" in sample and not _has_gpu(options):
            preset = "auto"
    if holds_back(preset) and (is_there or options.data is None):
        found = found or _found(options, None if preset == "small" else SMALL_BELOW)
        may_hold_back = options.data is not None and not earlier and "val" not in options.without
        is_few = found.num_samples < SMALL_BELOW or preset == "small"
        is_scored = may_hold_back and is_few and found.num_classes > 1
        if is_scored and val is None and not why_none_held_back(options):
            val = HELD_BACK
        batch_size = options.batch_size if options.batch_size != paper["batch_size"] else None
        num, scaled = _num_training(found, share_of(val)), {"scales_rate": scales_rate}
        if preset == "small":
            values = small_values(paper, at_most, num, batch_size, **scaled)
        else:
            values = cpu_values(CPU_PRESETS[preset], paper, sample, at_most, num, batch_size, **scaled)
        return {**values, **given, "preset": preset, "val": val}
    return {**(sample if preset == "sample" else {}), **given, "preset": preset, "val": val}


def kept_precision(options: RunOptions, recipe: str) -> dict[str, str]:
    """Return the precision of a run that goes on, as a default; {} if there is none to keep."""
    precision = _earlier_options(options, recipe).get("precision") if options.goes_on() else None
    return {} if precision is None else {"precision": precision}


def backbone_of_init(options: RunOptions, recipe: str) -> dict[str, str]:
    """Return the backbone that the weights of --init record, as a default; {} if they record none.

    A run that goes on does not read them and has its own.
    """
    if not isinstance(options, PretrainOptions) or options.init is None or not hasattr(options, "backbone"):
        return {}
    if options.goes_on():
        name = _earlier_options(options, recipe).get("backbone")
        return {} if name is None or is_own(name) or is_module(name) else {"backbone": name}
    from fastpsl.models.initial_weights import recorded_backbone  # imports torch, which --help does without

    name = recorded_backbone(options.init, options.max_download_gb)
    return {} if name is None else {"backbone": name}


def holds_back(preset: str) -> bool:
    """Return whether a preset holds images with classes back, of fewer than 100,000."""
    return preset == "small" or preset in CPU_PRESETS


def why_none_held_back(options: TrainingOptions) -> str:
    """Return why a preset trains on all images, though they have classes; "" where it does not."""
    if options.order != "random":
        return f"--order {options.order} reads whole pages, so none are held back"
    if os.path.isfile(getattr(options, "pseudo_labels", None) or ""):
        return "--pseudo-labels are of all images, so none are held back"
    return ""


def _has_gpu(options: PretrainOptions) -> bool:
    from fastpsl.engine.distributed import choose_device  # imports torch, which --help does without

    return choose_device(options.device, 0).type == "cuda"


def _is_there(source: str) -> bool:
    """Return whether a path or a glob names anything; an address elsewhere is assumed to."""
    return is_remote(source) or bool(named_files(source))


def _found(options: PretrainOptions, at_most: int | None) -> Glance:
    from fastpsl.pipelines.datasets.open import glance  # imports numba, which --help does without
    from fastpsl.pipelines.embedded.draw_sample import sample_paths

    return glance(options.data or sample_paths().train, at_most, options.cache_dir, options.cache_gb)


def _num_training(found: Glance, share: float | None) -> int:
    """Return the number of images that are left where a share is held back."""
    if share is None:
        return found.num_samples
    from fastpsl.pipelines.datasets.subset import held_back

    return int((~held_back(found.names, share)).sum())


def _too_few(source: str, found: Glance) -> ValueError:
    """Build the error of a few images, which tells what they are."""
    endings = Counter(os.path.splitext(name)[1].lower() for name in found.names)
    kinds = ", ".join(f"{num:,} {ending or 'other'}" for ending, num in endings.most_common(_SHOWN))
    folders = sorted({name.partition("/")[0] for name in found.names if "/" in name})
    names = ", ".join(folders[:_SHOWN]) + ", ..." * (len(folders) > _SHOWN)
    places = f" in {number_of(len(folders), 'folder')} ({names})" if folders else ""
    images = number_of(found.num_samples, "image") + (f" ({kinds})" if any(endings) else "")
    return ValueError(
        f"{source}: holds {images}{places}, and training takes {MIN_IMAGES} or more: give the folder "
        "that has all your images, or, to train on so few, --preset small"
    )


def _earlier_options(options: RunOptions, recipe: str) -> dict[str, Any]:
    """Return the options that the run to go on with was started with; none if there is no such run."""
    if options.resume == "never":
        return {}
    folder = options.out if options.resume == "auto" else Path(options.resume).resolve().parent.parent
    if folder is None or not (path := folder / CONFIG.name).exists():
        return {}
    try:
        with input_errors(path):
            config = CONFIG.read(path)
    except NoRecord as error:
        raise ValueError(
            f"{error}, so the options of the run's start are not known; move it away, and give them again"
        ) from None
    is_its = (config.get("science") or {}).get("recipe") == recipe
    return recorded_options(config) if is_its else {}
