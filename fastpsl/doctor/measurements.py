"""The results of the measurements, the bottleneck, and the options that change it, by pure functions.

Rates are images of the data set per second, for one rank. The bottleneck follows from them. An option is
named only if it was timed here and makes that part faster, or if it could not be tried.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fastpsl.console.words import gigabytes, number_of
from fastpsl.pipelines.decoders.choose import DALI_MS

MIN_GAIN = 0.05  # a smaller gain is no reason to propose another option
CACHED = 0.95  # at this share or above, the data counts as being in the page cache
# The command as a user types it; SRC stands for the images that the data was made from.
BETON_WRITE = "fastpsl data write SRC OUT"


@dataclass(frozen=True)
class ReadRate:
    """The rate of reading samples."""

    images_per_s: float
    bytes_per_image: float
    data_bytes: int
    memory_bytes: int  # of the page cache, or of --cache-dir for data that live elsewhere
    cached: float | None  # share of the data in that cache before the measurement; None if unknown
    is_remote: bool = False

    @property
    def from_storage(self) -> bool:
        """Whether reading waits for storage; False if unknown."""
        return self.cached is not None and self.cached < CACHED

    @property
    def fits(self) -> bool:
        """Whether the cache can hold the data."""
        return self.data_bytes <= self.memory_bytes

    @property
    def fitting(self) -> str:
        """How much of the data fits into memory, or into --cache-dir, in words."""
        place = "--cache-dir" if self.is_remote else "memory"
        if self.fits:
            return f"the data's {gigabytes(self.data_bytes)} fit into {place}"
        return f"{gigabytes(self.memory_bytes)} of the data's {gigabytes(self.data_bytes)} fit into {place}"


@dataclass(frozen=True)
class JpegEngines:
    """A GPU's JPEG engines while DALI decodes."""

    num: int | None  # None if nvJPEG does not tell
    why_idle: str  # why they cannot be used, with the remedy; empty if they can
    share: float  # the engines' share of a batch in training, 0 to 1
    busy_percent: int | None = None  # NVML's highest reading with that share; None if it does not tell
    rates: dict[float, float] = field(default_factory=dict)  # share → images/s; empty if they cannot be used

    @property
    def text(self) -> str:
        """The number and how busy they are, in words."""
        num = "of an unknown number" if self.num is None else self.num
        busy = "it is unknown how busy" if self.busy_percent is None else f"busy {self.busy_percent}%"
        return f"{num}, {busy} while dali decodes"

    @property
    def best_share(self) -> float:
        """The share with the highest rate; that of training unless another is faster by MIN_GAIN."""
        best = max(self.rates, key=lambda share: self.rates[share], default=self.share)
        is_faster = best != self.share and self.rates[best] >= (1 + MIN_GAIN) * self.rates[self.share]
        return best if is_faster else self.share

    @property
    def line(self) -> str:
        """The text and the best share, as one line for people."""
        best = f"{self.best_share:g}"
        fastest = f"fastest with {best} of a batch (--hw-decoder-load {best})"
        if self.best_share == self.share:
            fastest = f"no share of a batch is faster than {best} by {MIN_GAIN:.0%}"
        return f"JPEG engines: {self.text}; {fastest}"


@dataclass(frozen=True)
class Alternative:
    """An alternative way of loading, by an option, with its rate beside that of the current way."""

    option: str
    images_per_s: float
    beside: float
    note: str = ""
    part: Literal["decode", "read"] = "decode"  # from memory, or from storage

    @property
    def factor(self) -> float:
        """The ratio of its rate to that of the current way."""
        return self.images_per_s / self.beside


@dataclass(frozen=True)
class DecoderCost:
    """The cost of a decoder, from memory and with the first stage's crops."""

    images_per_s: float  # of the loader
    cpu_ms: float  # of all threads, per image


