"""The targets on one NVIDIA H200 with 16 cores, and where committed results meet or miss them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bench.program import counted
from bench.schema import Results
from bench.tables import JPEG_DECODERS, best, headline, launch, of_bench, rows_of, table

NO_GPU, NOT_MEASURED = "not measured: no GPU was at hand", "not measured"
FIRST_TRY, PROTOTYPE = "first tries, 2026-11-20", "prototype, 2026-11-26"
# Results from before `environment` had a date are of this day.
UNDATED = "2026-11-26"
# Steps of a part that check values, beside its tests.
CHECKS = ("recipe", "resume", "same-losses", "two-ranks")


class Found(NamedTuple):
    """A figure of a result, as text, and whether it meets its target."""

    text: str
    is_reached: bool
    file: str


Find = Callable[[Results], Iterator[Found]]


class Target(NamedTuple):
    """A target, and the search for its figures.

    Attributes:
        what: What is measured.
        reach: The target, as text.
        known: What was shown on the same kind of machine with no results file: first tries and prototypes of
            our own, and others' figures, each with its day.
        find: Callables that yield the figures of the results, which are of a GPU only.
    """

    what: str
    reach: str
    known: str
    find: tuple[Find, ...]


def figure(
    bench: str,
    part: str,
    text: str,
    *,
    least: float = 0.0,
    most: float = float("inf"),
    value: Callable[[Mapping[str, Any]], float] = lambda row: float(row["median"]),
    is_best: bool = False,
    **labels: Any,
) -> Find:
    """Return a search for rows.

    Args:
        bench: Name of the bench.
        part: "rows" or "ratios".
        text: Format of a figure, with `value`, the row's keys and `launch`.
        least: The target, if more is better.
        most: The target, if less is better.
        value: Callable that returns a row's figure.
        is_best: Whether the highest row of all files counts, instead of each.
        **labels: Key → value that a row must have.
    """

    def find(results: Results) -> Iterator[Found]:
        rows = rows_of(results, bench, part, **labels)
        for name, row in best(rows) if is_best else rows:
            found = value(row)
            words = text.format(**{**row, "value": found, "launch": launch(row)})
            yield Found(words, least <= found <= most, name)

    return find


def _step(goals: Mapping[str, float]) -> Find:
    """Search by the fastest mode of rotation's step, in which views and head cost next to nothing."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for stage, goal in goals.items():
                labels = {"recipe": "rotation", "backbone": "resnet50", "stage": stage}
                rows = rows_of({name: result}, "step", "rows", **labels)
                for _, row in best(rows, "samples_per_s"):
                    text = f"{stage} {row['samples_per_s']:,.0f} {row['mode']}, {launch(row)}"
                    yield Found(text, row["samples_per_s"] >= goal, name)

    return find


def _epoch_cost(results: Results) -> Iterator[Found]:
    """Yield each recipe's cost, in the mode of its fastest end-to-end step, with folded blocks if cheaper."""
    ends = dict[tuple[str, str], tuple[float, tuple[str, str]]]()
    for name, row in rows_of(results, "step", "rows", stage="E", backbone="resnet50"):
        speed = row["samples_per_s"], (row["mode"], launch(row))
        ends[name, row["recipe"]] = max(ends.get((name, row["recipe"]), speed), speed)
    costs = dict[tuple[str, str], dict[str, Any]]()
    what = "PSL's cost per epoch / end to end's"
    for name, row in rows_of(results, "step", "ratios", what=what, backbone="resnet50"):
        key, mode = (name, row["recipe"]), row["mode"].partition("+")[0]
        if key in ends and ends[key][1] == (mode, launch(row)):
            costs[key] = min(costs.get(key, row), row, key=lambda each: each["median"])
    for (name, recipe), row in costs.items():
        text = f"{row['median']:.2f} ({recipe}, {row['mode']}, {launch(row)})"
        yield Found(text, row["median"] <= 0.73, name)


def _trained(recipe: str, goals: Mapping[str, float], of_step: float | None = None) -> Find:
    """Search for training from JPEGs by the fastest decoder; `of_step`: the least share of the step alone."""

    def find(results: Results) -> Iterator[Found]:
        for name, result in results.items():
            for stage, goal in goals.items():
                one, labels = {name: result}, {"recipe": recipe, "stage": stage}
                rows = rows_of(one, "throughput", "rows", measured="both", **labels)
                for _, row in best(pair for pair in rows if pair[1]["decoder"] in JPEG_DECODERS):
                    text = f"{stage} {row['median']:,.0f} {row['decoder']}, {launch(row)}"
                    yield Found(text, row["median"] >= goal, name)
                    labels["decoder"] = row["decoder"]
                    ratios = rows_of(one, "throughput", "ratios", what="both / step", **labels)
                    for _, ratio in ratios if of_step is not None else ():
                        yield Found(f"{ratio['median']:.3f} of the step", ratio["median"] >= of_step, name)

    return find


