"""The targets on one NVIDIA H200 with 16 cores, and where committed results meet or miss them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.program import counted
from bench.schema import Results
from bench.show import launch
from fastpsl.pipelines.decoders.choose import NAMES

NO_GPU, NOT_MEASURED = "not measured: no GPU was at hand", "not measured"
FIRST_TRY, PROTOTYPE = "first tries, 2026-11-20", "prototype, 2026-11-26"
# Results from before `environment` had a date are of this day.
UNDATED = "2026-11-26"
# Steps of a part that check values, beside its tests.
CHECKS = ("recipe", "resume", "same-losses", "two-ranks")


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
        reach: The target, as text.
        known: What was shown on the same kind of machine with no results file: first tries and prototypes of
            our own, and others' figures, each with its day.
        find: Callable that yields the figures of the results, which are of a GPU only.
    """

    what: str
    reach: str
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
                    text = f"{stage} {row['samples_per_s']:,.0f} {row['mode']}, {launch(row)}"
                    yield at_least(row["samples_per_s"], goal, text, name)

    return find


def _epoch_cost(results: Results) -> Iterator[Found]:
    """Yield each recipe's cost, in the mode of its fastest end-to-end step, with folded blocks if cheaper."""
    ends = dict[tuple[str, str], tuple[float, tuple[str, str]]]()
    for name, row in rows_of(results, "step", "rows", stage="E", backbone="resnet50"):
        figure = row["samples_per_s"], (row["mode"], launch(row))
        ends[name, row["recipe"]] = max(ends.get((name, row["recipe"]), figure), figure)
    costs = dict[tuple[str, str], dict[str, Any]]()
    for name, row in rows_of(
        results, "step", "ratios", what="PSL's cost per epoch / end to end's", backbone="resnet50"
    ):
        key, mode = (name, row["recipe"]), row["mode"].partition("+")[0]
        if key in ends and ends[key][1] == (mode, launch(row)):
            costs[key] = min(costs.get(key, row), row, key=lambda each: each["median"])
    for (name, recipe), row in costs.items():
        text = f"{row['median']:.2f} ({recipe}, {row['mode']}, {launch(row)})"
        yield at_most(row["median"], 0.73, text, name)


