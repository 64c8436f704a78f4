"""The card of a machine, by `fastpsl doctor --card FILE`: whether it computes rightly, and how fast it is.

A part that fails, differs or is left out is a line of the card, and the others go on.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fastpsl.doctor import proof
from fastpsl.doctor.examination import free_memory
from fastpsl.doctor.facts import clocks_in_words, facts, read_clocks
from fastpsl.doctor.loader_rates import NVML_S, jpeg_utilisation, sampled
from fastpsl.doctor.report import EXIT_BROKEN, EXIT_GOOD, EXIT_WAITS, Limit, Log
from fastpsl.doctor.setup import opened_stage
from fastpsl.doctor.two_cards import NETWORK, measured_on_two
from fastpsl.engine.distributed import leave_world
from fastpsl.engine.stage_bench import loader_rate
from fastpsl.files.workers import usable_cores
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.fused import fused_modules
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.decoders import dali
from fastpsl.pipelines.embedded.patterns import draw_image
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec

FORMAT = 1
State = Literal["ok", "differs", "failed", "left out"]
Values = dict[str, Any]


class LeftOut(Exception):
    """A part that this machine cannot do; the message has the reason."""


@dataclass(frozen=True)
class Part:
    """A part of a card.

    Attributes:
        name: Its name.
        state: Whether it agrees with its definition, for parts that compare.
        text: Its line.
        values: Its figures.
    """

    name: str
    state: State
    text: str
    values: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """A machine, and its parts."""

    machine: Mapping[str, Any]
    parts: Sequence[Part]
    limit: Limit

    @property
    def exit_code(self) -> int:
        """2 if a part differs or failed, 1 if the limit left some out, else 0."""
        if any(part.state in ("differs", "failed") for part in self.parts):
            return EXIT_BROKEN
        return EXIT_WAITS if self.limit.options else EXIT_GOOD

    def as_dict(self) -> dict[str, Any]:
        """Return the card as plain values. `fastest_step` is images/s by the number of views."""
        rates = {
            str(of["num_views"]): of["default"]
            for part in self.parts
            for of in part.values.get("images_per_s", {}).values()
            if of["is_fastest"]
        }
        return {
            "format": FORMAT, "machine": dict(self.machine), "parts": [asdict(part) for part in self.parts],
            "fastest_step": rates, "exit_code": self.exit_code,
        }  # fmt: skip

    def text(self) -> str:
        """Return some lines between fences, to be pasted into an issue."""
        of = self.machine
        lines = [f"fastpsl card {FORMAT} | {of['date']} | {of['device']}", f"versions: {of['versions']}"]
        for part in self.parts:
            state = "" if part.state == "ok" else f"{part.state}: "
            lines.append(f"{part.name}: {state}{part.text}")
        return "\n".join(["```text", *lines, "```"])


def make_card(device: torch.device, limit: Limit, log: Log) -> Iterator[Card]:
    """Yield the card after each of its parts."""
    machine, parts = facts(device), list[Part]()
    try:
        for name, measure in parts_of(device).items():
            if not limit.allows(name):
                parts.append(Part(name, "left out", f"no part begins after {limit.seconds:g} s (--limit-s)"))
            else:
                log(name)
                parts.append(_done(name, measure))
            yield Card(machine, tuple(parts), limit)
    finally:
        leave_world()  # which the recipes' steps have joined


def _done(name: str, measure: Callable[[], Part]) -> Part:
    try:
        return measure()
    except LeftOut as reason:
        return Part(name, "left out", str(reason))
    except Exception as error:  # noqa: BLE001  (of a driver, a compiler, a kernel: its line is the finding)
        return Part(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def parts_of(device: torch.device) -> dict[str, Callable[[], Part]]:
    """Return the parts by name, in their order."""
    precisions = ["fp32", "fp16"] if device.type == "cuda" else ["fp32"]
    return {
        "views": partial(views, device),
        "crops": partial(crops, device),
        "norms": partial(norms, device),
        "LARS": partial(optimiser, device),
        **{
            f"steps, {recipe}, {precision}": partial(steps, recipe, precision, device)
            for precision in precisions
            for recipe in proof.STEP_RECIPES
        },
        "speed": partial(speed, device),
        "clocks": partial(clocks, device),
        "loader": partial(loader, device),
        "queue": partial(queue, device),
        "two cards": partial(two_cards, device),
    }


def dtypes_of(device: torch.device) -> list[torch.dtype]:
    """Return the precisions that the device has."""
    has_bf16 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    return [torch.float32, torch.float16, *([torch.bfloat16] if has_bf16 else [])]


def _compared(name: str, apart: Mapping[str, float], what: str) -> Part:
    """Return the part of some comparisons, in units of their bounds."""
    far = {case: units for case, units in apart.items() if not units <= 1}
    values = {"num": len(apart), "worst": max(apart.values()), "differ": far}
    if not far:
        text = f"{len(apart)} agree with {what}, within {values['worst']:.0%} of the bound"
        return Part(name, "ok", text, values)
    shown = ", ".join(f"{case} by {units:.3g} bounds" for case, units in list(far.items())[:3])
    more = f" and {len(far) - 3} more" if len(far) > 3 else ""
    return Part(name, "differs", f"{len(far)} of {len(apart)} from {what}: {shown}{more}", values)


def views(device: torch.device) -> Part:
    """Compare each fused chain with its operations, at an odd side and at one that 16 divides."""
    modules, reason = fused_modules(device)
    if not modules:
        raise LeftOut(reason)
    found = {
        f"{name}, {side} px, {dtype}".replace("torch.", ""): proof.chain_apart(name, side, dtype, device)
        for name in proof.CHAINS
        for side in (45, 48)
        for dtype in dtypes_of(device)
    }
    apart = {case: units for case, units in found.items() if units is not None}
    return _compared("views", apart, "their operations one by one")


def _require_cuda(device: torch.device, why: str) -> None:
    if device.type != "cuda":
        raise LeftOut(why)


def crops(device: torch.device) -> Part:
    """Compare crops of batches that lie on the GPU with torch's on the CPU."""
    _require_cuda(device, "the kernels of crops need CUDA")
    found = {name: units for side in (97, 128) for name, units in proof.crops_apart(side, device).items()}
    return _compared("crops", found, "torch's on the CPU")


