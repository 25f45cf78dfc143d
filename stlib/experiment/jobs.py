"""What is asked for: job mixes, pools of stories, the jobs and arrivals of a run."""

from dataclasses import dataclass
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, ConfigDict, model_validator

from stlib import paths
from stlib.queueing import checks
from stlib.queueing.arrivals import arrival_process
from stlib.serving.workloads import make_workload
from stlib.settings import Fields, known, many, read_yaml


@dataclass(frozen=True)
class JobMix:
    """A mix of jobs of one workload.

    choices: for each field its possible values and their probabilities, drawn independently of the other fields; the
    values of "classes" are dicts of fields that are drawn together.
    stories: the pool the texts are drawn from, dicts with `prompt` and `captions`.
    texts: what a job carries of its story, any of `prompt` and `captions`.
    columns: of the jobs. first: the fields drawn before the stories, in this order.
    """

    name: str
    workload: str
    choices: dict[str, tuple[tuple, np.ndarray]]
    stories: tuple[dict, ...]
    texts: tuple[str, ...]
    columns: tuple[str, ...]
    first: tuple[str, ...]

    @classmethod
    def from_yaml(cls, path: str | Path) -> "JobMix":
        """Read a mix, such as data/mixes/stories.yml; a bare name is looked for there.

        Raises ValueError for what is wrong in the file, or a job that the workload refuses: file, field and value.
        """
        named = {file.stem: file for file in sorted(paths.MIXES.glob("*.yml"))}
        file = Path(path) if Path(path).suffix else named[known("job mix", str(path), named)]
        return read_yaml(file, partial(cls._of, file.stem))

    @classmethod
    def _of(cls, name: str, /, **fields) -> "JobMix":
        given = _MixFile(**fields)
        workload, together = make_workload(given.workload), given.classes or ()
        stories = tuple(story_pool(given.pool)) if given.pool is not None else ()
        names = [*given.model_extra, *(together[0][0] if together else ()), *given.texts]
        _check_names(names, workload.fields)
        choices = {field: _choice(value) for field, value in workload.fields.items()
                   if value not in (..., None) and field not in names}
        choices |= given.model_extra | ({"classes": together} if together else {})
        first = tuple(field for field in getattr(workload, "drawn_first", ()) if field in choices)
        ordered = {field: choices[field] for field in (*first, *workload.fields, "classes") if field in choices}
        mix = cls(name, given.workload, ordered, stories, given.texts, tuple(workload.fields), first)
        mix._check(getattr(workload, "check", workload.validate))
        return mix

    def sample(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Draw `n` jobs, one row a job: `job_id`, `workload`, and the workload's fields but the menu's.

        A text that the mix's jobs do not carry is an empty prompt, or None for captions.
        """
        drawn = {field: self._draw(field, n, rng) for field in self.first}
        stories = [self.stories[i] for i in rng.integers(len(self.stories), size=n)] if self.stories else [{}] * n
        seeds = rng.integers(2**31, size=n)
        drawn |= {field: self._draw(field, n, rng) for field in self.choices if field not in self.first}
        if "classes" in drawn:
            drawn |= pd.DataFrame(list(drawn.pop("classes"))).to_dict("series")
        jobs = pd.DataFrame(drawn | {"job_id": np.arange(n), "workload": self.workload})
        carried = [self._carried(*of) for of in zip(stories, jobs.get("n_panels", [None] * n), strict=True)]
        jobs = jobs.assign(**{name: [texts[name] for texts in carried] for name in self.texts})
        jobs = jobs.assign(**{name: seeds if name == "seed" else None for name in self.columns if name not in jobs})
        return jobs[["job_id", "workload", *self.columns]]

    def combinations(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Every combination of the mix's choices, as jobs of the pool's first prompt, and their probabilities."""
        grid = pd.DataFrame(self._rows())
        if "prompt" in self.texts:
            grid["prompt"] = self.stories[0]["prompt"]
        rest = [name for name in self.columns if name in grid and name not in self.first]
        shares = list(product(*(shares for _, shares in self.choices.values())))
        return grid[[*self.first, *rest]], np.prod(shares, axis=1)

    def _draw(self, field: str, n: int, rng: np.random.Generator) -> np.ndarray:
        values, shares = self.choices[field]
        p = shares if len(values) > 1 or field in self.first else None  # None: one value takes no random numbers
        return pd.Series(values).to_numpy()[rng.choice(len(values), size=n, p=p)]

    def _rows(self) -> list[dict]:
        rows = [dict(zip(self.choices, row, strict=True)) for row in product(*(v for v, _ in self.choices.values()))]
        return [row | row.pop("classes", {}) for row in rows]

    def _carried(self, story: dict, n_panels: int | None) -> dict:
        """The texts of a job of this story: its prompt, a caption for each panel."""
        captions = story.get("captions", ())[:n_panels if isinstance(n_panels, int) else None]
        if "captions" in self.texts and isinstance(n_panels, int) and len(captions) < n_panels:
            raise ValueError(f"n_panels = {n_panels}: the pool's stories have {len(captions)} captions; give at most "
                             "as many, or leave captions out of texts")
        return {name: captions if name == "captions" else story[name] for name in self.texts}

    def _check(self, check) -> None:
        """Each combination and each story once, by the workload."""
        rows, stories = self._rows(), self.stories or ({},)
        for _, row, story in zip(range(max(len(rows), len(stories))), cycle(rows), cycle(stories), strict=False):
            check(row | self._carried(story, row.get("n_panels")))


def _choice(given) -> tuple[tuple, np.ndarray]:
    """The values and their probabilities, of one value, a list of equally likely ones, or value: weight."""
    values = tuple(given) if isinstance(given, (dict, list)) else (given,)
    if not values or any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError("give a value, a list of different values, or value: weight")
    return values, _shares(list(given.values()) if isinstance(given, dict) else [1] * len(values))


def _classes(given: tuple[dict, ...]) -> tuple[tuple, np.ndarray]:
    """Fields that are drawn together, each class with a weight."""
    if any("weight" not in one or len(one) < 2 or one.keys() != given[0].keys() for one in given):
        raise ValueError("give each class a weight and a value of the same fields")
    fields = tuple({field: value for field, value in one.items() if field != "weight"} for one in given)
    return fields, _shares([one["weight"] for one in given])


def _shares(weights: list) -> np.ndarray:
    for weight in weights:
        checks.positive(weight=weight)
    return np.array(weights, float) / sum(weights)


class _MixFile(Fields):
    """The fields of every mix; the others are choices, and the workload says which there are."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_choice)]]
    workload: str
    texts: many(Literal["prompt", "captions"]) = ()
    pool: str | None = None
    classes: Annotated[many(dict), AfterValidator(_classes)] | None = None

    @model_validator(mode="after")
    def _fits(self):
        if (self.pool is None) != (not self.texts):
            raise ValueError("give both a pool, of data/prompts.yml, and the texts that a job carries of its story, or "
                             "neither")
        return self


def _check_names(given: list[str], fields: dict) -> None:
    """Each field of the workload at most once, and those that have no default.

    A mix's fields are given as choices, in classes, or as texts of its pool.
    """
    for name in given:
        known("field", name, [*fields, *_MixFile.model_fields])
        if given.count(name) > 1:
            raise ValueError(f"{name} is given twice: beside the classes or texts that give it too; leave one out")
    for name, default in fields.items():
        if default is ... and name not in given:
            raise ValueError(f"{name} is missing: give a value, a list of equally likely values, or value: weight")


class _Story(Fields):
    prompt: str
    captions: many(str)


class _Pools(Fields):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, many(_Story)]


def story_pool(name: str) -> list[dict]:
    """A committed pool of stories, dicts with `prompt` and `captions`. Raises ValueError for an unknown name."""
    pools = read_yaml(paths.DATA / "prompts.yml", _Pools).model_extra
    return [dict(story) for story in pools[known("story pool", name, pools)]]


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
