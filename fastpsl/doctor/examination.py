"""From a command line to an exit code: checks, measurements, report."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from fastpsl.doctor.checks import Check
from fastpsl.doctor.cores import cores
from fastpsl.doctor.data_check import check_data, num_open_files
from fastpsl.doctor.machine import check_machine, check_noise, check_page_cache
from fastpsl.doctor.measure import measure
from fastpsl.doctor.options import Doctor
from fastpsl.doctor.recipe import DEFAULT
from fastpsl.doctor.report import Report
from fastpsl.doctor.screen import show
from fastpsl.doctor.setting import Setting, find_recipe, open_setting
from fastpsl.doctor.software import check_software
from fastpsl.doctor.words import number_of
from fastpsl.engine.distributed import leave_world
from fastpsl.engine.terminal import plain
from fastpsl.pipelines.doing import doing, speak_by

_SECONDS = {"sample": 0.3, "cpu": 1.0, "cuda": 3.0}


def examine(command: Doctor, recipe_options: Sequence[str]) -> int:
    """Print the screen, or one JSON object; the exit code. ValueError, in one line, for what cannot be measured at all."""
    if command.seconds is not None and command.seconds <= 0:
        raise ValueError(f"--seconds {command.seconds:g}: it must be above 0")
    if command.stages == ():
        raise ValueError(
            "--stages: names no stage; give some, such as --stages S1 S2, or leave it out for all"
        )
    with _warnings_as_checks() as said, _progress() as say:
        say("the recipe and its data")
        recipe = find_recipe(command.recipe, recipe_options)
        try:
            setting = open_setting(recipe, command.nproc_per_node, command.stages or ())
            try:
                report = _look(setting, command.seconds, said, say)
            finally:
                setting.opened.close()
        finally:
            leave_world()
    if command.json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        show(report, Console(file=plain(sys.stdout), highlight=False))
    return report.exit_code


def _look(setting: Setting, seconds: float | None, said: list[str], say: Callable[[str], None]) -> Report:
    options, device, data = setting.options, setting.world.device, setting.opened.train_data
    say("what is installed")
    checks = check_software(device, setting.num_ranks)
    checks += check_machine(options, setting.num_ranks, device, setting.job, num_open_files(data))
    checks.append(check_data(data, options))
    measured = None
    if checks[-1].state != "broken":
        if seconds is None:
            seconds = _SECONDS["sample" if options.data is None else device.type]
        measured = measure(setting, max(1, cores() // setting.num_ranks), seconds, say)
        checks += [check_page_cache(measured.read), *check_noise(measured.stages)]
    checks += [Check("warning", "warning", text) for text in dict.fromkeys(said)]
    if setting.recipe is None:
        text = f"none in this installed copy: only reading and decoding were timed, {DEFAULT} and others stand in the repository"
        checks.append(Check("recipe", "warning", text, "fastpsl doctor PATH/NAME.py"))
    return Report(_plain(setting), tuple(checks), measured)


def _plain(setting: Setting) -> dict[str, Any]:
    options, device, recipe = setting.options, setting.world.device, setting.recipe
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU with {number_of(cores(), 'core')}"
    )
    return {
        "recipe": str(recipe.path) if recipe else None,
        "arguments": list(recipe.arguments) if recipe else [],
        "data": options.data or "the embedded sample",
        "batch_size": options.batch_size * setting.num_ranks,
        "num_ranks": setting.num_ranks,
        "cores": max(1, cores() // setting.num_ranks),
        "device": device.type,
        "device_name": name,
        "precision": options.resolved_precision(device),
    }


@contextmanager
def _warnings_as_checks() -> Iterator[list[str]]:
    """What is warned of is collected: it stands among the checks, once."""
    said: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            said.append(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = keep
        yield said


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is measured now: a line that changes, on a terminal; elsewhere lines of what takes long."""
    console = Console(file=plain(sys.stderr))
    with doing("measuring") as told:
        if not plain(sys.stderr).isatty():
            yield lambda text: told.turn_to(f"measuring: {text}")
            return
        with console.status("") as status:

            def show(text: str) -> None:
                told.turn_to(f"measuring: {text}")
                status.update(escape(told.what))

            speak_by(lambda line: status.update(escape(line)))
            try:
                yield show
            finally:
                speak_by(None)
