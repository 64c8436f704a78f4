"""Timing of every part of a recipe, stage by stage."""

import contextlib
import gc
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import get_args

import torch

from fastpsl.doctor.advice import by_measurement
from fastpsl.doctor.jpeg_engines import best_share, measure_engines
from fastpsl.doctor.loader_rates import Feed, copy_rate, measure_read
from fastpsl.doctor.measurements import BETON_WRITE, Alternative, AutoDecoder, Measurements, StageRates
from fastpsl.doctor.setup import DoctorSetup
from fastpsl.engine.gpu import peak_memory, reset_peak_memory
from fastpsl.engine.stage_bench import StageBench
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import choose_decoder, fastest_step
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
    views = {i: experiment.task.views(experiment.stages[i].level) for i in setup.stages} if experiment else {}
    first_views = next(iter(views.values()), _PLAIN_VIEWS)
    batch_size = setup.opened.batch_size

    log("read")
    with named("reading", "give data that can be read"):
        read, samples = measure_read(data, setup.options, batch_size, seconds)
    # All, except an incomplete batch, which a training epoch leaves out.
    has_all = len(samples) > data.num_samples - batch_size
    warm: Dataset = data if has_all else Subset(data, samples)
    from_storage = read.from_storage and not has_all

    runs_first_views = experiment.task.views(experiment.stages[0].level) if experiment else first_views
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
    feeds: dict[tuple[Crop, ...], Feed] = {}
    rates: dict[tuple[Crop, ...], tuple[float, float]] = {}

    def feed_of(views: Sequence[ViewSpec], batch_size: int) -> tuple[Feed, tuple[float, float]]:
        """Return the views' loader and its rates (decode, loader), shared by stages with the same crops."""
        crops = tuple(view.crop for view in views)
        if crops not in rates:
            log(f"decode by {decoder}")
            feeds[crops] = feed = Feed(setup, views, batch_size, warm, seconds)
            with named("decoding", "lower --batch-size or --prefetch-batches"):
                decode = feed.rate(warm)
                rates[crops] = (decode, feed.rate(data) if from_storage else decode)
        return feeds[crops], rates[crops]

    feed, (decode, loader) = feed_of(first_views, batch_size)
    other_decoders, untried = feed.other_decoders(decoder, decode, log)
    alternatives = other_decoders + feed.all_cores(num_cores, decode)
    engines = None
    with _tried("--hw-decoder-load", untried):
        engines = measure_engines(feed, seconds, log)
    alternatives += best_share(engines, decoder, decode)
    may_be_quasi_random = (
        experiment is not None and experiment.part is None and not experiment.task.has_own_order
    )
    if from_storage and setup.options.order == "random" and may_be_quasi_random:
        log("decode in quasi-random order")
        with _tried("--order quasi_random", untried):
            rate = feed.rate(data, order="quasi_random")  # ValueError if data, lanes or batch do not allow it
            alternatives.append(Alternative("--order quasi_random", rate, loader, read.fitting, "read"))
    is_copied = device.type == "cuda" and decoder in ("turbo", "ffcv", "pillow", "synthetic")
    stages = tuple(_stage(setup, i, feed_of, untried, seconds, log) for i in setup.stages)
    is_slow = any(stage.loader < _ENOUGH[device.type] * stage.synthetic for stage in stages)
    fastest = max((stage.synthetic for stage in stages), default=fastest_step(len(first_views)))
    needed = fastest if device.type == "cuda" else None
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
        decode=decode,
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
    feed_of: Callable[[Sequence[ViewSpec], int], tuple[Feed, tuple[float, float]]],
    untried: dict[str, str],
    seconds: float,
    log: Log,
) -> StageRates:
    """Measure stage `number`, and add to `untried` the reasons for modes that cannot be tried."""
    assert setup.experiment is not None
    experiment, options, world, data = setup.experiment, setup.options, setup.world, setup.opened.train
    stage = experiment.stages[number]
    remedy = "lower --batch-size, or raise --accumulate"
    with named(f"stage {stage.name}'s step", remedy):
        reset_peak_memory(world.device)
        bench = StageBench(experiment, number, options, data, world, seconds=seconds)
        log(f"{stage.name}: step")
        bench.step_ms(1)  # warm-up: cuDNN searches, torch.compile compiles
    _, (decode, loader) = feed_of(bench.views, bench.batch_size)
    synthetic, both, cores_used = [], [], []
    with named(f"stage {stage.name}", remedy):
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
        decode=decode,
        loader=loader,
        step=step,
        step_rates={step: statistics.median(synthetic)},
        augment=bench.train_step.augment.path,
        augment_ms=augment_ms,
        both=statistics.median(both),
        spread=max((max(rates) - min(rates)) / statistics.median(rates) for rates in (synthetic, both)),
        cores_used=statistics.median(cores_used),
        peak_bytes=peak,
        folded=bench.train_step.fold_frozen and len(bench.train_step.module.blocks.frozen) > 0,
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
        untried[option] = _line(error)[:300]


@contextlib.contextmanager
def named(what: str, when_too_large: str) -> Iterator[None]:
    """Raise any error of a part as a one-line ValueError that names the part."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"{what}: the GPU has too little memory ({_line(error)[:120]}); {when_too_large}"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{what}: {_line(error)}") from error
    except Exception as error:
        raise ValueError(
            f"{what} fails ({type(error).__name__}: {_line(error)[:300]}); start the recipe itself for more"
        ) from error


def _line(error: Exception) -> str:
    """Return the message as one line."""
    return " ".join(str(error).split())