@dataclass(frozen=True)
class AutoDecoder:
    """The choice of `--decoder auto` here and its reason, beside the one that the measured costs make."""

    name: str
    reason: str
    costs: dict[str, DecoderCost]
    by_measurement: str


@dataclass(frozen=True)
class StageRates:
    """The rates of one stage."""

    name: str
    epochs: int
    batch_size: int
    decode: float  # the loader on bytes in memory
    loader: float  # the loader on the data as it is stored
    step: str  # the mode that trains
    step_rates: dict[str, float]  # mode → the step on synthetic data
    augment: str  # the path that trains
    augment_ms: dict[str, float]  # path → milliseconds of augmenting one batch
    both: float  # the step on the loader's batches
    spread: float  # (max - min) / median of the repeats of step or both, whichever is larger
    cores_used: float  # during both
    peak_bytes: int | None = None  # of torch's GPU memory; None on the CPU
    folded: bool = False  # whether the frozen blocks ran as folded copies (--fold-frozen)

    @property
    def synthetic(self) -> float:
        """The rate of the step that trains, on synthetic data."""
        return self.step_rates[self.step]

    @property
    def ratio(self) -> float:
        """both/synthetic; 1 if the step never waits."""
        return self.both / self.synthetic

    @property
    def shown_ratio(self) -> float:
        """The ratio to two places, rounded down, because 0.949 must not appear as 0.95, which is good."""
        return math.floor(100 * self.ratio + 1e-9) / 100

    @property
    def augment_share(self) -> float:
        """The augmentation's share of the step's time."""
        return self.augment_ms[self.augment] / 1e3 * self.synthetic / self.batch_size


@dataclass(frozen=True)
class Measurements:
    """The results of one examination."""

    is_cuda: bool
    num_cores: int  # this rank's share of the machine
    num_threads: int  # that decode
    decoder: str
    read: ReadRate
    decode: float  # as of a stage, for the first one's views
    copy: float | None  # None if nothing is copied to the device, or if the decoder does it
    stages: tuple[StageRates, ...]
    jpeg_engines: JpegEngines | None = None  # None without a GPU, DALI or JPEGs
    alternatives: tuple[Alternative, ...] = ()
    untried: dict[str, str] = field(default_factory=dict)  # option → why it could not be measured
    auto: AutoDecoder | None = None


GOOD_RATIO = 0.95
MAX_SPREAD = 2 * (1 - GOOD_RATIO)  # (max - min) / median of the repeats
_LARGE_SHARE = 0.25


@dataclass(frozen=True)
class Bottleneck:
    """The part that slows down the stage that loses the most time, with one line for people."""

    part: Literal["read", "decode", "copy", "augment", "step", "overlap", "noise"]
    stage: str
    text: str


@dataclass(frozen=True)
class Change:
    """An option to change, as a user types it, with the measurement or the reason."""

    option: str
    text: str
    factor: float | None  # the part's rate with it over that without; None if it was not measured


def is_good(measured: Measurements) -> bool:
    """Return whether no measured stage waits for its data; False if noise hides it."""
    return all(stage.ratio >= GOOD_RATIO and not _is_noise(stage, measured) for stage in measured.stages)


