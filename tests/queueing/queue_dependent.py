"""Exact: M/G/1 whose service law depends on the number of outstanding jobs, for the simulator's policies to agree with.

Times in seconds, rates per second.
"""

import numpy as np
from independent import moment
from scipy import stats

from stlib.queueing import checks
from stlib.queueing.chains import PhaseType


def mg1_queue_dependent(lam: float, laws: list, policy) -> checks.QueueMetrics:
    """M/G/1 whose service law follows the number n of outstanding jobs at each service start. Exact.

    `laws`: the service laws, each a PhaseType or a pair (mean_s, scv_s) that stands for a gamma law (SCV 0:
    deterministic). `policy`: integers, policy[n] the law's index at n outstanding jobs, the starting one included
    (its last entry for more; policy[0] is not used). `rho` is the share of time the server is busy. ValueError
    if the last law alone has no steady state or the policy names no law.

    The number left behind by departing jobs is a Markov chain whose law is also the one at any moment. Below
    n = len(policy) its probabilities follow from the balance of jumps across each level (Ramaswami, 1988: sums of
    positive terms), above from the moments of the generating function Pi, with N = len(policy) - 1 and A_n the
    generating function of the arrivals in a service begun at n:
    Pi(z) (z - A_N(z)) = p_0 (z A_1(z) - A_N(z)) + sum over 0 < n < N of p_n z^n (A_n(z) - A_N(z)).
    """
    law_at = _laws_by_outstanding(lam, laws, policy)
    last = len(law_at) - 1
    load = [lam * mean for mean, _ in map(_two_moments, law_at)]  # A'(1)
    bend = [lam**2 * second for _, second in map(_two_moments, law_at)]  # A''(1)
    checks.stable(load[last])
    p = _embedded_probabilities(lam, law_at)
    busy = p[0] * load[1]  # Pi(1) - p_0 and, below, Pi'(1) less it, both times 1 - load[last]: nothing cancels
    waiting = p[0] * (bend[1] - bend[last])
    for n in range(1, last):
        busy += p[n] * (load[n] - load[last])
        waiting += p[n] * (2 * (n - 1) * (load[n] - load[last]) + bend[n] - bend[last])
    total = p[0] + busy / (1 - load[last])
    lq = (waiting + bend[last] * total) / (2 * (1 - load[last])) / total
    return checks.metrics(lam, lq / lam, busy / (1 - load[last]) / total / lam, 1)


def _laws_by_outstanding(lam: float, laws: list, policy) -> list:
    """Return the law at n outstanding jobs for n = 0..N (that at 0 is a placeholder), N >= 1 the last that differs."""
    checks.positive(lam=lam)
    policy = checks.check_policy(policy, len(laws))
    for law in laws:
        if not isinstance(law, PhaseType):
            checks.positive(mean_s=law[0])
            checks.nonnegative(scv_s=law[1])
    return [laws[i] for i in (policy if len(policy) > 1 else [policy[0], policy[0]])]


def _two_moments(law) -> tuple[float, float]:
    if isinstance(law, PhaseType):
        return moment(law, 1), moment(law, 2)
    return law[0], law[0] ** 2 * (1 + law[1])


def _arrivals_in_service(lam: float, law, n_max: int) -> np.ndarray:
    """Return P(i Poisson arrivals during one service) for i = 0..n_max."""
    counts = np.arange(n_max + 1)
    if isinstance(law, PhaseType):
        leave = np.linalg.inv(lam * np.eye(len(law.alpha)) - law.T)
        row, chances = law.alpha @ leave, []
        for _ in counts:
            chances.append(row @ law.exit_rates)
            row = lam * row @ leave
        return np.array(chances)
    mean_s, scv_s = law
    if scv_s < 1e-9:  # a gamma law too narrow to tell from a constant
        return stats.poisson.pmf(counts, lam * mean_s)
    return stats.nbinom.pmf(counts, 1 / scv_s, 1 / (1 + lam * mean_s * scv_s))


def _embedded_probabilities(lam: float, law_at: list) -> np.ndarray:
    """Return the unnormalised p_0..p_N-1 of the number left behind, p_0 = 1."""
    last = len(law_at) - 1
    chances = [_arrivals_in_service(lam, law, last) for law in law_at]
    above = [1 - chance.cumsum() for chance in chances]  # above[n][i] = P(more than i arrivals)
    p = np.ones(max(last, 1))
    for i in range(last - 1):
        upward = p[0] * above[1][i] + sum(p[n] * above[n][i + 1 - n] for n in range(1, i + 1))
        p[i + 1] = upward / chances[i + 1][0]
    return p