def _waiting(results: Results) -> Iterator[Found]:
    for name, result in of_bench(results, "throughput"):
        for median, place in headline(result).values():
            yield Found(f"{median:.3f} ({place})", median >= 0.98, name)


def _small_trained(results: Results) -> Iterator[Found]:
    for recipe in ("uic_cifar10", "sslpp_rotation"):
        labels = {"recipe": recipe, "decoder": "resident"}
        for name, row in rows_of(results, "small", "ratios", what="both / step", **labels):
            steps = rows_of({name: results[name]}, "small", "rows", measured="step", recipe=recipe)
            how = ", ".join(launch(step) for _, step in steps)
            yield Found(f"{row['median']:.3f} ({recipe}, {how})", row["median"] >= 0.97, name)


def _loader_cores(results: Results) -> Iterator[Found]:
    """Yield for each file the stage with the most expensive loader."""
    for name, result in results.items():
        rows = rows_of({name: result}, "throughput", "rows", measured="both", decoder="dali")
        for _, row in best((pair for pair in rows if "cores_beyond_step" in pair[1]), "cores_beyond_step"):
            text = f"{row['cores_beyond_step']:.1f} ({row.get('recipe')} {row['stage']})"
            yield Found(text, row["cores_beyond_step"] <= 4.0, name)


def _all_green(results: Results) -> Iterator[Found]:
    """Yield for each part of bench/gpu_day/ the steps that check values, not speed."""
    for name, result in of_bench(results, "gpu_day"):
        is_ok_by_step = {row["measured"]: row["exit"] == 0 for row in result["rows"]}
        is_ok_by_step |= {missing["what"]: False for missing in result["not_measured"]}
        checks = {
            step: ok for step, ok in is_ok_by_step.items() if step in CHECKS or step.startswith("tests")
        }
        if checks:
            failed = [step for step, is_ok in checks.items() if not is_ok]
            older = "" if "cut" in result["settings"] else " of the older parts"
            num_ok = f"{len(checks) - len(failed)} of {len(checks)} checks"
            text = f"part {result['settings']['part']}{older}: {num_ok}"
            yield Found(text + (f", not {', '.join(failed)}" if failed else ""), not failed, name)


def _by_views(part: str, text: str, *goals: float, **labels: Any) -> tuple[Find, ...]:
    """Return searches in results of decoding, for one view and two."""
    finds = []
    for num, goal in enumerate(goals, 1):
        words = text.replace("VIEWS", counted(num, "view"))
        finds.append(
            figure("decode", part, words, least=goal, is_best=True, decoder="dali", num_views=num, **labels)
        )
    return tuple(finds)


def _fused(chain: str, most: float) -> Find:
    return figure("kernels", "rows", "{value:.3f} ms", most=most, chain=chain, path="fused")


