"""The pictures of the training screen, and the script that draws them."""

import re
from html import unescape
from xml.etree import ElementTree

from docs.images import make_training_screen as script
from fastpsl.console.screen import Numbers


def words(svg: str) -> str:
    ElementTree.fromstring(svg)
    return " ".join(unescape(re.sub("<style>.*?</style>|<[^>]*>", " ", svg, flags=re.DOTALL)).split())


def test_a_picture_has_the_lines_and_the_numbers() -> None:
    numbers = Numbers(
        "S2", 2, 2, 3, 15, 30, 45, {"loss": 0.25}, 0.1, images_per_s=640.0, eta_s=61.0, run_eta_s=610.0
    )
    for theme in script.THEMES.values():
        text = words(script.svg(["S1 [bold] (level G1): 45 steps"], numbers, theme))
        for expected in (
            "S1 [bold] (level G1): 45 steps",
            "stage 2 of 3",
            "0:10:10",
            "640 images/s",
            script.TITLE,
        ):
            assert expected in text


def test_the_committed_pictures_show_one_run() -> None:
    light, dark = (
        words((script.FOLDER / f"training-screen-{name}.svg").read_text()) for name in script.THEMES
    )
    assert light == dark and script.TITLE in light
    for expected in ("stage 2 of 3 (S2, level G2)", "stage ETA", "run ETA", "images/s", "data wait", "loss"):
        assert expected in light
