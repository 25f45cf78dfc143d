"""The random effect of groups."""

import numpy as np
import pytest

from stlib.experiment.least_squares import between_sd


@pytest.mark.parametrize("truth", [0.0, 0.05])
def test_the_deviation_between_groups_is_found(truth):
    """400 groups of 20: its standard error is about 0.002."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(400), 20)
    values = truth * rng.standard_normal(400)[groups] + 0.03 * rng.standard_normal(8000)
    assert between_sd(values, groups) == pytest.approx(truth, abs=0.008)


def test_one_group_says_nothing():
    assert between_sd([1.0, 2.0], [0, 0]) == 0
