"""The examination of a recipe: checks, measurements stage by stage, then a report and an exit code."""

import contextlib
import gc
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console

from fastpsl.console.screen import status
from fastpsl.console.terminal import plain
from fastpsl.console.words import number_of
from fastpsl.doctor.checks import check_machine, check_noise, check_page_cache, check_software
from fastpsl.doctor.loader_rates import (
    Feed,
    best_share,
    check_engines,
    copy_rate,
    measure_engines,
    measure_read,
)
from fastpsl.doctor.measurements import (
    BETON_WRITE,
    Alternative,
    AutoDecoder,
    Measurements,
    StageRates,
    by_measurement,
)
from fastpsl.doctor.report import Check, Report, show
from fastpsl.doctor.setup import (
    DEFAULT,
    DEFAULT_OPTIONS,
    DoctorSetup,
    default_recipe,
    load_recipe,
    one_line,
    open_setup,
)
from fastpsl.engine.distributed import leave_world
from fastpsl.engine.gpu import peak_memory, reset_peak_memory
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.stage_bench import StageBench
from fastpsl.files.workers import usable_cores
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset, spread_indices
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import choose_decoder, fastest_step, reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.loader.augment import AugmentName, choose_augment
from fastpsl.pipelines.views import Crop, ViewSpec

REPEATS = 3
# Modes that are timed on CUDA besides the one that trains.
OTHER_MODES = ("off", "fused", "on")
_AUGMENT_REPEATS = 5
# A loader that is this many times as fast as the step does not need smaller images. On the CPU it also takes
# cores from the step.
_ENOUGH = {"cuda": 1.1, "cpu": 20.0}
_PLAIN_VIEWS = (ViewSpec(RandomResizedCrop(96)),)  # without a recipe

Log = Callable[[str], None]


def measure(setup: DoctorSetup, num_cores: int, seconds: float, log: Log) -> Measurements:
    """Measure all stages of the setup."""
    experiment, data, device = setup.experiment, setup.opened.train, setup.world.device
    views = {i: experiment.views(experiment.stages[i]) for i in setup.stages} if experiment else {}
    first_views = next(iter(views.values()), _PLAIN_VIEWS)
    batch_size = setup.opened.batch_size

    log("read")
    with one_line("reading", when_too_large="give data that can be read"):
        read, samples = measure_read(data, setup.options, batch_size, seconds)
    # All, except an incomplete batch, which a training epoch leaves out.
    has_all = len(samples) > data.num_samples - batch_size
    warm: Dataset = data if has_all else Subset(data, samples)
    from_storage = read.from_storage and not has_all

    runs_first_views = experiment.views(experiment.stages[0]) if experiment else first_views
    threads_and_views = {
        "num_threads": setup.num_threads, "num_views": len(runs_first_views), "num_cores": num_cores,
    }  # fmt: skip
    decoder, reason = choose_decoder(setup.options.decoder, data, device, **threads_and_views)
    auto = decoder
    if setup.options.decoder != "auto":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a slow decoder is a fault of the choice only if it is taken
            auto, reason = choose_decoder("auto", data, device, **threads_and_views)
    # Once for all stages, as in a run.
    setup = replace(setup, options=replace(setup.options, decoder=decoder))  # type: ignore[arg-type]
    feeds: dict[tuple[int, tuple[Crop, ...]], Feed] = {}

    def feed_of(views: Sequence[ViewSpec], batch_size: int) -> Feed:
        """Return the views' loader with its rates, shared by stages with the same crops and batch."""
        key = batch_size, tuple(view.crop for view in views)
        if key not in feeds:
            log(f"decode by {decoder}")
            feeds[key] = feed = Feed(setup, views, batch_size, warm, seconds)
            with one_line("decoding", when_too_large="lower --batch-size or --prefetch-batches"):
                feed.decode = feed.rate(warm)
                feed.loader = feed.rate(data) if from_storage else feed.decode
        return feeds[key]

    feed = feed_of(first_views, batch_size)
    alternatives, untried = feed.other_decoders(decoder, log)
    alternatives += feed.all_cores(num_cores)
    engines = None
    with _tried("--hw-decoder-load", untried):
        engines = measure_engines(feed, seconds, log)
    alternatives += best_share(engines, decoder, feed.decode)
    may_be_quasi_random = (
        experiment is not None and experiment.part is None and not experiment.task.has_own_order
    )
    if from_storage and setup.options.order == "random" and may_be_quasi_random:
        log("decode in quasi-random order")
        with _tried("--order quasi_random", untried):
            rate = feed.rate(data, order="quasi_random")  # ValueError if data, lanes or batch do not allow it
            alternatives.append(Alternative("--order quasi_random", rate, feed.loader, read.fitting, "read"))
    is_copied = device.type == "cuda" and decoder in ("turbo", "ffcv", "pillow", "synthetic")
    stages = tuple(_stage(setup, i, feed_of, untried, seconds, log) for i in setup.stages)
    is_slow = any(stage.loader < _ENOUGH[device.type] * stage.synthetic for stage in stages)
    needed = None
    if device.type == "cuda":
        expected = fastest_step(len(first_views), torch.cuda.get_device_capability(device))
        needed = max((stage.synthetic for stage in stages), default=expected)
    # Nobody would write the embedded sample again.
    if is_slow and setup.options.data is not None:
        log("decode what is written anew")
        with _tried(BETON_WRITE, untried):
            alternatives += feed.written([view for some in views.values() for view in some])
    return Measurements(
        is_cuda=device.type == "cuda",
        num_cores=num_cores,
        num_threads=setup.num_threads,
        torch_threads=torch.get_num_threads(),
        decoder=decoder,
        read=read,
        decode=feed.decode,
        jpeg_engines=engines,
        copy=copy_rate(first_views, batch_size, device) if is_copied else None,
        stages=stages,
        alternatives=tuple(alternatives),
        untried=untried,
        auto=AutoDecoder(auto, reason, feed.costs, by_measurement(auto, feed.costs, needed)),
    )


