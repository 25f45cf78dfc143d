"""The analysis of variance against sums of squares computed by hand."""

import numpy as np
import pandas as pd
import pytest

from stlib.experiment import reference
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


def test_an_unused_category_changes_nothing(rows):
    """Of factors and of the block alike: pandas keeps levels whose rows were filtered away."""
    plain = anova(rows, ["a", "b", "a:b"])[0]
    for name in ("a", "b", "block"):
        category = pd.Categorical(rows[name], [*sorted(rows[name].unique()), 99])
        assert anova(rows.assign(**{name: category}), ["a", "b", "a:b"])[0].equals(plain)


@pytest.mark.parametrize("terms, between", [
    (["a", "b"], {"a": lambda rows: rows["block"] % 2}),
    (["a", "b"], {"a": lambda rows: rows["block"]}),
    (["a", "b"], {"a": lambda rows: (rows["block"] > 6) * 1 + (rows["block"] > 8) * 1}),
    (["a:b"], {"a": lambda rows: rows["block"] % 2, "b": 1 + np.arange(120) % 2}),
])
def test_a_factor_that_varies_between_blocks_is_refused(rows, terms, between):
    with pytest.raises(ValueError, match=r"a.* aliased with .*block|block.* aliased with a"):
        anova(rows.assign(**between).astype({"a": str}), terms if ":" not in terms[0] else ["a", "b", "a:b"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_failed_runs_are_refused(rows, value):
    failed = rows["run_s"].where(rows.index != 7, value)
    with pytest.raises(ValueError, match=r"run_s = .* in row 7: leave out runs that failed \(1 of 120\)"):
        anova(rows.assign(run_s=failed), ["a", "b"])


def test_only_seconds_must_be_positive(rows):
    anova(rows.assign(log_run=np.log(rows["run_s"]) - 9), ["a", "b"], "log_run")


@pytest.mark.parametrize("change, options, message", [
    (lambda rows: rows.drop(columns="run_s"), {}, "no column of numbers 'run_s'"),
    (lambda rows: rows.assign(run_s=rows["run_s"].astype(str)), {}, "no column of numbers 'run_s'"),
    (lambda rows: rows.assign(run_s=1.0), {}, r"run_s is \[1.0\] in 120 rows"),
    (lambda rows: rows.head(0), {}, r"run_s is \[\] in 0 rows"),
    (lambda rows: rows.head(7), {"covariates": ()}, "7 rows for|has no run"),
    (lambda rows: rows.assign(a=rows["a"].where(rows.index > 2)), {}, r"C\(a, Sum\): .*missing"),
    (lambda rows: rows.drop(columns="block"), {}, r"C\(block, Sum\): .*block"),
    (lambda rows: rows.assign(block=3), {}, r"C\(block, Sum\).* does not vary"),
    (lambda rows: rows.assign(block=rows["block"].where(rows.index > 2)), {}, r"C\(block, Sum\): .*missing"),
    (lambda rows: rows.assign(log_factor=0.0), {"covariates": ("log_factor",)}, "log_factor is .*not vary"),
    (lambda rows: rows.assign(log_factor=np.inf), {"covariates": ("log_factor",)}, "log_factor is infinite"),
    (lambda rows: rows.assign(level=2 * rows["a"]), {"covariates": ("level",)}, "a is aliased with level"),
    (lambda rows: rows.query("a == 1 or b < 3"), {"covariates": ()}, "a:b has no run with 2, 3"),
    (lambda rows: rows.drop(rows.query("a == 2 and b == 3").index[1:]), {}, r"row \d+ alone decides a parameter"),
])
def test_a_table_that_cannot_be_analysed_is_refused(rows, change, options, message):
    with pytest.raises(ValueError, match=message):
        anova(change(rows), ["a", "b", "a:b"], **options)


def test_the_committed_screening_can_be_analysed():
    """All of its runs: those of warm-up taken away, a few runs alone would decide its effects."""
    rows = reference("05_runs").query("experiment == 'screening'")
    table, fit = anova(rows, ["method", "n_panels", "steps", "llm_tokens", "n_panels:steps"])
    assert fit.df_resid > 50 and (table.set_index("term").loc[["n_panels", "steps", "llm_tokens"], "p"] < 1e-3).all()
