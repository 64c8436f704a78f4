"""The images of the embedded sample: small landscapes with one subject, drawn from a seed.

They hold what pretext tasks learn from. Eight kinds of subject differ in shape and texture, and are a probe's
labels. Light, sky and shadow show which way is up. Sky, horizon, ground that grows coarser towards the
viewer, and a darker rim show which tile is where. Place, size, palette, weather and time of day vary, so that
no pixel pattern repeats.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from fastpsl.pipelines.sample.subjects import SUBJECTS, Random, vary

_OVER = 2  # drawn at twice the size and averaged for smooth edges

# Colours: sky at the top, sky at the horizon, far ground, near ground.
_PALETTES = [
    ((70, 130, 205), (190, 220, 240), (120, 160, 90), (60, 110, 45)),  # summer noon
    ((45, 60, 120), (250, 170, 110), (130, 115, 70), (70, 70, 40)),  # evening
    ((110, 140, 175), (225, 225, 220), (140, 150, 110), (85, 100, 60)),  # haze
    ((90, 150, 190), (235, 225, 190), (200, 175, 120), (150, 115, 70)),  # dry
    ((120, 130, 145), (200, 205, 210), (215, 220, 228), (165, 178, 195)),  # snow
]
_WATER = ((120, 165, 190), (35, 85, 120))


def noise(random: Random, height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """Return smooth noise of rows x columns bumps: float32 [height, width] in [0, 1]."""
    grid = Image.fromarray((random.random((rows + 1, columns + 1)) * 255).astype(np.uint8))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def _blend(top: np.ndarray, bottom: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return top * (1 - weight[..., None]) + bottom * weight[..., None]


def landscape(
    random: Random, height: int, width: int, horizon: int, on_water: bool, light: float
) -> np.ndarray:
    """Return sky, clouds and ground, float32 [height, width, 3].

    Args:
        random: The source of all random numbers.
        height: The height in px.
        width: The width in px.
        horizon: The row of the horizon.
        on_water: Draw water in place of the ground.
        light: The place of the sun, from 0 (left edge) to 1 (right edge).
    """
    palette = [
        np.array(vary(random, colour, 12), np.float32)
        for colour in _PALETTES[random.integers(len(_PALETTES))]
    ]
    if on_water:
        palette[2:] = [np.array(vary(random, colour, 12), np.float32) for colour in _WATER]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    sky = _blend(palette[0], palette[1], np.clip(rows / horizon, 0, 1) ** 1.4)
    sun = np.hypot(columns - light * width, rows - horizon * random.uniform(0.1, 0.6)) / width
    sky += np.exp(-((sun / 0.22) ** 2))[..., None] * np.array([70, 55, 25], np.float32)
    clouds = 0.6 * noise(random, height, width, 7, 3) + 0.4 * noise(random, height, width, 16, 9)
    cover = np.clip((clouds - random.uniform(0.45, 0.7)) * 4, 0, 0.85) * np.clip(1.2 - rows / horizon, 0, 1)
    sky = _blend(sky, np.array([250, 250, 252], np.float32), cover)

    depth = np.clip((rows - horizon) / (height - horizon), 0, 1)  # 0 at the horizon, 1 at the viewer's feet
    ground = _blend(palette[2], palette[3], depth)
    fine = noise(random, height, width, 70, 12 if on_water else 50)
    coarse = noise(random, height, width, 16 if on_water else 12, 4 if on_water else 16)
    ground += ((1 - depth) * (fine - 0.5) * 22 + depth * (coarse - 0.5) * 60)[..., None]
    if on_water:  # glitter below the sun
        ground += (np.exp(-(((columns / width - light) / 0.08) ** 2)) * (fine > 0.55) * 50)[..., None]
    image = np.where((rows < horizon)[..., None], sky, ground)
    if random.random() < 0.7:  # hills on the horizon
        line = horizon - (noise(random, 2, width, 1, 5)[0] * random.uniform(0.05, 0.2)) * height
        hills = (rows >= line) & (rows < horizon)
        image = np.where(hills[..., None], 0.55 * palette[1] + 0.35 * palette[3], image)
    return image


CLASS_NAMES = list(SUBJECTS)


def draw_image(seed: int, index: int, height: int, width: int) -> np.ndarray:
    """Draw image `index` of a seed, with the subject CLASS_NAMES[index % 8], in about 10 ms.

    Returns:
        RGB, uint8 [height, width, 3].
    """
    random = np.random.default_rng((seed, index))
    name = CLASS_NAMES[index % len(CLASS_NAMES)]
    subject, heights, feet = SUBJECTS[name]
    horizon, light = int(height * random.uniform(0.45, 0.68)), random.uniform(0.1, 0.9)
    on_water = name == "boat" or (name in ("balloon", "lighthouse", "mountain") and random.random() < 0.3)
    image = landscape(random, height, width, horizon, on_water, light)

    size = height * random.uniform(*heights)
    x = width * random.uniform(0.28, 0.72)
    y = min(horizon + (height - horizon) * random.uniform(*feet), height * 0.99)
    y = max(y, size + height * 0.03)  # so that the whole subject is inside
    layer = Image.new("RGBA", (width * _OVER, height * _OVER), (0, 0, 0, 0))
    subject(ImageDraw.Draw(layer), random, x * _OVER, y * _OVER, size * _OVER)
    layer = layer.reduce(_OVER)
    if name not in ("balloon", "mountain"):  # a shadow on the ground, away from the sun
        lean, half = (0.5 - light) * size * 0.9, size * 0.11
        shadow = Image.new("L", layer.size, 0)
        far = (x + lean, y + size * 0.12)
        ImageDraw.Draw(shadow).polygon(
            [(x - half, y), (x + half, y), (far[0] + half, far[1]), (far[0] - half, far[1])], 110
        )
        image *= (
            1 - np.asarray(ImageChops.subtract(shadow, layer.getchannel("A")), np.float32)[..., None] / 255
        )

    pixels = np.asarray(layer, np.float32)
    across = (np.arange(width, dtype=np.float32) - x) / size  # the side towards the sun is brighter
    lit = 1 - np.clip(across * np.sign(0.5 - light) * 0.45, -0.22, 0.3)
    grain = 0.92 + 0.16 * noise(random, height, width, 40, 40)
    image = _blend(image, pixels[..., :3] * (lit[None, :, None] * grain[..., None]), pixels[..., 3] / 255)

    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    image *= (1 - 0.16 * (rows**2 + columns**2))[..., None]  # vignette
    image += random.normal(0, 2.5, (height, width, 1))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)
