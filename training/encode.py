"""Encodes scenes to latents and captions to token states, the tables that the UNet is trained on."""

import json

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import text
from training.captions import Sentences, captions
from training.concepts import ROOT, WORK
from training.prepare import SETS
from training.vae import standardise, to_tensor

SENTENCES = ROOT / "training" / "sentences.txt"
JUDGED = ROOT / "training" / "judged.txt"  # kept from training: the blind test uses them
STANDARDISED_ON = 2_000  # scenes


@torch.no_grad()
def latents(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 50) -> torch.Tensor:
    """Mean latents [n, c, 16, 16] of pictures [n, 128, 128, 3]."""
    parts = []
    for i in range(0, len(pictures), batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean)
    return torch.cat([part.float() for part in parts])


def encode_scenes(vae: AutoencoderKL) -> None:
    """Standardises the VAE, saves it as work/vae and writes latents_NAME.npy (fp16) of every set of scenes, once."""
    if not (WORK / "vae").exists():
        train = np.load(WORK / "pictures_train.npy", mmap_mode="r")
        standardise(vae, latents(vae, train[:STANDARDISED_ON]))
        vae.save_pretrained(WORK / "vae")
    vae = AutoencoderKL.from_pretrained(WORK / "vae").eval()
    for name in SETS:
        if (WORK / f"latents_{name}.npy").exists():
            continue
        z = latents(vae, np.load(WORK / f"pictures_{name}.npy", mmap_mode="r"))
        np.save(WORK / f"latents_{name}.npy", z.half().numpy())
        print(f"latents of {name}: deviations {z.std((0, 2, 3)).numpy().round(2)}", flush=True)


def judged() -> set[str]:
    """The sentences kept for judging."""
    return set(JUDGED.read_text().splitlines())


def encode_captions(name: str, seed: int) -> None:
    """Writes captions_NAME.json, states_NAME.npy [m, 20, 384] and index_NAME.npy: each scene's caption in them.

    May be called again with a name such as `train-2`: the UNet's training on `train` draws from all tables called
    `train*`, and each one gives every scene one more caption.
    """
    rows = np.load(WORK / f"scenes_{name.split('-')[0]}.npy")
    sentences = Sentences.read(SENTENCES, judged())
    rng = np.random.default_rng(seed)
    distinct = {"": 0}
    index = [distinct.setdefault(text_, len(distinct)) for text_ in captions(rows, sentences, rng)]
    states = text.encode(list(distinct), *text.text_models())
    np.save(WORK / f"states_{name}.npy", states)
    (WORK / f"captions_{name}.json").write_text(json.dumps(list(distinct), indent=0))
    np.save(WORK / f"index_{name}.npy", np.array(index))  # last: its presence means the table is whole
    print(f"captions of {name}: {len(distinct)} distinct for {len(rows)} scenes", flush=True)