def optimiser(device: torch.device) -> Part:
    """Compare LARS's kernels with torch's operations on the CPU."""
    _require_cuda(device, "the kernels of LARS need CUDA")
    return _compared("LARS", {"weights after three steps": proof.lars_apart(device)}, "torch's on the CPU")


def norms(device: torch.device) -> Part:
    """Compare fused norms with torch's in float64."""
    _require_cuda(device, "the kernels of norms need CUDA")
    kinds: dict[str, Callable[..., float]] = {
        kind: partial(proof.norms_apart, kind=kind) for kind in proof.NORM_KINDS
    }
    kinds["pooled"] = proof.pooled_apart
    found = {
        f"{kind}{', used twice' if fork else ''}, {shape}, {str(dtype).removeprefix('torch.')}": apart(
            shape, dtype, device, fork
        )
        for kind, apart in kinds.items()
        for fork in (False, True)
        for shape in ((32, 64, 28, 28), (8, 256, 28, 28), (3, 70, 11, 9))
        for dtype in dtypes_of(device)
    }
    return _compared("norms", found, "torch's in float64")


def steps(recipe: str, precision: str, device: torch.device) -> Part:
    """Compare the ways of a step, from one state, with eager launched steps."""
    name = f"steps, {recipe}, {precision}"
    with proof.exact():
        eager = proof.trained(recipe, precision, ())
        ends = {
            way: proof.trained(recipe, precision, options) for way, options in proof.WAYS[device.type].items()
        }
    apart = {way: proof.steps_apart(eager, end, precision) for way, end in ends.items()}
    resumed = {
        f"{way} resumed": proof.steps_apart(end, end._replace(after=end.resumed), precision)
        for way, end in {"eager": eager, **ends}.items()
    }
    part = _compared(name, apart | resumed, "eager launched steps")
    broken = [way for way, end in {"eager": eager, **ends}.items() if not end.is_kept]
    values = part.values | {"changed_by_infinite_gradients": broken, "losses": eager.losses}
    if broken:
        text = f"gradients that are not finite change weights: {', '.join(broken)}"
        return Part(name, "differs", text, values)
    if part.state == "differs":
        return replace(part, values=values)
    text = f"{', '.join(ends)} as eager, and resumed as whole, within {part.values['worst']:.0%} of the bound"
    text += "; gradients that are not finite change nothing"
    fused, captured = ends.get("fused"), ends.get("captured")
    if fused and captured and torch.equal(fused.after, captured.after):
        text += "; captured bits are those of launched steps"
    return Part(name, "ok", text, values)


