"""What is asked for: job mixes, pools of stories, the jobs and arrivals of a run."""

from collections import ChainMap
from collections.abc import Collection
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from stlib import paths
from stlib.experiment.rows import row_seeds
from stlib.queueing import checks
from stlib.queueing.arrivals import arrival_process, is_trace
from stlib.serving.workloads import make_workload
from stlib.settings import Fields, known, many, read_yaml, within


@dataclass(frozen=True)
class JobMix:
    """A mix of jobs of one workload.

    choices: what is drawn independently of the rest, by the field or as "classes": the possible values, each a dict of
    that field or of all that are drawn together, and their probabilities.
    stories: the pool the texts are drawn from, dicts with `prompt` and `captions`; without a pool an empty one.
    texts: what a job carries of its story, any of `prompt` and `captions`.
    usual: of each field what it is where the mix leaves it out (None: open). first: the choices drawn before the
    stories, in this order.
    """

    name: str
    workload: str
    choices: dict[str, tuple[list[dict], np.ndarray]]
    stories: tuple[dict, ...]
    texts: tuple[str, ...]
    usual: dict[str, Any]
    first: tuple[str, ...]

    @classmethod
    def from_yaml(cls, path: str | Path) -> "JobMix | MixOfMixes":
        """Read a mix, such as data/mixes/stories.yml, or a mix of such mixes; a bare name is looked for there.

        Raises ValueError for what is wrong in the file, or a job that the workload refuses: file, field and value.
        """
        named = {file.stem: file for file in sorted(paths.MIXES.glob("*.yml"))}
        file = Path(path) if Path(path).suffix else named[known("job mix", str(path), named)]
        return read_yaml(file, lambda **given: (MixOfMixes._of if "mixes" in given else cls._of)(file.stem, **given))

    @classmethod
    def _of(cls, name: str, /, **fields) -> "JobMix":
        given = _MixFile(**fields)
        workload = make_workload(given.workload)
        choices = {field: ([{field: one} for one in values], p) for field, (values, p) in given.model_extra.items()}
        choices |= {"classes": given.classes} if given.classes else {}
        _check_names([*given.texts, *(field for rows, _ in choices.values() for field in rows[0])], workload.fields)
        first = tuple(field for field in getattr(workload, "drawn_first", ()) if field in choices)
        ordered = {field: choices[field] for field in (*first, *workload.fields, "classes") if field in choices}
        stories = tuple(story_pool(given.pool)) if given.pool is not None else ({},)
        usual = {field: None if value is ... else value for field, value in workload.fields.items()}
        mix = cls(name, given.workload, ordered, stories, given.texts, usual, first)
        rows, check = mix._rows(), getattr(workload, "check", workload.validate)
        for _, row, story in zip(range(max(len(rows), len(stories))), cycle(rows), cycle(stories)):
            check(row | mix._carried(story, row.get("n_panels")))  # each combination and each story once
        return mix

    def sample(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Draw `n` jobs, one row a job: `job_id`, `workload`, and the workload's fields but the menu's.

        A text that the mix's jobs do not carry is an empty prompt, or None for captions.
        """
        drawn = [self._draw(choice, n, rng) for choice in self.first]
        stories = [self.stories[i] for i in rng.integers(len(self.stories), size=n)]
        seeds = rng.integers(2**31, size=n)
        drawn += [self._draw(choice, n, rng) for choice in self.choices if choice not in self.first]
        jobs = pd.concat(drawn, axis=1).assign(job_id=np.arange(n), workload=self.workload)
        carried = [self._carried(*of) for of in zip(stories, jobs.get("n_panels", [None] * n), strict=True)]
        jobs = jobs.assign(**{name: [texts[name] for texts in carried] for name in self.texts})
        left_out = {name: value for name, value in (self.usual | {"seed": seeds}).items() if name not in jobs}
        return jobs.assign(**left_out)[["job_id", "workload", *self.usual]]

    def combinations(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Every combination of the mix's choices, as jobs of the pool's first prompt, and their probabilities."""
        prompt = {"prompt": self.stories[0]["prompt"]} if "prompt" in self.texts else {}
        shares = product(*(shares for _, shares in self.choices.values()))
        return pd.DataFrame(self._rows()).assign(**prompt), np.prod(list(shares), axis=1)

    def _draw(self, choice: str, n: int, rng: np.random.Generator) -> pd.DataFrame:
        rows, shares = self.choices[choice]
        p = shares if len(rows) > 1 or choice in self.first else None  # None: one value takes no random numbers
        return pd.DataFrame(rows).iloc[rng.choice(len(rows), size=n, p=p)].reset_index(drop=True)

    def _rows(self) -> list[dict]:
        """The fields of every combination but for the texts, as far as they are not left open."""
        usual = {name: value for name, value in self.usual.items() if value is not None}
        return [dict(ChainMap(*row, usual)) for row in product(*(rows for rows, _ in self.choices.values()))]

    def _carried(self, story: dict, n_panels: int | None) -> dict:
        """The texts of a job of this story: its prompt, a caption for each panel."""
        panels = n_panels if isinstance(n_panels, int) else None
        captions = story.get("captions", ())[:panels]
        if "captions" in self.texts and len(captions) < (panels or 0):
            raise ValueError(f"n_panels = {n_panels}: the pool's stories have {len(captions)} captions; give no more")
        return {name: captions if name == "captions" else story[name] for name in self.texts}


@dataclass(frozen=True)
class MixOfMixes:
    """Jobs of several mixes, each of a workload of its own, in one queue; the members are those of a JobMix.

    parts: the mixes; shares: their probabilities. workload: one that does the jobs of them all by their `kind`.
    """

    name: str
    workload: str
    parts: tuple[JobMix, ...]
    shares: np.ndarray

    @classmethod
    def _of(cls, name: str, /, **fields) -> "MixOfMixes":
        given = _MixesFile(**fields)
        parts = tuple(JobMix.from_yaml(mix) for mix in given.mixes)
        for part in parts:
            known(f"workload of mix {part.name}", part.workload, getattr(make_workload(given.workload), "parts", ()))
        return cls(name, given.workload, parts, _shares(given.mixes.values()))

    def sample(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Draw `n` jobs, as `JobMix.sample`: their `kind`, and the fields of all, None where a job has none."""
        part = rng.choice(len(self.parts), size=n, p=self.shares)
        drawn = [mix.sample(int((part == i).sum()), rng).assign(kind=mix.workload).set_index(np.flatnonzero(part == i))
                 for i, mix in enumerate(self.parts)]
        return _together(drawn).sort_index().assign(job_id=np.arange(n), workload=self.workload)

    def combinations(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Every combination of every mix's choices, and their probabilities."""
        jobs, shares = zip(*(mix.combinations() for mix in self.parts), strict=True)
        rows = _together([part.assign(kind=mix.workload) for part, mix in zip(jobs, self.parts, strict=True)])
        return rows.reset_index(drop=True), np.concatenate(
            [share * part for share, part in zip(self.shares, shares, strict=True)])


@dataclass(frozen=True)
class Listed:
    """The jobs of a mix, some of whose fields a list sets, a row a job; the members are those of a JobMix."""

    mix: JobMix
    rows: pd.DataFrame

    @classmethod
    def by(cls, mix: JobMix | MixOfMixes, table: pd.DataFrame) -> "JobMix | MixOfMixes | Listed":
        """The mix as the columns of a table set its jobs, those named as fields of a job; width and height are a size.

        Without such columns the mix as it is. Raises ValueError, with the row, for a job that the workload refuses.
        """
        if isinstance(mix, MixOfMixes):
            return mix
        if {"width", "height"} <= {*table}:
            table = table.assign(image_size=[f"{w}x{h}" if w != h else w for w, h in table[["width", "height"]]
                                             .itertuples(index=False)])
        rows = table[[name for name in mix.usual if name in table and name not in ("prompt", "captions", "seed")]]
        if rows.empty:
            return mix
        workload, usual = make_workload(mix.workload), mix._rows()[0]
        check = getattr(workload, "check", workload.validate)
        for i, row in rows.drop_duplicates().astype(object).iterrows():
            with within(f"job {i} of the list"):
                job = usual | row.to_dict()
                check(job | mix._carried(mix.stories[0], job.get("n_panels")))
        return cls(mix, rows)

    @property
    def name(self) -> str:
        """The mix's."""
        return self.mix.name

    @property
    def workload(self) -> str:
        """The mix's."""
        return self.mix.workload

    def sample(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """The first `n` jobs of the list; what it leaves open is drawn."""
        if n > len(self.rows):
            raise ValueError(f"{n} jobs of a list of {len(self.rows)}: ask for no more")
        listed = {name: values.tolist() for name, values in self.rows.head(n).items()}
        jobs, own = self.mix.sample(n, rng).assign(**listed), self.mix
        if "n_panels" in listed and "captions" in own.texts:  # a caption a panel
            told = [own._carried(own.stories[i], panels) for i, panels in
                    zip(rng.integers(len(own.stories), size=n), listed["n_panels"], strict=True)]
            jobs = jobs.assign(**{name: [one[name] for one in told] for name in own.texts})
        return jobs

    def combinations(self) -> tuple[pd.DataFrame, np.ndarray]:
        """Every combination of the list's rows and of the mix's choices that it leaves open, and their shares."""
        jobs, shares = self.mix.combinations()
        rows = self.rows.value_counts(normalize=True).rename("share").reset_index()
        both = rows.merge(jobs.drop(columns=list(self.rows)).assign(p=shares), how="cross")
        return both.drop(columns=["share", "p"]), (both["share"] * both["p"]).to_numpy()


def _together(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all, None where a table lacks a column: whole numbers stay such."""
    rows = pd.concat([table.astype(object) for table in tables])
    return rows.where(rows.notna(), None)


def _choice(given) -> tuple[tuple, np.ndarray]:
    """The values and their probabilities, of one value, a list of equally likely ones, or value: weight."""
    values = tuple(given) if isinstance(given, (dict, list)) else (given,)
    if not values or any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError("give a value, a list of different values, or value: weight")
    return values, _shares(given.values() if isinstance(given, dict) else [1] * len(values))


def _classes(given: tuple[dict, ...]) -> tuple[list[dict], np.ndarray]:
    """Fields that are drawn together, each class with a weight."""
    if any("weight" not in one or len(one) < 2 or one.keys() != given[0].keys() for one in given):
        raise ValueError("give each class a weight and a value of the same fields")
    fields = [{field: value for field, value in one.items() if field != "weight"} for one in given]
    return fields, _shares([one["weight"] for one in given])


def _shares(weights: Collection) -> np.ndarray:
    for weight in weights:
        checks.positive(weight=weight)
    return np.array([*weights], float) / sum(weights)


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
            raise ValueError("give both a pool of data/prompts.yml and the texts that a job carries of it, or neither")
        return self


class _MixesFile(Fields):
    workload: str
    mixes: Annotated[dict[str, float], Field(min_length=2, description="two or more mixes, each with a weight")]


def _check_names(given: list[str], fields: dict) -> None:
    """Each field of the workload at most once, and those that have no default.

    A mix's fields are given as choices, in classes, or as texts of its pool.
    """
    for name in given:
        known("field", name, [*fields, *_MixFile.model_fields])
        if given.count(name) > 1:
            raise ValueError(f"{name} is given twice: beside the classes or texts that give it too; leave one out")
    for name in (name for name, usual in fields.items() if usual is ... and name not in given):
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


def with_stories(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run of a design with a story of the pool and a seed, which follow from the run alone.

    It decodes exactly its llm_tokens; at 0, or where they are no factor, it has captions alone.
    """
    stories, rngs = story_pool("stories"), [np.random.default_rng(int(seed)) for seed in row_seeds(runs)]
    tokens = runs.get("llm_tokens", pd.Series(0, runs.index))
    told = [stories[rng.integers(len(stories))] for rng in rngs]
    prompts = [story["prompt"] if one else "" for story, one in zip(told, tokens > 0, strict=True)]
    captions = [tuple(story["captions"][:n]) for story, n in zip(told, runs["n_panels"], strict=True)]
    return runs.assign(prompt=prompts, captions=captions, exact_tokens=tokens > 0, llm_tokens=tokens.clip(lower=1),
                       seed=[rng.integers(2**31) for rng in rngs])


def listed(mix: JobMix | MixOfMixes, arrivals: dict) -> JobMix | MixOfMixes | Listed:
    """The mix of a run: a trace's columns that are named as fields of its jobs set these. arrivals: as of `drawn`."""
    return Listed.by(mix, arrival_process(None, **arrivals).jobs) if is_trace(arrivals["name"]) else mix


def drawn(mix: JobMix, arrivals: dict, lam: float | None, seed: int, n_jobs: int) -> tuple:
    """The jobs of a run, their arrival times (n,) in seconds, and the rate of their process."""
    of_jobs, of_arrivals = np.random.default_rng(seed).spawn(2)
    process = arrival_process(lam, **arrivals)
    return mix.sample(n_jobs, of_jobs), process.sample(n_jobs, of_arrivals), process.rate
