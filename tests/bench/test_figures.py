"""README's figures are what is committed makes them, say what it says, and can be read."""

import base64
import functools
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont

from bench.figures.__main__ import FIGURES, chart_parts, figure_lines, figure_path
from bench.figures.psl_stages import BATCH_SIZE, IMAGE
from bench.figures.ratios import CHAINS, OTHERS, augmentations_words, newest, of_all_chains
from bench.figures.svg import THEMES, WIDTH_PX, render
from bench.figures.throughput import throughput_words
from bench.pages import written
from bench.performance import RESULTS, ROOT, read_results
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.permutations import permutation_set
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.sample.betons import sample_paths
from fastpsl.tasks.jigsaw import Jigsaw

MAX_BYTES = 150_000
MIN_CONTRAST = 4.5  # WCAG 2.2, 1.4.3
COUNTS = (500, 1000, 2000)  # PSL's Table 1
# The paper's Figure 2: S1 trains B1 to B3, S2 trains B2 to B4, S3 trains B3 to B5.
LEARNS, FROZEN, NOT_RUN = "learns", "frozen", "not run"
STATES = {
    "S1": [LEARNS, LEARNS, LEARNS, NOT_RUN, NOT_RUN],
    "S2": [FROZEN, LEARNS, LEARNS, LEARNS, NOT_RUN],
    "S3": [FROZEN, FROZEN, LEARNS, LEARNS, LEARNS],
}
# Name in the figure → whose rates these are in a result; ours is the fastest of several decoders.
NAMES = {
    "fastpsl": ("turbo", "ffcv", "dali", "torchvision"),
    "FFCV": ("ffcv_loader",),
    "DALI": ("dali_reader",),
    "WebDataset": ("webdataset",),
    "PyTorch DataLoader": ("dataloader",),
    "SPDL": ("spdl_cv2", "spdl_ffmpeg"),
}
SVG = "{http://www.w3.org/2000/svg}"
DATA_URI = re.compile(r"data:image/png;base64,([^\"]+)")
EACH = [(name, theme) for name in FIGURES for theme in THEMES]


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: "Area") -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )

    def meets(self, other: "Area") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


class Text(NamedTuple):
    words: str
    area: Area
    anchor: Area
    fill: str


@functools.cache
def words_of(name: str) -> dict[str, Any]:
    return FIGURES[name]()


def committed(name: str, theme: str = "light") -> ElementTree.Element:
    return ElementTree.fromstring(figure_path(name, theme).read_text())


def number(element: ElementTree.Element, key: str) -> float:
    return float(element.attrib[key])


def texts(root: ElementTree.Element) -> Iterator[Text]:
    """Yield the texts, measured in DejaVu Sans, which is wider than the fonts of the figure."""
    for element in root.iter(f"{SVG}text"):
        weight = "bold" if number(element, "font-weight") > 400 else "normal"
        size, x, y = (number(element, key) for key in ("font-size", "x", "y"))
        font = ImageFont.truetype(findfont(f"DejaVu Sans:{weight}"), size)
        words = element.text or ""
        wide = font.getlength(words)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[element.attrib["text-anchor"]]
        area = Area(left, y - 0.76 * size, left + wide, y + 0.24 * size)
        yield Text(words, area, Area(x, y, x, y), element.attrib["fill"])


def boxes(root: ElementTree.Element) -> list[tuple[Area, str]]:
    """Return the rectangles and their fills, the page first."""
    found = []
    for element in root.iter(f"{SVG}rect"):
        if element.get("width") == "100%":
            area = Area(0, 0, number(root, "width"), number(root, "height"))
        else:
            x, y, wide, tall = (number(element, key) for key in ("x", "y", "width", "height"))
            area = Area(x, y, x + wide, y + tall)
        found.append((area, element.attrib["fill"]))
    return found


def luminance(colour: str) -> float:
    """Return the relative luminance of "#rrggbb" by WCAG's definition."""
    parts = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def check_layout(root: ElementTree.Element) -> None:
    """Assert that each text is inside or outside each box, meets no other text, and has enough contrast."""
    all_texts, all_boxes = [*texts(root)], boxes(root)
    assert all_texts
    for text in all_texts:
        around = [(area, fill) for area, fill in all_boxes if area.holds(text.anchor)]
        for area, _ in all_boxes:
            assert area.holds(text.area) or not area.holds(text.anchor) and not area.meets(text.area), text
        assert contrast(text.fill, around[-1][1]) >= MIN_CONTRAST, text
    for one, other in combinations(all_texts, 2):
        assert not one.area.meets(other.area), (one, other)


