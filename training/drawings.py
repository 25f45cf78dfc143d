"""Shapes drawn as SVG: bodies for emoji that are only a face, and a castle."""

BODY_COLOUR = {
    "fox": "#f0772b", "bear": "#8d5a3b", "mouse": "#9aa4ad", "princess": "#e8569b", "boy": "#3f8fe0", "girl": "#e2574c",
    "frog": "#7cb342", "lion": "#eeb03f", "wolf": "#8a97a3", "panda": "#3b4046", "alien": "#6fbf73",
}  # fmt: skip
BELLY_COLOUR = {"fox": "#fff1e0", "panda": "#f4f4f4", "wolf": "#e8edf0", "mouse": "#dde3e8", "alien": "#a5e0a8"}
DRESSED = {"princess", "girl"}


def _body(name: str) -> str:
    colour = BODY_COLOUR[name]
    if name in DRESSED:
        trunk = f'<path d="M50 66 L84 116 Q50 124 16 116 Z" fill="{colour}"/>'
    else:
        belly = BELLY_COLOUR.get(name, "#ffffff66")
        trunk = (
            f'<ellipse cx="50" cy="94" rx="27" ry="26" fill="{colour}"/>'
            f'<ellipse cx="50" cy="98" rx="15" ry="17" fill="{belly}"/>'
        )
    limbs = "".join(
        f'<ellipse cx="{50 + side * 13}" cy="118" rx="12" ry="7" fill="{colour}"/>'
        f'<ellipse cx="{50 + side * 28}" cy="94" rx="8" ry="14" fill="{colour}"'
        f' transform="rotate({-side * 25} {50 + side * 28} 94)"/>'
        for side in (-1, 1)
    )
    return limbs + trunk


def figure(name: str, face: str) -> str:
    """A face (an `<svg>` element's inside with its viewBox, see `sprites.glyph`) on a small round body."""
    head = face.replace("<svg ", '<svg x="6" y="0" width="88" height="88" ', 1)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 126">{_body(name)}{head}</svg>'


def robot(face: str, style: str) -> str:
    """A robot's face on a box with buttons, square arms and legs."""
    metal, dark = {"noto": ("#90a4ae", "#546e7a"), "twemoji": ("#55acee", "#226699")}[style]
    box = "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3" fill="{colour}"/>'
        for x, y, w, h, colour in (
            (26, 106, 18, 14, dark), (56, 106, 18, 14, dark), (4, 80, 15, 26, dark), (81, 80, 15, 26, dark),
            (20, 72, 60, 38, metal), (30, 86, 40, 17, "#eceff1"),
        )
    )  # fmt: skip
    buttons = "".join(
        f'<circle cx="{x}" cy="94.5" r="5" fill="{colour}"/>'
        for x, colour in ((38, "#e53935"), (50, "#fdd835"), (62, "#43a047"))
    )
    head = face.replace("<svg ", '<svg x="7" y="-4" width="86" height="86" ', 1)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 120">{box}{buttons}{head}</svg>'


def castle(style: str) -> str:
    """A castle: two round towers with pointed roofs, a wall with battlements and a gate."""
    stone, roof = {"noto": ("#b9aea4", "#d84315"), "twemoji": ("#aab8c2", "#3b88c3")}[style]
    rects = "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{colour}"/>'
        for x, y, w, h, colour in (
            (6, 42, 26, 78, stone), (88, 42, 26, 78, stone), (28, 62, 64, 58, stone), (30, 52, 12, 12, stone),
            (54, 52, 12, 12, stone), (78, 52, 12, 12, stone), (14, 56, 10, 16, "#4e4a48"), (96, 56, 10, 16, "#4e4a48"),
        )
    )  # fmt: skip
    roofs = f'<path d="M1 44 L19 6 L37 44 Z M83 44 L101 6 L119 44 Z" fill="{roof}"/>'
    gate = '<path d="M46 120 V98 A14 14 0 0 1 74 98 V120 Z" fill="#5d4037"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 122">{rects}{roofs}{gate}</svg>'
