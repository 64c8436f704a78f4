"""Images of discs, triangles and crosses with their outlines, from which a small detector learns in minutes.

A class has a shape and a texture (rings, stripes, checks), and a hue that seven in ten objects keep to.
Stains of the ground have the same hues, so no pixel's colour decides.
"""

import colorsys
from typing import NamedTuple

import numpy as np

from fastpsl.pipelines.embedded.backgrounds import Random, landscape, noise

CLASS_NAMES = ("cross", "disc", "triangle")
_HUES = (0.6, 0.03, 0.3)
_HUE_SPREAD, _ANY_HUE = 0.07, 0.3
_OVER = 3  # drawn at three times the size and averaged for smooth edges
# Shares of `draw_scene`'s `side_px`: objects have 24 to 72 px of 128.
SMALLEST, LARGEST, DIFFICULT_BELOW = 24 / 128, 72 / 128, 29 / 128
_VISIBLE = 0.6  # an object with a smaller visible share is difficult
_OVERLAP, _OVERLAP_AT_TIMES, _AT_TIMES = 0.05, 0.6, 0.15
_TRIES = 40


class Shape(NamedTuple):
    """An object of a scene."""

    label: int  # an index of CLASS_NAMES
    mask: np.ndarray  # bool [height, width], the visible pixels
    difficult: bool  # small, or mostly hidden by another object
    truncated: bool  # cut by the image's edge


def draw_scene(random: Random, height: int, width: int, side_px: int) -> tuple[np.ndarray, list[Shape]]:
    """Draw one to three objects on a ground, RGB uint8 [height, width, 3], in about 10 ms.

    Objects have 24/128 to 72/128 of `side_px`.
    """
    image = _ground(random, height, width)
    labels, sides, areas = [], [], []
    masks: list[np.ndarray] = []  # the visible part of each object; later objects lie above
    for number in range(int(random.integers(1, 4))):
        least = SMALLEST if number else 1.3 * SMALLEST  # the first is easy to see, unless another hides it
        side = round(float(random.uniform(least, LARGEST)) * side_px)
        label = int(random.integers(len(CLASS_NAMES)))
        layers = _place(random, label, side, height, width, masks)
        if layers is None:
            continue
        cover, colour = layers
        image += cover[..., None] * (colour - image)
        outline = cover > 0.5
        masks = [*(other & ~outline for other in masks), outline]
        labels.append(label)
        sides.append(side)
        areas.append(outline.sum())
    shapes = []
    for label, side, area, mask in zip(labels, sides, areas, masks, strict=True):
        is_difficult = mask.sum() < _VISIBLE * area or side < DIFFICULT_BELOW * side_px
        edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        shapes.append(Shape(label, mask, bool(is_difficult), bool(edges.any())))
    image += random.normal(0, 4, (height, width, 1))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), shapes


def _ground(random: Random, height: int, width: int) -> np.ndarray:
    """Return a landscape or a rough wall with stains, float32 [height, width, 3]."""
    if random.random() < 0.5:
        horizon = int(height * random.uniform(0.3, 0.7))
        ground = landscape(random, height, width, horizon, random.random() < 0.2, random.uniform(0.1, 0.9))
    else:
        light, dark = (_colour(random, random.random(), 0.35) for _ in range(2))
        rough = 0.6 * noise(random, height, width, 5, 5) + 0.4 * noise(random, height, width, 40, 40)
        ground = light + np.clip(rough * 1.6 - 0.3, 0, 1)[..., None] * (dark - light)
    for _ in range(3):
        stain = np.clip((noise(random, height, width, 4, 4) - random.uniform(0.72, 0.82)) * 8, 0, 0.8)
        hue = _HUES[random.integers(len(_HUES))] + random.normal(0, _HUE_SPREAD)
        rough = 0.8 + 0.4 * noise(random, height, width, 30, 30)
        colour = _colour(random, hue, 0.7) * rough[..., None]
        ground = ground + stain[..., None] * (colour - ground)
    return ground.astype(np.float32)


def _colour(random: Random, hue: float, saturation: float) -> np.ndarray:
    """Return a random colour of a hue, float32 [3]."""
    rgb = colorsys.hsv_to_rgb(hue % 1, saturation * random.uniform(0.7, 1.2), random.uniform(0.55, 0.95))
    return np.array(rgb, np.float32) * 255


def _place(
    random: Random, label: int, side: int, height: int, width: int, others: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return coverage [height, width] and colours [height, width, 3] of a new object; None without room."""
    allowed = _OVERLAP_AT_TIMES if random.random() < _AT_TIMES else _OVERLAP
    outside = int(0.15 * side) if random.random() < 0.15 else 0
    cover, tone = _shape(random, label, side)
    for _ in range(_TRIES):
        top = int(random.integers(-outside, height - side + outside + 1))
        left = int(random.integers(-outside, width - side + outside + 1))
        outline = _put(cover, top, left, height, width) > 0.5
        if all((outline & other).sum() <= allowed * min(outline.sum(), other.sum()) for other in others):
            any_hue = random.random() < _ANY_HUE
            hue = random.random() if any_hue else _HUES[label] + random.normal(0, _HUE_SPREAD)
            light = _colour(random, hue, 0.75)
            dark = light * random.uniform(0.45, 0.65)
            colour = (dark + tone[..., None] * (light - dark)) * (
                0.9 + 0.2 * noise(random, side, side, side // 4, side // 4)[..., None]
            )
            layers = [_put(layer, top, left, height, width) for layer in (cover, *np.moveaxis(colour, 2, 0))]
            return layers[0], np.stack(layers[1:], 2)
    return None


def _put(patch: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Put a square patch into an image of zeros, cutting what is outside."""
    side = len(patch)
    image = np.zeros((height, width), np.float32)
    up, down = max(top, 0), min(top + side, height)
    first, last = max(left, 0), min(left + side, width)
    image[up:down, first:last] = patch[up - top : down - top, first - left : last - left]
    return image


def _shape(random: Random, label: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and tone (0 dark to 1 light), float32 [side, side] each."""
    name = CLASS_NAMES[label]
    turn = {"disc": np.pi, "triangle": 0.35, "cross": 0.4}[name] * random.uniform(-1, 1)
    flat = random.uniform(0.78, 1.0)  # the shape appears seen from the side
    steps = (np.arange(side * _OVER, dtype=np.float32) + 0.5) / _OVER / (side / 2) - 1
    down, right = steps[:, None], steps[None, :] / flat
    u, v = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    waves = random.uniform(2.6, 3.6)
    if name == "disc":
        radius = np.hypot(u, v)
        inside, tone = radius < 1, np.cos(radius * waves * np.pi)
    elif name == "triangle":
        u, v = u * 1.12, v * 1.12  # so that it stays within its square when turned
        inside, tone = (v < 0.75) & (v > 1.92 * np.abs(u) - 1), np.sin(v * waves * np.pi)
    else:
        u, v = u * 1.25, v * 1.25
        arm = random.uniform(0.3, 0.38)
        inside = ((np.abs(u) < arm) & (np.abs(v) < 1)) | ((np.abs(v) < arm) & (np.abs(u) < 1))
        tone = np.sin(u * waves * 1.3 * np.pi) * np.sin(v * waves * 1.3 * np.pi) * 2
    shades = inside, np.clip(tone * 1.5 + 0.5, 0, 1)
    cover, light = (part.astype(np.float32).reshape(side, _OVER, side, _OVER).mean((1, 3)) for part in shades)
    return cover, light
