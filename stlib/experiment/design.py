"""Designed experiments: factorial designs, what a fraction confounds, and the order of the runs.

A term is a factor's name or an interaction such as "method:steps".
"""

import re
import string
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import patsy
from pydantic import Field
from pyDOE3 import fracfact, fullfact

from stlib import paths
from stlib.settings import Fields, many, read_yaml, within

Scalar = bool | int | float | str


def full_factorial(levels: dict[str, list]) -> pd.DataFrame:
    """Every combination of the levels of every factor, one row a combination.

    Raises ValueError for a factor with fewer than two different levels.
    """
    _check_levels(levels)
    coded = fullfact([len(values) for values in levels.values()]).astype(int)
    return pd.DataFrame({name: [values[i] for i in coded[:, column]]
                         for column, (name, values) in enumerate(levels.items())})


def fractional_factorial(levels: dict[str, list], generators: dict[str, list[str]]) -> pd.DataFrame:
    """A 2-level fraction: the factors of `generators` follow from the others, one row a run.

    levels: two levels a factor, low first. generators: for each generated factor the others whose product it is, as
    {"threads": ["method", "steps", "guidance_scale"]}; the more factors a generator has, the less it confounds.
    Raises ValueError for a factor that has not two levels, or a generator that names an unknown or generated factor.
    """
    _check_levels(levels)
    base = [name for name in levels if name not in generators]
    for name, values in levels.items():
        if len(values) != 2:
            raise ValueError(f"{name} has {len(values)} levels {values}: a fraction is of two-level factors; "
                             "give two, or use full_factorial")
    unknown = {name for word in [*generators.values(), generators] for name in word} - set(levels)
    if unknown or not all(set(word) <= set(base) and len(set(word)) == len(word) for word in generators.values()):
        raise ValueError(f"generators {generators} must define factors of {list(levels)} from different ones of {base}")
    letters = dict(zip(base, string.ascii_lowercase, strict=False))
    words = ["".join(letters[part] for part in generators.get(name, [name])) for name in levels]
    coded = (fracfact(" ".join(words)) > 0).astype(int)
    return pd.DataFrame({name: [values[i] for i in coded[:, column]]
                         for column, (name, values) in enumerate(levels.items())})


def terms_up_to(factors: list[str], order: int = 2) -> list[str]:
    """The main effects and the interactions of up to `order` factors."""
    return [":".join(group) for size in range(1, order + 1) for group in combinations(factors, size)]


def aliases(design: pd.DataFrame, terms: list[str]) -> dict[str, list[str]]:
    """For each term those of the others that the design cannot tell from it, wholly or in part.

    Two terms are aliased when their columns (deviation coding, centred) span a common direction.
    """
    return _aliases({term: _columns(design, term) for term in terms})


def check_estimable(design: pd.DataFrame, terms: list[str], covariates=()) -> None:
    """Raise ValueError unless a linear model of a constant, `terms` and `covariates` can be fitted to the runs.

    covariates: terms of a formula, such as "C(block, Sum)" or "log_factor". Refused are a term or covariate that is
    missing somewhere or does not vary, one that is aliased (the alias is named), combinations without a run, and fewer
    rows than parameters.
    """
    for name in dict.fromkeys(part for term in terms for part in term.split(":")):
        if name not in design:
            raise ValueError(f"unknown factor {name!r}: the design has {', '.join(design.columns)}")
        if design[name].isna().any():
            raise ValueError(f"{name} is missing in {design[name].isna().sum()} rows: leave out runs that failed")
        if design[name].nunique() < 2:
            raise ValueError(f"{name} has one level, {', '.join(map(repr, design[name].unique()))}: its effect cannot "
                             "be seen; give two")
    columns = {term: _columns(design, term) for term in terms}
    columns |= {re.sub(r"^C\((\w+).*\)$", r"\1", name): _covariate(design, name) for name in covariates}
    matrix = np.column_stack([np.ones(len(design)), *columns.values()])
    if len(design) < matrix.shape[1]:
        raise ValueError(f"{len(design)} rows for {matrix.shape[1]} parameters: add runs or leave terms out")
    if np.linalg.matrix_rank(matrix) == matrix.shape[1]:
        return
    for term in terms:
        levels = [design[name].unique() for name in term.split(":")]
        if empty := set(product(*levels)) - set(zip(*(design[name] for name in term.split(":")), strict=True)):
            raise ValueError(f"{term} has no run with {', '.join(map(str, sorted(empty, key=str)[0]))}: add such runs, "
                             f"or leave {term} out")
    for term, others in _aliases(columns).items():
        if others:
            raise ValueError(f"{term} is aliased with {', '.join(others)}: leave one out or add runs that separate "
                             "them")
    raise ValueError(f"{', '.join(columns)} are aliased jointly: leave one out or add runs that separate them")


