"""What tests measure the library by, nobody else needs: an MMPP's SCV, a percentile of M/M/k, laws and moments."""

import math

import numpy as np
from scipy import linalg, optimize, special

from stlib.queueing.chains import PhaseType
from stlib.queueing.formulas import erlang_c, mmk


def interval_scv(process):
    """SCV of the time between successive arrivals of an MMPP2 in the long run (Fischer and Meier-Hellstern, 1993)."""
    generator = np.array([[-process.switch1, process.switch1], [process.switch2, -process.switch2]])
    rates = np.array([process.rate1, process.rate2])
    at_arrival = np.array([process.switch2, process.switch1]) * rates
    mean_gap = np.linalg.inv(np.diag(rates) - generator)
    once = at_arrival / at_arrival.sum() @ mean_gap
    return float(2 * (once @ mean_gap).sum() / once.sum() ** 2 - 1)


def mmk_response_percentile(lam, mu, k, q):
    """Seconds within which a share q of an M/M/k queue's jobs is answered: service, and with Erlang's C an Exp wait."""
    wait, drain = erlang_c(lam, mu, k), k * mu - lam

    def missed(t):
        both = mu * t * math.exp(-min(mu, drain) * t) * special.exprel(-abs(drain - mu) * t)
        return math.exp(-mu * t) + wait * both - (1 - q)

    upper = mmk(lam, mu, k).w
    while missed(upper) > 0:
        upper *= 2
    return optimize.brentq(missed, 0, upper, xtol=1e-12 * upper)


def draws(law, n, rng):
    """n independent draws of a phase-type law, (n,) seconds, by following its phases."""
    rates = -law.T.diagonal()
    jumps = np.column_stack([law.T - np.diag(law.T.diagonal()), law.exit_rates]) / rates[:, None]
    stride = jumps.shape[1]
    cumulative = (jumps.cumsum(1) + np.arange(len(rates))[:, None]).ravel()  # row i lies in [i, i + 1]
    drawn, running = np.zeros(n), np.arange(n)
    phase = rng.choice(len(law.alpha), n, p=law.alpha)
    while len(running):
        drawn[running] += rng.exponential(1.0, len(running)) / rates[phase]
        place = np.searchsorted(cumulative, phase + rng.random(len(running)), side="right")
        phase = np.minimum(place - stride * phase, len(rates))
        going = phase < len(rates)
        running, phase = running[going], phase[going]
    return drawn


def erlang(n, mean_s):
    """The sum of n exponential phases as a phase-type law of this mean, SCV 1 / n."""
    return PhaseType(np.eye(n)[0], n / mean_s * (np.eye(n, k=1) - np.eye(n)))


def moment(law, order):
    """The raw moment E S^order = order! alpha (-T)^-order 1 of a phase-type law (seconds^order)."""
    row = law.alpha
    for j in range(1, order + 1):
        row = j * np.linalg.solve(-law.T.T, row)
    return float(row.sum())


def scv_of(law):
    """The squared coefficient of variation of a phase-type law."""
    return moment(law, 2) / moment(law, 1) ** 2 - 1


def by_three_moments(mean_s, scv, third_moment):
    """A phase-type law of these moments (Johnson and Taaffe, 1989): two Erlang branches of n phases.

    Their phase means are the two atoms of a law with the moments r1, r2, r3.
    """
    m1, m2, m3 = mean_s, mean_s**2 * (1 + scv), third_moment
    n = 1
    while not (scv * n > 1 + 1e-9 and m1 * m3 / m2**2 > (n + 2) / (n + 1) * (1 + 1e-9)):
        n += 1
    r1, r2, r3 = m1 / n, m2 / (n * (n + 1)), m3 / (n * (n + 1) * (n + 2))
    total, product = (r3 - r1 * r2) / (r2 - r1**2), (r1 * r3 - r2**2) / (r2 - r1**2)
    large = (total + math.sqrt(total**2 - 4 * product)) / 2
    small = product / large
    share = (r1 - small) / (large - small)
    branch = np.eye(n, k=1) - np.eye(n)
    alpha = np.zeros(2 * n)
    alpha[[0, n]] = share, 1 - share
    return PhaseType(alpha, linalg.block_diag(branch / large, branch / small))
