"""The rows and ratios of bench/step.py, from the milliseconds of each recipe, stage and mode."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.schema import spread
from fastpsl.engine.stage_bench import StageBench

COST = "PSL's cost per epoch / end to end's"
FLOOR = "PSL's multiply-adds per epoch / end to end's"
GAIN = "eager's ms / the mode's"
CAPTURE = "launched ms / captured ms"
MEMORY = "RevNet-50's peak memory / ResNet-50's"


@dataclass(frozen=True)
class Key:
    """A measured combination of recipe, stage, backbone, mode and --graph (on: captured)."""

    recipe: str
    stage: str
    backbone: str
    mode: str
    graph: str = "off"

    @property
    def is_plain(self) -> bool:
        return (self.mode, self.graph) == ("eager", "off")

    @property
    def launch(self) -> str:
        """ "captured" or "launched"."""
        return "captured" if self.graph == "on" else "launched"


@dataclass
class Timed:
    """One measured mode of a stage.

    Attributes:
        samples: Samples per step.
        first_step_s: Seconds until the usual steps: the first ones, with compilation and capture.
        ms: Milliseconds per step, one value per repeat.
        eager_ms: The same of the launched eager mode, measured in turn with this one.
        multiply_adds: Multiply-adds per step, counted in the launched eager mode only.
        launched_ms: As eager_ms, of this mode launched.
    """

    bench: StageBench | None
    samples: int
    epochs: int
    first_step_s: float = 0.0
    ms: list[float] = field(default_factory=list)
    eager_ms: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    multiply_adds: int = 0
    launched_ms: list[float] = field(default_factory=list)


def rows_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return one row per mode; samples/s follow from the median."""
    return [
        {
            "measured": "step", "recipe": key.recipe, "stage": key.stage, "backbone": key.backbone,
            "mode": key.mode, "graph": key.graph, "unit": "ms", "samples_per_step": entry.samples,
            "samples_per_s": round(1e3 * entry.samples / statistics.median(entry.ms), 1),
            "first_step_s": round(entry.first_step_s, 2), "peak_mib": round(entry.peak_bytes / 2**20) or None,
            "gmac_per_sample": round(entry.multiply_adds / entry.samples / 1e9, 3) or None,
            **spread(entry.ms),
        }
        for key, entry in timed.items()
    ]  # fmt: skip


def ratios_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return the ratios: gains over eager and of capture, PSL's cost and its floor, RevNet's memory."""
    ratios: list[dict[str, Any]] = []

    def add(what: str, key: Key, values: Sequence[float], stage: str | None) -> None:
        labels = {"recipe": key.recipe, "stage": stage, "backbone": key.backbone, "mode": key.mode}
        ratios.append({"what": what, **labels, "graph": key.graph, **spread(values)})

    for key, entry in timed.items():
        if not key.is_plain and entry.eager_ms:
            add(GAIN, key, [a / b for a, b in zip(entry.eager_ms, entry.ms, strict=True)], key.stage)
        if key.graph == "on" and entry.launched_ms:
            add(CAPTURE, key, [a / b for a, b in zip(entry.launched_ms, entry.ms, strict=True)], key.stage)
        other = timed.get(Key(key.recipe, key.stage, "resnet50", "eager"))
        if key.backbone == "revnet50" and other and other.peak_bytes:
            add(MEMORY, key, [entry.peak_bytes / other.peak_bytes] * len(entry.ms), key.stage)
    for key in list(dict.fromkeys(replace(key, stage="E") for key in timed)):
        timed_stages = {stage: _at(timed, key, stage) for stage in ("E", "S1", "S2", "S3")}
        psl_stages = [timed_stages[stage] for stage in ("S1", "S2", "S3")]
        end_to_end = timed_stages["E"]
        if end_to_end is None or None in psl_stages:
            continue
        stages = [stage for stage in psl_stages if stage is not None]
        epochs = sum(stage.epochs for stage in stages)
        costs = []
        for number, ms in enumerate(end_to_end.ms):
            psl = sum(stage.epochs * stage.ms[number] / stage.samples for stage in stages) / epochs
            costs.append(psl / (ms / end_to_end.samples))
        add(COST, key, costs, None)
        if key.is_plain:
            floor = sum(stage.epochs * stage.multiply_adds / stage.samples for stage in stages) / epochs
            add(FLOOR, key, [floor / (end_to_end.multiply_adds / end_to_end.samples)] * len(costs), None)
    return ratios


def _at(timed: Mapping[Key, Timed], key: Key, stage: str) -> Timed | None:
    """Return `stage` in the mode of `key`, without folding if the stage has no frozen blocks."""
    folded = replace(key, stage=stage)
    return timed.get(folded) or timed.get(replace(folded, mode=key.mode.partition("+")[0]))
