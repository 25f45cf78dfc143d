"""The machine's speed over time: its autocorrelation, and the AR(1) of the logarithm of the machine factor."""

import numpy as np

MAX_GAP_S = 30.0  # runs further apart are not neighbours in time


def lag_correlation(values, at_s, lag: int = 1) -> float:
    """Correlation of `values` with those `lag` runs later, over runs that followed each other within MAX_GAP_S a run.

    values, at_s: (n,), in any order; at_s: seconds, when each was measured.
    """
    early, late = _lagged(np.asarray(values, float), np.asarray(at_s, float), lag)
    return float(np.mean(early * late) / np.var(values))


def fit_ar1(log_factor: np.ndarray, at_s) -> tuple[float, float]:
    """phi and standard deviation of an AR(1) seen through white noise.

    phi is the ratio of the autocovariances at lags two and one, which noise of the probe itself leaves alone.
    """
    covariance = [float(np.prod(_lagged(log_factor, np.asarray(at_s, float), lag), axis=0).mean()) for lag in (1, 2)]
    deviation = float(np.std(log_factor))
    if min(covariance) <= 0:
        return 0.0, deviation
    return min(covariance[1] / covariance[0], 0.99), deviation


def draw_ar1(n: int, phi: float, deviation: float, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Paths (draws, n) of a stationary AR(1) with mean 0 and that standard deviation."""
    noise = rng.standard_normal((n, draws)) * deviation
    path = noise.copy()
    for i in range(1, n):
        path[i] = phi * path[i - 1] + np.sqrt(1 - phi**2) * noise[i]
    return path.T


def _lagged(values, at_s, lag):
    """Centred values and those `lag` runs later, of neighbours in time."""
    order = np.argsort(at_s, kind="stable")
    at_s, values = at_s[order], values[order] - values.mean()
    near = at_s[lag:] - at_s[:-lag] < lag * MAX_GAP_S
    return values[:-lag][near], values[lag:][near]