def _stage(
    setup: DoctorSetup,
    number: int,
    feed_of: Callable[[Sequence[ViewSpec], int], Feed],
    untried: dict[str, str],
    seconds: float,
    log: Log,
) -> StageRates:
    """Measure stage `number`, and add to `untried` the reasons for modes that cannot be tried."""
    assert setup.experiment is not None
    experiment, options, world, data = setup.experiment, setup.options, setup.world, setup.opened.train
    stage = experiment.stages[number]
    remedy = "lower --batch-size, or raise --accumulate"
    with one_line(f"stage {stage.name}'s step", when_too_large=remedy):
        reset_peak_memory(world.device)
        bench = StageBench(experiment, number, options, data, world, seconds=seconds)
        log(f"{stage.name}: step")
        bench.step_ms(1)  # warm-up: cuDNN searches, torch.compile compiles
    feed = feed_of(bench.views, bench.batch_size)
    synthetic, both, cores_used = [], [], []
    with one_line(f"stage {stage.name}", when_too_large=remedy):
        # In turn, because load from other work comes in waves.
        for repeat in range(REPEATS):
            log(f"{stage.name}: step, and all together ({repeat + 1} of {REPEATS})")
            synthetic.append(bench.step_alone())
            both.append(bench.both())
            cores_used.append(bench.cores_used)
        peak = peak_memory(world.device).get("peak_allocated_bytes")
        log(f"{stage.name}: augment")
        augment_ms: dict[str, float] = {}
        for path in (bench.train_step.augment.path, *get_args(AugmentName)):
            if path not in (*augment_ms, "auto"):
                with contextlib.suppress(ValueError):  # not available on this device or for these views
                    augment = choose_augment(path, bench.views, world.device)
                    augment_ms[path] = statistics.median(bench.augment_ms(_AUGMENT_REPEATS, augment))
    step = bench.train_step.step_choice.mode
    rates = StageRates(
        name=stage.name,
        epochs=stage.epochs,
        batch_size=bench.batch_size,
        decode=feed.decode,
        loader=feed.loader,
        step=step,
        step_rates={step: statistics.median(synthetic)},
        augment=bench.train_step.augment.path,
        augment_ms=augment_ms,
        both=statistics.median(both),
        spread=max((max(rates) - min(rates)) / statistics.median(rates) for rates in (synthetic, both)),
        cores_used=statistics.median(cores_used),
        peak_bytes=peak,
        folded=bench.train_step.fold_choice.mode == "on",
    )
    del bench
    if world.device.type == "cuda":
        for mode in OTHER_MODES:
            if mode not in rates.step_rates:
                log(f"{stage.name}: step {mode}")
                with _tried(f"--compile {mode}", untried):
                    rates.step_rates[mode] = _step_rate(setup, number, mode, seconds)
    _free_memory(world.device)
    return rates


def _step_rate(setup: DoctorSetup, number: int, mode: str, seconds: float) -> float:
    """Return the step's images/s in another mode."""
    assert setup.experiment is not None
    options = replace(setup.options, compile=mode)  # type: ignore[arg-type]
    data, world = setup.opened.train, setup.world
    _free_memory(world.device)
    bench = StageBench(setup.experiment, number, options, data, world, seconds=seconds)
    bench.step_ms(1)
    return bench.step_alone()


def _free_memory(device: torch.device) -> None:
    """Free the GPU memory of a deleted train step."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _tried(option: str, untried: dict[str, str]) -> Iterator[None]:
    """Record an error of an alternative in `untried`, and go on."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        untried[option] = " ".join(str(error).split())[:300]


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
    remedy = "repair it or its rights, or write a dataset file with fastpsl data write"
    if isinstance(data, Beton):
        remedy = "fastpsl data verify names all"
    if options.on_bad_sample == "skip":
        return Check("data", "warning", text, f"each is skipped; {remedy}")
    return Check("data", "broken", text, f"{remedy}; --on-bad-sample skip leaves them out")


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
    """Measure a recipe, print the report as a screen or as one JSON object, and return the exit code.

    Without a path the recipe is jigsaw on the sample. `stages` are names of the plan's; None is all of them.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: it must be above 0")
    with _warnings_as_checks() as messages, status("measuring") as log:
        log("the recipe and its data")
        if path is None:
            path, recipe_options = default_recipe(), DEFAULT_OPTIONS
        recipe = None if path is None else load_recipe(path, recipe_options)
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
    num_files = len(data.shards) if isinstance(data, Beton) else 0
    checks += check_machine(options, setup.num_ranks, device, setup.experiment, num_files)
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
    name = f"CPU with {number_of(usable_cores(), 'core')}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "recipe": str(recipe.path) if recipe else None, "arguments": list(recipe.arguments) if recipe else [],
        "data": options.data or "the embedded sample", "batch_size": options.batch_of() * setup.num_ranks,
        "num_ranks": setup.num_ranks, "cores": num_cores, "device": device.type, "device_name": name,
        "precision": options.resolved_precision(device),
    }  # fmt: skip


@contextlib.contextmanager
def _warnings_as_checks() -> Iterator[list[str]]:
    """Yield a list that receives the text of each UserWarning; no warning is printed."""
    messages: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category is UserWarning:
            messages.append(" ".join(str(message).split()))

    with warnings.catch_warnings():
        warnings.showwarning = keep
        yield messages
