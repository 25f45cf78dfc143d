"""Scenes: a hero on the left, an object on the right, a place behind, all in one drawing style and one look.

A scene is a row of five indices (hero, subject on the right, place, style, look), -1 for "none". Everything stands at
fixed positions, and a lone hero's position is three latent cells (24 px) right of a paired one's: a sprite moved by
a few pixels within a cell of 8 px would become endlessly many latents, which a small network cannot learn.
"""

import numpy as np
from PIL import Image, ImageDraw

from training.concepts import HELD_OUT, HEROES, LOOKS, OBJECTS, PLACES, PLAIN, SKY, STYLES
from training.places import SIZE, place
from training.sprites import sprite

CELL = 8  # px of a latent cell
RIGHT = OBJECTS + HEROES  # a second hero may take the object's place
BACKDROPS = [*PLACES, PLAIN]
FLOOR, SKY_FLOOR = 118, 78  # px from the top, where things stand and where sky things hang
HERO_PX, OBJECT_PX, LONE_OBJECT_PX = 72, 58, 72
HERO_X, OBJECT_X, LONE_X = 36, 98, 60  # px, centres
SHARES = {"pair": 0.66, "hero": 0.14, "object": 0.14, "two heroes": 0.06}
LONE_SHARES = {"pair": 0.3, "hero": 0.32, "object": 0.34, "two heroes": 0.04}


def _shadow(x: int, width: int) -> Image.Image:
    layer = Image.new("RGBA", (SIZE, SIZE))
    ImageDraw.Draw(layer).ellipse([x - 0.4 * width, FLOOR - 4, x + 0.4 * width, FLOOR + 2], fill=(0, 0, 0, 70))
    return layer


def _put(scene: Image.Image, mask: Image.Image, style: str, name: str, x: int, size: int) -> None:
    cut_out = sprite(style, name, size)
    floor = SKY_FLOOR if name in SKY else FLOOR
    if name not in SKY:
        scene.alpha_composite(_shadow(x, cut_out.width))
    left = min(max(x - cut_out.width // 2, 0), SIZE - cut_out.width)
    scene.alpha_composite(cut_out, (left, floor - cut_out.height))
    mask.paste(255, (left, floor - cut_out.height), cut_out.getchannel("A"))


def draw(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A scene's picture [128, 128, 3] and, of each latent cell, the share its subjects cover [16, 16], both uint8."""
    hero, right, where, style, look = row
    scene = place(BACKDROPS[where], LOOKS[look]).copy()
    mask = Image.new("L", (SIZE, SIZE))
    if right >= 0:
        x, size = (OBJECT_X, OBJECT_PX) if hero >= 0 else (LONE_X + 4, LONE_OBJECT_PX)
        _put(scene, mask, STYLES[style], RIGHT[right], x, size)
    if hero >= 0:
        _put(scene, mask, STYLES[style], HEROES[hero], HERO_X if right >= 0 else LONE_X, HERO_PX)
    return np.asarray(scene.convert("RGB")), np.asarray(mask.reduce(CELL))


def is_held_out(hero: int, right: int) -> bool:
    """Whether a pair of a hero and an object is kept from training (one pair in ten)."""
    return hero >= 0 and right >= 0 and (HEROES[hero], RIGHT[right]) in HELD_OUT


def table(n: int, rng: np.random.Generator, shares: dict[str, float], held_out: bool = False) -> np.ndarray:
    """`n` random scenes [n, 5], int16, the kinds in these shares; only held-out pairs, or none of them."""
    rows = np.full((n, 5), -1, np.int16)
    kinds = rng.choice(list(shares), size=n, p=list(shares.values()))
    for row, kind in zip(rows, kinds, strict=True):
        while True:
            row[0] = -1 if kind == "object" else rng.integers(len(HEROES))
            row[1] = _right(kind, row[0], rng)
            if is_held_out(row[0], row[1]) == held_out:
                break
        row[2:] = rng.integers(len(BACKDROPS)), rng.integers(len(STYLES)), rng.integers(len(LOOKS))
    return rows


def _right(kind: str, hero: int, rng: np.random.Generator) -> int:
    if kind == "hero":
        return -1
    if kind != "two heroes":
        return int(rng.integers(len(OBJECTS)))
    other = int(rng.integers(len(HEROES) - 1))
    return len(OBJECTS) + other + (other >= hero)


def pictures(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pictures [n, 128, 128, 3] and subject masks [n, 16, 16] of a table of scenes."""
    drawn = [draw(row) for row in rows]
    return np.stack([picture for picture, _ in drawn]), np.stack([mask for _, mask in drawn])
