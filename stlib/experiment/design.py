"""Designed experiments: factorial designs, what a fraction confounds, and the order of the runs.

A term is a factor's name or an interaction such as "method:steps".
"""

import string
from itertools import combinations, permutations
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
    return _decoded(fullfact([len(values) for values in levels.values()]), levels)


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
    if set(generators) - set(levels) or not all(set(word) <= set(base) and len(set(word)) == len(word)
                                                for word in generators.values()):
        raise ValueError(f"generators {generators} must define factors of {list(levels)} from different ones of {base}")
    letters = dict(zip(base, string.ascii_lowercase, strict=False))
    words = ["".join(letters[part] for part in generators.get(name, [name])) for name in levels]
    return _decoded(fracfact(" ".join(words)) > 0, levels)


def terms_up_to(factors: list[str], order: int = 2) -> list[str]:
    """The main effects and the interactions of up to `order` factors."""
    return [":".join(group) for size in range(1, order + 1) for group in combinations(factors, size)]


def aliases(design: pd.DataFrame, terms: list[str], covariates=()) -> dict[str, list[str]]:
    """For each term those of the others that the design cannot tell from it, wholly or in part.

    Two terms are aliased when their columns (deviation coding, centred) span a common direction. Arguments and errors
    as of `check_estimable`.
    """
    columns = {term: part - part.mean(axis=0) for term, part in _columns(design, terms, covariates).items()}
    ranks = {term: np.linalg.matrix_rank(part) for term, part in columns.items()}
    found = {term: [] for term in columns}
    for one, other in permutations(columns, 2):
        if np.linalg.matrix_rank(np.hstack([columns[one], columns[other]])) < ranks[one] + ranks[other]:
            found[one].append(other)
    return found


def formula(terms: list[str]) -> list[str]:
    """The terms of a formula: all factors are categories in deviation coding, as type III sums of squares need it."""
    return [":".join(f"C({factor}, Sum)" for factor in term.split(":")) for term in terms]


def check_estimable(design: pd.DataFrame, terms: list[str], covariates=()) -> None:
    """Raise ValueError unless a linear model of a constant, `terms` and `covariates` can be fitted to the runs.

    terms: an interaction's factors are among them too. covariates: terms of a formula, such as "C(block, Sum)" or
    "log_factor". Refused are a term or covariate that is missing somewhere or does not vary, one that is aliased (the
    alias is named), combinations without a run, and fewer rows than parameters.
    """
    columns = _columns(design, terms, covariates)
    matrix = np.column_stack([np.ones(len(design)), *columns.values()])
    if len(design) < matrix.shape[1]:
        raise ValueError(f"{len(design)} rows for {matrix.shape[1]} parameters: add runs or leave terms out")
    if np.linalg.matrix_rank(matrix) == matrix.shape[1]:
        return
    for term in terms:
        factors = term.split(":")
        runs = design[factors].astype("category").groupby(factors, observed=False).size()
        if (runs == 0).any():
            raise ValueError(f"{term} has no run with {', '.join(map(str, runs.idxmin()))}: add such runs, or leave "
                             f"{term} out")
    for term, others in aliases(design, terms, covariates).items():
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


def _decoded(coded: np.ndarray, levels: dict[str, list]) -> pd.DataFrame:
    return pd.DataFrame({name: [values[int(i)] for i in column]
                         for (name, values), column in zip(levels.items(), coded.T, strict=True)})


def _columns(design: pd.DataFrame, terms: list[str], covariates) -> dict[str, np.ndarray]:
    """The columns (rows, ...) of each term and covariate, scaled to their spread."""
    names = dict(zip([*terms, *covariates], [*formula(terms), *covariates], strict=True))
    try:
        matrix = patsy.dmatrix(" + ".join(names.values()), design, NA_action="raise")
    except patsy.PatsyError as error:
        where = error.origin.relevant_code() if error.origin else "the design"
        raise ValueError(f"{where}: {error.message}; leave out runs that failed, and name columns of "
                         f"the rows: {', '.join(design.columns)}") from None
    columns = {name: np.asarray(matrix)[:, matrix.design_info.term_name_slices[code]] for name, code in names.items()}
    for name, part in columns.items():
        if not part.size or not np.isfinite(part).all() or (np.ptp(part, axis=0) == 0).any():
            raise ValueError(f"{name} is infinite or does not vary: give two values or more, or leave it out")
    return {name: part / part.std(axis=0) for name, part in columns.items()}