def pixels(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(DATA_URI.fullmatch(uri)[1])))  # type: ignore[index]
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("name, theme", EACH)
def test_the_committed_figure_is_what_is_drawn(name: str, theme: str) -> None:
    """PNGs are compared as pixels: their bytes depend on zlib, and their pixels a little on the decoder."""
    old, new = figure_path(name, theme).read_text(), render(name, theme, words_of(name))
    assert DATA_URI.sub("", old) == DATA_URI.sub("", new), "run python -m bench.figures"
    pairs = zip(DATA_URI.finditer(old), DATA_URI.finditer(new), strict=True)
    for before, after in pairs:
        assert np.abs(pixels(before[0]) - pixels(after[0])).mean() < 3, "run python -m bench.figures"


@pytest.mark.parametrize("name, theme", EACH)
def test_a_figure_can_be_read(name: str, theme: str) -> None:
    path, root = figure_path(name, theme), committed(name, theme)
    assert path.stat().st_size <= MAX_BYTES
    assert number(root, "width") == WIDTH_PX and root.attrib["viewBox"].split()[2] == str(WIDTH_PX)
    parts = [root.find(f"{SVG}{tag}") for tag in ("title", "desc")]
    assert root.attrib["role"] == "img" and all(part is not None and part.text for part in parts)
    assert root.attrib["aria-labelledby"].split() == [part.attrib["id"] for part in parts if part is not None]
    assert boxes(root)[0][1] == {"light": "#ffffff", "dark": "#0d1117"}[theme]
    check_layout(root)


def test_faults_of_a_layout_are_found() -> None:
    page = '<rect width="100%" height="100%" fill="#ffffff"/>'
    page += '<rect x="0" y="0" width="50" height="40" fill="#000000"/>'
    text = '<text x="{}" y="20" font-size="20" font-weight="400" text-anchor="start" fill="{}">{}</text>'
    for parts, is_right in (
        ([text.format(60, "#000000", "a"), text.format(5, "#ffffff", "b")], True),
        ([text.format(5, "#ffffff", "too wide a text")], False),  # leaves its box
        ([text.format(180, "#000000", "beyond")], False),  # leaves the page
        ([text.format(-5, "#000000", "a long word")], False),  # begins before a box, ends in it
        ([text.format(60, "#999999", "a")], False),  # too pale
        ([text.format(60, "#000000", "ab"), text.format(70, "#000000", "c")], False),  # one on the other
    ):
        body = page + "".join(parts)
        root = ElementTree.fromstring(f'<svg xmlns="{SVG[1:-1]}" width="200" height="40">{body}</svg>')
        if is_right:
            check_layout(root)
        else:
            with pytest.raises(AssertionError):
                check_layout(root)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # WCAG's well-known grey


def bars(root: ElementTree.Element) -> list[tuple[str, int, float, str]]:
    """Return each bar's name on its left, column from 0, length and value on its right."""
    found = [element for element in root.iter(f"{SVG}rect") if element.get("class") == "bar"]
    lefts = sorted({number(bar, "x") for bar in found})
    rows = []
    for bar in found:
        x, y, wide = (number(bar, key) for key in ("x", "y", "width"))
        beside = [text for text in texts(root) if y < text.anchor.top < y + number(bar, "height")]
        name = min(beside, key=lambda text: text.area.left).words
        value = min((text for text in beside if text.area.left > x + wide), key=lambda text: text.area.left)
        rows.append((name, lefts.index(x), wide, value.words))
    return rows


def medians(result: dict[str, Any], num_views: int) -> dict[str, float]:
    return {
        row["decoder"]: row["median"]
        for row in result["rows"]
        if row.get("stage") is None and row.get("size", "500") == "500"
        if row["num_views"] == num_views and row["measured"] in ("loader", "peer")
    }


@pytest.mark.parametrize("theme", THEMES)
def test_bars_are_the_results(theme: str) -> None:
    root = committed("throughput", theme)
    shown = [text.words for text in texts(root)]
    file = re.search(r"bench/results/(\S+\.json)", shown[-1])
    assert file
    result = json.loads((RESULTS / file[1]).read_text())
    gpu, num_cores = result["environment"]["gpu"], result["environment"]["num_cores"]
    assert shown[0] == f"Images per second on {gpu or f'{num_cores} CPU cores'}"
    assert not gpu or f"{num_cores} CPU cores" in shown[1]
    found = bars(root)
    lengths, values = [], []
    for name, column, length, value in found:
        rates = medians(result, column + 1)
        values.append(max(rates[decoder] for decoder in NAMES[name] if decoder in rates))
        lengths.append(length)
        assert value == f"{values[-1]:,.0f}"
    np.testing.assert_allclose(np.array(lengths) / max(lengths), np.array(values) / max(values), atol=2e-3)
    assert found[0][0] == "fastpsl" and len({(name, column) for name, column, *_ in found}) == len(found)
    measured = {row["decoder"] for row in result["rows"] if row["measured"] == "peer"}
    assert {name for name, *_ in found} == {"fastpsl"} | {name for name in NAMES if measured & {*NAMES[name]}}


