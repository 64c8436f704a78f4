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
    """The rate of reading samples.

    Attributes:
        data_bytes: Size of the data.
        memory_bytes: Capacity of the page cache; of --cache-dir for data that live elsewhere.
        cached: Share of the data in that cache before the measurement; None if unknown.
        is_remote: Whether the data live elsewhere.
    """

    images_per_s: float
    bytes_per_image: float
    data_bytes: int
    memory_bytes: int
    cached: float | None
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
    """A GPU's JPEG engines while DALI decodes.

    Attributes:
        num: The number of engines; None if nvJPEG does not tell.
        why_idle: Why they cannot be used, with the remedy; empty if they can.
        share: The share of a batch for them that trains.
        busy_percent: The highest of NVML's readings with that share; None if NVML does not tell.
        rates: Share → images/s of decoding; empty if they cannot be used.
    """

    num: int | None
    why_idle: str
    share: float
    busy_percent: int | None = None
    rates: dict[float, float] = field(default_factory=dict)

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
    """An alternative way of loading.

    Attributes:
        option: The option to change.
        images_per_s: Its rate.
        beside: The rate of the current way.
        note: A remark for people.
        part: The part that changes, decoding from memory or reading from storage.
        num_threads: Decoding threads; None for the current number.
    """

    option: str
    images_per_s: float
    beside: float
    note: str = ""
    part: Literal["decode", "read"] = "decode"
    num_threads: int | None = None

    @property
    def factor(self) -> float:
        """The ratio of its rate to that of the current way."""
        return self.images_per_s / self.beside


@dataclass(frozen=True)
class DecoderCost:
    """The cost of a decoder, from memory and with the first stage's crops.

    Attributes:
        images_per_s: The loader's rate.
        cpu_ms: CPU time of all threads per image.
    """

    images_per_s: float
    cpu_ms: float


@dataclass(frozen=True)
class AutoDecoder:
    """The choice of `--decoder auto`, beside the measured costs.

    Attributes:
        name: The decoder that it takes here.
        reason: Its reason.
        costs: The costs of the decoders that were measured, by name.
        by_measurement: The decoder that these costs choose.
    """

    name: str
    reason: str
    costs: dict[str, DecoderCost]
    by_measurement: str


@dataclass(frozen=True)
class StageRates:
    """The rates of one stage.

    Attributes:
        batch_size: Images per batch.
        decode: Rate of the loader on bytes in memory.
        loader: Rate of the loader on the data as it is stored.
        step: The mode that trains.
        step_rates: Mode → rate of the step on synthetic data.
        augment: The augmentation path that trains.
        augment_ms: Path → milliseconds of augmenting one batch.
        both: Rate of the step on the loader's batches.
        spread: (max - min) / median of the repeats of step or both, whichever is larger.
        cores_used: CPU cores that were busy during both.
        peak_bytes: Peak of torch's GPU memory; None on the CPU.
        folded: Whether the frozen blocks ran as folded copies (--fold-frozen).
    """

    name: str
    epochs: int
    batch_size: int
    decode: float
    loader: float
    step: str
    step_rates: dict[str, float]
    augment: str
    augment_ms: dict[str, float]
    both: float
    spread: float
    cores_used: float
    peak_bytes: int | None = None
    folded: bool = False

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
    """The results of one examination.

    Attributes:
        num_cores: This rank's share of the machine.
        num_threads: Decoding threads.
        torch_threads: Threads of a step on the CPU.
        decode: Rate of the loader on bytes in memory, for the first stage's views.
        jpeg_engines: What the GPU's JPEG engines do; None without a GPU, DALI or JPEGs.
        copy: Rate of copies to the device; None if nothing is copied, or if the decoder does it.
        untried: Option → the reason why it could not be measured.
        auto: The choice of `--decoder auto`; None if it was not looked at.
    """

    is_cuda: bool
    num_cores: int
    num_threads: int
    torch_threads: int
    decoder: str
    read: ReadRate
    decode: float
    copy: float | None
    stages: tuple[StageRates, ...]
    jpeg_engines: JpegEngines | None = None
    alternatives: tuple[Alternative, ...] = ()
    untried: dict[str, str] = field(default_factory=dict)
    auto: AutoDecoder | None = None


def gigabytes(num_bytes: float) -> str:
    """Return bytes as text in GB (10^9) with three digits."""
    return f"{num_bytes / 1e9:.3g} GB"
