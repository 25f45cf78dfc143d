"""What is asked for: job mixes, pools of stories, the jobs and arrivals of a run."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from stlib import paths
from stlib.queueing.arrivals import arrival_process

COLUMNS = ("job_id", "workload", "prompt", "n_panels", "captions", "llm_tokens", "exact_tokens", "steps", "image_size",
           "guidance_scale", "seed")
DRAWN = ("n_panels", "steps", "llm_tokens", "image_size", "guidance_scale")  # each drawn independently of the others


@dataclass(frozen=True)
class JobMix:
    """A mix of jobs of one workload.

    choices: for each field of DRAWN its possible values and their probabilities.
    stories: the pool the texts are drawn from, dicts with `prompt` and `captions`.
    texts: what a job carries of its story, any of `prompt` and `captions`.
    """

    name: str
    workload: str
    choices: dict[str, tuple[np.ndarray, np.ndarray]]
    stories: tuple[dict, ...]
    texts: tuple[str, ...]
    exact_tokens: bool

    @classmethod
    def from_yaml(cls, path: str | Path) -> "JobMix":
        """Read a mix, such as data/mixes/stories.yml; a bare name is looked for there."""
        path = Path(path) if Path(path).suffix else paths.MIXES / f"{path}.yml"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in paths.MIXES.glob("*.yml")))
            raise ValueError(f"no job mix {path}: give a YAML file or one of {known}")
        text = yaml.safe_load(path.read_text())
        unknown = set(text) - {"workload", "texts", "pool", "exact_tokens", *DRAWN}
        if unknown:
            raise ValueError(f"{path.name}: unknown field {sorted(unknown)[0]!r}; a mix has {', '.join(DRAWN)}, "
                             "workload, texts, pool and exact_tokens")
        pool = yaml.safe_load((paths.DATA / "prompts.yml").read_text())[text["pool"]]
        return cls(name=path.stem, workload=text["workload"], texts=tuple(text["texts"]),
                   exact_tokens=bool(text.get("exact_tokens", False)), stories=tuple(pool),
                   choices={field: _choice(path.name, field, text[field]) for field in DRAWN})

    def sample(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Draw `n` jobs: one row a job, the columns of COLUMNS.

        A text that the mix's jobs do not carry is an empty prompt, or None for captions.
        """
        jobs = pd.DataFrame({field: rng.choice(values, size=n, p=shares)
                             for field, (values, shares) in self.choices.items()})
        stories = [self.stories[i] for i in rng.integers(len(self.stories), size=n)]
        jobs["job_id"], jobs["workload"], jobs["exact_tokens"] = np.arange(n), self.workload, self.exact_tokens
        jobs["seed"] = rng.integers(2**31, size=n)
        with_prompt, with_captions = "prompt" in self.texts, "captions" in self.texts
        jobs["prompt"] = [story["prompt"] if with_prompt else "" for story in stories]
        jobs["captions"] = [tuple(story["captions"][:panels]) if with_captions else None
                            for story, panels in zip(stories, jobs["n_panels"], strict=True)]
        return jobs[list(COLUMNS)]

    def combinations(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Every combination of the fields of DRAWN, as jobs of the pool's first prompt, and their probabilities."""
        grid = pd.DataFrame(product(*(self.choices[field][0] for field in DRAWN)), columns=DRAWN)
        shares = list(product(*(self.choices[field][1] for field in DRAWN)))
        prompt = self.stories[0]["prompt"] if "prompt" in self.texts else ""
        return grid.assign(prompt=prompt, exact_tokens=self.exact_tokens), np.prod(shares, axis=1)


def _choice(file: str, field: str, given) -> tuple[np.ndarray, np.ndarray]:
    """A value, a list of equally likely values, or value: weight."""
    weights = given if isinstance(given, dict) else dict.fromkeys(given if isinstance(given, list) else [given], 1)
    shares = np.array(list(weights.values()), float)
    if not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
        raise ValueError(f"{file}: {field} needs values with positive weights, not {given!r}")
    return np.array(list(weights)), shares / shares.sum()


def story_pool(name: str) -> list[dict]:
    """A committed pool of stories, dicts with `prompt` and `captions`. Raises ValueError for an unknown name."""
    pools = yaml.safe_load((paths.DATA / "prompts.yml").read_text())
    if name not in pools:
        raise ValueError(f"no story pool {name!r}: data/prompts.yml has {', '.join(pools)}")
    return pools[name]


def as_story_jobs(runs: pd.DataFrame, stories: list[dict], seeds) -> pd.DataFrame:
    """Give each run a random story of the pool (dicts with `prompt` and `captions`) and a seed of its own.

    seeds: (n,), of `row_seeds`, so that a run's story depends on nothing but the run. The LLM decodes exactly
    `llm_tokens`; where that is 0 the job is captions alone (its llm_tokens, unused, become 1).
    """
    rngs = [np.random.default_rng(int(seed)) for seed in seeds]
    drawn = [stories[rng.integers(len(stories))] for rng in rngs]
    llm = runs["llm_tokens"] > 0
    return runs.assign(prompt=[story["prompt"] if one else "" for story, one in zip(drawn, llm, strict=True)],
                       captions=[tuple(story["captions"][:panels])
                                 for story, panels in zip(drawn, runs["n_panels"], strict=True)],
                       exact_tokens=llm, llm_tokens=runs["llm_tokens"].clip(lower=1),
                       seed=[rng.integers(2**31) for rng in rngs])


def drawn(mix: JobMix, arrivals: dict, lam: float | None, seed: int, n_jobs: int) -> tuple:
    """The jobs of a run, their arrival times (n,) in seconds, and the rate of their process."""
    of_jobs, of_arrivals = np.random.default_rng(seed).spawn(2)
    process = arrival_process(lam, **arrivals)
    return mix.sample(n_jobs, of_jobs), process.sample(n_jobs, of_arrivals), process.rate
