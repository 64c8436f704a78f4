"""The targets on one NVIDIA H200 with 16 cores, and where committed results meet or miss them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.program import counted
from bench.schema import Results
from fastpsl.pipelines.decoders.choose import NAMES

NO_GPU, NOT_MEASURED = "not measured: no GPU was at hand", "not measured"


@dataclass(frozen=True)
class Found:
    """A figure of a result, as text, and whether it meets its target."""

    text: str
    is_reached: bool
    file: str


@dataclass(frozen=True)
class Target:
    """A target, and the search for its figures.

    Attributes:
        what: What is measured.
        to_reach: The target, as text.
        known: First tries and others' figures on the same kind of machine, before there were results.
        find: Callable that yields the figures of the results, which are of a GPU only.
    """

    what: str
    to_reach: str
    known: str
    find: Callable[[Results], Iterator[Found]]


def rows_of(results: Results, bench: str, part: str, **labels: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file, row) for each row or ratio of a bench that has these labels.

    Args:
        results: File name → result.
        bench: Name of the bench.
        part: "rows" or "ratios".
        **labels: Key → value that a row must have.
    """
    for name, result in results.items():
        for row in result[part] if result["bench"] == bench else ():
            if all(row.get(label) == value for label, value in labels.items()):
                yield name, row


def at_least(value: float, goal: float, text: str, file: str) -> Found:
    return Found(text, value >= goal, file)


def at_most(value: float, goal: float, text: str, file: str) -> Found:
    return Found(text, value <= goal, file)