@pytest.mark.parametrize("theme", THEMES)
def test_bars_of_sizes_are_the_results_and_begin_at_no_speed(theme: str) -> None:
    result = json.loads((RESULTS / "sizes.json").read_text())
    lowest: dict[tuple[str, int], tuple[float, str]] = {}
    for ratio in result["ratios"]:
        if ratio["what"] == "samples/s / the peer's":
            size = "original sizes" if ratio["size"] == "originals" else f"{ratio['size']} px"
            name = next(name for name, kinds in NAMES.items() if ratio["form"] in kinds)
            cell = (size, ratio["num_views"] - 1)
            lowest[cell] = min(lowest.get(cell, (9e9, "")), (ratio["median"], name))
    found = bars(committed("sizes", theme))
    assert {(name, column): words for name, column, _, words in found} == {
        cell: f"{ratio:.2f}× {name}" for cell, (ratio, name) in lowest.items()
    }
    lengths = [length / lowest[name, column][0] for name, column, length, _ in found]
    np.testing.assert_allclose(lengths, lengths[0], rtol=2e-3)


@pytest.mark.parametrize("theme", THEMES)
def test_bars_of_augmentations_are_wins_to_the_right_and_losses_to_the_left(theme: str) -> None:
    root, (_, result) = (
        committed("augmentations", theme),
        newest(of_all_chains(read_results(RESULTS)), "kernels"),
    )
    values = {
        (row["chain"], row["path"]): np.array(row["values"])
        for row in result["rows"]
        if row["measured"] == "kernel"
    }
    lines = sorted(
        float(re.match(r"M([\d.]+)", path.attrib["d"])[1])  # type: ignore[index]
        for path in root.iter(f"{SVG}path")
    )
    found = [element for element in root.iter(f"{SVG}rect") if element.get("class") == "bar"]
    shown, names = [*texts(root)], {title: chain for chain, title in CHAINS.items()}
    seen = set()
    for bar in found:
        x, y, wide = (number(bar, key) for key in ("x", "y", "width"))
        is_loss = bar.attrib["fill"] == THEMES[theme]["loss"]
        column = min((0, 1), key=lambda place: abs(lines[place] - (x + wide if is_loss else x)))
        assert (x + wide if is_loss else x) == pytest.approx(lines[column], abs=0.15)
        beside = [text for text in shown if y < text.anchor.top < y + number(bar, "height")]
        chain = names[min(beside, key=lambda text: text.area.left).words]
        theirs = values[chain, ("kornia_modules", "torchvision_batch")[column]]
        ours = values.get((chain, "fused"), values[chain, "kornia"])
        words = min((t for t in beside if t.area.left > lines[column]), key=lambda text: text.area.left).words
        ratio = float(np.median(theirs / ours))
        assert words == (f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2f}×")
        assert is_loss == (ratio < 1)
        seen.add((chain, column))
    measured = {
        (chain, column)
        for column, path in enumerate(("kornia_modules", "torchvision_batch"))
        for chain in CHAINS
        if (chain, path) in values
    }
    assert seen == measured and len(OTHERS) == 2


def test_of_kernels_a_gpus_file_is_taken() -> None:
    results = read_results(RESULTS)
    gpu = results["kernels-cpu.json"] | {"environment": {"gpu": "NVIDIA H200", "num_cores": 16}}
    words = augmentations_words(results | {"kernels-a.json": gpu})
    assert words["title"].endswith("on NVIDIA H200") and words["source"].endswith("/kernels-a.json")
    with pytest.raises(ValueError, match=r"no file in bench/results/ is of bench/kernels\.py"):
        augmentations_words({})


def test_pages_of_docs_have_charts_with_their_descriptions() -> None:
    for page, text in written(ROOT, chart_parts()).items():
        assert page.read_text() == text, f"{page.name}: run python -m bench.figures"
        for path in re.findall(r"^!\[[^\]]+\]\((\S+)\)\{\.only-(?:light|dark)\}$", text, re.MULTILINE):
            assert (page.parent / path).exists()


