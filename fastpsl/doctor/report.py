"""The result of an examination, as JSON and as an exit code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastpsl.doctor.advice import Bottleneck, Change, bottleneck, changes, is_good
from fastpsl.doctor.measurements import Measurements, StageRates
from fastpsl.scripts import distribution

EXIT_GOOD, EXIT_WAITS, EXIT_BROKEN = 0, 1, 2
FORMAT = 1

State = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Check:
    """A finding that needs no timing.

    Attributes:
        name: One or two words, which stay the same between versions.
        text: The finding.
        remedy: The remedy; empty if none is needed.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """The result of an examination.

    Attributes:
        setting: The measured setup as plain values: recipe, arguments, data, batch_size (of all ranks),
            num_ranks, cores (of one rank), device, device_name, precision.
        measured: The measurements; None if the data is broken.
    """

    setting: Mapping[str, Any]
    checks: tuple[Check, ...]
    measured: Measurements | None

    @property
    def exit_code(self) -> int:
        """The exit code: 0 if no stage waits for its data, 1 if one does or noise hides it, 2 if one check
        fails.
        """
        if any(check.state == "broken" for check in self.checks):
            return EXIT_BROKEN
        assert self.measured is not None
        return EXIT_GOOD if is_good(self.measured) else EXIT_WAITS

    def bottleneck(self) -> Bottleneck | None:
        """Return the part that slows the others down, or None without stages."""
        return bottleneck(self.measured) if self.measured else None

    def changes(self) -> list[Change]:
        """Return the changes to make, the largest gain first."""
        return changes(self.measured) if self.measured else []

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, as docs/how_to/bottleneck.md lists them."""
        limit = self.bottleneck()
        return {
            "format": FORMAT,
            "fastpsl": distribution.version(),
            "setting": dict(self.setting),
            "checks": [asdict(check) for check in self.checks],
            "measured": _measured(self.measured) if self.measured else None,
            "bottleneck": asdict(limit) if limit else None,
            "changes": [asdict(change) for change in self.changes()],
            "exit_code": self.exit_code,
        }


def _measured(measured: Measurements) -> dict[str, Any]:
    values = asdict(measured)
    values["stages"] = [_stage(stage) for stage in measured.stages]
    return values


def _stage(stage: StageRates) -> dict[str, Any]:
    return asdict(stage) | {"synthetic": stage.synthetic, "ratio": stage.ratio}