_VIEWS: dict[str, Any] = {"decoder": "dali", "is_best": True}
_LIGHTLY: dict[str, Any] = {"peer": "lightly", "recipe": "simclr"}
TARGETS = (
    Target(
        "ResNet-50's rotation step, E / S1 / S2 / S3, 224 px, fp16, batch 256",
        ">= 8,400 / 12,300 / 10,100 / 12,100 images/s",
        f"{PROTOTYPE}: 7,834 / 11,202 / 9,816 / 11,758, captured",
        (_step({"E": 8_400, "S1": 12_300, "S2": 10_100, "S3": 12_100}),),
    ),
    Target(
        "an epoch of PSL over one end to end, both in the mode that is the fastest end to end", "<= 0.73",
        f"{PROTOTYPE}: 0.72, captured", (_epoch_cost,),
    ),
    Target(
        "jigsaw S1, trained from 500-px JPEGs", ">= 14,000 images/s, >= 0.98 of the step alone",
        f"{PROTOTYPE}: 14,059, captured", (_trained("jigsaw", {"S1": 14_000}, 0.98),),
    ),
    Target(
        "SimCLR E / S1 / S3, trained from 500-px JPEGs", ">= 4,200 / 6,100 / 6,300 images/s",
        f"{PROTOTYPE}: 3,994 / 5,734 / 5,973, captured",
        (_trained("simclr", {"E": 4_200, "S1": 6_100, "S3": 6_300}),),
    ),
    Target(
        "SimCLR E / S1, trained from JPEGs, over lightly's", ">= 3x / 4.5x",
        f"{PROTOTYPE}: lightly 1,350 images/s",
        (
            figure("training", "ratios", "E {value:.1f}x", least=3.0, stage="E", **_LIGHTLY),
            figure("training", "ratios", "S1 {value:.1f}x", least=4.5, stage="S1", **_LIGHTLY),
        ),
    ),
    Target(
        "UIC on CIFAR-10 and SSL++'s rotation, trained on images that stay on the GPU, over the step alone",
        ">= 0.97", f"{PROTOTYPE}, captured steps: UIC 64,114 images/s, rotation 74,608 inputs/s",
        (_small_trained,),
    ),
    Target(
        "SimCLR's T3 after the crop, 256 views", "<= 0.17 ms, >= 100x Kornia",
        f"{PROTOTYPE}: 0.221 ms; {FIRST_TRY}: Kornia 17.3 ms, untuned pieces 0.25 ms",
        (
            _fused("SimCLR T3", 0.17),
            figure(
                "kernels", "ratios", "{value:.0f}x Kornia's modules", least=100.0, chain="SimCLR T3",
                what="kornia_modules / fused",
            ),
        ),
    ),
    Target(
        "the same, next", "<= 0.10 ms", f"{FIRST_TRY}: bytes alone 0.027 ms", (_fused("SimCLR T3", 0.10),)
    ),
    Target("jigsaw: flip, tiles, normalise, 9 x 256 tiles of 64", "<= 0.1 ms", "-", (_fused("jigsaw", 0.1),)),
    Target(
        "rotation: all 8 of 256 images", "<= 0.5 ms", f"{FIRST_TRY}: writing alone 0.145 ms",
        (_fused("rotation, all 8", 0.5),),
    ),
    Target(
        "training from JPEGs over the slower of its loader and its step alone, "
        "each recipe's stage that waits the most",
        ">= 0.98", "-", (_waiting,),
    ),
    Target(
        "NIN of four blocks on 32 px, SSL++'s rotation, 128 images of 4 inputs, with augmentation and scaler",
        ">= 68,000 inputs/s",
        f"{PROTOTYPE}: 74,608, captured; {FIRST_TRY}: bare step eager 68,000, compiled 70,000",
        (
            figure(
                "small", "rows", "{value:,.0f} {step}, {launch}", least=68_000, measured="step",
                recipe="sslpp_rotation", value=lambda row: row["median"] * row["inputs_per_image"],
            ),
        ),
    ),
    Target(
        "decode + crop 224 of 500-px JPEGs, one view / two", ">= 30,600 samples/s / >= 55,000 views/s",
        f"{FIRST_TRY}: 31,200 / 57,000",
        (
            figure("decode", "rows", "{value:,.0f} samples/s", least=30_600, num_views=1, **_VIEWS),
            figure(
                "decode", "rows", "{value:,.0f} views/s", least=55_000, num_views=2,
                value=lambda row: 2 * row["median"], **_VIEWS,
            ),
        ),
    ),
    Target(
        "the same, one view / two, over ffcv's Loader", ">= 4x / 8x", f"{FIRST_TRY}: 5x / 9x",
        _by_views("ratios", "VIEWS {value:.1f}x", 4.0, 8.0, what="samples/s / ffcv Loader"),
    ),
    Target(
        "the same, over DALI's `mixed` with its own random_resized_crop", ">= 0.95x", f"{FIRST_TRY}: 1.02x",
        _by_views("ratios", "VIEWS {value:.2f}x", 0.95, 0.95, what="samples/s / DALI's reader, whole images"),
    ),
    Target(
        "cores that `dali` takes at the rates of training", "<= 4 of 16",
        f"{FIRST_TRY}: DALI alone with 4 threads 30,200 images/s", (_loader_cores,),
    ),
    Target(
        "detection's step, ResNet-50 C4, over torchvision's FasterRCNN of the same parts", ">= 1.1x", "-",
        (
            figure(
                "detection", "ratios", "{value:.2f}x", least=1.1, what="torchvision's ms / ours",
                backbone="resnet50",
            ),
        ),
    ),
    Target("every CUDA test, recipe, resume, two ranks", "all green", "-", (_all_green,)),
)  # fmt: skip


def targets_table(results: Results) -> str:
    """Return a Markdown table of targets: what tries have shown, and measured figures with files and days."""
    lines = []
    for target in TARGETS:
        cells = [
            f"{'reached' if each.is_reached else '**missed**'}: {each.text} ({each.file}, "
            f"{results[each.file]['environment'].get('date', UNDATED)})"
            for find in target.find
            for each in find(results)
        ]
        measured = "; ".join(cells) or (NOT_MEASURED if results else NO_GPU)
        lines.append([target.what, target.reach, target.known, measured])
    return table(("what", "reach", "shown by tries", "measured"), lines)
