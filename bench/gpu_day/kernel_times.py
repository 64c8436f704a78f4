"""Where the time goes: the longest GPU kernels of SimCLR's T3 and of training steps, and the host's share.

    python bench/gpu_day/kernel_times.py [--small]

For each work it prints how long the host takes to launch it, how long it takes in all, and its kernels by
total time. If the first two are about equal, the GPU waits for the host. --small rehearses it on a CPU.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.kernel_chains import Setting
from bench.kernels import chains
from bench.recipe_stages import recipe_options, stage_experiment
from fastpsl.engine.distributed import World, choose_device
from fastpsl.engine.gpu import synchronise
from fastpsl.engine.stage_bench import StageBench
from fastpsl.pipelines.datasets.subset import Synthetic

NUM_CALLS, NUM_KERNELS = 5, 14
# Stage, mode, --graph.
STEPS = (("E", "off", "off"), ("E", "fused", "off"), ("E", "fused", "on"), ("S2", "fused", "on"))


def show(name: str, work: Callable[[], object], device: torch.device) -> None:
    for _ in range(3):
        work()
    times = []
    for _ in range(NUM_CALLS):  # each alone, because the host waits where a thousand launches are ahead
        synchronise(device)
        started = time.perf_counter()
        work()
        launched = time.perf_counter()
        synchronise(device)
        times.append((launched - started, time.perf_counter() - started))
    host_ms, all_ms = (1e3 * statistics.median(each) for each in zip(*times, strict=True))
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(NUM_CALLS):
            work()
        synchronise(device)
    print(f"\n{name}: the host launches it in {host_ms:.2f} ms, it takes {all_ms:.2f} ms in all")

    def total_ms(event: object) -> float:
        value: float = getattr(event, "self_device_time_total" if is_cuda else "self_cpu_time_total")
        return value / 1e3 / NUM_CALLS

    for event in sorted(profiler.key_averages(), key=total_ms, reverse=True)[:NUM_KERNELS]:
        print(f"{total_ms(event):9.3f} ms in {event.count / NUM_CALLS:5.1f} launches: {event.key[:100]}")


def main() -> None:
    is_small = "--small" in sys.argv
    device = choose_device("cpu" if is_small else "cuda", 0)
    setting = Setting(
        device,
        torch.float32 if is_small else torch.float16,
        4 if is_small else 256,
        64 if is_small else 224,
        4,
    )
    with torch.inference_mode():
        for chain in chains(("SimCLR T3",), setting):
            numbers = itertools.count()
            show(chain.name, lambda chain=chain, numbers=numbers: chain.paths["fused"](next(numbers)), device)  # type: ignore[misc]
    world = World(0, 1, 0, 1, device)
    for stage, mode, graph in STEPS[:1] if is_small else STEPS:
        options = recipe_options(
            "rotation", is_sample=is_small, batch_size=8 if is_small else 256,
            backbone="resnet18" if is_small else "resnet50", compile=mode, graph=graph,
            device=device.type,
        )  # fmt: skip
        experiment, number = stage_experiment("rotation", stage, options, world)
        bench = StageBench(experiment, number, options, Synthetic(10_000), world)
        batches = itertools.repeat(bench.synthetic_batch())
        launch = "captured" if graph == "on" else "launched"
        name = f"rotation {stage}, {mode}, {launch}"
        show(name, lambda bench=bench, batches=batches: bench._step(batches), device)  # type: ignore[misc]


if __name__ == "__main__":
    main()
