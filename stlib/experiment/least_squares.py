"""Least squares on the relative error."""

import numpy as np
import pandas as pd

GAMMA = (0.0, 2.0)
"""Exponents of the machine factor that a fit may find: from jobs that do not slow with it to those that do twice."""


def independent(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the columns, (n,) each, that are no combination of earlier ones."""
    kept = {}
    for name, column in columns.items():
        units = [one / max(np.linalg.norm(one), 1e-300) for one in (*kept.values(), column)]
        if np.linalg.matrix_rank(np.column_stack(units), tol=1e-6) == len(units):
            kept[name] = column
    return kept


def solve(x: np.ndarray, y: np.ndarray, log_factor: np.ndarray) -> tuple[np.ndarray, float, float]:
    """beta (terms,), gamma and its standard error of y = exp(gamma * log_factor) * (x @ beta), with relative errors.

    Each by least squares given the other, until they stand; beta's rows weigh 1 / (x @ beta)**2. x: (n, terms),
    y: (n,) seconds. gamma is kept within GAMMA: of few runs at hardly differing factors any slope is an estimate.
    Raises ValueError if a mean is not positive or the fit does not settle.
    """
    gamma, mean, centred = 1.0, y, log_factor - log_factor.mean()
    squares = max(centred @ centred, 1e-12)  # of a constant factor no slope
    for _ in range(200):
        adjusted = y / np.exp(gamma * log_factor)
        beta = np.linalg.lstsq(x / mean[:, None], adjusted / mean, rcond=None)[0]
        if (x @ beta <= 0).any():
            raise ValueError("the fit predicts a time that is not positive: the rows' levels are too few or too noisy")
        log_ratio = np.log(adjusted / (x @ beta))
        step = centred @ log_ratio / squares
        moved = np.clip(gamma + step, *GAMMA)
        change = abs(moved - gamma) + np.abs(x @ beta / mean - 1).max()
        gamma, mean = moved, x @ beta
        if change < 1e-9:
            return beta, float(gamma), float(np.std(log_ratio) / np.sqrt(squares))
    raise ValueError("the fit did not settle: check the rows for outliers")


def hc3(x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Covariance of least squares that allows unequal variances (J. S. Long and L. H. Ervin, 2000: HC3)."""
    inverse = np.linalg.pinv(x.T @ x)
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
    weighted = x * (residual / (1 - np.minimum(leverage, 0.999)))[:, None]
    return inverse @ (weighted.T @ weighted) @ inverse


def between_sd(values, groups) -> float:
    """Standard deviation between groups: of their means, beyond what the single values' scatter gives those.

    values, groups: (n,). 0 with fewer than two groups of two values. The usual estimate of a random effect by moments.
    """
    parts = [part for _, part in pd.Series(np.asarray(values)).groupby(np.asarray(groups)) if len(part) > 1]
    if len(parts) < 2:
        return 0.0
    excess = np.var([part.mean() for part in parts], ddof=1) - np.mean([part.var() / len(part) for part in parts])
    return float(np.sqrt(max(excess, 0.0)))
