"""Composes the training and validation scenes and stores them under training/work."""

import numpy as np

from training import scenes
from training.concepts import WORK

SETS = {  # name: scenes, shares of their kinds, whether only held-out pairs
    "train": (30_000, scenes.SHARES, False),
    "validation": (512, scenes.SHARES, False),
    "held_out": (512, {"pair": 1.0}, True),
    "lone": (12_000, scenes.LONE_SHARES, False),
}
SEED = 4
VAE_PICTURES = 8_000  # the VAE sees the first ones only


def prepare() -> None:
    """Writes scenes_NAME.npy [n, 5], pictures_NAME.npy [n, 128, 128, 3] and masks_NAME.npy [n, 16, 16], once."""
    seeds = np.random.SeedSequence(SEED).spawn(len(SETS))
    for (name, (n, shares, held_out)), seed in zip(SETS.items(), seeds, strict=True):
        if (WORK / f"masks_{name}.npy").exists():
            continue
        rows = scenes.table(n, np.random.default_rng(seed), shares, held_out)
        pictures, masks = scenes.pictures(rows)
        for kind, array in (("scenes", rows), ("pictures", pictures), ("masks", masks)):
            np.save(WORK / f"{kind}_{name}.npy", array)
        print(f"{name}: {n} scenes", flush=True)
