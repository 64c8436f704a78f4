"""The examination of a recipe: checks, then measurements, then a report and an exit code."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastpsl.console.screen import status
from fastpsl.console.terminal import plain
from fastpsl.console.words import number_of
from fastpsl.doctor.checks import check_machine, check_noise, check_page_cache, check_software
from fastpsl.doctor.jpeg_engines import check_engines
from fastpsl.doctor.measure import measure
from fastpsl.doctor.report import Check, Report, show
from fastpsl.doctor.setup import DEFAULT, DoctorSetup, load_recipe_or_default, open_setup
from fastpsl.engine.distributed import leave_world
from fastpsl.engine.options import TrainingOptions
from fastpsl.files.workers import usable_cores
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset, spread_indices
from fastpsl.pipelines.decoders.choose import reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.whole_images import decode_whole

_NUM_SAMPLES = 16


def check_data(data: Dataset, options: TrainingOptions) -> Check:
    """Read and decode samples spread over the data; its tables were checked when it was opened."""
    indices = spread_indices(data.num_samples, _NUM_SAMPLES)
    data.wait(indices)
    rows = data.rows(indices)
    codes = np.array([decode_whole(rows, i)[0] for i in range(len(indices))])
    bad = np.flatnonzero(codes != GOOD)
    source = f"{number_of(data.num_samples, 'image')} in {options.data or 'the embedded sample'}"
    if not len(bad):
        return Check("data", "ok", f"{source}, {len(indices)} of them decoded")
    first = int(bad[0])
    text = f"{data.name(int(indices[first]))}: {reason_of(int(codes[first]), rows, first)}"
    text += f" ({len(bad)} bad of {len(indices)} tried)"
    remedy = (
        "fastpsl data verify names all"
        if isinstance(data, Beton)
        else "remove it, or write a dataset file with fastpsl data write"
    )
    if options.on_bad_sample == "skip":
        return Check("data", "warning", text, f"each is skipped; {remedy}")
    return Check("data", "broken", text, f"{remedy}; --on-bad-sample skip leaves them out")


def num_open_files(data: Dataset) -> int:
    """Return the number of files that the data keeps open: a dataset file's shards, or none of a folder."""
    return len(data.shards) if isinstance(data, Beton) else 0


# Seconds of a timed region on the embedded sample, on the CPU and on CUDA.
_SECONDS = {"sample": 0.3, "cpu": 1.0, "cuda": 3.0}


def examine(
    path: Path | None,
    recipe_options: Sequence[str],
    *,
    as_json: bool,
    stages: Sequence[str] | None,
    seconds: float | None,
    num_ranks: int | None,
) -> int:
    """Measure a recipe and print the report as a screen or as one JSON object.

    Args:
        path: The recipe; None for jigsaw on the sample.
        recipe_options: The recipe's own arguments.
        as_json: Whether to print JSON.
        stages: Names of the plan's stages; None for all.
        seconds: Length of a timed region; None for the default.
        num_ranks: Ranks of this machine; None for one per GPU.

    Returns:
        The exit code, as `Report.exit_code`.

    Raises:
        ValueError: Nothing can be measured. One line.
    """
    if seconds is not None and seconds <= 0:
        raise ValueError(f"--seconds {seconds:g}: it must be above 0")
    if stages == ():
        raise ValueError(
            "--stages: names no stage; give some, such as --stages S1 S2, or leave it out for all"
        )
    with _warnings_as_checks() as messages, status("measuring") as log:
        log("the recipe and its data")
        recipe = load_recipe_or_default(path, recipe_options)
        try:
            setup = open_setup(recipe, num_ranks, stages or ())
            try:
                report = _examine(setup, seconds, messages, log)
            finally:
                setup.opened.close()
        finally:
            leave_world()
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        show(report, Console(file=plain(sys.stdout), highlight=False))
    return report.exit_code


def _examine(
    setup: DoctorSetup, seconds: float | None, messages: list[str], log: Callable[[str], None]
) -> Report:
    """Check and measure; `messages` holds the warnings so far, and grows meanwhile."""
    options, device, data = setup.options, setup.world.device, setup.opened.train
    num_cores = max(1, usable_cores() // setup.num_ranks)
    log("what is installed")
    checks = check_software(device, setup.num_ranks)
    checks += check_machine(options, setup.num_ranks, device, setup.experiment, num_open_files(data))
    checks.append(check_data(data, options))
    measured = None
    if checks[-1].state != "broken":
        if seconds is None:
            seconds = _SECONDS["sample" if options.data is None else device.type]
        measured = measure(setup, num_cores, seconds, log)
        checks += [check_page_cache(measured.read), *check_noise(measured.stages)]
        checks += check_engines(measured.jpeg_engines, measured.decoder)
    checks += [Check("warning", "warning", text) for text in dict.fromkeys(messages)]
    if setup.recipe is None:
        text = f"none was named, and {DEFAULT} was not found: only reading and decoding were timed"
        checks.append(Check("recipe", "warning", text, "fastpsl doctor PATH/NAME.py"))
    return Report(_plain(setup, num_cores), tuple(checks), measured)


def _plain(setup: DoctorSetup, num_cores: int) -> dict[str, Any]:
    """Return the setup as plain values, for `Report.setting`."""
    options, device, recipe = setup.options, setup.world.device, setup.recipe
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU with {number_of(usable_cores(), 'core')}"
    )
    return {
        "recipe": str(recipe.path) if recipe else None,
        "arguments": list(recipe.arguments) if recipe else [],
        "data": options.data or "the embedded sample",
        "batch_size": options.batch_size * setup.num_ranks,
        "num_ranks": setup.num_ranks,
        "cores": num_cores,
        "device": device.type,
        "device_name": name,
        "precision": options.resolved_precision(device),
    }


@contextmanager
def _warnings_as_checks() -> Iterator[list[str]]:
    """Yield a list that receives the text of each UserWarning; no warning is printed."""
    messages: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            messages.append(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = keep
        yield messages
