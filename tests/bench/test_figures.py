"""README's figures are what is committed makes them, and can be read."""

import base64
import functools
import html
import io
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont

from bench.figures.__main__ import FIGURES, figure_path
from bench.figures.results import training_words
from bench.figures.svg import THEMES, WIDTH_PX, render
from bench.performance import RESULTS, ROOT, read_results

MAX_BYTES, MIN_CONTRAST = 150_000, 4.5  # WCAG 2.2, 1.4.3
SVG = "{http://www.w3.org/2000/svg}"
DATA_URI = re.compile(r"data:image/png;base64,([^\"]+)")


class Area(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def holds(self, other: "Area") -> bool:
        return self.left <= other.left and self.top <= other.top and (
            self.right >= other.right and self.bottom >= other.bottom
        )  # fmt: skip

    def meets(self, other: "Area") -> bool:
        return self.left < other.right and other.left < self.right and (
            self.top < other.bottom and other.top < self.bottom
        )  # fmt: skip


class Text(NamedTuple):
    words: str
    area: Area
    anchor: Area
    fill: str


@functools.cache
def words_of(name: str) -> dict[str, Any]:
    return FIGURES[name]()


def number(element: ElementTree.Element, key: str) -> float:
    return float(element.attrib[key])


def texts(root: ElementTree.Element) -> Iterator[Text]:
    """Yield the texts, measured in DejaVu Sans, which is wider than the fonts of the figure."""
    for element in root.iter(f"{SVG}text"):
        weight = "bold" if number(element, "font-weight") > 400 else "normal"
        size, x, y = (number(element, key) for key in ("font-size", "x", "y"))
        words = element.text or ""
        wide = ImageFont.truetype(findfont(f"DejaVu Sans:{weight}"), size).getlength(words)
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


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours "#rrggbb" by WCAG's definition."""
    luminances = []
    for colour in (one, other):
        parts = np.frombuffer(bytes.fromhex(colour[1:]), np.uint8) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def check_layout(root: ElementTree.Element) -> None:
    """Assert that each text is inside or outside each box, meets no other text, and has enough contrast."""
    all_texts, all_boxes = [*texts(root)], boxes(root)
    assert all_texts
    for text in all_texts:
        around = [(area, fill) for area, fill in all_boxes if area.holds(text.anchor)]
        for area, _ in all_boxes:
            is_inside, is_outside = area.holds(text.area), not area.holds(text.anchor)
            assert is_inside or is_outside and not area.meets(text.area), text
        assert contrast(text.fill, around[-1][1]) >= MIN_CONTRAST, text
    for one, other in combinations(all_texts, 2):
        assert not one.area.meets(other.area), (one, other)


def pixels(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(DATA_URI.fullmatch(uri)[1])))  # type: ignore[index]
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_committed_figure_is_what_is_drawn_and_can_be_read(name: str, theme: str) -> None:
    """PNGs are compared as pixels: their bytes depend on zlib, and their pixels a little on the decoder."""
    old, new = figure_path(name, theme).read_text(), render(name, theme, words_of(name))
    assert DATA_URI.sub("", old) == DATA_URI.sub("", new), "run python -m bench.figures"
    for before, after in zip(DATA_URI.finditer(old), DATA_URI.finditer(new), strict=True):
        assert np.abs(pixels(before[0]) - pixels(after[0])).mean() < 3, "run python -m bench.figures"
    root = ElementTree.fromstring(old)
    assert len(old) <= MAX_BYTES and number(root, "width") == WIDTH_PX
    assert boxes(root)[0][1] == {"light": "#ffffff", "dark": "#0d1117"}[theme]
    title, description = (root.findtext(f"{SVG}{tag}") for tag in ("title", "desc"))
    assert title and description
    check_layout(root)
    alts = re.findall(rf'{name}-light\.svg"[^>]* alt="([^"]*)"', (ROOT / "README.md").read_text())
    assert {*map(html.unescape, alts)} <= {description} or theme == "dark"


