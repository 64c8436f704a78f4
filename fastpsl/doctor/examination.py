"""The examination of a recipe: checks, measurements stage by stage, then a report and an exit code."""

import contextlib
import gc
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from fastpsl.console.screen import status
from fastpsl.console.words import number_of
from fastpsl.doctor.checks import check_machine, check_noise, check_page_cache, check_software
from fastpsl.doctor.loader_rates import (
    Feed,
    best_share,
    check_engines,
    copy_rate,
    measure_engines,
    measure_read,
    tried,
)
from fastpsl.doctor.measurements import (
    BETON_WRITE,
    Alternative,
    AutoDecoder,
    JpegEngines,
    Measurements,
    ReadRate,
    StageRates,
    bottleneck,
    by_measurement,
)
from fastpsl.doctor.report import Check, Limit, Log, Report
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
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import choose_decoder, fastest_step, reason_of
from fastpsl.pipelines.decoders.codes import GOOD
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.interface.dataset import Dataset, spread_indices
from fastpsl.pipelines.loader.augment import AugmentName, choose_augment
from fastpsl.pipelines.views import Crop, ViewSpec

REPEATS, LEAST_REPEATS = 3, 2
# Modes that are timed on CUDA besides the one that trains, with the seconds that a stage takes at most.
OTHER_MODES = {"off": 10.0, "fused": 10.0, "on": 120.0}
_AUGMENT_REPEATS = 5
_PLAIN_VIEWS = (ViewSpec(RandomResizedCrop(96)),)  # without a recipe


