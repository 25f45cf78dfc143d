"""Analysis of variance of measured runs."""

import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from stlib.experiment.design import check_estimable


def anova(rows: pd.DataFrame, terms: list[str], response: str = "run_s", covariates=("C(block, Sum)",), typ: int = 2):
    """The table of an analysis of variance, and the fitted model for its residuals.

    rows: one a run, its factors and `response`. terms: factors and interactions ("method:steps"), all taken as
    categories in deviation coding, as sums of squares of type III need it. covariates: further terms of the formula.
    The table has, a term: degrees of freedom, F and p (robust to unequal variances, HC3), and partial eta squared,
    SS / (SS + residual SS) from the ordinary sums of squares. Raises ValueError as `check_estimable`.
    """
    check_estimable(rows, terms)
    coded = [":".join(f"C({factor}, Sum)" for factor in term.split(":")) for term in terms]
    fit = smf.ols(f"{response} ~ " + " + ".join([*coded, *covariates]), rows).fit()
    plain, robust = anova_lm(fit, typ=typ), anova_lm(fit, typ=typ, robust="hc3")
    squares = plain["sum_sq"]
    table = pd.DataFrame({"term": terms, "df": plain.loc[coded, "df"].to_numpy(int),
                          "F": robust.loc[coded, "F"].to_numpy(), "p": robust.loc[coded, "PR(>F)"].to_numpy(),
                          "partial_eta_sq": (squares / (squares + squares["Residual"]))[coded].to_numpy()})
    return table, fit
