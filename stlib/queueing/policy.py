"""Which method for the next job: by the number of outstanding jobs on one server with Poisson arrivals. Exact.

A *policy* is an array (n, methods): row i holds the probabilities of the methods for a job that starts with i + 1 jobs
outstanding (waiting and in service, itself included), the last row for more. A fixed method has one row, and so has a
mixture by chance alone.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from stlib.queueing import checks

TAIL = 1e-10  # the chance of more jobs than the chain has states
MOST_STATES = 2048
SPANS = 400  # mean service times at which the best mixture is sought


@dataclass(frozen=True, eq=False)
class Menu:
    """Methods to choose from: names, work_s (draws, methods) equally likely service seconds, quality (methods,).

    Raises ValueError for an empty menu, times that are not above 0, or qualities that are not finite.
    """

    names: tuple[str, ...]
    work_s: np.ndarray
    quality: np.ndarray

    def __post_init__(self):
        work, quality = np.asarray(self.work_s, float), np.asarray(self.quality, float)
        object.__setattr__(self, "work_s", work)
        object.__setattr__(self, "quality", quality)
        if not self.names or work.ndim != 2 or work.shape[1:] != quality.shape or len(self.names) != len(quality):
            raise ValueError(f"{len(self.names)} methods, work of shape {work.shape}, {quality.size} qualities: a menu "
                             "has one or more methods, each with a column of work and a quality")
        if not (np.isfinite(work).all() and (work > 0).all() and np.isfinite(quality).all()):
            raise ValueError("work must be finite seconds above 0, and qualities finite")

    @property
    def mean_s(self) -> np.ndarray:
        """Mean service time by method, (methods,)."""
        return self.work_s.mean(axis=0)

    @property
    def second_s2(self) -> np.ndarray:
        """Second moment of the service time by method, (methods,)."""
        return (self.work_s**2).mean(axis=0)

    def undominated(self) -> tuple["Menu", tuple[str, ...]]:
        """The menu without methods that another one equals or beats in mean, second moment and quality; their names."""
        facts = np.column_stack([self.mean_s, self.second_s2, -self.quality])
        worse = [any((facts[j] <= facts[i]).all() and ((facts[j] < facts[i]).any() or j < i)
                     for j in range(len(facts)) if j != i) for i in range(len(facts))]
        kept = [i for i, one in enumerate(worse) if not one]
        return (replace(self, names=tuple(self.names[i] for i in kept), work_s=self.work_s[:, kept],
                        quality=self.quality[kept]), tuple(np.array(self.names)[worse].tolist()))


@dataclass(frozen=True, eq=False)
class Performance:
    """Of a policy: mean response (seconds), mean quality, shares of the methods (methods,).

    found: the law of the number of jobs that an arrival finds, (states,).
    """

    response_s: float
    quality: float
    shares: np.ndarray
    found: np.ndarray


def fixed(menu: Menu, name: str) -> np.ndarray:
    """The policy that takes one method always."""
    return np.eye(len(menu.names))[[menu.names.index(name)]]


def evaluate(rate: float, menu: Menu, policy) -> Performance:
    """The performance of a policy at Poisson arrivals of `rate` per second.

    The numbers left behind at departures are a Markov chain. Arrivals find the same law, since both count each level's
    ups and downs, and so does time (Poisson arrivals); its mean gives the response by Little's law. Raises ValueError
    for rows that are no probabilities, and for a rate that the policy's last row does not carry.
    """
    checks.positive(rate=rate)
    policy = np.asarray(policy, float)
    if policy.ndim != 2 or policy.shape[1] != len(menu.names) or (policy < 0).any() or not np.allclose(policy.sum(1),
                                                                                                          1):
        raise ValueError(f"a policy of shape {policy.shape} for {len(menu.names)} methods: rows of probabilities")
    _carried(rate, float(policy[-1] @ menu.mean_s))
    for states in 64 * 2 ** np.arange(6):
        chosen = _rows(policy, states)
        law = _stationary(chosen @ _counts(rate, menu, states))
        if law[-1] < TAIL:
            break
    else:
        raise ValueError(f"rate = {rate:g} is too near what the policy carries for {MOST_STATES} states: lower it")
    starts = np.append(law[:2].sum(), law[2:])  # after a departure that leaves nobody, the next job is alone
    shares = starts @ chosen[1 : len(starts) + 1]
    return Performance(float(law @ np.arange(len(law)) / rate), float(shares @ menu.quality), shares, law)


def optimal(rate: float, menu: Menu, price: float) -> np.ndarray:
    """The policy of least mean response + price x (best quality - mean quality), by policy iteration.

    A semi-Markov decision process whose decisions are the service starts (Tijms, 2003, chapter 7): a job started with n
    outstanding costs n S + rate S^2 / 2 job-seconds and the price of what it lacks. price: seconds a unit of quality.
    Raises ValueError for a price below 0 or a rate that no method carries.
    """
    checks.nonnegative(price=price)
    checks.positive(rate=rate)
    _carried(rate, float(menu.mean_s.min()))
    for states in 128 * 2 ** np.arange(5):
        choice = _improved(rate, menu, price, int(states))
        if rate * menu.mean_s[choice[states // 2]] < 1:
            break
    else:
        raise ValueError(f"price = {price:g}: worth so much that {states // 2} jobs may wait; lower it")
    last = np.flatnonzero(choice != choice[states // 2])  # beyond the middle the cut-off queue is felt
    return np.eye(len(menu.names))[choice[: (last[last < states // 2].max(initial=-1) + 2)]]


def policy_for(rate: float, menu: Menu, quality: float) -> np.ndarray:
    """The policy of least mean response among those of this mean quality: two optimal neighbours, taken by chance.

    Raises ValueError for a quality beyond the menu's, or that no policy has at this rate.
    """
    low, high = 0.0, 1.0
    if not menu.quality.min() <= quality <= menu.quality.max():
        raise ValueError(f"quality = {quality:g}: the menu's methods have {menu.quality.min():g} to "
                         f"{menu.quality.max():g}, ask for one in between")
    if evaluate(rate, menu, optimal(rate, menu, low)).quality >= quality:
        return optimal(rate, menu, low)
    best = 0.0
    try:
        while (best := evaluate(rate, menu, optimal(rate, menu, high)).quality) < quality:
            low, high = high, 4 * high
    except ValueError as error:
        raise ValueError(f"quality = {quality:g} cannot be had at rate = {rate:g}: {best:g} can; lower it") from error
    for _ in range(60):
        middle = (low + high) / 2
        less = evaluate(rate, menu, optimal(rate, menu, middle)).quality < quality
        low, high = (middle, high) if less else (low, middle)
    less, more = optimal(rate, menu, low), optimal(rate, menu, high)
    length = max(len(less), len(more))
    less, more = _rows(less, length + 1)[1:], _rows(more, length + 1)[1:]
    if evaluate(rate, menu, less).quality >= quality:
        return less
    share = optimize.brentq(lambda t: evaluate(rate, menu, (1 - t) * less + t * more).quality - quality, 0, 1)
    return (1 - share) * less + share * more


def best_mixture(rate: float, menu: Menu, quality: float) -> np.ndarray:
    """The mixture by chance alone, (1, methods), of this mean quality whose mean response is least.

    By Pollaczek and Khinchine that is m1 + rate m2 / (2 (1 - rate m1)): at a given mean m1 the least second moment m2
    is a linear program, and m1 is sought on a grid of SPANS. Raises ValueError if no stable mixture has the quality.
    """
    checks.positive(rate=rate)
    best, found = None, np.inf
    for mean_s in np.linspace(menu.mean_s.min(), min(menu.mean_s.max(), 0.99999 / rate), SPANS):
        program = optimize.linprog(menu.second_s2, A_eq=[np.ones(len(menu.names)), menu.mean_s, menu.quality],
                                   b_eq=[1, mean_s, quality], bounds=(0, 1))
        if not program.success:  # of more than three methods few grids meet both; two constraints leave an interval
            program = optimize.linprog(menu.second_s2, A_eq=[np.ones(len(menu.names)), menu.quality], b_eq=[1, quality],
                                       A_ub=[menu.mean_s], b_ub=[mean_s], bounds=(0, 1))
        if program.success:
            m1, m2 = program.x @ menu.mean_s, program.x @ menu.second_s2
            response = m1 + rate * m2 / (2 * (1 - rate * m1))
            best, found = (program.x, response) if response < found else (best, found)
    if best is None:
        raise ValueError(f"quality = {quality:g} cannot be had at rate = {rate:g} by any stable mixture: lower one")
    return (np.maximum(best, 0) / np.maximum(best, 0).sum())[None]


def spans(menu: Menu, policy) -> list[str]:
    """A policy in words: at which numbers of outstanding jobs which method, with its probability where below 1."""
    policy = np.asarray(policy, float)
    said = [" or ".join(f"{name} ({p:.0%})" if p < 1 - 1e-9 else name for name, p in zip(menu.names, row, strict=True)
                        if p > 1e-9) for row in policy]
    ends = [i for i in range(len(said)) if i == len(said) - 1 or said[i] != said[i + 1]]
    begins = [0, *(i + 1 for i in ends[:-1])]
    return [f"{begin + 1}" + (" and more" if end == len(said) - 1 else f" to {end + 1}" if end > begin else "")
            + f" outstanding: {said[end]}" for begin, end in zip(begins, ends, strict=True)]


def _improved(rate: float, menu: Menu, price: float, states: int) -> np.ndarray:
    """The optimal method (states,) for 1, 2, ... jobs outstanding at a start, more than `states` being cut off."""
    counts, n = _counts(rate, menu, states), np.arange(1, states + 1)
    loss = menu.quality.max() - menu.quality
    cost = n[:, None] * menu.mean_s + rate * menu.second_s2 / 2 + price * loss
    onward_by = [_onward(np.broadcast_to(one, (states, states))) for one in counts]
    choice = np.full(states, int(menu.mean_s.argmin()))
    for _ in range(200):
        # h(n) = cost - g tau + sum_j a_j h(n - 1 + j), h(0) = h(1) - g / rate: after it the server idles; h(1) = 0
        moves = _onward(counts[choice])
        system = np.eye(states) - moves[:, 1:]
        system[:, 0] = menu.mean_s[choice] + moves[:, 0] / rate  # h(1) is 0: its column is g's
        solved = np.linalg.solve(system, cost[n - 1, choice])
        g, value = solved[0], np.append(0.0, solved[1:])
        onward = np.append(value[0] - g / rate, value)
        worth = np.stack([cost[:, m] - g * menu.mean_s[m] + one @ onward for m, one in enumerate(onward_by)], axis=1)
        better = worth.argmin(axis=1)
        better = np.where(worth[n - 1, better] < worth[n - 1, choice] - 1e-9 * abs(worth).max(), better, choice)
        if (better == choice).all():
            break
        choice = better
    return choice


def _carried(rate: float, mean_s: float) -> None:
    if rate * mean_s >= 1:
        raise ValueError(f"rate = {rate:g}: at most {1 / mean_s:.4g} jobs/s are carried with many outstanding")


def _rows(policy: np.ndarray, states: int) -> np.ndarray:
    """The methods' probabilities in each state of the chain: 0 jobs left behind, where the next is alone, 1, 2, ..."""
    n = np.minimum(np.maximum(np.arange(states), 1), len(policy)) - 1
    return policy[n]


def _counts(rate: float, menu: Menu, states: int) -> np.ndarray:
    """The probability of 0, 1, 2, ... arrivals during a service by each method, (methods, states)."""
    return np.stack([stats.poisson.pmf(np.arange(states)[:, None], rate * work).mean(axis=1) for work in menu.work_s.T])


def _onward(counts: np.ndarray) -> np.ndarray:
    """From n = 1, 2, ... jobs at a start to the number left behind, 0 ... states: (states, states + 1)."""
    states = len(counts)
    moves = np.zeros((states, states + 1))
    for i in range(states):
        moves[i, i:states] = counts[i, : states - i]
        moves[i, states] = 1 - moves[i].sum()
    return moves


def _stationary(counts: np.ndarray) -> np.ndarray:
    """The law of the number left behind; counts: of arrivals in the service after each state, (states, states)."""
    states = len(counts)
    moves = np.zeros((states, states))
    moves[0] = counts[0]
    for i in range(1, states):
        moves[i, i - 1 :] = counts[i, : states - i + 1]
    moves[:, -1] += 1 - moves.sum(axis=1)
    balance = moves.T - np.eye(states)
    balance[0] = 1
    return np.maximum(np.linalg.solve(balance, np.eye(states)[0]), 0)