class Examination:
    """The measurement of a recipe, part by part; `measured` has what is there.

    First come reading, decoding and the stages. Then options are tried that may change the bottleneck.
    """

    def __init__(self, setup: DoctorSetup, num_cores: int, seconds: float, limit: Limit, log: Log):
        self.setup, self.num_cores, self.seconds, self.limit, self.log = setup, num_cores, seconds, limit, log
        self.device, self.data = setup.world.device, setup.opened.train
        self.stages: list[StageRates] = []
        self.alternatives: list[Alternative] = []
        self.untried: dict[str, str] = {}
        self.engines: JpegEngines | None = None
        self.copy: float | None = None
        self.read: ReadRate | None = None
        self._feeds: dict[tuple[int, tuple[Crop, ...]], Feed] = {}
        self._feed: Feed | None = None  # of the first stage, then of the one that waits

    @property
    def measured(self) -> Measurements | None:
        """The measurements so far; None before anything was decoded."""
        feed, read = self._feed, self.read
        if feed is None or read is None:
            return None
        name, reason = self._auto
        needed = None
        if self.device.type == "cuda":
            of_gpu = torch.cuda.get_device_name(self.device), torch.cuda.get_device_capability(self.device)
            expected, _ = fastest_step(len(feed.views), *of_gpu)
            needed = max((stage.synthetic for stage in self.stages), default=expected)
        return Measurements(
            is_cuda=self.device.type == "cuda",
            num_cores=self.num_cores,
            num_threads=self.setup.num_threads,
            decoder=self.setup.options.decoder,
            read=read,
            decode=feed.decode,
            jpeg_engines=self.engines,
            copy=self.copy,
            stages=tuple(self.stages),
            alternatives=tuple(self.alternatives),
            untried=dict(self.untried),
            auto=AutoDecoder(name, reason, feed.costs, by_measurement(name, feed.costs, needed)),
        )

    def measure(self) -> None:
        """Measure all parts that may begin before the limit."""
        experiment, batch_size = self.setup.experiment, self.setup.opened.batch_size
        numbers = self.setup.stages
        views = {i: experiment.views(experiment.stages[i]) for i in numbers} if experiment else {}
        first_views = next(iter(views.values()), _PLAIN_VIEWS)
        self.log("read")
        with one_line("reading", when_too_large="give data that can be read"):
            self.read, samples = measure_read(self.data, self.setup.options, batch_size, self.seconds)
        # All, except an incomplete batch, which a training epoch leaves out.
        has_all = len(samples) > self.data.num_samples - batch_size
        self._warm: Dataset = self.data if has_all else Subset(self.data, samples)
        self._from_storage = self.read.from_storage and not has_all
        self._choose_decoder(len(experiment.views(experiment.stages[0]) if experiment else first_views))
        self._feed = self._feed_of(first_views, batch_size)
        if self.device.type == "cuda" and self.setup.options.decoder in _COPYING:
            self.copy = copy_rate(first_views, batch_size, self.device)
        for num_before, number in enumerate(numbers):
            assert experiment is not None
            if self.limit.allows(experiment.stages[number].name, is_stage=True):
                until = time.monotonic() + self.limit.left_s / (len(numbers) - num_before)
                rates = self._stage(number, until)
                self.stages += [rates] if rates else []
        self._try_others()

    def _choose_decoder(self, num_views: int) -> None:
        """Choose once for all stages, as a run does."""
        options = self.setup.options
        threads_and_views = {
            "num_threads": self.setup.num_threads, "num_views": num_views, "num_cores": self.num_cores,
        }  # fmt: skip
        decoder, reason = choose_decoder(options.decoder, self.data, self.device, **threads_and_views)
        self._auto = decoder, reason
        if options.decoder != "auto":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a slow decoder is a fault of the choice only if it is taken
                self._auto = choose_decoder("auto", self.data, self.device, **threads_and_views)
        self.setup = replace(self.setup, options=replace(options, decoder=decoder))  # type: ignore[arg-type]

    def _feed_of(self, views: Sequence[ViewSpec], batch_size: int) -> Feed:
        """Return the views' loader with its rates, shared by stages with the same crops and batch."""
        key = batch_size, tuple(view.crop for view in views)
        if key not in self._feeds:
            self.log(f"decode by {self.setup.options.decoder}")
            feed = Feed(self.setup, views, batch_size, self._warm, self.seconds)
            with one_line("decoding", when_too_large="lower --batch-size or --prefetch-batches"):
                feed.decode = feed.rate(self._warm)
                feed.loader = feed.rate(self.data) if self._from_storage else feed.decode
            self._feeds[key] = feed
        return self._feeds[key]

    def _stage(self, number: int, until: float) -> StageRates | None:
        """Measure stage `number`; the last of three repeats begins before `until` or is left out.

        Return None if its steps take too long for the limit.
        """
        experiment, options, world = self.setup.experiment, self.setup.options, self.setup.world
        assert experiment is not None
        stage = experiment.stages[number]
        remedy = "lower --batch-size, or raise --accumulate"
        with one_line(f"stage {stage.name}'s step", when_too_large=remedy):
            reset_peak_memory(world.device)
            bench = StageBench(experiment, number, options, self.data, world, seconds=self.seconds)
            self.log(f"{stage.name}: step")
            step_s = bench.step_ms(1)[0] / 1e3  # after another one: cuDNN searches, torch.compile compiles
        # A repeat has a step alone and two with the loader.
        if not self.limit.allows(stage.name, needs_s=3 * LEAST_REPEATS * step_s, is_stage=True):
            return None
        feed = self._feed_of(bench.views, bench.batch_size)
        synthetic, both, cores_used = [], [], []
        with one_line(f"stage {stage.name}", when_too_large=remedy):
            # In turn, because load from other work comes in waves.
            for repeat in range(REPEATS):
                if repeat >= LEAST_REPEATS and time.monotonic() > until:
                    break
                self.log(f"{stage.name}: step, and all together ({repeat + 1} of {REPEATS})")
                synthetic.append(bench.step_alone())
                both.append(bench.both())
                cores_used.append(bench.cores_used)
            peak = peak_memory(world.device).get("peak_allocated_bytes")
            self.log(f"{stage.name}: augment")
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
        free_memory(world.device)
        return rates

    def _try_others(self) -> None:
        """Time the options that may change the bottleneck; without stages those of decoding."""
        assert self.measured is not None and self._feed is not None
        limit, experiment = bottleneck(self.measured), self.setup.experiment
        if limit is None or experiment is None:
            self._try_decoding(self._feed)
            return
        (number,) = (i for i in self.setup.stages if experiment.stages[i].name == limit.stage)
        (rates,) = (stage for stage in self.stages if stage.name == limit.stage)
        if limit.part in ("decode", "copy", "read"):  # what is tried is timed beside this stage's loader
            self._feed = self._feed_of(experiment.views(experiment.stages[number]), rates.batch_size)
        if limit.part in ("decode", "copy"):
            self._try_decoding(self._feed)
        elif limit.part == "read":
            self._try_quasi_random(self._feed)
        elif limit.part in ("step", "augment") and self.device.type == "cuda":
            self._try_modes(number, rates.step_rates)

    def _try_decoding(self, feed: Feed) -> None:
        decoder = self.setup.options.decoder
        self.alternatives += feed.other_decoders(self.untried, self.limit, self.log)
        self.alternatives += feed.all_cores(self.num_cores, self.limit)
        with tried("--hw-decoder-load", self.untried):
            self.engines = measure_engines(feed, self.seconds, self.limit, self.log)
        self.alternatives += best_share(self.engines, decoder, feed.decode)
        if self.setup.options.data is None:  # nobody would write the embedded sample again
            return
        with tried(BETON_WRITE, self.untried):
            self.alternatives += feed.written(self.limit, self.log)

    def _try_quasi_random(self, feed: Feed) -> None:
        experiment, option = self.setup.experiment, "--order quasi_random"
        assert experiment is not None and self.read is not None
        may_be = experiment.part is None and not experiment.task.has_own_order
        if self.setup.options.order == "random" and may_be and self.limit.allows(option):
            self.log("decode in quasi-random order")
            with tried(option, self.untried):
                # ValueError if data, lanes or batch do not allow it.
                rate = feed.rate(self.data, order="quasi_random")
                self.alternatives.append(Alternative(option, rate, feed.loader, self.read.fitting, "read"))

    def _try_modes(self, number: int, rates: dict[str, float]) -> None:
        """Add the step's images/s in other modes."""
        experiment, world = self.setup.experiment, self.setup.world
        assert experiment is not None
        for mode, needs_s in OTHER_MODES.items():
            option = f"--compile {mode}"
            if mode in rates or not self.limit.allows(option, needs_s=needs_s):
                continue
            self.log(f"{experiment.stages[number].name}: step {mode}")
            free_memory(self.device)
            with tried(option, self.untried):
                options = replace(self.setup.options, compile=mode)  # type: ignore[arg-type]
                bench = StageBench(experiment, number, options, self.data, world, seconds=self.seconds)
                bench.step_ms(1)
                rates[mode] = bench.step_alone()


