"""How good pictures are: what a judge sees in each panel, how alike a story's panels are, distances between sets.

The embedded judge reads latents of the illustrator's VAE. Models of a hub are judged by features of a CLIP or DINO
model. Statistics are over stories, since the panels of one are not independent.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from stlib import paths
from stlib.generation.models import ILLUSTRATOR

JUDGE = paths.MODELS / "judge"
SIZE, CELL = 128, 8  # pixels a side that the judge reads, and of a latent cell
FEATURES = 64
LEAST_PICTURES = 2 * FEATURES  # of a set: below, its covariance is no estimate
KID_SUBSETS, KID_SUBSET = 50, 500
SUBJECTS, DRAWING = ("hero", "object", "place"), ("style", "look")  # what captions name, and what none does


class JudgeNet(nn.Module):
    """Latents [n, 6, 16, 16] to features [n, 64], and from these the `logits` of each of the `heads` (sizes)."""

    def __init__(self, heads: Sequence[int]):
        super().__init__()
        sizes = ((6, 48, 1), (48, 64, 2), (64, 96, 1), (96, 128, 2), (128, 128, 1))
        layers = [(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU())
                  for before, after, stride in sizes]
        self.body = nn.Sequential(*(part for layer in layers for part in layer), nn.Flatten())
        self.features = nn.Linear(128 * (SIZE // CELL // 4) ** 2, FEATURES)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, size) for size in heads)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """The features."""
        return self.features(self.body(latents))

    def logits(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Of each head [n, size]."""
        return [head(nn.functional.silu(features)) for head in self.heads]


class Judge:
    """Reads panels: hero, object and place, which captions name, drawing style and look, which none does."""

    def __init__(self, folder: Path = JUDGE):
        """folder: `config.json` (the names of each head's classes, "" for none) and `judge.safetensors`."""
        self.folder = folder
        self.names = json.loads((folder / "config.json").read_text())
        self.net = JudgeNet([len(names) for names in self.names.values()])
        self.net.load_state_dict({name: one.float() for name, one in load_file(folder / "judge.safetensors").items()})
        self.net.eval()

    @cached_property
    def vae(self):
        """The illustrator's, fp32."""
        return AutoencoderKL.from_pretrained(ILLUSTRATOR / "vae", dtype=torch.float32, use_safetensors=True).eval()

    @torch.inference_mode()
    def read(self, panels: Sequence[Image.Image], batch: int = 50) -> tuple[pd.DataFrame, np.ndarray]:
        """What each panel shows, a column a head, and its features (n, 64). Other sizes are resampled to 128 px.

        Raises ValueError for no panels.
        """
        if not panels:
            raise ValueError("there are no panels: give at least one")
        pixels = np.stack([np.asarray(panel.convert("RGB").resize((SIZE, SIZE))) for panel in panels])
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = torch.cat([self.net(self.vae.encode(part).latent_dist.mean) for part in x.split(batch)])
        return self.named(features), features.numpy()

    @torch.inference_mode()
    def named(self, features) -> pd.DataFrame:
        """What panels show, by their features (n, 64); a column a head."""
        logits = self.net.logits(torch.as_tensor(features, dtype=torch.float32))
        return pd.DataFrame({name: np.array(names)[one.argmax(1)]
                             for (name, names), one in zip(self.names.items(), logits, strict=True)})

    @cached_property
    def real(self) -> dict[str, np.ndarray]:
        """Features (1024, 64) of real panels never trained, in the order of their stories: `held_out`, `validation`."""
        return {name: one.float().numpy() for name, one in load_file(self.folder / "real.safetensors").items()}


class HubJudge:
    """Features of a CLIP, SigLIP or DINO model of transformers, by name or folder."""

    def __init__(self, name: str, device: str = "cpu"):
        options = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
        self.model = transformers.AutoModel.from_pretrained(name, use_safetensors=True, **options).to(device).eval()
        self.pictures = transformers.AutoImageProcessor.from_pretrained(name, use_fast=False, **options)
        self.name, self._options = name, options

    @torch.inference_mode()
    def features(self, panels: Sequence[Image.Image]) -> np.ndarray:
        """(n, d), of length 1."""
        inputs = self.pictures(images=list(panels), return_tensors="pt").to(self.model.device)
        reads = getattr(self.model, "get_image_features", self.model)
        return _unit(reads(**inputs))

    @torch.inference_mode()
    def alignment(self, panels: Sequence[Image.Image], captions: Sequence[str]) -> np.ndarray:
        """CLIP score of each panel with its caption, (n,): 100 max(cosine, 0).

        Hessel et al., CLIPScore, EMNLP 2021, times 100 instead of 2.5. Raises ValueError for a model without text.
        """
        if not hasattr(self.model, "get_text_features"):
            raise ValueError(f"{self.name} reads no captions: give a CLIP model for alignment")
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **self._options)
        words = tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return 100 * np.maximum((self.features(panels) * _unit(self.model.get_text_features(**words))).sum(1), 0)


