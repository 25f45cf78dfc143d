"""Places: ten simple landscapes drawn as SVG, each in six hidden looks (tints) that no caption names."""

import math
from functools import cache

import numpy as np
from PIL import Image

from training.concepts import LOOKS, PLAIN
from training.sprites import rendered

SIZE = 128  # px
TINT = {
    "sunset": (255, 140, 60), "teal": (40, 190, 185), "pink": (245, 140, 195), "violet": (120, 85, 205),
    "gold": (215, 195, 60),
}  # fmt: skip
TINT_SHARE = 0.45
LUMA = np.array([0.3, 0.59, 0.11])


def sky(top: str, bottom: str, end: float = SIZE) -> str:
    """A vertical gradient from y = 0 to `end`, its last colour below."""
    stops = f'<stop offset="0" stop-color="{top}"/><stop offset="1" stop-color="{bottom}"/>'
    gradient = f'<linearGradient id="sky" gradientUnits="userSpaceOnUse" x1="0" y1="0" x2="0" y2="{end}">{stops}'
    return f'{gradient}</linearGradient><rect width="{SIZE}" height="{SIZE}" fill="url(#sky)"/>'


def ellipse(x: float, y: float, rx: float, ry: float, colour: str) -> str:
    """A filled ellipse."""
    return f'<ellipse cx="{x}" cy="{y}" rx="{rx}" ry="{ry}" fill="{colour}"/>'


def rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>'


def hills(y: float, height: float, length: float, phase: float, colour: str) -> str:
    """Rolling ground below a sine curve around `y`."""
    points = " ".join(f"{x},{y + height * math.sin(x / length + phase):.1f}" for x in range(0, SIZE + 2, 2))
    return f'<polygon points="{points} {SIZE},{SIZE} 0,{SIZE}" fill="{colour}"/>'


def cloud(x: float, y: float, scale: float) -> str:
    """A white cloud."""
    parts = ((-9, 0, 8, 5), (0, -3, 9, 7), (9, 0, 8, 5))
    return "".join(ellipse(x + a * scale, y + b * scale, c * scale, d * scale, "#ffffff") for a, b, c, d in parts)


def pine(x: float, y: float, height: float, colour: str) -> str:
    """A pine tree standing at (x, y)."""
    a, b = 0.3 * height, 0.23 * height
    lower = f"{x - a},{y} {x},{y - 0.6 * height} {x + a},{y}"
    upper = f"{x - b},{y - 0.35 * height} {x},{y - height} {x + b},{y - 0.35 * height}"
    return f'<polygon points="{lower}" fill="{colour}"/><polygon points="{upper}" fill="{colour}"/>'


def dots(n: int, rows: float, radius: float, colour: str) -> str:
    """`n` scattered dots over the upper `rows` px: stars or snowflakes."""
    return "".join(ellipse((47 * i + 13) % SIZE, (29 * i + 7) % rows, radius, radius, colour) for i in range(n))


def meadow() -> str:
    flowers = "".join(ellipse(x, 119 + 7 * i % 6, 1.6, 1.6, "#fff078") for i, x in enumerate(range(6, SIZE, 15)))
    land = hills(82, 6, 22, 0, "#8ccd6e") + hills(98, 4, 30, 2, "#5fb44b")
    return sky("#78c3fa", "#e1f3ff", 90) + cloud(28, 20, 1) + cloud(98, 30, 0.8) + land + flowers


def night() -> str:
    land = hills(88, 5, 20, 1, "#1c2c4a") + hills(99, 3, 28, 3, "#142038")
    return sky("#0e1238", "#303878", 95) + dots(26, 72, 1.2, "#fffad7") + land


def palm(x: float, y: float, height: float) -> str:
    """A palm tree standing at (x, y)."""
    top = y - height
    trunk = f'<path d="M{x} {y} Q{x + 6} {y - height / 2} {x} {top}" stroke="#8d6039" stroke-width="5" fill="none"/>'
    ends = ((-24, 8), (-20, -8), (-4, -16), (16, -12), (25, 6))
    leaves = "".join(
        f'<path d="M{x} {top} Q{x + 0.6 * a} {top + b - 12} {x + a} {top + b}" stroke="#3f9a4b" stroke-width="5"'
        ' stroke-linecap="round" fill="none"/>'
        for a, b in ends
    )
    return trunk + leaves


def beach() -> str:
    water = rect(0, 60, SIZE, 30, "#2f8fd0") + rect(0, 72, SIZE, 30, "#58b4dc") + hills(88, 2, 14, 0, "#f4fbff")
    sand = hills(91, 2, 14, 0, "#f7dfa3") + "".join(
        ellipse(x, y, 5, 1.5, "#dfb975") for x, y in ((20, 122), (66, 123), (112, 122))
    )
    return sky("#69c8fa", "#dcf4ff", 60) + cloud(22, 18, 0.9) + water + sand + palm(65, 94, 62)


