"""The analysis of variance against sums of squares computed by hand."""

import numpy as np
import pytest

from stlib.experiment.design import anova, full_factorial, run_order


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(2)
    runs = run_order(full_factorial({"a": [1, 2], "b": [1, 2, 3], "c": [0, 1]}), rng, replicates=10)
    return runs.assign(run_s=5 + runs["a"] + 0.5 * runs["a"] * runs["b"] + rng.normal(0, 0.5, len(runs)))


def test_partial_eta_squared_is_the_textbook_ratio(rows):
    """Balanced, so the sum of squares of `a` is n times the mean square of its level means about the grand mean."""
    table, fit = anova(rows, ["a", "b", "c", "a:b"])
    between = ((rows.groupby("a")["run_s"].mean() - rows["run_s"].mean()) ** 2).sum() * len(rows) / 2
    eta = between / (between + (fit.resid**2).sum())
    assert table.set_index("term").loc["a", "partial_eta_sq"] == pytest.approx(eta)
    assert list(table["df"]) == [1, 2, 1, 2]


def test_what_is_there_is_found_and_what_is_not_is_not(rows):
    p = anova(rows, ["a", "b", "c", "a:b"])[0].set_index("term")["p"]
    assert max(p["a"], p["b"], p["a:b"]) < 1e-3 < 0.01 < p["c"]


def test_in_a_balanced_design_types_two_and_three_agree(rows):
    two, three = (anova(rows, ["a", "b", "a:b"], typ=typ)[0] for typ in (2, 3))
    assert np.allclose(two["partial_eta_sq"], three["partial_eta_sq"])


def test_an_aliased_term_is_refused(rows):
    with pytest.raises(ValueError, match="double is aliased with a"):
        anova(rows.assign(double=2 * rows["a"]), ["double", "a"])
