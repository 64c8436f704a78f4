"""The result of an examination: as JSON, as an exit code, and on one screen."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpsl.console.terminal import escaped
from fastpsl.console.words import number_of
from fastpsl.doctor.measurements import BETON_WRITE, Measurements, bottleneck, changes, in_words, is_good

EXIT_GOOD, EXIT_WAITS, EXIT_BROKEN = 0, 1, 2

Log = Callable[[str], None]
State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """A finding that needs no timing, and its remedy, which is empty if none is needed."""

    name: str  # one or two words, which stay the same between versions
    state: State
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, name: str, text: str, remedy: str) -> "Check":
        """Return a check that warns if there is a remedy."""
        return cls(name, "warning" if remedy else "ok", text, remedy)


@dataclass
class Limit:
    """The time after which no further part begins, and what was left out because of it."""

    seconds: float  # after `began`
    began: float  # by time.monotonic()
    stages: list[str] = field(default_factory=list)  # that were left out
    options: list[str] = field(default_factory=list)  # that were not tried

    @property
    def left_s(self) -> float:
        """The seconds until the limit; below 0 behind it."""
        return self.began + self.seconds - time.monotonic()

    def allows(self, part: str, *, needs_s: float = 0.0, is_stage: bool = False) -> bool:
        """Return whether a stage or an option may begin, and note it as left out if not."""
        is_allowed = self.left_s > needs_s
        if not is_allowed:
            (self.stages if is_stage else self.options).append(part)
        return is_allowed


@dataclass(frozen=True)
class Report:
    """The result of an examination.

    The setting has plain values: recipe, arguments, data, batch_size (of all ranks), num_ranks, cores (of one
    rank), device, device_name, precision. Nothing is measured if the data is broken.
    """

    setting: Mapping[str, Any]
    checks: tuple[Check, ...]
    measured: Measurements | None
    limit: Limit

    @property
    def exit_code(self) -> int:
        """0 if no stage waits for its data, 1 if one does or that is not known, 2 if a check fails."""
        if any(check.state == "broken" for check in self.checks):
            return EXIT_BROKEN
        if self.measured is None or self.limit.stages:
            return EXIT_WAITS
        return EXIT_GOOD if is_good(self.measured) else EXIT_WAITS

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, as docs/how_to/bottleneck.md lists them."""
        limit = bottleneck(self.measured) if self.measured else None
        proposed = changes(self.measured) if self.measured else []
        measured = asdict(self.measured) if self.measured else None
        if self.measured and measured:
            for stage, values in zip(self.measured.stages, measured["stages"], strict=True):
                values |= {"synthetic": stage.synthetic, "ratio": stage.ratio}
        return {
            "setting": dict(self.setting), "checks": [asdict(check) for check in self.checks],
            "measured": measured, "bottleneck": asdict(limit) if limit else None,
            "changes": [asdict(change) for change in proposed],
            "left_out": {"stages": list(self.limit.stages), "options": list(self.limit.options)},
        }  # fmt: skip


_MAX_CHANGES = 4
_COLOUR = {"ok": "green", "warning": "yellow", "broken": "red"}

Cells = tuple[str, ...]