def snow() -> str:
    trees = pine(12, 90, 40, "#5a827d") + pine(62, 88, 32, "#789b96") + pine(118, 90, 46, "#5a827d")
    tops = ((12, 64), (62, 66), (118, 58))
    caps = "".join(f'<polygon points="{x - 5},{y} {x},{y - 14} {x + 5},{y}" fill="#ffffff"/>' for x, y in tops)
    land = hills(88, 4, 24, 1, "#f5f9ff") + hills(104, 3, 30, 4, "#e2eaf4")
    return sky("#8fb9de", "#d3e3f2", 90) + trees + caps + land + dots(26, 84, 2.2, "#ffffff")


def forest() -> str:
    trees = ((8, 78, "#3c733c"), (34, 64, "#50874a"), (62, 74, "#467d41"), (92, 66, "#50874a"), (120, 82, "#3c733c"))
    wood = "".join(rect(x - 3, 80, 6, 22, "#6e4b2d") + pine(x, 92, h, colour) for x, h, colour in trees)
    return sky("#96c382", "#cde1a0", 92) + wood + hills(95, 2, 16, 0, "#556e32") + hills(109, 2, 22, 2, "#48602c")


def desert() -> str:
    sand = hills(78, 8, 24, 4, "#e6af5f") + hills(97, 5, 26, 1, "#d7964b")
    parts = ((62, 34, 8, 64), (51, 46, 5, 20), (51, 63, 14, 5), (76, 40, 5, 20), (67, 57, 14, 5))
    cactus = "".join(rect(*part, "#4f8a4a") for part in parts)
    pyramids = "".join(f'<polygon points="{p}" fill="#dba35a"/>' for p in ("-8,82 22,44 52,82", "88,82 112,50 136,82"))
    return sky("#facd82", "#fff3d2", 84) + pyramids + sand + cactus


def sea() -> str:
    waves = "".join(
        f'<path d="M{x} {y} q7 -6 14 0" stroke="#bee4fa" stroke-width="1.8" fill="none"/>'
        for j, y in enumerate((78, 92, 106, 120))
        for x in range(-8 + 12 * (j % 2), SIZE, 24)
    )
    water = rect(0, 70, SIZE, 29, "#2d82cd") + rect(0, 98, SIZE, 30, "#1f66ae")
    return sky("#96d2f5", "#ebf8ff", 70) + cloud(30, 22, 1) + cloud(94, 16, 0.8) + water + waves


def room() -> str:
    stripes = "".join(rect(x, 0, 1.2, 92, "#ecd4b2") for x in range(0, SIZE, 16))
    window = rect(44, 8, 40, 36, "#96643c") + rect(47, 11, 34, 30, "#a0d7f5")
    bars = rect(63, 11, 2, 30, "#96643c") + rect(47, 25, 34, 2, "#96643c")
    floor = rect(0, 94, SIZE, 34, "#b5794b") + rect(0, 90, SIZE, 4, "#fffaf0")
    return sky("#f5e1c3", "#faebd4") + stripes + window + bars + floor + ellipse(64, 115, 56, 10, "#cf5c58")


def space() -> str:
    ring = '<ellipse cx="22" cy="22" rx="20" ry="4.5" stroke="#f5d7a5" stroke-width="2.4" fill="none"/>'
    planets = ellipse(22, 22, 12, 12, "#e18c5a") + ring + ellipse(64, 40, 5, 5, "#6eaadc")
    craters = "".join(ellipse(x, y, rx, 2.5, "#707080") for x, y, rx in ((28, 119, 8), (98, 122, 8), (64, 113, 5)))
    ground = ellipse(64, 168, 120, 64, "#8c8c9b") + craters
    return sky("#08061c", "#241446") + dots(30, 96, 1.1, "#fffff0") + planets + ground


def plain() -> str:
    return sky("#dce6f0", "#f2f6fa") + ellipse(64, 116, 62, 14, "#c6d4e2")


DRAW = {f.__name__: f for f in (meadow, night, beach, snow, forest, desert, sea, room, space, plain)}


def tinted(picture: np.ndarray, look: str) -> np.ndarray:
    """Mixes a look's tint into a picture [h, w, 3] at kept lightness, so that night stays dark and snow light."""
    if look == PLAIN:
        return picture
    tint = np.array(TINT[look], float)
    light = picture @ LUMA
    wash = light[..., None] * tint / (tint @ LUMA)
    wash = np.minimum(wash, 255)
    wash += 0.8 * (light - wash @ LUMA)[..., None]
    return np.clip((1 - TINT_SHARE) * picture + TINT_SHARE * wash, 0, 255)


@cache
def place(name: str, look: str) -> Image.Image:
    """A place in one of the looks, 128 px square, RGBA."""
    if name not in DRAW or look not in LOOKS:
        raise ValueError(f"no place {name!r} in look {look!r}: places are {sorted(DRAW)}, looks {LOOKS}")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}">{DRAW[name]()}</svg>'
    picture = rendered(svg, 4 * SIZE).convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)
    return Image.fromarray(tinted(np.asarray(picture, float), look).round().astype(np.uint8)).convert("RGBA")