def bottleneck(measured: Measurements) -> Bottleneck | None:
    """Return the bottleneck of the stage that loses the most time, or None without stages."""
    if not measured.stages:
        return None
    noisy = [stage for stage in measured.stages if _is_noise(stage, measured)]
    waiting = [stage for stage in measured.stages if stage.ratio < GOOD_RATIO and stage not in noisy]
    if not waiting and noisy:
        return _of_noise(max(noisy, key=lambda stage: max(stage.spread, abs(1 - stage.ratio))))
    if not waiting:
        stage = max(measured.stages, key=lambda stage: stage.epochs / stage.synthetic)
        return _of_the_step(stage, measured)
    stage = max(waiting, key=lambda stage: stage.epochs * (1 / stage.both - 1 / stage.synthetic))
    lost = 1 - stage.shown_ratio
    waits = f"{stage.name} waits {lost:.0%} of the time"
    if stage.ratio > min(other.ratio for other in waiting):
        waits = f"{stage.name} loses most: it waits {lost:.0%} of {number_of(stage.epochs, 'epoch')}"
    if not _is_explained(stage, measured):
        crowded = "loader and step are fast enough alone: the host's threads are in each other's way"
        return Bottleneck("overlap", stage.name, f"{waits}, though {crowded}")
    if stage.loader < 0.8 * stage.decode:
        reason = "storage: the data is not in the page cache"
        if measured.read.is_remote:
            reason = "the network: the data is not on this machine"
        return Bottleneck("read", stage.name, f"{waits} for {reason} ({stage.loader:,.0f} images/s)")
    if measured.copy is not None and measured.copy < 1.1 * stage.loader:
        text = f"{waits} for copies to the GPU ({measured.copy:,.0f} images/s)"
        return Bottleneck("copy", stage.name, text)
    text = f"{waits} for decoding ({stage.loader:,.0f} images/s by {measured.decoder})"
    if stage.loader >= stage.synthetic:
        text = f"{waits}: decoding needs the {number_of(measured.num_cores, 'core')} on which the step runs"
    return Bottleneck("decode", stage.name, text)


def _is_explained(stage: StageRates, measured: Measurements) -> bool:
    """Return whether the rates of loader and step alone explain half of the time that is lost together.

    On the CPU they share the cores, so an image takes the time of both.
    """
    beside = 0.0 if measured.is_cuda else 1 / stage.decode
    expected = max(1 / stage.loader, 1 / stage.synthetic + beside) - 1 / stage.synthetic
    return expected >= 0.5 * (1 / stage.both - 1 / stage.synthetic)


def _is_noise(stage: StageRates, measured: Measurements) -> bool:
    """Return whether the repeats differ too much to tell if the stage waits.

    Half the range of three repeats is about the standard deviation of the ratio of their medians. A ratio
    above 1 is noise too, because a step cannot be faster with its data than without.
    """
    if stage.ratio < GOOD_RATIO:
        return stage.spread * (0.5 if _is_explained(stage, measured) else 1) >= 1 - stage.ratio
    return stage.spread > MAX_SPREAD or stage.ratio - 1 > max(1 - GOOD_RATIO, 0.5 * stage.spread)


def _of_noise(stage: StageRates) -> Bottleneck:
    """Return the bottleneck "noise", which hides whether `stage` waits."""
    reasons = []
    if stage.ratio < GOOD_RATIO or stage.spread > MAX_SPREAD:
        reasons.append(f"repeats of one measurement differ by {stage.spread:.0%}")
    if stage.ratio - 1 > 1 - GOOD_RATIO:
        reasons.append(f"the step seems {stage.ratio:.2f}x as fast with its data as without")
    text = f"whether {stage.name} waits cannot be told: {' and '.join(reasons)}"
    return Bottleneck("noise", stage.name, f"{text}; measure again with nothing else running, or longer")


def _of_the_step(stage: StageRates, measured: Measurements) -> Bottleneck:
    """Return the bottleneck if no stage waits: the step of `stage`, the longest one, or its augmentation."""
    text = f"{stage.name} does not wait for its data"
    if len(measured.stages) > 1:
        text = f"no stage waits for its data; {stage.name} takes the longest"
    if stage.augment_share < _LARGE_SHARE:
        return Bottleneck("step", stage.name, text)
    share = f"{stage.augment_share:.0%} of its step are augmentation ({stage.augment})"
    return Bottleneck("augment", stage.name, f"{text}; {share}")


def changes(measured: Measurements) -> list[Change]:
    """Return the options that change the bottleneck: the largest factor first, untried ones last."""
    limit = bottleneck(measured)
    if limit is None:
        return []
    useful = [change for change in _timed(measured, limit) if (change.factor or 0) >= 1 + MIN_GAIN]
    return sorted(useful, key=lambda change: -(change.factor or 0)) + _untried(measured, limit)


