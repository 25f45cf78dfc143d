"""The embedded table: a survey of 6 366 married women (Fair 1978), as it ships with statsmodels."""

import numpy as np
import pandas as pd

RATED = ("very poor", "poor", "fair", "good", "very good")
RELIGIOUS = ("not", "mildly", "fairly", "strongly")
OCCUPATIONS = ("student", "farming or semi-skilled", "white-collar", "teacher, nurse, writer, technician",
               "managerial or business", "professional with advanced degree")
HELD_OUT = 0.25  # of the rows, never trained on


def survey() -> pd.DataFrame:
    """The survey, codes as the categories that they stand for: 6 366 rows, five columns of numbers, four of categories.

    affairs: time spent in extramarital affairs, a number with no unit, 0 for two rows in three.
    """
    import statsmodels.api as sm

    rows = sm.datasets.fair.load_pandas().data
    named = {"rate_marriage": RATED, "religious": RELIGIOUS, "occupation": OCCUPATIONS, "occupation_husb": OCCUPATIONS}
    coded = {name: pd.Categorical.from_codes(rows[name].astype(int) - 1, levels, name.startswith("r"))
             for name, levels in named.items()}
    return rows.assign(age=rows["age"].astype(int), educ=rows["educ"].astype(int), **coded)


def train_and_held_out() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The survey's rows that the embedded model was trained on, and the others."""
    rows = survey()
    order = np.random.default_rng(17).permutation(len(rows))
    n = int(HELD_OUT * len(rows))
    return rows.iloc[order[n:]].reset_index(drop=True), rows.iloc[order[:n]].reset_index(drop=True)