_COPYING = ("turbo", "ffcv", "pillow", "synthetic")  # decoders whose batches are copied to a GPU


def free_memory(device: torch.device) -> None:
    """Free the GPU memory of a deleted train step."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


# Seconds of a timed region, without data and with some.
_SECONDS_OF_SAMPLE, _SECONDS = 0.3, 1.0


def examine(
    path: Path | None,
    recipe_options: Sequence[str],
    *,
    is_named: bool,
    stages: Sequence[str] | None,
    seconds: float | None,
    num_ranks: int | None,
    limit: Limit,
    found: dict[str, Any],
) -> Report:
    """Measure a recipe and return the report; `found` gets its plain values, also if an error ends it.

    Without a path the recipe is jigsaw on the sample. Where it `is_named`, as for `fastpsl train`, the
    machine chooses the preset. `stages` are names of the plan's; None is all of them.
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"--seconds {seconds:g}: it must be above 0")
    with _warnings_as_checks() as messages, status("measuring") as log:
        log("the recipe and its data")
        if path is None:
            path, recipe_options = default_recipe(), DEFAULT_OPTIONS
        recipe = None if path is None else load_recipe(path, recipe_options, by_machine=is_named)
        try:
            setup = open_setup(recipe, num_ranks, stages or ())
            with contextlib.closing(setup.opened):
                return _examine(setup, seconds, messages, limit, log, found)
        finally:
            leave_world()


def _examine(
    setup: DoctorSetup,
    seconds: float | None,
    messages: list[str],
    limit: Limit,
    log: Log,
    found: dict[str, Any],
) -> Report:
    """Check and measure; `messages` holds the warnings so far, and grows meanwhile."""
    options, device, data = setup.options, setup.world.device, setup.opened.train
    num_cores = max(1, usable_cores() // setup.num_ranks)
    if seconds is None:
        seconds = _SECONDS_OF_SAMPLE if options.data is None else _SECONDS
    examination = Examination(setup, num_cores, seconds, limit, log)
    checks: list[Check] = []
    try:
        log("what is installed")
        checks += check_software(device, setup.num_ranks)
        num_files = len(data.shards) if isinstance(data, Beton) else 0
        checks += check_machine(options, setup.num_ranks, device, setup.experiment, num_files)
        checks.append(check_data(data, options))
        if checks[-1].state != "broken":
            examination.measure()
            assert examination.read is not None
            checks += [check_page_cache(examination.read), *check_noise(examination.stages)]
            checks += check_engines(examination.engines, examination.setup.options.decoder)
        checks += [Check("warning", "warning", text) for text in dict.fromkeys(messages)]
        if setup.recipe is None:
            text = f"none was named, and {DEFAULT} was not found: only reading and decoding were timed"
            checks.append(Check("recipe", "warning", text, "fastpsl doctor PATH/NAME.py"))
    finally:
        report = Report(_plain(setup, num_cores), tuple(checks), examination.measured, limit)
        found |= report.as_dict()
    return report


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