def _timed(measured: Measurements, limit: Bottleneck) -> Iterator[Change]:
    """Yield each option whose part is the bottleneck, as it was timed."""
    (stage,) = (stage for stage in measured.stages if stage.name == limit.stage)
    # Loaders are timed up to the device, so another decoder's rate has its copies.
    part = "decode" if limit.part == "copy" else limit.part
    for each in measured.alternatives:
        if each.part == part:
            note = f" ({each.note})" if each.note else ""
            yield Change(each.option, f"{each.part}s {each.factor:.1f}x as fast here{note}", each.factor)
    if limit.part == "read" and measured.read.fits:
        text = f"{measured.read.fitting}, where they are from the second epoch on anyway"
        yield Change("read the data once before", text, stage.decode / stage.loader)
    if limit.part in ("step", "augment"):
        for mode, rate in stage.step_rates.items():
            factor = rate / stage.synthetic
            yield Change(f"--compile {mode}", f"{stage.name}'s step alone is {factor:.2f}x as fast", factor)
    if limit.part == "augment":
        now_ms = stage.augment_ms[stage.augment]
        for path, then_ms in stage.augment_ms.items():
            text = f"a batch's augmentation: {stage.name} {now_ms:.1f} to {then_ms:.1f} ms"
            yield Change(f"--augment-backend {path}", text, now_ms / then_ms)


def _untried(measured: Measurements, limit: Bottleneck) -> list[Change]:
    """Return changes that may help a waiting stage, but were not or cannot be measured here."""
    if limit.part == "overlap":
        fewer = max(1, measured.num_threads // 2)
        leaves = Change(f"--workers {fewer}", "leaves cores to the step", None)
        return [leaves] if fewer < measured.num_threads else []
    untried = [Change(option, reason, None) for option, reason in measured.untried.items()]
    if limit.part == "decode":
        return [one for one in untried if "--order" not in one.option and "--compile" not in one.option]
    if limit.part != "read":
        return []
    ideas = [one for one in untried if "--order" in one.option]
    if not measured.read.fits:
        text = f"{measured.read.fitting}; smaller images are fewer bytes, and less detail"
        ideas.append(Change(f"{BETON_WRITE} --short-side PX", text, None))
    return ideas


def by_measurement(auto: str, costs: Mapping[str, DecoderCost], needed: float | None) -> str:
    """Choose between `turbo` and `dali` as `auto` does, by the costs of this machine."""
    if auto not in ("turbo", "dali") or not {"turbo", "dali"} <= costs.keys():
        return auto
    if needed is not None and costs["turbo"].images_per_s >= needed:
        return "turbo"
    other = "dali" if auto == "turbo" else "turbo"
    if needed is None:
        gain = costs[auto].cpu_ms / costs[other].cpu_ms - 1
    else:
        gain = costs[other].images_per_s / costs[auto].images_per_s - 1
    return other if gain >= MIN_GAIN else auto


def in_words(auto: AutoDecoder, is_cuda: bool) -> str:
    """Return the choice, its reason, the measured costs and what follows from them, as one line."""
    line = f"--decoder auto takes {auto.name}: {auto.reason}"
    both = [name for name in ("turbo", "dali") if name in auto.costs]
    if not both:
        return line
    parts = []
    for name in both:
        cost = auto.costs[name]
        parts.append(f"{name} {cost.images_per_s:,.0f} images/s at {cost.cpu_ms:.2f} ms of CPU")
        if is_cuda and name == "dali":
            parts[-1] += f" ({DALI_MS:g} where an H200's JPEG engines decoded)"
    line += f". Measured here: {', '.join(parts)}"
    if auto.name not in both or len(both) < 2:
        return line
    if auto.by_measurement == auto.name:
        return f"{line}. This measurement would choose the same"
    return f"{line}. This measurement would choose otherwise: --decoder {auto.by_measurement}"