# Recipe and stage → the number of views. S1 is the fastest step, for which `--decoder auto` asks.
_TIMED = {("jigsaw", "S1"): 1, ("jigsaw", "E"): 1, ("simclr", "S1"): 2}


def speed(device: torch.device) -> Part:
    """Time steps on synthetic data: as they train by default, and on a GPU launched in eager mode, too."""
    rates = dict[str, dict[str, Any]]()
    for (recipe, stage), num_views in _TIMED.items():
        ways: dict[str, tuple[str, ...]] = {"default": ()}
        if device.type == "cuda":
            ways["eager"] = ("--compile", "off", "--graph", "off", "--fold-frozen", "off")
        found: dict[str, Any] = {"num_views": num_views, "is_fastest": stage == "S1"}
        for way, options in ways.items():
            rate, how = _rate(recipe, stage, options, device)
            found[way] = round(rate, 1)
            found.setdefault("how", how)
        rates[f"{recipe} {stage}"] = found
    shown = [
        f"{name} {of['default']:,.0f}/s ({of['how']})"
        + (f", eager {of['eager']:,.0f}" if "eager" in of else "")
        for name, of in rates.items()
    ]
    return Part("speed", "ok", "; ".join(shown), {"images_per_s": rates})


def _rate(recipe: str, stage: str, options: Sequence[str], device: torch.device) -> tuple[float, str]:
    """Return images/s of a stage's step and how it runs, with the largest batch that fits on a GPU."""
    plan = ("--plan", "end_to_end") if stage == "E" else ()
    sizes = (256, 128, 64, 32) if device.type == "cuda" else (16,)
    for batch_size in sizes:
        words = [*NETWORK[device.type], "--batch-size", str(batch_size), *plan, *options]
        with suppress(torch.cuda.OutOfMemoryError):
            return _timed(recipe, words, stage, device)
        free_memory(device)  # behind the error, which held the step
    raise LeftOut(f"not even {sizes[-1]} images fit")


def _timed(recipe: str, options: Sequence[str], stage: str, device: torch.device) -> tuple[float, str]:
    with opened_stage(recipe, options, stage) as bench:
        bench.seconds = 1.0 if device.type == "cuda" else 0.5
        bench.step_ms(1)
        rate, mode = bench.step_alone(), bench.train_step.step_choice.mode
        precision = bench.options.resolved_precision(device)
        how = f"{bench.experiment.backbone.name}, batch {bench.batch_size}, {precision}"
        how += f", {mode}" if mode != "off" else ""
        how += ", captured" if bench.is_captured else ""
    return rate, how


def clocks(device: torch.device) -> Part:
    """Read the clocks while the GPU multiplies."""
    _require_cuda(device, "NVML tells of GPUs alone")
    values = torch.ones(8192, 8192, device=device, dtype=torch.float16)
    until_s = time.perf_counter() + 1
    while time.perf_counter() < until_s:
        for _ in range(10):
            values @ values
        found = read_clocks(device)  # behind launches, of which the GPU has not done all
        torch.cuda.synchronize(device)
    return Part("clocks", "ok", clocks_in_words(found), found)


_NUM_DRAWN, _SIDES = 64, (375, 500)