def _unit(found) -> np.ndarray:
    found = getattr(found, "pooler_output", found)
    return nn.functional.normalize(found.float(), dim=-1).cpu().numpy()


def alignment(read: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    """Whether each panel shows its caption's subjects: a column for each of SUBJECTS, NaN where none is asked for.

    read: of `Judge.read`. asked: the same columns by panel, "" for what the caption does not name.
    """
    return pd.DataFrame({one: np.where(asked[one] == "", np.nan, read[one] == asked[one]) for one in SUBJECTS})


def coherence(read: pd.DataFrame, asked: pd.DataFrame, story: Sequence) -> pd.DataFrame:
    """By story, the share of its pairs of panels that are alike: style, look, and place where no caption tells two.

    copied: ViStoryBench's copy-paste score, here the share of panels that show an object another panel's caption
    names and their own does not, of those for which there is one. Columns style, look, place, copied; NaN for none.
    """
    rows = {}
    for one, panels in read.groupby(np.asarray(story), sort=False):
        wanted, pairs = asked.loc[panels.index], list(combinations(panels.index, 2))
        alike = {name: [read[name][a] == read[name][b] for a, b in pairs] for name in DRAWING}
        alike["place"] = [read["place"][a] == read["place"][b] for a, b in pairs
                          if wanted["place"][a] == wanted["place"][b]]
        foreign = {i: set(wanted["object"]) - {wanted["object"][i], ""} for i in panels.index}
        alike["copied"] = [panels["object"][i] in others for i, others in foreign.items() if others]
        rows[one] = {name: np.mean(values) if values else np.nan for name, values in alike.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def similarity(features: np.ndarray, story: Sequence) -> pd.Series:
    """By story, the mean cosine of its pairs of panels' features (n, d)."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    groups = pd.Series(range(len(unit))).groupby(np.asarray(story), sort=False)
    return groups.apply(lambda i: np.mean([unit[a] @ unit[b] for a, b in combinations(i, 2)]))


class _Given(nn.Module):
    """What stands in torchmetrics for a network, where features are given."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def fid(real: np.ndarray, drawn: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, d), (m, d), as Heusel et al., NeurIPS 2017; biased in small sets.

    Raises ValueError for fewer than twice as many pictures as features, NaN, or constant pictures.
    """
    return _distance(FrechetInceptionDistance(feature=_Given(real.shape[1])), real, drawn).compute().item()


def kid(real: np.ndarray, drawn: np.ndarray) -> float:
    """Kernel distance of two sets of features, as Binkowski et al., ICLR 2018: unbiased. Errors as of `fid`."""
    subset = min(KID_SUBSET, len(real), len(drawn))
    metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=KID_SUBSETS, subset_size=subset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the subsets
        return _distance(metric, real, drawn).compute()[0].item()


def _distance(metric, real: np.ndarray, drawn: np.ndarray):
    least = 2 * real.shape[1]
    for name, features in (("real", real), ("drawn", drawn)):
        if len(features) < least:
            raise ValueError(f"{len(features)} {name} pictures: give at least {least}, twice the number of features")
        if not np.isfinite(features).all():
            raise ValueError(f"features of {name} pictures are not a number (NaN): leave out drawings that failed")
        if np.ptp(features, axis=0).max() == 0:
            raise ValueError(f"all {name} pictures are the same: a set of them has no distance")
        metric.update(torch.from_numpy(np.asarray(features, np.float64)), real=name == "real")
    return metric


def by_story(statistic: Callable[[np.ndarray], float], n_stories: int, rng: np.random.Generator, draws: int = 1000,
             level: float = 0.95, basic: bool = False) -> tuple[float, float, float]:
    """A statistic of stories by their numbers, `statistic(numbers)`, and its bootstrap interval by story: percentiles.

    basic: the resampled values reflected about the statistic, for one whose resampling is biased itself (of a FID
    upwards). Both as in Davison and Hinkley 1997, chapter 5.
    """
    found = statistic(np.arange(n_stories))
    again = [statistic(rng.integers(n_stories, size=n_stories)) for _ in range(draws)]
    low, high = np.quantile(again, [(1 - level) / 2, (1 + level) / 2])
    return (found, 2 * found - high, 2 * found - low) if basic else (found, low, high)
