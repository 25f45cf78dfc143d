"""Analysis of variance of measured runs."""

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from stlib.experiment.design import check_estimable, formula


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
        raise ValueError(f"row {rows.index[alone.argmax()]} alone decides a parameter, so its spread is unknown: add "
                         "replicates or leave terms out")
    plain, robust = anova_lm(fit, typ=typ), anova_lm(fit, typ=typ, robust="hc3")
    squares = plain["sum_sq"]
    table = pd.DataFrame({"term": terms, "df": plain.loc[coded, "df"].to_numpy(int),
                          "F": robust.loc[coded, "F"].to_numpy(), "p": robust.loc[coded, "PR(>F)"].to_numpy(),
                          "partial_eta_sq": (squares / (squares + squares["Residual"]))[coded].to_numpy()})
    return table, fit


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
