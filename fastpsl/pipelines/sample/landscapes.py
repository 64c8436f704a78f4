"""The images of the embedded sample: small landscapes with one subject, drawn from a seed.

They hold what pretext tasks learn from. Eight kinds of subject differ in shape and texture, and are a probe's
labels. Light, sky and shadow show which way is up. Sky, horizon, ground that grows coarser towards the
viewer, and a darker rim show which tile is where. Place, size, palette, weather and time of day vary, so that
no pixel pattern repeats.

Each function draws on a transparent layer, given the subject's middle x, foot y and height h in px.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Point = tuple[float, float]
Draw = ImageDraw.ImageDraw
Random = np.random.Generator


def vary(random: Random, colour: tuple[int, int, int], spread: int = 18) -> tuple[int, int, int]:
    """Return a random colour near `colour`."""
    red, green, blue = np.clip(np.array(colour) + random.integers(-spread, spread + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def _house(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    w, roof = h * random.uniform(0.4, 0.55), h * random.uniform(0.55, 0.65)
    wall = vary(random, (205, 170, 130), 35)
    draw.rectangle((x - w, y - roof, x + w, y), fill=wall)
    course = max(3.0, h / 18)
    for i in range(int(roof / course)):  # brick courses
        level = y - roof + i * course
        draw.line((x - w, level, x + w, level), fill=(150, 110, 85), width=1)
    draw.polygon(
        [(x - w * 1.2, y - roof), (x, y - h), (x + w * 1.2, y - roof)], fill=vary(random, (150, 55, 45), 25)
    )
    for side in (-0.55, 0.55):
        cx, cy, s = x + side * w, y - roof * 0.6, w * 0.2
        draw.rectangle((cx - s, cy - s, cx + s, cy + s), fill=(70, 90, 110), outline=(240, 240, 235), width=3)
    draw.rectangle((x - w * 0.15, y - roof * 0.45, x + w * 0.15, y), fill=(85, 55, 35))


def _tree(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    trunk = h * 0.06
    draw.polygon(
        [(x - trunk * 1.6, y), (x - trunk, y - h * 0.5), (x + trunk, y - h * 0.5), (x + trunk * 1.6, y)],
        fill=(90, 65, 45),
    )
    for _ in range(110):  # a crown of leaf clusters, the lower ones darker
        angle, reach = random.uniform(0, 2 * np.pi), np.sqrt(random.random()) * h * 0.33
        cx, cy, r = (
            x + np.cos(angle) * reach,
            y - h * 0.64 + np.sin(angle) * reach,
            h * random.uniform(0.03, 0.07),
        )
        shade = int(40 * np.sin(angle) * reach / (h * 0.33))
        draw.ellipse(
            (cx - r, cy - r, cx + r, cy + r),
            fill=vary(random, (70 - shade, 125 - shade, 50 - shade // 2), 20),
        )


def _boat(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    w, deck = h * 0.42, y - h * 0.12
    draw.polygon(
        [(x - w, deck), (x + w, deck), (x + w * 0.7, y), (x - w * 0.75, y)],
        fill=vary(random, (120, 60, 50), 40),
    )
    draw.line((x, deck, x, y - h), fill=(80, 60, 45), width=max(2, int(h / 50)))
    sail = vary(random, (240, 232, 215), 12)
    draw.polygon(
        [(x + h * 0.02, y - h * 0.97), (x + w * 0.85, deck - h * 0.05), (x + h * 0.02, deck - h * 0.05)],
        fill=sail,
    )
    draw.polygon(
        [(x - h * 0.02, y - h * 0.85), (x - w * 0.65, deck - h * 0.05), (x - h * 0.02, deck - h * 0.05)],
        fill=vary(random, (215, 90, 70), 40),
    )
    for i in range(1, 6):  # seams
        level = deck - i * h * 0.14
        draw.line((x + h * 0.02, level, x + w * 0.85 * (1 - i / 6.2), level), fill=(190, 180, 165), width=1)


def _balloon(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    r, cy = h * 0.36, y - h * 0.62
    hues = [vary(random, colour, 25) for colour in ((215, 60, 50), (245, 205, 80), (60, 110, 190))]
    for i in range(7):  # gores, narrower towards the rim
        half = r * np.cos(i * np.pi / 14)
        draw.ellipse((x - half, cy - r, x + half, cy + r), fill=hues[i % len(hues)])
    draw.polygon(
        [
            (x - r * 0.75, cy + r * 0.62),
            (x + r * 0.75, cy + r * 0.62),
            (x + r * 0.18, y - h * 0.12),
            (x - r * 0.18, y - h * 0.12),
        ],
        fill=hues[0],
    )
    for side in (-1, 1):
        draw.line(
            (x + side * r * 0.18, y - h * 0.14, x + side * r * 0.14, y - h * 0.07), fill=(60, 50, 40), width=2
        )
    draw.rectangle((x - r * 0.17, y - h * 0.08, x + r * 0.17, y), fill=(130, 90, 55))


def _mountain(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    def ridge(side: int) -> list[Point]:
        steps = np.linspace(0, 1, 9)[1:]
        return [
            (
                x + side * h * 0.95 * (t + random.uniform(-0.03, 0.03)),
                y - h * (1 - t) * random.uniform(0.92, 1.05),
            )
            for t in steps
        ]

    left, right = ridge(-1), ridge(1)
    rock = vary(random, (120, 112, 108), 20)
    draw.polygon([*left[::-1], (x, y - h), *right], fill=rock)
    draw.polygon(
        [(x, y - h), *right, (x + h * 0.15, y), (x - h * 0.05, y - h * 0.45)],
        fill=(rock[0] - 30, rock[1] - 30, rock[2] - 24),
    )
    snow = [
        (x, y - h),
        right[1],
        (x + h * 0.12, y - h * 0.66),
        (x + h * 0.04, y - h * 0.78),
        (x - h * 0.05, y - h * 0.62),
        (x - h * 0.12, y - h * 0.74),
        left[1],
    ]
    draw.polygon(snow, fill=(242, 244, 248))


def _flower(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    bend = random.uniform(-0.12, 0.12) * h
    top = (x + bend, y - h * 0.68)
    draw.line(
        (x, y, x + bend * 0.3, y - h * 0.35, *top),
        fill=(65, 120, 50),
        width=max(3, int(h / 25)),
        joint="curve",
    )
    for side in (-1, 1):
        draw.polygon(
            [
                (x + bend * 0.2, y - h * 0.2),
                (x + side * h * 0.2, y - h * 0.36),
                (x + side * h * 0.12, y - h * 0.2),
            ],
            fill=(75, 140, 60),
        )
    petals, petal, r = int(random.integers(11, 17)), vary(random, (240, 190, 50), 35), h * 0.3
    for ring, colour in ((1.0, petal), (0.8, (petal[0] - 20, max(petal[1] - 30, 0), petal[2]))):
        for i in range(petals):
            angle = 2 * np.pi * (i + ring / 2) / petals
            tip = (top[0] + r * ring * np.cos(angle), top[1] + r * ring * np.sin(angle))
            sides = [
                (top[0] + r * 0.55 * np.cos(angle + turn), top[1] + r * 0.55 * np.sin(angle + turn))
                for turn in (-0.22, 0.22)
            ]
            draw.polygon([top, sides[0], tip, sides[1]], fill=colour)
    core = r * 0.42
    draw.ellipse((top[0] - core, top[1] - core, top[0] + core, top[1] + core), fill=(95, 60, 30))
    for i in range(60):  # seeds on a spiral
        angle, reach = i * 2.39996, core * 0.95 * np.sqrt(i / 60)
        cx, cy = top[0] + reach * np.cos(angle), top[1] + reach * np.sin(angle)
        draw.ellipse((cx - 1.5, cy - 1.5, cx + 1.5, cy + 1.5), fill=(150, 105, 55))


def _lighthouse(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    foot, top, bands = h * 0.17, h * 0.09, int(random.integers(5, 8))
    stripe = vary(random, (200, 45, 45), 30)
    for i in range(bands):
        a, b = i / bands, (i + 1) / bands
        wa, wb = foot + (top - foot) * a, foot + (top - foot) * b
        ya, yb = y - h * 0.78 * a, y - h * 0.78 * b
        draw.polygon(
            [(x - wa, ya), (x + wa, ya), (x + wb, yb), (x - wb, yb)],
            fill=stripe if i % 2 == 0 else (238, 236, 230),
        )
    draw.rectangle((x - top * 1.5, y - h * 0.8, x + top * 1.5, y - h * 0.77), fill=(60, 60, 65))
    draw.rectangle((x - top * 0.8, y - h * 0.9, x + top * 0.8, y - h * 0.8), fill=(250, 225, 130))
    draw.polygon([(x - top * 1.2, y - h * 0.9), (x, y - h), (x + top * 1.2, y - h * 0.9)], fill=stripe)


def _mushroom(draw: Draw, random: Random, x: float, y: float, h: float) -> None:
    stem, cap = h * 0.12, h * random.uniform(0.42, 0.52)
    draw.polygon(
        [(x - stem * 1.4, y), (x - stem, y - h * 0.6), (x + stem, y - h * 0.6), (x + stem * 1.4, y)],
        fill=(235, 225, 205),
    )
    box = (x - cap, y - h, x + cap, y - h * 0.2)
    draw.pieslice(box, 180, 360, fill=vary(random, (190, 50, 40), 35))
    draw.ellipse((x - cap, y - h * 0.68, x + cap, y - h * 0.52), fill=(225, 205, 180))
    for _ in range(16):  # dots, on the cap only
        angle, reach = random.uniform(np.pi * 1.08, np.pi * 1.92), random.uniform(0.25, 0.85)
        cx, cy = x + cap * reach * np.cos(angle), y - h * 0.64 + h * 0.36 * reach * np.sin(angle)
        r = h * random.uniform(0.015, 0.04)
        draw.ellipse((cx - r, cy - r * 0.8, cx + r, cy + r * 0.8), fill=(245, 240, 230))


Subject = Callable[[Draw, Random, float, float, float], None]
# For each name: its drawing function, the range of its height as a share of the image's, and the range of its
# foot's place between horizon (0) and bottom (1).
SUBJECTS: dict[str, tuple[Subject, tuple[float, float], tuple[float, float]]] = {
    "balloon": (_balloon, (0.5, 0.7), (-0.75, -0.1)),
    "boat": (_boat, (0.5, 0.75), (0.15, 0.6)),
    "flower": (_flower, (0.65, 0.9), (0.6, 1.0)),
    "house": (_house, (0.4, 0.65), (0.15, 0.6)),
    "lighthouse": (_lighthouse, (0.6, 0.85), (0.05, 0.4)),
    "mountain": (_mountain, (0.35, 0.55), (0.0, 0.05)),
    "mushroom": (_mushroom, (0.45, 0.7), (0.4, 0.9)),
    "tree": (_tree, (0.55, 0.8), (0.1, 0.6)),
}


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
    """Return sky, clouds and ground, float32 [height, width, 3]."""
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
    """Draw an image, uint8 [height, width, 3], with the subject CLASS_NAMES[index % 8], in about 10 ms."""
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
