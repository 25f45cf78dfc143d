"""Designs are balanced, say what they confound, and refuse what they cannot estimate."""

import numpy as np
import pandas as pd
import pytest
import yaml

from stlib.experiment.design import (
    aliases,
    check_estimable,
    fractional_factorial,
    full_factorial,
    read_design,
    run_order,
    terms_up_to,
)

LEVELS = {name: [0, 1] for name in "abcde"}
FRACTION = {"d": ["a", "b"], "e": ["a", "c"]}  # 2^(5-2), of resolution III


def test_full_factorial_has_every_combination_once():
    design = full_factorial({"method": ["sequential", "parallel"], "steps": [4, 8, 16]})
    assert len(design) == 6 == len(design.drop_duplicates())
    assert set(design["steps"]) == {4, 8, 16}


def test_a_fraction_is_the_product_of_its_generators():
    design = fractional_factorial(LEVELS, FRACTION)
    sign = design * 2 - 1
    assert len(design) == 8 and (design.mean() == 0.5).all()
    assert (sign["d"] == sign["a"] * sign["b"]).all() and (sign["e"] == sign["a"] * sign["c"]).all()


def test_aliases_of_a_textbook_fraction():
    """2^(5-2) with D = AB, E = AC: Box, Hunter and Hunter's alias structure, interactions of two factors."""
    found = aliases(fractional_factorial(LEVELS, FRACTION), terms_up_to(list("abcde")))
    assert found["a"] == ["b:d", "c:e"]
    assert found["b:c"] == ["d:e"]
    assert found["d"] == ["a:b"]


def test_a_full_factorial_confounds_nothing():
    design = full_factorial({"a": [1, 2], "b": [1, 2, 3], "c": [0, 1]})
    assert not any(aliases(design, terms_up_to(["a", "b", "c"], 3)).values())


def test_an_aliased_term_is_refused_by_name():
    design = fractional_factorial(LEVELS, FRACTION)
    check_estimable(design, list("abcde"))
    with pytest.raises(ValueError, match="d is aliased with a:b"):
        check_estimable(design, ["a", "b", "d", "a:b"])


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="steps has the levels"):
        full_factorial({"steps": [8], "n_panels": [1, 2]})
    with pytest.raises(ValueError, match="steps is infinite or does not vary"):
        check_estimable(pd.DataFrame({"steps": [8, 8], "n_panels": [1, 2]}), ["steps", "n_panels"])
    with pytest.raises(ValueError, match="two-level"):
        fractional_factorial(LEVELS | {"a": [1, 2, 3]}, FRACTION)


def test_fewer_rows_than_parameters_are_refused():
    design = pd.DataFrame({"a": [0, 1, 2], "b": [0, 1, 1]})
    with pytest.raises(ValueError, match="3 rows for 4 parameters"):
        check_estimable(design, ["a", "b"])


def test_unknown_factors_are_refused():
    with pytest.raises(ValueError, match=r"C\(f, Sum\): .*'f' is not defined"):
        check_estimable(full_factorial(LEVELS), ["f"])
    with pytest.raises(ValueError, match="generators"):
        fractional_factorial(LEVELS, {"d": ["a", "f"]})


def test_run_order_keeps_blocks_whole_and_shuffles_within():
    design = full_factorial({"a": [0, 1], "b": [0, 1, 2, 3]})
    runs = run_order(design, np.random.default_rng(1), replicates=4, blocks=2)
    assert (np.diff(runs["block"]) >= 0).all()
    assert (runs.groupby(["block", "a", "b"]).size() == 2).all()
    one, other = (part[["a", "b"]].to_numpy() for _, part in runs.groupby("block"))
    assert not np.array_equal(one, other)
    assert runs.equals(run_order(design, np.random.default_rng(1), replicates=4, blocks=2))
    with pytest.raises(ValueError, match="3 replicates in 2 blocks"):
        run_order(design, np.random.default_rng(1), replicates=3, blocks=2)


def test_the_committed_design_can_estimate_what_the_notebook_asks():
    experiments = read_design()
    factors = ["method", "n_panels", "steps", "llm_tokens", "image_size", "guidance_scale", "threads"]
    check_estimable(experiments["screening"], [*factors, "method:n_panels", "n_panels:steps"])
    check_estimable(experiments["work"], terms_up_to(["method", "n_panels", "steps", "llm_tokens"]))
    check_estimable(experiments["images"], terms_up_to(["method", "llm_tokens", "image_size"]))


