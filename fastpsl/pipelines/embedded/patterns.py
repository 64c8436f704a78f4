"""The images of the embedded sample: eight patterns in any colours, drawn from a seed.

A probe's labels are the patterns, and a network must learn to see them. Polarity, place, period and turn
vary from image to image, so that no pixel tells the class. Every image has the same colours and brightnesses,
so that these do not tell it, either. Small blots of any colour vary within each image, not between images.
Hence two crops of an image share only the pattern, which is what a contrastive task then learns.

Light from above shows which way is up, and a darker rim shows which tile is where.

Each function of a pattern returns a field over u and v, in periods. The half of the field that is above its
median is the figure, the other half is the ground.
"""

from collections.abc import Callable

import numpy as np

from fastpsl.pipelines.embedded.backgrounds import noise

Field = np.ndarray


def _away(x: Field) -> Field:
    """Return the distance from the middle of the unit cell, 0 to 0.5."""
    return np.abs(x % 1 - 0.5)


def _bricks(u: Field, v: Field) -> Field:
    return np.minimum(0.5 - _away(u + 0.5 * np.floor(2 * v)), 0.25 - _away(2 * v) / 2)


def _checks(u: Field, v: Field) -> Field:
    return np.sin(2 * np.pi * u) * np.sin(2 * np.pi * v)


def _chevrons(u: Field, v: Field) -> Field:
    return _away(2 * v + 1.8 * _away(u))


def _crosses(u: Field, v: Field) -> Field:
    x, y = _away(1.1 * u), _away(1.1 * v)
    return -np.minimum(np.maximum(x, 2.6 * y), np.maximum(2.6 * x, y))


def _dots(u: Field, v: Field) -> Field:
    row = np.floor(1.25 * v)
    return -np.hypot(_away(u + 0.5 * row), 0.8 * _away(1.25 * v))


def _rings(u: Field, v: Field) -> Field:
    return _away(1.6 * np.hypot(u, v))


def _scales(u: Field, v: Field) -> Field:
    radius = np.ones_like(u)
    for row in (np.floor(2 * v) + ahead for ahead in (1, 0, -1)):  # from behind to the front
        here = np.hypot(_away(u + 0.5 * row), v - row / 2)
        radius = np.where(here < 0.56, here, radius)
    return _away(5.4 * radius)


def _waves(u: Field, v: Field) -> Field:
    return _away(2 * v + 0.35 * np.sin(1.6 * np.pi * u))


PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "bricks": _bricks,
    "checks": _checks,
    "chevrons": _chevrons,
    "crosses": _crosses,
    "dots": _dots,
    "rings": _rings,
    "scales": _scales,
    "waves": _waves,
}
CLASS_NAMES = list(PATTERNS)


def draw_image(seed: int, index: int, height: int, width: int) -> np.ndarray:
    """Draw an image, uint8 [height, width, 3], with the pattern CLASS_NAMES[index % 8], in about 5 ms."""
    random = np.random.default_rng((seed, index))
    period, turn = height * random.uniform(0.19, 0.31), random.uniform(-0.35, 0.35)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = (rows - height * random.random()) / period, (columns - width * random.random()) / period
    cos, sin = np.cos(turn), np.sin(turn)
    pattern = PATTERNS[CLASS_NAMES[index % len(CLASS_NAMES)]]
    field = pattern(cos * x + sin * y, cos * y - sin * x) * random.choice((-1, 1))

    # Ranks instead of values: each image has the same brightnesses, and figure and ground have equal areas.
    order = np.argsort(field + 1e-6 * random.random(field.shape), axis=None)
    ranks = np.empty(field.size, np.float32)
    ranks[order] = np.linspace(-1, 1, field.size)
    figure = np.clip(4 * ranks, -1, 1).reshape(field.shape)

    def blots() -> Field:
        return noise(random, height, width, 14, 19) - 0.5

    colours = np.stack([blots() for _ in range(3)], 2)
    colours -= (colours @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]  # without brightness
    image = 128 + 110 * colours + (35 * figure + 160 * blots())[..., None]

    down, across = 2 * rows / (height - 1) - 1, 2 * columns / (width - 1) - 1
    image *= (1.08 - 0.16 * down - 0.1 * (down**2 + across**2))[..., None]  # light from above, and a rim
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
