"""Designed experiments and their analysis.

Factorial designs, what a fraction confounds, the order of the runs, the analysis of variance of what they measured.
A term is a factor's name or an interaction such as "method:steps".
"""

import string
from itertools import combinations, permutations
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import patsy
import statsmodels.formula.api as smf
from pydantic import Field
from pyDOE3 import fracfact, fullfact
from statsmodels.stats.anova import anova_lm

from stlib import paths
from stlib.settings import Fields, many, read_yaml, within

Scalar = bool | int | float | str


def full_factorial(levels: dict[str, list]) -> pd.DataFrame:
    """Every combination of the levels of every factor, one row a combination.

    Raises ValueError for a factor with fewer than two different levels.
    """
    return _decoded(fullfact([len(values) for values in levels.values()]), levels)


def fractional_factorial(levels: dict[str, list], generators: dict[str, list[str]]) -> pd.DataFrame:
    """A 2-level fraction: the factors of `generators` follow from the others, one row a run.

    levels: two levels a factor, low first. generators: for each generated factor the others whose product it is, as
    {"threads": ["method", "steps", "guidance_scale"]}; the more factors a generator has, the less it confounds.
    Raises ValueError for a factor that has not two levels, or a generator that names an unknown or generated factor.
    """
    base = [name for name in levels if name not in generators]
    for name, values in levels.items():
        if len(values) != 2:
            raise ValueError(f"{name} has the levels {values}: give two-level factors, or use full_factorial")
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
            raise ValueError(f"{term} has no run with {', '.join(map(str, runs.idxmin()))}: add some, or leave it out")
    for term, others in aliases(design, terms, covariates).items():
        if others:
            raise ValueError(f"{term} is aliased with {', '.join(others)}: leave one out or add runs to separate them")
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


def anova(rows: pd.DataFrame, terms: list[str], response: str = "run_s", covariates=("C(block, Sum)",), typ: int = 2):
    """The table of an analysis of variance, and the fitted model for its residuals.

    rows: one a run, its factors and `response`. terms: factors and interactions ("method:steps"), all taken as
    categories in deviation coding, as sums of squares of type III need it. covariates: further terms of the formula.
    The table has, a term: degrees of freedom, F and p (robust to unequal variances, HC3), and partial eta squared,
    SS / (SS + residual SS) from the ordinary sums of squares. Raises ValueError as `check_estimable`, for a response
    that is no finite number (seconds: above 0), and for a run whose spread no other run shows.
    """
    _check_response(rows, response)
    rows = rows.assign(**{name: rows[name].cat.remove_unused_categories() for name in rows.select_dtypes("category")})
    check_estimable(rows, terms, covariates)
    coded = formula(terms)
    fit = smf.ols(f"{response} ~ " + " + ".join([*coded, *covariates]), rows).fit()
    alone = fit.get_influence().hat_matrix_diag > 1 - 1e-9
    if alone.any():
        raise ValueError(f"row {rows.index[alone.argmax()]} alone decides a parameter: replicate it or leave terms out")
    plain, robust = anova_lm(fit, typ=typ), anova_lm(fit, typ=typ, robust="hc3")
    squares = plain["sum_sq"]
    table = pd.DataFrame({"term": terms, "df": plain.loc[coded, "df"].to_numpy(int),
                          "F": robust.loc[coded, "F"].to_numpy(), "p": robust.loc[coded, "PR(>F)"].to_numpy(),
                          "partial_eta_sq": (squares / (squares + squares["Residual"]))[coded].to_numpy()})
    return table, fit


def read_design(path: str | Path = paths.DATA / "design.yml") -> dict[str, pd.DataFrame]:
    """The experiments of a design file, by name: each a table of runs in their order.

    An experiment has `levels`, `generators` if it is a fraction, `fixed` values, `replicates` and `blocks`.
    """
    return read_yaml(path, _experiments)


class _Experiment(Fields):
    levels: dict[str, many(Scalar)]
    generators: dict[str, many(str)] | None = None
    fixed: dict[str, Scalar] = Field(default_factory=dict)
    replicates: int = 1
    blocks: int | None = None

    def runs(self, rng: np.random.Generator) -> pd.DataFrame:
        """The table of runs in their order."""
        design = fractional_factorial(self.levels, self.generators) if self.generators else full_factorial(self.levels)
        for name in {*design} & {*self.fixed} | {*design, *self.fixed} & {"replicate", "block"}:
            raise ValueError(f"{name} is among the levels and fixed, or counted by the runs themselves: leave it out")
        return run_order(design.assign(**self.fixed), rng, self.replicates, self.blocks)


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


def _decoded(coded: np.ndarray, levels: dict[str, list]) -> pd.DataFrame:
    for name, values in levels.items():
        if len(set(values)) < 2 or len(set(values)) < len(values):
            raise ValueError(f"{name} has the levels {values}: give two different ones or more; a constant is fixed")
    return pd.DataFrame({name: [values[int(i)] for i in column]
                         for (name, values), column in zip(levels.items(), coded.T, strict=True)})


def _check_response(rows: pd.DataFrame, response: str) -> None:
    if response not in rows or not pd.api.types.is_numeric_dtype(rows[response]):
        raise ValueError(f"no column of numbers {response!r}: the rows have {', '.join(rows.columns)}")
    value = rows[response].to_numpy(float)
    failed = ~np.isfinite(value) | ((value <= 0) & response.endswith("_s"))
    if failed.any():
        raise ValueError(f"{response} = {value[failed][0]} in row {rows.index[failed.argmax()]}: leave out runs that "
                         f"failed ({failed.sum()} of {len(rows)})")
    if len(found := set(value.tolist())) < 2:
        raise ValueError(f"{response} is {[*found]} in {len(rows)} rows: there is no variance to analyse")


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