@pytest.mark.parametrize("change, message", [
    ({"seed": None}, r"design.yml, line \d+: a value is empty"),
    ({"seed": -1}, "design.yml: seed = -1"),
    ({"seed": "5"}, "design.yml: seed = '5'"),
    ({"runs": 3}, "design.yml: unknown field 'runs'"),
    ({"experiments": {}}, "design.yml: experiments = {}"),
    ({"experiments": [1]}, r"design.yml: experiments = \[1\]"),
    ({"experiments": {"one": None}}, r"design.yml, line \d+: a value is empty"),
    ({"experiments": {"one": {}}}, r"experiments\['one'\]: levels is missing"),
    ({"levels": {"a": 3}}, r"design.yml: experiments\['one'\]: a has the levels"),
    ({"levels": {"a": [1, 1.0]}}, r"experiments\['one'\]: a has the levels"),
    ({"levels": {"a": [[1], [2]]}}, r"experiments\['one'\]: levels\['a'\]"),
    ({"levels": {"a": [1, None]}}, r"design.yml, line \d+: a value is empty"),
    ({"levels": {"a": [1, float("nan")]}}, r"experiments\['one'\]: levels\['a'\]"),
    ({"levels": ["a", "b"]}, r"experiments\['one'\]: levels = "),
    ({"levels": {"block": [1, 2]}}, r"experiments\['one'\]: block is among"),
    ({"fixed": {"a": 3}}, r"experiments\['one'\]: a is among the levels and fixed"),
    ({"fixed": {"c": [3]}}, r"experiments\['one'\]: fixed\['c'\]"),
    ({"fixed": ["c"]}, r"experiments\['one'\]: fixed = "),
    ({"generators": {"c": "a"}}, r"experiments\['one'\]: generators"),
    ({"generators": {"b": "a"}}, r"experiments\['one'\]: Main factors are confounded"),
    ({"generators": {"b": ["a", "a"]}}, r"experiments\['one'\]: generators"),
    ({"generators": {"b": [3]}}, r"experiments\['one'\]: generators\['b'\]"),
    ({"replicates": 0}, r"experiments\['one'\]: 0 replicates"),
    ({"replicates": 2.0}, r"experiments\['one'\]: replicates = 2.0"),
    ({"replicates": "2"}, r"experiments\['one'\]: replicates = '2'"),
    ({"replicates": True}, r"experiments\['one'\]: replicates = True"),
    ({"blocks": 0}, r"experiments\['one'\]: 1 replicates in 0 blocks"),
    ({"blocks": 3}, r"experiments\['one'\]: 1 replicates in 3 blocks"),
    ({"blocks": None}, r"design.yml, line \d+: a value is empty"),
    ({"repetitions": 3}, r"experiments\['one'\]: unknown field 'repetitions': use levels, generators"),
])
def test_a_wrong_design_is_refused(tmp_path, change, message):
    one = {"levels": {"a": [1, 2], "b": [1, 2]}}
    design = {"seed": 5, "experiments": {"one": one}}
    at = design if change.keys() & {"seed", "experiments", "runs"} else one
    at |= change
    (tmp_path / "design.yml").write_text(yaml.safe_dump(design))
    with pytest.raises(ValueError, match=message):
        read_design(tmp_path / "design.yml")


def test_a_missing_or_torn_design_is_refused(tmp_path):
    for text, message in ((None, "cannot be read"), ("", "holds None"), ("seed: 5\nseed: 6\n", "line 2: 'seed' is")):
        if text is not None:
            (tmp_path / "design.yml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_design(tmp_path / "design.yml")


def test_an_empty_cell_or_a_missing_level_is_named():
    design = full_factorial({"a": [0, 1], "b": [0, 1, 2]})
    with pytest.raises(ValueError, match="a:b has no run with 1, 2"):
        check_estimable(pd.concat([design.iloc[:-1]] * 2), ["a", "b", "a:b"])
    with pytest.raises(ValueError, match=r"C\(a, Sum\): .*missing"):
        check_estimable(design.assign(a=[0, 1, None, 0, 1, 1]), ["a", "b"])
