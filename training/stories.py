"""Stories: four panels that share hero, drawing style, look and mostly the place; drawn and encoded once."""

import csv
import json

import numpy as np
import torch
from diffusers import AutoencoderKL

from training import scenes, text
from training.captions import Sentences, grammar_caption, names
from training.concepts import CONCEPTS, HEROES, LOOKS, MODEL_DIR, OBJECTS, PLAIN, ROOT, STYLES, WORK
from training.encode import SENTENCES, judged, latents

PANELS = 4
HELD_OUT_STORIES = ROOT / "data" / "stories_held_out.csv"  # for judging
SETS = {"train": (14_000, False), "validation": (256, False), "held_out": (256, True)}  # stories, of untrained pairs
SEED = 90
WORDINGS = 2  # of the captions, for training
SAME_OBJECT, NO_OBJECT = 0.68, 0.18  # of the panels; the others have another object
NO_HERO = 0.05  # of the panels with an object
ELSEWHERE = 0.15  # of the panels name another place
PLACE_NAMED = 0.4  # of the other panels name their place
BATCH = 64  # panels drawn and encoded together
EMPTY_SHARE = 0.1  # of the stories lose all captions, for guidance
SUBJECT_WEIGHT = 2.0  # of a latent cell that a subject covers


def story(rng: np.random.Generator, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """The scenes of a story [4, 5], and which of its captions name the place [4]."""
    hero, style, look = rng.integers(len(HEROES)), rng.integers(len(STYLES)), rng.integers(len(LOOKS))
    home, main = rng.integers(len(scenes.BACKDROPS)), _object(hero, held_out, rng)
    rows, named = np.full((PANELS, 5), -1, np.int16), np.zeros(PANELS, bool)
    for panel in range(PANELS):
        kind = rng.random()
        right = main if kind < SAME_OBJECT else -1 if kind < SAME_OBJECT + NO_OBJECT else _object(hero, False, rng)
        seen = right < 0 or rng.random() >= NO_HERO
        where, tells = home, rng.random() < PLACE_NAMED
        if rng.random() < ELSEWHERE:
            where, tells = rng.integers(len(scenes.BACKDROPS) - 1), True
        rows[panel] = hero if seen else -1, right, where, style, look
        named[panel] = tells and scenes.BACKDROPS[where] != PLAIN
    return rows, named


def _object(hero: int, held_out: bool, rng: np.random.Generator) -> int:
    while True:
        found = rng.integers(len(OBJECTS))
        if scenes.is_held_out(hero, found) == held_out:
            return int(found)


def caption(row: np.ndarray, named: bool, sentences: Sentences, rng: np.random.Generator) -> str:
    """A panel's caption."""
    hero, right, place = names(row)
    phrase = str(rng.choice(CONCEPTS["places"][place])) if named else ""
    if hero and sentences.templates["pair" if right else "hero"] and rng.random() < 0.7:
        return sentences.caption(hero, right, place, phrase, rng)
    return grammar_caption(hero, right, phrase, rng)


@torch.no_grad()
def prepare() -> None:
    """Writes, of each set, story_KIND_NAME.npy: latents and masks of the distinct panels, and each story's.

    panels [n, 4]: their numbers; scenes [n, 4, 5]; index [wordings, n, 4]: the captions', in states [m, 20, 384].
    """
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", dtype=torch.float32).eval()
    sentences, models = Sentences.read(SENTENCES, judged()), text.text_models()
    for seed, (name, (n, held_out)) in enumerate(SETS.items(), start=SEED):
        if (WORK / f"story_index_{name}.npy").exists():
            continue
        rng = np.random.default_rng(seed)
        rows, named = map(np.stack, zip(*(story(rng, held_out) for _ in range(n)), strict=True))
        distinct, panels = np.unique(rows.reshape(-1, 5), axis=0, return_inverse=True)
        encoded, masks = [], []
        for i in range(0, len(distinct), BATCH):
            pictures, covered = scenes.pictures(distinct[i : i + BATCH])
            encoded.append(latents(vae, pictures).half().numpy())
            masks.append(covered)
            if i % (100 * BATCH) == 0:
                print(f"stories of {name}: {i} of {len(distinct)} panels", flush=True)
        texts = {"": 0}
        index = [[[texts.setdefault(caption(row, tells, sentences, rng), len(texts))
                   for row, tells in zip(*one, strict=True)] for one in zip(rows, named, strict=True)]
                 for _ in range(WORDINGS if name == "train" else 1)]
        arrays = {"latents": np.concatenate(encoded), "masks": np.concatenate(masks), "scenes": rows,
                  "panels": panels.reshape(n, PANELS), "states": text.encode(list(texts), *models)}
        for kind, array in arrays.items():
            np.save(WORK / f"story_{kind}_{name}.npy", array)
        (WORK / f"story_captions_{name}.json").write_text(json.dumps(list(texts), indent=0))
        np.save(WORK / f"story_index_{name}.npy", np.array(index))  # last: its presence means the set is whole


def tabulate() -> None:
    """Writes data/stories_held_out.csv: each panel's caption, and the hero, object and place that it names."""
    seed, (n, held_out) = SEED + list(SETS).index("held_out"), SETS["held_out"]
    rng = np.random.default_rng(seed)
    told = [story(rng, held_out) for _ in range(n)]  # as in `prepare`, which keeps no word of the places named
    texts = json.loads((WORK / "story_captions_held_out.json").read_text())
    index = np.load(WORK / "story_index_held_out.npy")[0]
    with HELD_OUT_STORIES.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["story", "panel", "caption", "hero", "object", "place"])
        for number, (rows, named) in enumerate(told):
            for panel, (row, tells) in enumerate(zip(rows, named, strict=True)):
                hero, right, place = names(row)
                out.writerow([number, panel, texts[index[number, panel]], hero or "", right or "", place * bool(tells)])


class Stories:
    """A set's stories: clean latents [n, 4, 6, 16, 16], the loss' weights and the captions' states."""

    def __init__(self, name: str):
        self.latents, masks, self.panels, self.index, self.states = (
            torch.from_numpy(np.load(WORK / f"story_{kind}_{name}.npy"))
            for kind in ("latents", "masks", "panels", "index", "states"))
        self.scenes = np.load(WORK / f"story_scenes_{name}.npy")
        weight = 1 + (SUBJECT_WEIGHT - 1) * masks.float() / 255
        self.weights = (weight / weight.mean()).half()
        self.empty = self.states[:1].float()

    def __len__(self) -> int:
        return len(self.panels)

    def get(self, stories: torch.Tensor, wording: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents [n, 4, 6, 16, 16], weights [n, 4, 1, 16, 16] and states [n, 4, 20, 384] of stories by number."""
        panels = self.panels[stories]
        return (self.latents[panels].float(), self.weights[panels].float().unsqueeze(2),
                self.states[self.index[wording, stories]].float())

    def batch(self, n: int, generator: torch.Generator) -> list[torch.Tensor]:
        """The same of random stories, their panels in any order, some stories without captions."""
        stories = torch.randint(len(self), (n,), generator=generator)
        wording = int(torch.randint(len(self.index), (1,), generator=generator))
        order = torch.rand(n, PANELS, generator=generator).argsort(1)
        parts = [part[torch.arange(n)[:, None], order] for part in self.get(stories, wording)]
        parts[2][torch.rand(n, generator=generator) < EMPTY_SHARE] = self.empty
        return parts
