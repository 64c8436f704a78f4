"""How long the operations of a batch take: fused, one by one, by others, and what the bytes alone cost.

    python bench/kernels.py  on a GPU 256 samples of 224 px to fp16, on a CPU 32 of 64 px to fp32 in a minute
    python bench/kernels.py --chains 'SimCLR T3' jigsaw --size-px 224 --batch-size 16

GB/s count what must be read and written once: uint8 pixels in, results out. They stand beside a large copy
within the device. Chains and paths: kernel_chains.py. Writes a JSON and a bar chart; see bench/README.md.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.charts import publish
from bench.kernel_chains import PEERS, Chain, Setting, Work, crop_chains, view_chain, views_of_chains
from bench.program import in_turn, options_of, progress, run_program
from bench.schema import RUNS, environment, over, spread
from fastpsl.engine.distributed import choose_device
from fastpsl.engine.train_step import DTYPES

CROPS = ("area crop", "isotropic crop")
# A copy moves at most this much of the device's memory, read and written: beyond all caches, and long enough
# for the host to get ahead.
_COPY_BYTES, _COPY_SHARE, _COPIES_AHEAD = 1 << 30, 1 / 16, 4
_QUICK_MS = 5.0  # faster work is called once per input, so that launches do not dominate
_NUM_INPUTS = 4  # 4 x 38 MB of pixels at 256 x 224: more than any cache
# The largest accepted difference between normalised fused and plain results. Tests demand far less; a broken
# kernel must not be timed.
_MAX_DIFFERENCE = 0.1


@dataclass(frozen=True, kw_only=True)
class Options:
    chains: tuple[str, ...] = ()  # Some of the chains, by name. Default: all.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the results. Default: fp16 on CUDA, else fp32."""
    batch_size: int | None = None  # Samples of a view. Default: 256 on CUDA, else 32.
    size_px: int | None = None
    """Side of a view; a jigsaw's window has a pixel more. Default: 224 on CUDA, else 64."""
    repeats: int | None = None  # Default: 20 on CUDA, else 7.
    peers: bool = True  # Kornia's modules and torchvision beside ours.
    out: Path = RUNS / "kernels.json"  # The result; the bar chart stands beside it as .png.

    def check(self) -> None:
        """Raise ValueError if an option is out of range or a chain is unknown."""
        for name, least in (("batch_size", 1), ("size_px", 32), ("repeats", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be {least} or more")
        known = [*views_of_chains(self.size_px or 64), *CROPS]
        if unknown := set(self.chains) - set(known):
            raise ValueError(f"--chains {min(unknown)!r}: there are {'; '.join(known)}")


@dataclass
class Timed:
    """One path of one chain, with its times."""

    chain: Chain
    path: str
    work: Work
    num_calls: int = 1  # calls that are timed together, each with the next input
    number: int = 0  # the number of the last call
    ms: list[float] = field(default_factory=list)  # milliseconds per call, one value per repeat

    def call(self) -> Tensor:
        self.number += 1
        return self.work(self.number)

    def calls(self) -> None:
        for _ in range(self.num_calls):
            self.call()


class Clock:
    """A stopwatch that measures work in milliseconds of the device's own time.

    Copies keep the GPU busy while work is launched, so that only the launches of long work count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, num_bytes = device, 64 << 20
        if device.type == "cuda":
            share = torch.cuda.get_device_properties(device).total_memory * _COPY_SHARE
            num_bytes = min(_COPY_BYTES, int(share))
        self._source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._target = torch.zeros_like(self._source)
        self.copy_bytes = 2 * num_bytes  # read and written

    def copy(self) -> None:
        self._target.copy_(self._source)

    def ms(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(_COPIES_AHEAD):
            self.copy()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


def chains(names: tuple[str, ...], setting: Setting) -> Iterator[Chain]:
    """Yield the chains with these names, or all chains if `names` is empty."""
    for name, views in views_of_chains(setting.size_px).items():
        if not names or name in names:
            yield view_chain(name, views, setting)
    if not names or set(CROPS) & set(names):
        yield from (chain for chain in crop_chains(setting) if not names or chain.name in names)


def warm_up(timed: Timed, clock: Clock) -> str | None:
    """Compile the path, and choose how many calls are timed together."""
    try:
        timed.call()
        first_ms = clock.ms(timed.call)
    except torch.cuda.OutOfMemoryError:
        return "out of GPU memory"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if timed.path not in PEERS:
            raise
        return " ".join(str(error).split())[:200]
    timed.num_calls = _NUM_INPUTS if first_ms < _QUICK_MS else 1
    return None


def difference(chain: Chain) -> float:
    """Return the largest difference between fused and plain results of one input; uint8 counts 1 / 255."""
    fused, plain = (chain.paths[path](0).float() for path in ("fused", "kornia"))
    return float((fused - plain).abs().max()) / (255 if chain.name in CROPS else 1)


def measure(options: Options, setting: Setting, repeats: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Warm up all paths, then measure a copy and all of them in turn, every other time in reverse order."""
    clock = Clock(setting.device)
    paths: list[Timed] = []
    missing: list[dict[str, str]] = []
    for chain in chains(options.chains, setting):
        log(f"{chain.name}: warming up")
        reasons = dict(chain.missing)
        for path, work in chain.paths.items():
            entry = Timed(chain, path, work)
            if path in PEERS and not options.peers:
                reasons[path] = "left out by --no-peers"
            elif reason := warm_up(entry, clock):
                reasons[path] = reason
            elif path == "fused" and not (off := difference(chain)) <= _MAX_DIFFERENCE:  # NaN is none
                reasons[path] = f"its results differ from the operations one by one by {off:.3g}"
            else:
                paths.append(entry)
        missing += [{"what": f"{chain.name}, {path}", "reason": reason} for path, reason in reasons.items()]
    copy_ms: list[float] = []
    for timed in in_turn([None, *paths], repeats, log):
        if timed is None:
            copy_ms.append(clock.ms(clock.copy))
        else:
            timed.ms.append(clock.ms(timed.calls) / timed.num_calls)
    copy = spread(copy_ms)
    copy_gb_per_s = clock.copy_bytes / copy["median"] / 1e6
    rows = [_row("copy", "-", "-", clock.copy_bytes, copy, copy_gb_per_s)]
    rows += [
        _row("kernel", entry.chain.name, entry.path, entry.chain.num_bytes, spread(entry.ms), copy_gb_per_s)
        for entry in paths
    ]
    return {"rows": rows, "ratios": _ratios(paths), "not_measured": missing}


def _row(
    measured: str, chain: str, path: str, num_bytes: int, times: dict[str, Any], copy_gb_per_s: float
) -> dict[str, Any]:
    gb_per_s = num_bytes / times["median"] / 1e6
    return {
        "measured": measured, "chain": chain, "path": path, "unit": "ms", "num_bytes": num_bytes,
        "gb_per_s": round(gb_per_s, 3), "percent_of_copy": round(100 * gb_per_s / copy_gb_per_s, 3), **times,
    }  # fmt: skip


def _ratios(timed: list[Timed]) -> list[dict[str, Any]]:
    """Return each path's time over the fused path's, repeat by repeat."""
    fused = {entry.chain.name: entry.ms for entry in timed if entry.path == "fused"}
    ratios = []
    for entry in timed:
        if entry.path != "fused" and entry.chain.name in fused:
            of_fused = over(entry.ms, fused[entry.chain.name])
            ratios.append({"what": f"{entry.path} / fused", "chain": entry.chain.name, **of_fused})
    return ratios


def main() -> None:
    options = options_of(Options, __doc__)
    device = choose_device(options.device, 0)
    is_cuda = device.type == "cuda"
    precision = options.precision if options.precision != "auto" else "fp16" if is_cuda else "fp32"
    setting = Setting(
        device, DTYPES[precision], options.batch_size or (256 if is_cuda else 32),
        options.size_px or (224 if is_cuda else 64), _NUM_INPUTS,
    )  # fmt: skip
    repeats = options.repeats or (20 if is_cuda else 7)
    machine = environment(device)
    with progress() as log, torch.inference_mode():
        parts = measure(options, setting, repeats, log)
    publish(
        options.out, "kernels", machine, "chain path gb_per_s percent_of_copy",
        data={"name": "smooth noise", "num_samples": setting.batch_size * _NUM_INPUTS},
        settings={
            "repeats": repeats, "device": device.type, "precision": precision,
            "batch_size": setting.batch_size,
            "size_px": setting.size_px, "num_inputs": _NUM_INPUTS, "torch_threads": torch.get_num_threads(),
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        **parts,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
