"""The results of the measurements. Rates are images of the data set per second, for one rank."""

import math
from dataclasses import dataclass, field
from typing import Literal

MIN_GAIN = 0.05  # less does not speak for another decoder, nor for another share of a batch
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
    share: float  # of a batch, with which it trains
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
        best = self.best_share
        if best == self.share:
            fastest = f"no share of a batch is faster than {best:g} by {MIN_GAIN:.0%}"
        else:
            fastest = f"fastest with {best:g} of a batch (--hw-decoder-load {best:g})"
        return f"JPEG engines: {self.text}; {fastest}"


@dataclass(frozen=True)
class Alternative:
    """An alternative way of loading, by an option, with its rate beside that of the current way."""

    option: str
    images_per_s: float
    beside: float
    note: str = ""
    part: Literal["decode", "read"] = "decode"  # from memory, or from storage
    num_threads: int | None = None  # None for the current number of decoding threads

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
    torch_threads: int  # of a step on the CPU
    decoder: str
    read: ReadRate
    decode: float  # as of a stage, for the first one's views
    copy: float | None  # None if nothing is copied to the device, or if the decoder does it
    stages: tuple[StageRates, ...]
    jpeg_engines: JpegEngines | None = None  # None without a GPU, DALI or JPEGs
    alternatives: tuple[Alternative, ...] = ()
    untried: dict[str, str] = field(default_factory=dict)  # option → why it could not be measured
    auto: AutoDecoder | None = None


def gigabytes(num_bytes: float) -> str:
    """Return bytes as text in GB (10^9) with three digits."""
    return f"{num_bytes / 1e9:.3g} GB"
