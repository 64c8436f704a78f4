"""The choice of `--decoder auto` beside what the measurements of this machine would choose."""

from collections.abc import Mapping

from fastpsl.doctor.measurements import MIN_GAIN, AutoDecoder, DecoderCost
from fastpsl.pipelines.decoders.choose import DALI_MS


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
    costs = ", ".join(f"{name} {_cost(auto.costs[name], is_cuda and name == 'dali')}" for name in both)
    line += f". Measured here: {costs}"
    if auto.name not in both or len(both) < 2:
        return line
    if auto.by_measurement == auto.name:
        return f"{line}. This measurement would choose the same"
    return f"{line}. This measurement would choose otherwise: --decoder {auto.by_measurement}"


def _cost(cost: DecoderCost, may_use_engines: bool) -> str:
    busy = f" ({DALI_MS:g} where an H200's JPEG engines decoded)" if may_use_engines else ""
    return f"{cost.images_per_s:,.0f} images/s at {cost.cpu_ms:.2f} ms of CPU{busy}"
