"""Sprites: every hero and object as an outlined RGBA cut-out in both drawing styles."""

import io
import json
import re
from functools import cache
from pathlib import Path

from PIL import Image, ImageFilter

from training import drawings
from training.concepts import CONCEPTS, WORK

NPM = WORK / "npm" / "node_modules"
RENDERED = 512  # px, the size an SVG is rendered at before it is cut out and reduced
OUTLINE = (58, 44, 52, 255)


@cache
def _noto() -> tuple[dict, dict]:
    folder = NPM / "@iconify-json" / "noto"
    return json.loads((folder / "icons.json").read_text())["icons"], json.loads((folder / "chars.json").read_text())


def glyph(style: str, code: str) -> str:
    """The SVG text of an emoji (`code`: its hexadecimal code point) in the style "noto" or "twemoji"."""
    if style == "noto":
        icons, chars = _noto()
        body = icons[chars.get(code) or chars[f"{code}-fe0f"]]["body"]
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="0 0 128 128">{body}</svg>'
    return re.sub(r"<\?xml.*?\?>", "", (Path(NPM) / "@twemoji" / "svg" / f"{code}.svg").read_text())


def rendered(svg: str, size: int = RENDERED) -> Image.Image:
    """An SVG as an RGBA picture of `size` px width."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size)))).convert("RGBA")


def drawing(style: str, name: str) -> Image.Image:
    """A hero or object at full resolution, before outline and scaling."""
    concept = CONCEPTS["heroes"].get(name) or CONCEPTS["objects"][name]
    if concept["emoji"] == "drawn":
        return rendered(drawings.castle(style))
    svg = glyph(style, concept["emoji"])
    if concept.get("figure") == "body":
        svg = drawings.figure(name, svg)
    elif concept.get("figure") == "box":
        svg = drawings.robot(svg, style)
    return rendered(svg)


def cropped(picture: Image.Image) -> Image.Image:
    """The picture without its transparent margin."""
    return picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox())


@cache
def sprite(style: str, name: str, size: int) -> Image.Image:
    """A cut-out whose longer side is `size` px, with a thin dark outline so that it stands out from any place."""
    picture = cropped(drawing(style, name))
    scale = 4 * (size - 2) / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.LANCZOS)
    framed = Image.new("RGBA", (picture.width + 8, picture.height + 8))
    framed.alpha_composite(picture, (4, 4))
    edge = framed.getchannel("A").filter(ImageFilter.MaxFilter(7)).filter(ImageFilter.GaussianBlur(1))
    outlined = Image.composite(Image.new("RGBA", framed.size, OUTLINE), Image.new("RGBA", framed.size), edge)
    outlined.putalpha(edge)
    outlined.alpha_composite(framed)
    return outlined.resize([max(1, round(side / 4)) for side in outlined.size], Image.LANCZOS)