def _trained(
    recipe: str, goals: Mapping[str, float], of_step: float | None = None
) -> Callable[[Results], Iterator[Found]]:
    """Search for training from JPEGs by the fastest decoder; `of_step`: the least share of the step alone."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for stage, goal in goals.items():
                labels = {"recipe": recipe, "stage": stage}
                rows = rows_of({name: result}, "throughput", "rows", measured="both", **labels)
                for _, row in best(pair for pair in rows if pair[1]["decoder"] in JPEG_DECODERS):
                    text = f"{stage} {row['median']:,.0f} {row['decoder']}, {launch(row)}"
                    yield at_least(row["median"], goal, text, name)
                    labels["decoder"] = row["decoder"]
                    what = "both / step"
                    for _, ratio in rows_of({name: result}, "throughput", "ratios", what=what, **labels):
                        if of_step is not None:
                            yield at_least(
                                ratio["median"], of_step, f"{ratio['median']:.3f} of the step", name
                            )

    return find


def _over_lightly(results: Results) -> Iterator[Found]:
    for stage, goal in (("E", 3.0), ("S1", 4.5)):
        for name, row in rows_of(results, "training", "ratios", peer="lightly", recipe="simclr", stage=stage):
            yield at_least(row["median"], goal, f"{stage} {row['median']:.1f}x", name)


def _small_trained(results: Results) -> Iterator[Found]:
    for recipe in ("uic_cifar10", "sslpp_rotation"):
        labels = {"recipe": recipe, "decoder": "resident"}
        for name, row in rows_of(results, "small", "ratios", what="both / step", **labels):
            steps = rows_of({name: results[name]}, "small", "rows", measured="step", recipe=recipe)
            how = ", ".join(launch(step) for _, step in steps)
            yield at_least(row["median"], 0.97, f"{row['median']:.3f} ({recipe}, {how})", name)


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
        yield at_least(inputs, 68_000, f"{inputs:,.0f} {row['step']}, {launch(row)}", name)


def _detection_step(results: Results) -> Iterator[Found]:
    what = "torchvision's ms / ours"
    for name, row in rows_of(results, "detection", "ratios", what=what, backbone="resnet50"):
        yield at_least(row["median"], 1.1, f"{row['median']:.2f}x", name)


def _all_green(results: Results) -> Iterator[Found]:
    """Yield for each part of bench/gpu_day/ the steps that check values, not speed."""
    for name, result in results.items():
        if result["bench"] != "gpu_day":
            continue
        is_ok_by_step = {row["measured"]: row["exit"] == 0 for row in result["rows"]}
        is_ok_by_step |= {missing["what"]: False for missing in result["not_measured"]}
        checks = {
            step: is_ok for step, is_ok in is_ok_by_step.items() if step in CHECKS or step.startswith("tests")
        }
        if checks:
            failed = [step for step, is_ok in checks.items() if not is_ok]
            older = "" if "cut" in result["settings"] else " of the older parts"
            num_ok = f"{len(checks) - len(failed)} of {len(checks)} checks"
            text = f"part {result['settings']['part']}{older}: {num_ok}"
            yield Found(text + (f", not {', '.join(failed)}" if failed else ""), not failed, name)


TARGETS = (
    Target(
        "ResNet-50's rotation step, E / S1 / S2 / S3, 224 px, fp16, batch 256",
        ">= 8,400 / 12,300 / 10,100 / 12,100 images/s",
        f"{PROTOTYPE}: 7,834 / 11,202 / 9,816 / 11,758, captured",
        _step({"E": 8_400, "S1": 12_300, "S2": 10_100, "S3": 12_100}),
    ),
    Target(
        "an epoch of PSL over one end to end, both in the mode that is the fastest end to end", "<= 0.73",
        f"{PROTOTYPE}: 0.72, captured", _epoch_cost,
    ),
    Target(
        "jigsaw S1, trained from 500-px JPEGs", ">= 14,000 images/s, >= 0.98 of the step alone",
        f"{PROTOTYPE}: 14,059, captured", _trained("jigsaw", {"S1": 14_000}, 0.98),
    ),
    Target(
        "SimCLR E / S1 / S3, trained from 500-px JPEGs", ">= 4,200 / 6,100 / 6,300 images/s",
        f"{PROTOTYPE}: 3,994 / 5,734 / 5,973, captured",
        _trained("simclr", {"E": 4_200, "S1": 6_100, "S3": 6_300}),
    ),
    Target(
        "SimCLR E / S1, trained from JPEGs, over lightly's", ">= 3x / 4.5x",
        f"{PROTOTYPE}: lightly 1,350 images/s", _over_lightly,
    ),
    Target(
        "UIC on CIFAR-10 and SSL++'s rotation, trained on images that stay on the GPU, over the step alone",
        ">= 0.97", f"{PROTOTYPE}, captured steps: UIC 64,114 images/s, rotation 74,608 inputs/s",
        _small_trained,
    ),
    Target(
        "SimCLR's T3 after the crop, 256 views", "<= 0.17 ms, >= 100x Kornia",
        f"{PROTOTYPE}: 0.221 ms; {FIRST_TRY}: Kornia 17.3 ms, untuned pieces 0.25 ms",
        _fused("SimCLR T3", 0.17, 100.0),
    ),
    Target(
        "the same, next", "<= 0.10 ms", f"{FIRST_TRY}: bytes alone 0.027 ms", _fused("SimCLR T3", 0.10)
    ),
    Target("jigsaw: flip, tiles, normalise, 9 x 256 tiles of 64", "<= 0.1 ms", "-", _fused("jigsaw", 0.1)),
    Target(
        "rotation: all 8 of 256 images", "<= 0.5 ms", f"{FIRST_TRY}: writing alone 0.145 ms",
        _fused("rotation, all 8", 0.5),
    ),
    Target(
        "training from JPEGs over the slower of its loader and its step alone, "
        "each recipe's stage that waits the most",
        ">= 0.98", "-", _headline("throughput", 0.98, *JPEG_DECODERS),
    ),
    Target(
        "NIN of four blocks on 32 px, SSL++'s rotation, 128 images of 4 inputs, with augmentation and scaler",
        ">= 68,000 inputs/s",
        f"{PROTOTYPE}: 74,608, captured; {FIRST_TRY}: bare step eager 68,000, compiled 70,000", _small_step,
    ),
    Target(
        "decode + crop 224 of 500-px JPEGs, one view / two", ">= 30,600 samples/s / >= 55,000 views/s",
        f"{FIRST_TRY}: 31,200 / 57,000", _decode_rates,
    ),
    Target(
        "the same, one view / two, over ffcv's Loader", ">= 4x / 8x", f"{FIRST_TRY}: 5x / 9x",
        _decode_against_ffcv,
    ),
    Target(
        "the same, over DALI's `mixed` with its own random_resized_crop", ">= 0.95x", f"{FIRST_TRY}: 1.02x",
        _decode_against_dali,
    ),
    Target(
        "cores that `dali` takes at the rates of training", "<= 4 of 16",
        f"{FIRST_TRY}: DALI alone with 4 threads 30,200 images/s", _loader_cores,
    ),
    Target(
        "detection's step, ResNet-50 C4, over torchvision's FasterRCNN of the same parts", ">= 1.1x", "-",
        _detection_step,
    ),
    Target("every CUDA test, recipe, resume, two ranks", "all green", "-", _all_green),
)  # fmt: skip


def targets_table(results: Results) -> str:
    """Return a Markdown table of targets: what tries have shown, and measured figures with files and days."""
    lines = ["| what | reach | shown by tries | measured |", "|---|---|---|---|"]
    for target in TARGETS:
        figures = list(target.find(results))
        cells = [
            f"{'reached' if each.is_reached else '**missed**'}: {each.text} ({each.file}, "
            f"{results[each.file]['environment'].get('date', UNDATED)})"
            for each in figures
        ]
        measured = "; ".join(cells) or (NOT_MEASURED if results else NO_GPU)
        lines.append(f"| {target.what} | {target.reach} | {target.known} | {measured} |")
    return "\n".join(lines)
