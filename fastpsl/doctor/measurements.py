"""What was measured. Rates are images of the data set a second, of one rank."""

import math
from dataclasses import dataclass, field
from typing import Literal

# Of the data: from here on it counts as lying in the page cache.
CACHED = 0.95
# As it is typed; SRC: the images that the data was made of.
BETON_WRITE = "fastpsl beton write SRC OUT"


@dataclass(frozen=True)
class ReadRate:
    """cached: share of the data in the page cache before anything was read, None where the file system does not tell;
    memory_bytes: what the page cache can hold."""

    images_per_s: float
    bytes_per_image: float
    data_bytes: int
    memory_bytes: int
    cached: float | None

    @property
    def from_storage(self) -> bool:
        """Whether reading waits for storage; no where nobody knows."""
        return self.cached is not None and self.cached < CACHED

    @property
    def fits(self) -> bool:
        return self.data_bytes <= self.memory_bytes

    @property
    def fitting(self) -> str:
        """In words."""
        if self.fits:
            return f"the data's {gigabytes(self.data_bytes)} fit into memory"
        return f"{gigabytes(self.memory_bytes)} of the data's {gigabytes(self.data_bytes)} fit into memory"


@dataclass(frozen=True)
class Alternative:
    """Another way to load: `option` gives `images_per_s` where the present way gives `beside`; note: for people.

    part: what becomes faster, decoding from memory or reading from storage. num_threads: that decode, where not the present number.
    """

    option: str
    images_per_s: float
    beside: float
    note: str = ""
    part: Literal["decode", "read"] = "decode"
    num_threads: int | None = None

    @property
    def factor(self) -> float:
        return self.images_per_s / self.beside


@dataclass(frozen=True)
class StageRates:
    """One stage. decode: the loader on bytes in memory; loader: on the data as it lies; both: the step on what it loads.

    step_rates: on synthetic data, by mode, `step` is the one that trains; augment_ms: of one batch, by path, likewise. batch_size:
    samples of a batch. spread: of the repeats of step and both, the larger (max - min) / median. peak_bytes: of torch's GPU
    memory, None on the CPU. folded: the blocks that do not learn ran as folded copies (--fold-frozen).
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
        """The step that trains, on synthetic data."""
        return self.step_rates[self.step]

    @property
    def ratio(self) -> float:
        """both/synthetic: 1 where the step never waits."""
        return self.both / self.synthetic

    @property
    def shown_ratio(self) -> float:
        """To two places, rounded down: .949 shall not read as the .95 that is asked for."""
        return math.floor(100 * self.ratio + 1e-9) / 100

    @property
    def augment_share(self) -> float:
        """Of the step's time."""
        return self.augment_ms[self.augment] / 1e3 * self.synthetic / self.batch_size


@dataclass(frozen=True)
class Measurements:
    """num_cores: this rank's share; torch_threads: of a step on the CPU; decode: of the first stage's views, from memory; copy: None
    where nothing is copied to a device, or the decoder does it; untried: option → why it could not be measured."""

    is_cuda: bool
    num_cores: int
    num_threads: int
    torch_threads: int
    decoder: str
    read: ReadRate
    decode: float
    copy: float | None
    stages: tuple[StageRates, ...]
    alternatives: tuple[Alternative, ...] = ()
    untried: dict[str, str] = field(default_factory=dict)


def gigabytes(num_bytes: float) -> str:
    """Return bytes as text in GB (10^9), to three digits."""
    return f"{num_bytes / 1e9:.3g} GB"


def number_of(number: float | str, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 core, 2 cores, 0.4 cores, 1,024 files; "1.0" as a string counts as 1."""
    text = f"{number:,}" if not isinstance(number, str) else number.removesuffix(".0")
    return f"{text} {noun if text == '1' else plural or noun + 's'}"