@pytest.mark.parametrize(
    "text",
    [
        (5, "#ffffff", "too wide a text"),  # leaves its box
        (180, "#000000", "beyond"),  # leaves the page
        (60, "#999999", "a"),  # too pale
    ],
)
def test_faults_of_a_layout_are_found(text: tuple[int, str, str]) -> None:
    form = '<text x="{}" y="20" font-size="20" font-weight="400" text-anchor="start" fill="{}">{}</text>'
    box = '<rect x="0" y="0" width="50" height="40" fill="#000000"/>'
    page = (
        f'<svg xmlns="{SVG[1:-1]}" width="200" height="40"><rect width="100%" fill="#ffffff"/>{box}{{}}</svg>'
    )
    check_layout(ElementTree.fromstring(page.format(form.format(60, "#000000", "a"))))
    with pytest.raises(AssertionError):
        check_layout(ElementTree.fromstring(page.format(form.format(*text))))
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # WCAG's well-known grey


def bars(name: str) -> list[tuple[str, int, float, str]]:
    """Return each bar's name on its left, column from 0, length and value on its right."""
    root = ElementTree.fromstring(figure_path(name, "light").read_text())
    found = [element for element in root.iter(f"{SVG}rect") if element.get("class") == "bar"]
    lefts = sorted({number(bar, "x") for bar in found})
    rows = []
    for bar in found:
        x, y, wide = (number(bar, key) for key in ("x", "y", "width"))
        beside = [text for text in texts(root) if y < text.anchor.top < y + number(bar, "height")]
        value = min((text for text in beside if text.area.left > x + wide), key=lambda text: text.area.left)
        rows.append((min(beside, key=lambda text: text.area.left).words, lefts.index(x), wide, value.words))
    return rows


def test_bars_are_as_long_as_the_results_say() -> None:
    rates = {
        (row["decoder"], row["num_views"] - 1): row["median"]
        for row in read_results(RESULTS)["sizes.json"]["rows"]
        if row["size"] == "500" and row["measured"] in ("loader", "peer")
    }
    found = bars("throughput")
    for name, kinds in (("FFCV", ("ffcv_loader",)), ("SPDL", ("spdl_cv2", "spdl_ffmpeg"))):
        values = {column: words for whose, column, _, words in found if whose == name}
        assert values == {
            column: f"{max(rates.get((kind, column), 0) for kind in kinds):,.0f}" for column in (0, 1)
        }
    lengths = np.array([length for _, _, length, _ in found])
    shown = np.array([float(words.replace(",", "")) for *_, words in found])
    np.testing.assert_allclose(lengths / lengths.max(), shown / shown.max(), atol=2e-3)
    lengths = np.array([length for _, _, length, _ in bars("sizes")])
    shown = np.array([float(words.partition("×")[0]) for *_, words in bars("sizes")])
    # Both the bar's number and that of the longest one are rounded to two places.
    np.testing.assert_allclose(lengths / lengths.max() * shown.max(), shown, rtol=0, atol=1e-2)


def test_the_chart_of_training_is_of_a_file_with_a_peer() -> None:
    def row(whose: dict[str, Any], rate: float) -> dict[str, Any]:
        of_all = {"recipe": None, "stage": None, "precision": "bf16"}
        return of_all | {"median": rate, "values": [rate] * 3} | whose

    ours = {"recipe": "simclr", "trained_by": "training"}
    result: dict[str, Any] = {
        "bench": "training", "environment": {"gpu": None, "num_cores": 2},
        "settings": {"backbone": "resnet18", "size_px": 64, "batch_size": 8, "repeats": 3, "folder": True},
        "rows": [
            *(row(ours | {"stage": name}, rate) for name, rate in (("E", 10.0), ("S1", 20.0), ("PSL", 15.0))),
            *(row({"trained_by": "lightly", "form": form}, rate) for form, rate in (("a", 5.0), ("b", 4.0))),
        ],
        "ratios": [ours | {"stage": "E", "peer": "lightly", "precision": "bf16", "median": 2.0,
                           "quartile_1": 1.9, "quartile_3": 2.25}],
    }  # fmt: skip
    words = training_words({"training-b.json": result})
    assert words["rows"] == [
        ("fastpsl, all of PSL", [15.0]), ("fastpsl, end to end", [10.0]), ("lightly", [5.0]),
    ]  # fmt: skip
    assert words["longest"] == 15 and "over lightly 2.00 (1.90 to 2.25)" in words["source"]
    result["rows"].append(row({"trained_by": "lightly", "form": "a", "precision": "fp32"}, 7.0))
    words = training_words({"training-b.json": result})
    assert ("lightly, fp32", [7.0]) in words["rows"] and ("lightly, bf16", [5.0]) not in words["rows"]
    with pytest.raises(ValueError, match="no file in bench/results/"):
        training_words({})