def show(report: Report, console: Console) -> None:
    """Print setting, checks, rates, bottleneck and changes: about 24 lines of 80 columns if all is well."""
    setting, measured = report.setting, report.measured

    def log(text: str, style: str = "") -> None:
        """Print the text wrapped, with all lines but the first indented."""
        for i, line in enumerate(Text(escaped(text), style=style).wrap(console, console.width - 2)):
            line.rstrip()
            console.print(Text("  ") + line if i else line)

    log(" ".join([setting["recipe"] or "no recipe", *setting["arguments"]]), "bold")
    machine = f"{setting['device_name']}, {setting['precision']}"
    log(f"{setting['data']}, batch {setting['batch_size']}, {machine}")
    if (ranks := setting["num_ranks"]) > 1:
        images = number_of(setting["batch_size"] // ranks, "image")
        share = f"{images} and {number_of(setting['cores'], 'core')}"
        log(f"one of {ranks} ranks is measured, by itself, with its share: {share}")
    _show_checks(report.checks, setting["device"] == "cpu", log)
    if measured is not None:
        console.print(_table(measured))
        if measured.auto:
            log(in_words(measured.auto, measured.is_cuda))
        limit = bottleneck(measured)
        if limit is None:
            log("no step: give a recipe, as in fastpsl doctor recipes/NAME.py, to time its stages", "bold")
        else:
            log(f"bottleneck: {limit.part}. {limit.text}", "bold")
        if measured.jpeg_engines and measured.jpeg_engines.rates:
            log(measured.jpeg_engines.line)
        for change in changes(measured)[:_MAX_CHANGES]:
            log(f"{'untried: ' if change.factor is None else ''}{change.option}: {change.text}")
    if left_out := [*report.limit.stages, *report.limit.options]:
        within = f"within {report.limit.seconds:g} s (--limit-s NUM gives more)"
        log(f"left out {within}: {', '.join(left_out)}", _COLOUR["warning"])


def _show_checks(checks: tuple[Check, ...], without_gpu: bool, log: Callable[..., None]) -> None:
    """Print the names of good checks on one line, and each other check; an idle GPU is not good."""
    idle = [check for check in checks if check.state == "ok" and check.name == "gpu" and without_gpu]
    for check in idle:
        log(check.text)
    good = [check.name for check in checks if check.state == "ok" and check not in idle]
    if good:
        log(f"ok: {', '.join(good)}", _COLOUR["ok"])
    for check in checks:
        if check.state != "ok":
            remedy = f": {check.remedy}" if check.remedy else ""
            name = "" if check.name == check.state else f"{check.name}: "
            log(f"{check.state}: {name}{check.text}{remedy}", _COLOUR[check.state])


def _table(measured: Measurements) -> Table:
    """Return the rates as a table with one column per stage."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("images/s")
    table.add_column("how")
    stages = measured.stages
    for name in [stage.name for stage in stages] or [""]:
        table.add_column(name, justify="right")
    num = max(1, len(stages))
    for name, how, cells, style in _rows(measured):
        table.add_row(name, how, *(cells * num if len(cells) == 1 else cells), style=style)
    return table


def _rows(measured: Measurements) -> Iterator[tuple[str, str, Cells, str]]:
    """Yield name, method, cells (one per stage, or one for all) and style of each row."""
    stages, read = measured.stages, measured.read
    storage, cache = ("the network", "--cache-dir") if read.is_remote else ("storage", "the page cache")
    if read.cached is None:
        source = "page cache or storage"
    elif read.from_storage:
        source = f"{1 - read.cached:.0%} from {storage}"
    else:
        source = f"from {cache}"
    yield "read", source, _cells([read.images_per_s]), ""
    rates: Sequence[float | None]
    threads = number_of(measured.num_threads, "thread")
    decode = _cells(stage.decode for stage in stages) or _cells([measured.decode])
    yield "decode", f"{measured.decoder}, {threads}", decode, ""
    for each in measured.alternatives:
        # As if all stages changed by the factor of the first one's crops.
        rates = [(stage.loader if each.part == "read" else stage.decode) * each.factor for stage in stages]
        yield "", each.option.replace(BETON_WRITE, "data write"), _cells(rates or [each.images_per_s]), "dim"
    if any(stage.loader != stage.decode for stage in stages):
        yield "", "and read", _cells(stage.loader for stage in stages), ""
    if measured.is_cuda:
        yield "copy", "to the GPU" if measured.copy else "by the decoder", _cells([measured.copy]), ""
    if not stages:
        return
    for path in _ordered(stage.augment_ms for stage in stages):
        times = [(stage.batch_size, stage.augment_ms.get(path)) for stage in stages]
        rates = [None if ms is None else num / (ms / 1e3) for num, ms in times]
        is_current = any(stage.augment == path for stage in stages)
        yield "augment" if is_current else "", path, _cells(rates), "" if is_current else "dim"
    for mode in _ordered(stage.step_rates for stage in stages):
        rates = [stage.step_rates.get(mode) for stage in stages]
        is_current = any(stage.step == mode for stage in stages)
        folded = ", frozen blocks folded" if any(stage.folded for stage in stages) else ""
        how = f"compile {mode}, synthetic data{folded}"
        yield "step" if is_current else "", how, _cells(rates), "" if is_current else "dim"
    cores = max(stage.cores_used for stage in stages)
    yield "both", f"{number_of(f'{cores:.1f}', 'core')} busy", _cells(stage.both for stage in stages), ""
    colour = "green" if is_good(measured) else "yellow"
    ratios = tuple(f"{stage.shown_ratio:.2f}" for stage in stages)
    yield "both/synthetic", "", ratios, f"bold {colour}"
    if any(stage.peak_bytes for stage in stages):
        peaks = tuple(f"{(stage.peak_bytes or 0) / 1e9:.1f}" for stage in stages)
        yield "GPU memory", "GB, torch's peak", peaks, ""


def _ordered(rates: Iterator[dict[str, float]]) -> list[str]:
    """Return the names in the order of their first appearance."""
    return list(dict.fromkeys(name for names in rates for name in names))


def _cells(rates: Iterable[float | None]) -> Cells:
    """Format rates as whole numbers or with three digits, or as dashes."""
    return tuple("–" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in rates)