def best(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pair with the highest median, if there is one."""
    pairs = list(rows)
    if pairs:
        yield max(pairs, key=lambda pair: pair[1]["median"])


JPEG_DECODERS = tuple(name for name in NAMES if name not in ("resident", "synthetic"))


def headline(
    result: Mapping[str, Any], decoders: Sequence[str] = JPEG_DECODERS
) -> dict[str, tuple[float, str]]:
    """Return each recipe's lowest ratio of training to the slower of loader and step, with its place."""
    worst: dict[str, tuple[float, str]] = {}
    for ratio in result["ratios"]:
        if ratio["what"] == "both / min(loader, step)" and ratio["decoder"] in decoders:
            recipe = ratio.get("recipe", "jigsaw")
            figure = (ratio["median"], f"{recipe} {ratio['stage']}, {ratio['decoder']}")
            worst[recipe] = min(worst.get(recipe, figure), figure)
    return worst


def _headline(bench: str, goal: float, *decoders: str) -> Callable[[Results], Iterator[Found]]:
    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for median, place in headline(result, decoders).values() if result["bench"] == bench else ():
                yield at_least(median, goal, f"{median:.3f} ({place})", name)

    return find


def _decode_against_dali(results: Results) -> Iterator[Found]:
    what = "samples/s / DALI's reader, whole images"
    for num in (1, 2):
        for name, row in best(rows_of(results, "decode", "ratios", what=what, decoder="dali", num_views=num)):
            yield at_least(row["median"], 0.95, f"{counted(num, 'view')} {row['median']:.2f}x", name)


def _decode_rates(results: Results) -> Iterator[Found]:
    for num, goal, unit in ((1, 30_600, "samples/s"), (2, 55_000, "views/s")):
        for name, row in best(rows_of(results, "decode", "rows", decoder="dali", num_views=num)):
            yield at_least(num * row["median"], goal, f"{num * row['median']:,.0f} {unit}", name)


def _decode_against_ffcv(results: Results) -> Iterator[Found]:
    for num, goal in ((1, 4.0), (2, 8.0)):
        for name, row in best(
            rows_of(
                results, "decode", "ratios", what="samples/s / ffcv Loader", decoder="dali", num_views=num
            )
        ):
            yield at_least(row["median"], goal, f"{counted(num, 'view')} {row['median']:.1f}x", name)


def _fused(chain: str, goal_ms: float, times: float | None = None) -> Callable[[Results], Iterator[Found]]:
    def find(results: Results) -> Iterator[Found]:
        for name, row in rows_of(results, "kernels", "rows", chain=chain, path="fused"):
            yield at_most(row["median"], goal_ms, f"{row['median']:.3f} ms", name)
        if times:
            for name, row in rows_of(
                results, "kernels", "ratios", chain=chain, what="kornia_modules / fused"
            ):
                yield at_least(row["median"], times, f"{row['median']:.0f}x Kornia's modules", name)

    return find


def _step(goals: Mapping[str, float]) -> Callable[[Results], Iterator[Found]]:
    """Search by the fastest mode of rotation's step, in which views and head cost next to nothing."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            one = {name: result}
            for stage, goal in goals.items():
                rows = rows_of(one, "step", "rows", recipe="rotation", backbone="resnet50", stage=stage)
                for _, row in sorted(rows, key=lambda pair: -pair[1]["samples_per_s"])[:1]:
                    yield at_least(
                        row["samples_per_s"], goal, f"{stage} {row['samples_per_s']:,.0f} {row['mode']}", name
                    )

    return find


def _epoch_cost(results: Results) -> Iterator[Found]:
    """Yield each recipe's cost, at the mode in which its end-to-end step is the fastest."""
    ends = dict[tuple[str, str], tuple[float, str]]()
    for name, row in rows_of(results, "step", "rows", stage="E", backbone="resnet50"):
        ends[name, row["recipe"]] = max(
            ends.get((name, row["recipe"]), (0.0, "")), (row["samples_per_s"], row["mode"])
        )
    for name, row in rows_of(
        results, "step", "ratios", what="PSL's cost per epoch / end to end's", backbone="resnet50"
    ):
        if ends.get((name, row["recipe"]), (0.0, ""))[1] == row["mode"]:
            yield at_most(row["median"], 0.75, f"{row['median']:.2f} ({row['recipe']}, {row['mode']})", name)


def _loader_cores(results: Results) -> Iterator[Found]:
    """Yield for each file the stage with the most expensive loader."""
    for name, result in results.items():
        rows = [
            row for row in result["rows"] if result["bench"] == "throughput" and row["measured"] == "both"
        ]
        rows = [row for row in rows if row["decoder"] == "dali" and "cores_beyond_step" in row]
        if rows:
            row = max(rows, key=lambda row: row["cores_beyond_step"])
            place = f"{row.get('recipe')} {row['stage']}"
            yield at_most(row["cores_beyond_step"], 4.0, f"{row['cores_beyond_step']:.1f} ({place})", name)


def _small_step(results: Results) -> Iterator[Found]:
    for name, row in rows_of(results, "small", "rows", measured="step", recipe="sslpp_rotation"):
        inputs = row["median"] * row["inputs_per_image"]
        yield at_least(inputs, 68_000, f"{inputs:,.0f} {row['step']}", name)


def _detection_step(results: Results) -> Iterator[Found]:
    what = "torchvision's ms / ours"
    for name, row in rows_of(results, "detection", "ratios", what=what, backbone="resnet50"):
        yield at_least(row["median"], 1.1, f"{row['median']:.2f}x", name)


def _all_green(results: Results) -> Iterator[Found]:
    """Yield for each part of bench/gpu_day/ the steps that check values, not speed.

    These are all steps of part A, and the tests of the other parts.
    """
    for name, result in results.items():
        if result["bench"] != "gpu_day":
            continue
        all_steps = result["settings"]["part"] == "a"
        is_ok_by_step = {row["measured"]: row["exit"] == 0 for row in result["rows"]}
        is_ok_by_step |= {missing["what"]: False for missing in result["not_measured"]}
        checks = {
            step: is_ok for step, is_ok in is_ok_by_step.items() if all_steps or step.startswith("tests")
        }
        if checks:
            failed = [step for step, is_ok in checks.items() if not is_ok]
            text = f"part {result['settings']['part']}: {len(checks) - len(failed)} of {len(checks)} steps"
            yield Found(text + (f", not {', '.join(failed)}" if failed else ""), not failed, name)


TARGETS = (
    Target(
        "decode + crop 224 of 500-px JPEGs, one view / two", ">= 30,600 samples/s / >= 55,000 views/s",
        "31,200 / 57,000", _decode_rates,
    ),
    Target("the same, one view / two, over ffcv's Loader", ">= 4x / 8x", "5x / 9x", _decode_against_ffcv),
    Target(
        "the same, over DALI's `mixed` with its own random_resized_crop", ">= 0.95x", "1.02x",
        _decode_against_dali,
    ),
    Target(
        "training from JPEGs over the slower of its loader and its step alone, "
        "each recipe's stage that waits the most",
        ">= 0.98", "-", _headline("throughput", 0.98, *JPEG_DECODERS),
    ),
    Target(
        "the same on 32 px images that stay on the GPU", ">= 0.95", "-", _headline("small", 0.95, "resident"),
    ),
    Target(
        "cores that the loader takes at those rates", "<= 4 of 16",
        "DALI alone with 4 threads 30,200 images/s", _loader_cores,
    ),
    Target(
        "SimCLR's T3 after the crop, 256 views", "<= 0.17 ms, >= 100x Kornia",
        "Kornia 17.3 ms, untuned pieces 0.25 ms", _fused("SimCLR T3", 0.17, 100.0),
    ),
    Target("the same, next", "<= 0.10 ms", "bytes alone 0.027 ms", _fused("SimCLR T3", 0.10)),
    Target("jigsaw: flip, tiles, normalise, 9 x 256 tiles of 64", "<= 0.1 ms", "-", _fused("jigsaw", 0.1)),
    Target(
        "rotation: all 8 of 256 images", "<= 0.5 ms", "writing alone 0.145 ms",
        _fused("rotation, all 8", 0.5),
    ),
    Target(
        "ResNet-50 end to end, 224, fp16, batch 256", ">= 7,400 images/s", "eager 5,800, compiled 6,700",
        _step({"E": 7400}),
    ),
    Target(
        "PSL's stages S1 / S2 / S3, 224, fp16, batch 256", ">= 11,900 / 9,000 / 9,300 images/s",
        "eager 8,400 / 7,000 / 7,900; compiled 9,900 / 5,000 / -",
        _step({"S1": 11_900, "S2": 9_000, "S3": 9_300}),
    ),
    Target("an epoch of PSL over one end to end, same mode", "<= 0.75", "-", _epoch_cost),
    Target(
        "NIN of four blocks on 32 px, SSL++'s rotation, 128 images of 4 inputs, with augmentation and scaler",
        ">= 68,000 inputs/s", "bare step: eager 68,000, compiled 70,000", _small_step,
    ),
    Target(
        "detection's step, ResNet-50 C4, over torchvision's FasterRCNN of the same parts", ">= 1.1x", "-",
        _detection_step,
    ),
    Target("every CUDA test, recipe, resume, two ranks", "all green", "-", _all_green),
)  # fmt: skip


def targets_table(results: Results) -> str:
    """Return a Markdown table of each target: first tries, measured figures and their files."""
    lines = ["| what | to reach | first tries | measured |", "|---|---|---|---|"]
    for target in TARGETS:
        figures = list(target.find(results))
        cells = [
            f"{'reached' if each.is_reached else '**missed**'}: {each.text} ({each.file})" for each in figures
        ]
        measured = "; ".join(cells) or (NOT_MEASURED if results else NO_GPU)
        lines.append(f"| {target.what} | {target.to_reach} | {target.known} | {measured} |")
    return "\n".join(lines)