def throughput(
    gpu: str | None, rates: Mapping[str, Sequence[float]], name: str = "photos.beton"
) -> dict[str, Any]:
    """Return a result with the rates of one view, two views, ... of decoders and peers."""
    return {
        "bench": "throughput",
        "environment": {"gpu": gpu, "num_cores": 16},
        "data": {"name": name, "max_height_px": 400, "max_width_px": 500},
        "settings": {"repeats": 5},
        "rows": [
            {
                "measured": "peer" if "_" in decoder or decoder == "dataloader" else "loader",
                "decoder": decoder, "stage": None, "num_views": num, "median": rate,
            }
            for decoder, values in rates.items()
            for num, rate in enumerate(values, start=1)
        ],
    }  # fmt: skip


CPU = throughput(None, {"ffcv": (900.0, 800.0), "ffcv_loader": (500.0, 300.0), "dataloader": (100.0, 90.0)})


def test_a_gpus_file_is_taken_as_soon_as_it_is_there() -> None:
    rates = {
        "dali": (123_456.7, 98_765.4), "ffcv": (9000.0, 8000.0), "synthetic": (9e6, 9e6),
        "ffcv_loader": (80_000.0, 40_000.0), "dali_reader": (120_000.0,),
    }  # fmt: skip
    gpu = "NVIDIA H100 80GB HBM3"
    found = throughput_words({"a.json": CPU, "b-gpu.json": throughput(gpu, rates)})
    assert found["title"] == f"Images per second on {gpu}" and "16 CPU cores" in found["about"]
    assert "b-gpu.json" in found["source"]
    assert found["rows"] == [
        ("fastpsl", [123_456.7, 98_765.4]), ("DALI", [120_000.0, None]), ("FFCV", [80_000.0, 40_000.0])
    ]  # fmt: skip
    assert found["longest"] == 123_456.7 and "fastpsl's decoder: dali." in found["source"]
    root = ElementTree.fromstring(render("throughput", "dark", found))
    check_layout(root)
    shown = [text.words for text in texts(root)]
    assert shown.count("not measured") == 1 and {"123,457", "98,765", "40,000"} <= {*shown}
    assert [column for _, column, *_ in bars(root)] == [0, 1, 0, 0, 1]


def test_of_sizes_the_images_of_500_px_are_shown_and_of_two_forms_the_faster_one() -> None:
    rates = {"turbo": (900.0, 700.0), "spdl_cv2": (500.0, 300.0), "spdl_ffmpeg": (400.0, 350.0)}
    sizes = throughput(None, rates) | {"bench": "sizes", "data": {"name": "drawn", "mean_bytes_500": 104_126}}
    rows = sizes["rows"]
    sizes["rows"] = [row | {"size": "500"} for row in rows]
    sizes["rows"] += [row | {"size": "64", "median": 9 * row["median"]} for row in rows]
    sizes["rows"] += [row | {"size": "500", "measured": "cpu", "median": 1e-3} for row in rows]
    found = throughput_words({"cpu": throughput(None, {"ffcv": (9.0,), "ffcv_loader": (5.0,)}), "s": sizes})
    assert found["rows"] == [("fastpsl", [900.0, 700.0]), ("SPDL", [500.0, 300.0])]
    assert "images of 500 px and 104 KB" in found["about"] and found["longest"] == 900


def test_of_files_of_one_kind_the_one_with_most_peers_then_the_fastest_is_taken() -> None:
    few = throughput(None, {"ffcv": (9999.0,), "ffcv_loader": (1.0,)})
    slow = throughput(None, {"ffcv": (10.0,), "ffcv_loader": (500.0,), "dataloader": (100.0,)})
    for results in ({"few": few, "cpu": CPU, "slow": slow}, {"slow": slow, "cpu": CPU, "few": few}):
        assert throughput_words(results)["source"].endswith("bench/results/cpu")
    # Where another is faster, the longest bar is another's.
    words = throughput_words({"slow": slow})
    assert (
        words["longest"] == 500.0
        and words["rows"][0] == ("fastpsl", [10.0])
        and words["crops"] == ["1 crop of each image"]
    )
    check_layout(ElementTree.fromstring(render("throughput", "light", words)))


def test_without_photos_ours_or_peers_there_is_no_figure() -> None:
    rates = {"ffcv": (9.0,), "ffcv_loader": (5.0,)}
    for wrong in (
        {},
        {"a": throughput(None, rates, "the embedded sample")},
        {"a": throughput(None, {"ffcv": (9.0,)})},
        {"a": throughput(None, {"synthetic": (9.0,), "ffcv_loader": (5.0,)})},
        {"a": throughput(None, rates) | {"bench": "loader"}},
    ):
        with pytest.raises(ValueError, match="no file in bench/results/ has our loader and a peer"):
            throughput_words(wrong)