def run_order(design: pd.DataFrame, rng: np.random.Generator, replicates: int = 1, blocks: int | None = None):
    """The runs of `replicates` whole designs in `blocks` equal blocks (one a replicate if left out), order random.

    Returns the design's columns with `replicate` and `block`, in the order of execution: block after block, the runs
    of a block shuffled. Raises ValueError if the replicates cannot be shared equally among the blocks.
    """
    blocks = replicates if blocks is None else blocks
    if replicates < 1 or not 1 <= blocks <= replicates or replicates % blocks:
        raise ValueError(f"{replicates} replicates in {blocks} blocks: give whole replicates to each block")
    runs = pd.concat([design.assign(replicate=i, block=i * blocks // replicates) for i in range(replicates)])
    return runs.iloc[np.lexsort((rng.random(len(runs)), runs["block"]))].reset_index(drop=True)


def read_design(path: str | Path = paths.DATA / "design.yml") -> dict[str, pd.DataFrame]:
    """The experiments of a design file, by name: each a table of runs in their order.

    An experiment has `levels`, `generators` if it is a fraction, `fixed` values, `replicates` and `blocks`.
    """
    return read_yaml(path, _experiments)


class _Experiment(Fields):
    levels: dict[str, many(Scalar)]
    generators: dict[str, many(str)] | None = None
    fixed: dict[str, Scalar] | None = None
    replicates: int = 1
    blocks: int | None = None

    def runs(self, rng: np.random.Generator) -> pd.DataFrame:
        """The table of runs in their order."""
        levels, fixed = self.levels, self.fixed or {}
        design = fractional_factorial(levels, self.generators) if self.generators else full_factorial(levels)
        for name in {*levels} & {*fixed} | {*levels, *fixed} & {"replicate", "block"}:
            raise ValueError(f"{name} is among the levels and fixed, or counted by the runs themselves: leave it out")
        return run_order(design.assign(**fixed), rng, self.replicates, self.blocks)


class _Design(Fields):
    seed: Annotated[int, Field(ge=0)]
    experiments: Annotated[dict[str, _Experiment], Field(min_length=1)]


def _experiments(**given) -> dict[str, pd.DataFrame]:
    design, runs = _Design(**given), {}
    streams = np.random.default_rng(design.seed).spawn(len(design.experiments))
    for (name, experiment), rng in zip(design.experiments.items(), streams, strict=True):
        with within(f"experiments[{name!r}]"):
            runs[name] = experiment.runs(rng)
    return runs


def _check_levels(levels: dict[str, list]) -> None:
    for name, values in levels.items():
        if len(set(values)) < 2 or len(set(values)) < len(values):
            raise ValueError(f"{name} has the levels {values}: a factor needs two different levels or more; "
                             "put a constant among the fixed values")


def _columns(design: pd.DataFrame, term: str) -> np.ndarray:
    """The term's columns in deviation coding: (rows, product over its factors of levels - 1)."""
    columns = np.ones((len(design), 1))
    for name in term.split(":"):
        level, levels = pd.factorize(design[name])
        coded = np.eye(len(levels))[level]
        coded = coded[:, :-1] - coded[:, -1:]
        columns = (columns[:, :, None] * coded[:, None, :]).reshape(len(design), -1)
    return columns


def _covariate(design: pd.DataFrame, name: str) -> np.ndarray:
    """The columns of a term of a formula, each scaled to its spread."""
    try:
        columns = np.asarray(patsy.dmatrix(name, design, NA_action="raise"))[:, 1:]
    except patsy.PatsyError as error:
        raise ValueError(f"covariate {name}: {error.message}; the rows have {', '.join(design.columns)}") from None
    if not columns.size or not np.isfinite(columns).all() or (np.ptp(columns, axis=0) == 0).any():
        raise ValueError(f"covariate {name} is infinite or does not vary: leave it out of the covariates")
    return columns / columns.std(axis=0)


def _aliases(columns: dict[str, np.ndarray]) -> dict[str, list[str]]:
    return {term: [other for other in columns if other != term and _share_direction(columns[term], columns[other])]
            for term in columns}


def _share_direction(one: np.ndarray, other: np.ndarray) -> bool:
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    ranks = [np.linalg.matrix_rank(columns) for columns in (one, other, np.column_stack([one, other]))]
    return ranks[2] < ranks[0] + ranks[1]
