"""Writes the trained weights as fp16 safetensors in the layout that diffusers reads."""

import json

from diffusers import AutoencoderKL

from training.concepts import MODEL_DIR, WORK
from training.diffusion import new_scheduler
from training.unet import trained_unet


def export() -> None:
    """Writes unet/, vae/ and scheduler/ into data/models/illustrator."""
    trained_unet(WORK / "unet_lone.pt").half().save_pretrained(MODEL_DIR / "unet")
    tuned = WORK / "vae_tuned"
    vae = AutoencoderKL.from_pretrained(tuned if tuned.exists() else WORK / "vae")
    vae.half().save_pretrained(MODEL_DIR / "vae")
    new_scheduler().save_pretrained(MODEL_DIR / "scheduler")
    for part in ("unet", "vae"):
        config = MODEL_DIR / part / "config.json"
        values = {key: value for key, value in json.loads(config.read_text()).items() if key != "_name_or_path"}
        config.write_text(json.dumps(values, indent=2) + "\n")
