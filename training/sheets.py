"""Contact sheets: pictures in a grid, with numbers where asked for."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

GAP = 4  # px between pictures


def to_pictures(x: torch.Tensor) -> list[Image.Image]:
    """Pictures [n, 3, h, w] in [-1, 1] as PIL images."""
    values = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in values]


def save_sheet(
    pictures: torch.Tensor | list, path: Path, columns: int, size: int = 128, first: int | None = None
) -> None:
    """Writes pictures as a grid of `columns`, each `size` px, numbered from `first` on if that is given."""
    images = to_pictures(pictures) if isinstance(pictures, torch.Tensor) else pictures
    rows, pitch = -(-len(images) // columns), size + GAP
    sheet = Image.new("RGB", (columns * pitch - GAP, rows * pitch - GAP), "white")
    for i, image in enumerate(images):
        image = image.convert("RGB").resize((size, size), Image.BICUBIC)
        if first is not None:
            draw = ImageDraw.Draw(image)
            draw.rectangle([0, 0, 26, 16], fill="white")
            draw.text((4, 2), f"{first + i}", fill="black")
        sheet.paste(image, (i % columns * pitch, i // columns * pitch))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
