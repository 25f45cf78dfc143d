"""How good a drawn table is: its columns, its pairs of columns, what a classifier learns of it, copies among its rows.

Scores of columns and pairs are those of SDMetrics' quality report, by their published definitions: 1 is the same. Its
release 0.32 gave the same nine columns and 36 pairs of the survey to 3e-15, its least association set to 0.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from stlib.settings import FieldError

BINS = 10  # of a number beside a category
AT_ONCE = 200  # rows that are compared with all others


def column_scores(real: pd.DataFrame, drawn: pd.DataFrame) -> pd.Series:
    """By column, 1 - the Kolmogorov-Smirnov distance of numbers, 1 - the total variation distance of categories."""
    _check(real, drawn)
    return pd.Series({name: _not_apart(real[name].dropna(), drawn[name].dropna()) if _is_number(real[name])
                      else _overlap(*(_shares(one[[name]]) for one in (real, drawn))) for name in real})


def pair_scores(real: pd.DataFrame, drawn: pd.DataFrame) -> pd.Series:
    """By pair of columns, 1 - half the difference of correlations of numbers, else the overlap of the joint shares.

    A number beside a category is put into ten bins of equal width over both tables, a missing one into its own.
    """
    _check(real, drawn)
    binned = [one.copy() for one in (real, drawn)]
    for name in filter(lambda name: _is_number(real[name]), real):
        edges = np.histogram_bin_edges(np.concatenate([one[name].dropna() for one in (real, drawn)]), BINS)
        for one in binned:
            one[name] = np.where(one[name].isna(), -1, np.digitize(one[name], edges[1:-1]))
    scores = {}
    for pair in map(list, combinations(real, 2)):
        if all(_is_number(real[name]) for name in pair):
            there, found = (one[pair].corr().iloc[0, 1] for one in (real, drawn))
            scores[" : ".join(pair)] = 1 - abs(there - found) / 2
        else:
            scores[" : ".join(pair)] = _overlap(*(_shares(one[pair]) for one in binned))
    return pd.Series(scores)


def utility(train: pd.DataFrame, test: pd.DataFrame, target: pd.Series, of_train: pd.Series) -> float:
    """Area under the ROC curve, on the rows of `test`, of a gradient boosting classifier that learnt from `train`.

    target, of_train: what is to be told, True or False, of either's rows; the tables hold the other columns.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    model = HistGradientBoostingClassifier(max_depth=3, learning_rate=0.05, categorical_features="from_dtype",
                                           random_state=0).fit(train, of_train)
    return float(roc_auc_score(target, model.predict_proba(test)[:, 1]))


def closest(rows: pd.DataFrame, records: pd.DataFrame) -> np.ndarray:
    """Of each row the distance to the closest record, (n,): the mean over columns of Gower's, 0 for a copy.

    Of numbers their difference over the records' range, of categories 0 or 1; where one of the two is missing, 1.
    """
    _check(records, rows)
    total = np.empty(len(rows))
    numbers = [name for name in records if _is_number(records[name])]
    low, span = records[numbers].min(), records[numbers].max() - records[numbers].min()
    both = pd.concat([rows, records], ignore_index=True)
    coded = both.drop(columns=numbers).apply(lambda values: pd.factorize(values.astype(object))[0]).to_numpy(int)
    scaled = ((both[numbers] - low) / span.where(span > 0, 1)).to_numpy(float)
    for i in range(0, len(rows), AT_ONCE):
        (near, other), (own, known) = ((values[i : min(i + AT_ONCE, len(rows)), None], values[None, len(rows):])
                                       for values in (scaled, coded))
        unlike = np.isnan(near) != np.isnan(other)
        apart = np.where(unlike, 1.0, np.nan_to_num(np.abs(near - other))).sum(2) + (own != known).sum(2)
        total[i : i + AT_ONCE] = apart.min(axis=1) / len(records.columns)
    return total


def shuffled(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The table with each column's values in an order of its own: the floor of what pairs can score."""
    return pd.concat([table[name].iloc[rng.permutation(len(table))].reset_index(drop=True) for name in table], axis=1)


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _not_apart(one: pd.Series, other: pd.Series) -> float:
    return 1 - ks_2samp(one, other, method="asymp").statistic


def _shares(rows: pd.DataFrame) -> pd.Series:
    return rows.astype(object).value_counts(normalize=True, dropna=False)


def _overlap(one: pd.Series, other: pd.Series) -> float:
    """1 - half the sum of absolute differences of shares."""
    return 1 - one.sub(other, fill_value=0).abs().sum() / 2


def _check(real: pd.DataFrame, drawn: pd.DataFrame) -> None:
    if list(real) != list(drawn) or min(len(real), len(drawn)) < 2:
        raise FieldError(f"tables of {len(real)} rows and {', '.join(map(str, real))}, and of {len(drawn)} rows and "
                         f"{', '.join(map(str, drawn))}: give two rows or more, of the same columns")