@pytest.mark.parametrize("theme", THEMES)
def test_stages_are_the_papers(theme: str) -> None:
    root = committed("psl-stages", theme)
    for level, count in enumerate(COUNTS, start=1):
        group = root.find(f"{SVG}g[@id='S{level}']")
        assert group is not None
        name, about, *blocks = [text.words for text in texts(group)]
        assert (name, about) == (f"S{level}:", f"level G{level}, {count:,} permutations, 60 epochs")
        assert blocks[::2] == ["B1", "B2", "B3", "B4", "B5"] and blocks[1::2] == STATES[f"S{level}"]
        fills = [rect.attrib["fill"] for rect in group.iter(f"{SVG}rect")]
        of_state = dict(zip(STATES[f"S{level}"], fills, strict=True))
        assert len({*of_state.values()}) == len(of_state)  # told apart by colour and by words
        assert fills == [of_state[state] for state in STATES[f"S{level}"]]


def mosaic(tiles: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """Return the image [3 * side, 3 * side, 3] of nine tiles in this order."""
    rows = [np.concatenate([tiles[number] for number in order[i : i + 3]], 1) for i in (0, 3, 6)]
    return np.concatenate(rows, 0)


def test_puzzles_are_those_of_the_tasks_contact_sheet() -> None:
    root = committed("psl-stages")
    images = {image.attrib["id"]: pixels(image.attrib["href"]) for image in root.iter(f"{SVG}image")}
    tiles = np.stack([images[f"tile-{number}"] for number in range(9)])
    permutations = permutation_set(9, COUNTS).permutations
    task = Jigsaw(
        permutations,
        COUNTS,
        shorter_px=256,
        cell_px=75,
        tile_px=64,
        permutations_per_image=1,
        embedding_width=1000,
    )
    orders = []
    for level, count in enumerate(COUNTS, start=1):
        with (
            Beton(sample_paths().train) as data,
            Loader(data, task.views(level), batch_size_per_rank=BATCH_SIZE, decoder="pillow") as loader,
        ):
            batch = next(iter(loader.epoch(0)))
        place = batch.indices.tolist().index(IMAGE)
        sheet = task.contact_sheet(batch.inputs(task.views(level), torch.float32), batch)[place]
        # Each tile has a border of 1 px, and 4 px lie between the image and its puzzle.
        cells = (sheet[:, :, :198], sheet[:, :, 202:])
        whole, puzzle = (
            part.unflatten(1, (3, 66)).unflatten(3, (3, 66))[:, :, 1:-1, :, 1:-1].flatten(3, 4).flatten(1, 2)
            for part in cells
        )
        uses = root.findall(f"{SVG}g[@id='S{level}']/{SVG}use")
        order = [int(use.attrib["href"].removeprefix("#tile-")) for use in uses]
        assert order == permutations[batch.draw(JigsawTiles)["permutation"][place, 0]].tolist()
        assert order in permutations[:count].tolist()
        for part, of_part in ((whole, range(9)), (puzzle, order)):
            difference = np.abs(part.permute(1, 2, 0).numpy() * 255 - mosaic(tiles, of_part))
            assert difference.mean() < 3
        corners = [(number(use, "y"), number(use, "x")) for use in uses]
        assert (
            corners == sorted(corners) and len({y for y, _ in corners}) == len({x for _, x in corners}) == 3
        )
        orders.append(order)
    assert len({*map(tuple, orders)}) == 3


def test_the_data_path_names_what_a_draw_depends_on() -> None:
    words = " ".join(text.words for text in texts(committed("data-path")))
    assert "f(seed, epoch, image, view)" in words and "One decode for all views" in words
    steps = [
        words.index(step) for step in ("images", ".beton", "decode once", "augment on the GPU", "train stage")
    ]
    assert steps == sorted(steps)


@pytest.mark.parametrize("name", FIGURES)
def test_the_lines_for_readme_tell_what_is_drawn(name: str) -> None:
    """README has them, or none of this figure yet; it may have another address in front of the path."""
    lines = figure_lines(name)
    sources = re.findall(r'(?:src|srcset)="([^"]+)"', lines)
    assert [ROOT / source for source in sources] == [figure_path(name, theme) for theme in ("dark", "light")]
    alts = re.findall(rf'{name}-light\.svg"[^>]* alt="([^"]*)"', lines + (ROOT / "README.md").read_text())
    assert {*map(html.unescape, alts)} == {committed(name).findtext(f"{SVG}desc")}
