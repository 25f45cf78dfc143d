"""The three sets of pictures that somebody who has not seen the captions names: singles, pairs and LLM sentences."""

import json

import numpy as np
import torch

from training.captions import with_articles
from training.concepts import CONCEPTS, HELD_OUT, HEROES, MODEL_DIR, OBJECTS, PLACES, WORK
from training.encode import JUDGED
from training.sheets import save_sheet

SINGLES = (
    "a fox", "a red balloon", "a house", "a sailing ship", "a cat", "a tree", "the moon", "a birthday cake", "a rocket",
    "a robot",
)  # fmt: skip
FORMS = (
    "The {h} finds a {o} {p}.", "A {h} and a {o} {p}.", "The {h} looks at the {o} {p}.", "{p}, the {h} sees a {o}.",
    "a {h} with a {o} {p}",
)  # fmt: skip
CHOICE_SEED, NOISE_SEED = 40, 5000  # committed before any picture of them was drawn
SINGLE_REPEATS = 3  # pictures of each single; the first of each is the set of ten
N_PAIRS, PER_SHEET = 20, 10


def pair_captions(rng: np.random.Generator) -> list[str]:
    """Twenty captions with hero, object and place, the first ten of trained pairs, the others of held-out ones."""
    out, heroes, objects = [], [], []
    for i in range(N_PAIRS):
        held_out = i >= N_PAIRS // 2
        while True:
            hero, thing = str(rng.choice(HEROES)), str(rng.choice(OBJECTS))
            if hero not in heroes and thing not in objects and ((hero, thing) in HELD_OUT) == held_out:
                break
        heroes.append(hero)
        objects.append(thing)
        phrase = str(rng.choice(CONCEPTS["places"][PLACES[i % len(PLACES)]]))
        out.append(with_articles(FORMS[i % len(FORMS)].format(h=hero, o=thing, p=phrase)))
    return out


def captions() -> dict[str, list[str]]:
    """The captions of the three sets, the singles several times over."""
    pairs = pair_captions(np.random.default_rng(CHOICE_SEED))
    return {"single": list(SINGLES) * SINGLE_REPEATS, "pair": pairs, "sentence": JUDGED.read_text().splitlines()}


@torch.no_grad()
def draw(texts: list[str], seeds: list[int], steps: int = 20, guidance: float = 2.5) -> torch.Tensor:
    """Pictures [n, 3, 128, 128] of captions by the exported weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from training import text
    from training.diffusion import sample

    unet = UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet", dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", dtype=torch.float32).eval()
    states = torch.from_numpy(text.encode(["", *texts], *text.text_models())).float()
    latents = sample(unet, states[1:], states[:1], seeds, steps, guidance)
    return torch.cat([vae.decode(part).sample for part in latents.split(16)]).clamp(-1, 1)


def write() -> None:
    """Draws the sets, shuffles them under numbers into work/blind and keeps the key beside that folder."""
    cases = [(kind, text) for kind, texts in captions().items() for text in texts]
    pictures = draw([text for _, text in cases], [NOISE_SEED + i for i in range(len(cases))])
    order = np.random.default_rng(CHOICE_SEED + 1).permutation(len(cases))
    folder = WORK / "blind"
    for start in range(0, len(order), PER_SHEET):
        chosen = order[start : start + PER_SHEET]
        path = folder / f"sheet_{start // PER_SHEET + 1}.png"
        save_sheet(pictures[chosen], path, columns=5, size=256, first=start + 1)
    for number, i in enumerate(order, start=1):
        save_sheet(pictures[i : i + 1], folder / f"{number:02d}.png", columns=1, size=256)
    key = {f"{number:02d}": {"case": i, "set": cases[i][0], "caption": cases[i][1]}
           for number, i in enumerate(order.tolist(), start=1)}
    (WORK / "blind_key.json").write_text(json.dumps(key, indent=1))