def loader(device: torch.device) -> Part:
    """Time the loader on drawn JPEGs of 375 x 500 px, cropped to 224."""
    drawn = (Sample(str(i), draw_image(0, i, *_SIDES), 0) for i in range(_NUM_DRAWN))
    rates = dict[str, Any]()
    names = ["turbo", *([] if dali.why_missing(device) or device.type == "cpu" else ["dali"])]
    with tempfile.TemporaryDirectory(prefix="fastpsl-card-") as folder:
        path = Path(folder) / "drawn.beton"
        write_beton(drawn, path, num_samples=_NUM_DRAWN, target=Target(quality=92))
        with Beton(path) as data:
            crop = ViewSpec(RandomResizedCrop(224))
            options: dict[str, Any] = {"device": device, "num_threads": usable_cores()}
            for name in names:
                seconds = 2 * NVML_S if name == "dali" else 1.0
                with (
                    Loader(data, (crop,), batch_size_per_rank=32, decoder=name, **options) as opened,
                    jpeg_utilisation(device) as read,
                    sampled(read, after_s=NVML_S) as busy,
                ):
                    rate, cores = loader_rate(opened, itertools.count(), seconds)
                rates[name] = {"images_per_s": round(rate, 1), "cores": round(cores, 2)}
                if name == "dali":
                    rates[name]["engines_busy_percent"] = max(busy, default=None)
    shown = [f"{name} {of['images_per_s']:,.0f}/s on {of['cores']:.1f} cores" for name, of in rates.items()]
    if (busy_percent := rates.get("dali", {}).get("engines_busy_percent")) is not None:
        shown[-1] += f" and JPEG engines that are busy {busy_percent} %"
    text = f"{'; '.join(shown)} (drawn JPEGs of 375 x 500 px, crops of 224)"
    return Part("loader", "ok", text, {"rates": rates})


def queue(device: torch.device) -> Part:
    """Count the replays of a graph that the host may launch ahead."""
    _require_cuda(device, "CUDA graphs need CUDA")
    values = torch.ones(4096, 4096, device=device)
    for _ in range(3):
        values @ values
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values @ values
    graph.replay()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    graph.replay()
    torch.cuda.synchronize(device)
    graph_s = time.perf_counter() - started
    num, waited_s = 0, 0.0
    while num < 2000 and waited_s < graph_s / 2:
        started = time.perf_counter()
        graph.replay()
        num, waited_s = num + 1, time.perf_counter() - started
    torch.cuda.synchronize(device)
    return Part("queue", "ok", f"{num} replays before the host waits", {"replays": num})


_LOSSES_BOUND = 0.01  # relative; a sum in another order changes the last of twenty steps by a thousandth


def two_cards(device: torch.device) -> Part:
    """Let two ranks add, train by launched and by captured steps, and time them beside one."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        raise LeftOut("it needs two GPUs")
    free_memory(device)
    return judged(measured_on_two(device.type))


def judged(found: Values) -> Part:
    """Return the card's part about the findings of two ranks."""
    (one, losses), (other, others) = found["losses"].items()
    apart = [abs(a - b) / max(abs(a), 1e-6) for a, b in zip(losses, others, strict=True)]
    wrong = ["a sum over both is wrong"] if found["sum_differs"] else []
    wrong += [f"after {way} steps they have other weights" for way in found["weights_differ"]]
    far = [each for each in apart if not each <= _LOSSES_BOUND]  # NaN, too
    if far:
        wrong.append(f"{len(far)} of {len(apart)} losses of {other} steps are {far[0]:.2g} from {one} ones")
    if wrong:
        return Part("two cards", "differs", "; ".join(wrong), found)
    rates = found["images_per_s"]
    text = f"sums are exact, {len(losses)} losses of {other} steps are those of {one} ones; jigsaw E "
    text += f"{rates['1']:,.0f}/s on one, {rates['2']:,.0f} on two ({rates['2'] / rates['1']:.2f} times)"
    return Part("two cards", "ok", text, found)
