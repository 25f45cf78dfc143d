"""The card's contact sheets: what the exported weights draw, and the nearest training scene beside it."""

import numpy as np
import torch
from PIL import Image

from training import blind
from training.concepts import MODEL_DIR, WORK
from training.sheets import save_sheet, to_pictures
from training.vae import to_tensor

SHEETS = MODEL_DIR / "sheets"
N_NEAREST = 12
THUMB = 32  # px, the size at which nearest scenes are looked for


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Mean-pooled pictures [n, 32 * 32 * 3], float32."""
    n, size = len(pictures), pictures.shape[1]
    block = size // THUMB
    pooled = pictures.reshape(n, THUMB, block, THUMB, block, 3).mean((2, 4), dtype=np.float32)
    return pooled.reshape(n, -1)


def nearest(pictures: np.ndarray, training: np.ndarray, batch: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the training scene at the least root mean square distance (grey levels), and that distance."""
    wanted = thumbnails(pictures)
    best, at = np.full(len(wanted), np.inf), np.zeros(len(wanted), int)
    for i in range(0, len(training), batch):
        known = thumbnails(training[i : i + batch])
        distance = ((wanted[:, None] - known[None]) ** 2).mean(2)
        closer = distance.min(1) < best
        at = np.where(closer, i + distance.argmin(1), at)
        best = np.minimum(best, distance.min(1))
    return at, np.sqrt(best)


def _as_array(pictures: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in to_pictures(pictures)])


def nearest_sheet(pictures: torch.Tensor) -> np.ndarray:
    """Writes sheets/nearest.png: pictures above, their nearest training scenes below; returns the distances."""
    training = np.concatenate([np.load(WORK / f"pictures_{name}.npy") for name in ("train", "lone")])
    at, distance = nearest(_as_array(pictures), training)
    rows, half = [], N_NEAREST // 2
    images, scenes = to_pictures(pictures), [Image.fromarray(training[i]) for i in at]
    for start in (0, half):
        rows += images[start : start + half] + scenes[start : start + half]
    save_sheet(rows, SHEETS / "nearest.png", columns=half)
    return distance


def sheets() -> None:
    """Writes the card's sheets and the pictures of the blind test."""
    for kind, texts in blind.captions().items():
        seeds = [blind.NOISE_SEED + 100 + i for i in range(len(texts))]
        pictures = blind.draw(texts, seeds)
        save_sheet(pictures, SHEETS / f"{kind}.png", columns=5)
        (SHEETS / f"{kind}.txt").write_text("\n".join(texts) + "\n")
        if kind == "pair":
            print("distances to the nearest scenes", nearest_sheet(pictures[4:16]).round(1), flush=True)
    real = np.load(WORK / "pictures_held_out.npy")[:10]
    save_sheet(to_tensor(real), SHEETS / "scenes.png", columns=5)
    blind.write()
