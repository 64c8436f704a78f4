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
MEMORY = "RevNet-50's peak memory / ResNet-50's"


@dataclass(frozen=True)
class Key:
    """A measured combination of recipe, stage, backbone and mode."""

    recipe: str
    stage: str
    backbone: str
    mode: str


@dataclass
class Timed:
    """One measured mode of a stage.

    Attributes:
        samples: Samples per step.
        first_step_s: Seconds of the first step, compilation included.
        ms: Milliseconds per step, one value per repeat.
        eager_ms: The same of the eager mode, measured in turn with this one.
        multiply_adds: Multiply-adds per step, counted in eager mode only.
    """

    bench: StageBench | None
    samples: int
    epochs: int
    first_step_s: float = 0.0
    ms: list[float] = field(default_factory=list)
    eager_ms: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    multiply_adds: int = 0


def rows_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return one row per mode; samples/s follow from the median."""
    return [
        {
            "measured": "step", "recipe": key.recipe, "stage": key.stage, "backbone": key.backbone,
            "mode": key.mode, "unit": "ms", "samples_per_step": entry.samples,
            "samples_per_s": round(1e3 * entry.samples / statistics.median(entry.ms), 1),
            "first_step_s": round(entry.first_step_s, 2), "peak_mib": round(entry.peak_bytes / 2**20) or None,
            "gmac_per_sample": round(entry.multiply_adds / entry.samples / 1e9, 3) or None,
            **spread(entry.ms),
        }
        for key, entry in timed.items()
    ]  # fmt: skip


def ratios_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return the ratios: speed-ups over eager, PSL's cost and its floor, RevNet's memory."""
    ratios: list[dict[str, Any]] = []

    def add(what: str, key: Key, values: Sequence[float], stage: str | None) -> None:
        labels = {"recipe": key.recipe, "stage": stage, "backbone": key.backbone, "mode": key.mode}
        ratios.append({"what": what, **labels, **spread(values)})

    for key, entry in timed.items():
        if key.mode != "eager" and entry.eager_ms:
            add(GAIN, key, [a / b for a, b in zip(entry.eager_ms, entry.ms, strict=True)], key.stage)
        other = timed.get(Key(key.recipe, key.stage, "resnet50", "eager"))
        if key.backbone == "revnet50" and other and other.peak_bytes:
            add(MEMORY, key, [entry.peak_bytes / other.peak_bytes] * len(entry.ms), key.stage)
    for key in list(dict.fromkeys(Key(key.recipe, "E", key.backbone, key.mode) for key in timed)):
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
        if key.mode == "eager":
            floor = sum(stage.epochs * stage.multiply_adds / stage.samples for stage in stages) / epochs
            add(FLOOR, key, [floor / (end_to_end.multiply_adds / end_to_end.samples)] * len(costs), None)
    return ratios


def _at(timed: Mapping[Key, Timed], key: Key, stage: str) -> Timed | None:
    """Return `stage` in the mode of `key`, without folding if the stage has no frozen blocks."""
    folded = Key(key.recipe, stage, key.backbone, key.mode)
    return timed.get(folded) or timed.get(replace(folded, mode=key.mode.partition("+")[0]))
