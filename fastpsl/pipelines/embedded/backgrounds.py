"""Backgrounds of drawn images: landscapes with sky, clouds and ground, and smooth noise, all at random."""

import numpy as np
from PIL import Image

Random = np.random.Generator


def _vary(random: Random, colour: tuple[int, int, int]) -> np.ndarray:
    """Return a random colour near `colour`, float32 [3]."""
    return np.clip(np.array(colour) + random.integers(-12, 13, 3), 0, 255).astype(np.float32)


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
    """Return sky, clouds and ground, float32 [height, width, 3]."""
    palette = [_vary(random, colour) for colour in _PALETTES[random.integers(len(_PALETTES))]]
    if on_water:
        palette[2:] = [_vary(random, colour) for colour in _WATER]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    sky = _blend(palette[0], palette[1], np.clip(rows / horizon, 0, 1) ** 1.4)
    sun = np.hypot(columns - light * width, rows - horizon * random.uniform(0.1, 0.6)) / width
    with np.errstate(under="ignore"):  # far from the sun, where the user's program may ask numpy to raise
        sunshine = np.exp(-((sun / 0.22) ** 2))
    sky += sunshine[..., None] * np.array([70, 55, 25], np.float32)
    clouds = 0.6 * noise(random, height, width, 7, 3) + 0.4 * noise(random, height, width, 16, 9)
    cover = np.clip((clouds - random.uniform(0.45, 0.7)) * 4, 0, 0.85) * np.clip(1.2 - rows / horizon, 0, 1)
    sky = _blend(sky, np.array([250, 250, 252], np.float32), cover)

    depth = np.clip((rows - horizon) / (height - horizon), 0, 1)  # 0 at the horizon, 1 at the viewer's feet
    ground = _blend(palette[2], palette[3], depth)
    fine = noise(random, height, width, 70, 12 if on_water else 50)
    coarse = noise(random, height, width, 16 if on_water else 12, 4 if on_water else 16)
    ground += ((1 - depth) * (fine - 0.5) * 22 + depth * (coarse - 0.5) * 60)[..., None]
    if on_water:  # glitter below the sun
        with np.errstate(under="ignore"):
            glitter = np.exp(-(((columns / width - light) / 0.08) ** 2))
        ground += (glitter * (fine > 0.55) * 50)[..., None]
    image = np.where((rows < horizon)[..., None], sky, ground)
    if random.random() < 0.7:  # hills on the horizon
        line = horizon - (noise(random, 2, width, 1, 5)[0] * random.uniform(0.05, 0.2)) * height
        hills = (rows >= line) & (rows < horizon)
        image = np.where(hills[..., None], 0.55 * palette[1] + 0.35 * palette[3], image)
    return image
