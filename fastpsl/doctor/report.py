"""What a doctor's look at a recipe gave: for the screen, for JSON, and as an exit code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastpsl import __version__
from fastpsl.doctor.advice import Bottleneck, Change, bottleneck, changes, is_good
from fastpsl.doctor.checks import Check
from fastpsl.doctor.measurements import Measurements, StageRates

EXIT_GOOD, EXIT_WAITS, EXIT_BROKEN = 0, 1, 2
FORMAT = 1


@dataclass(frozen=True)
class Report:
    """setting: what was measured, in plain values: recipe, arguments, data, batch_size (of all ranks), num_ranks, cores (of one),
    device, device_name, precision. measured: None where the data is broken."""

    setting: Mapping[str, Any]
    checks: tuple[Check, ...]
    measured: Measurements | None

    @property
    def exit_code(self) -> int:
        if any(check.state == "broken" for check in self.checks):
            return EXIT_BROKEN
        assert self.measured is not None
        return EXIT_GOOD if is_good(self.measured) else EXIT_WAITS

    def bottleneck(self) -> Bottleneck | None:
        return bottleneck(self.measured) if self.measured else None

    def changes(self) -> list[Change]:
        return changes(self.measured) if self.measured else []

    def as_dict(self) -> dict[str, Any]:
        """Of plain values, as docs/doctor.md lists them."""
        found = self.bottleneck()
        return {
            "format": FORMAT,
            "fastpsl": __version__,
            "setting": dict(self.setting),
            "checks": [asdict(check) for check in self.checks],
            "measured": _measured(self.measured) if self.measured else None,
            "bottleneck": asdict(found) if found else None,
            "changes": [asdict(change) for change in self.changes()],
            "exit_code": self.exit_code,
        }


def _measured(measured: Measurements) -> dict[str, Any]:
    values = asdict(measured)
    values["stages"] = [_stage(stage) for stage in measured.stages]
    return values


def _stage(stage: StageRates) -> dict[str, Any]:
    return asdict(stage) | {"synthetic": stage.synthetic, "ratio": stage.ratio}
