"""The inverse questions: the largest arrival rate, or the fewest servers, that meet a target.

The metric is any callable, a formula, an exact chain or a simulation, that returns seconds (a mean or a
percentile) and rises with the load. A simulated metric must reuse its random numbers from call to call
(a generator made anew from the same seed inside it), else bisection chases noise.
"""

import math
from collections.abc import Callable

from stlib.queueing import checks


def max_rate(metric: Callable[[float], float], target: float, capacity: float, *, rtol: float = 1e-6) -> float:
    """Return the largest arrival rate at which `metric(lam) <= target`, to a relative `rtol`, by bisection.

    `capacity` is the rate at which the servers saturate, k / mean_s: the answer lies below it.
    ValueError if even one millionth of the capacity misses the target.
    """
    checks.positive(target=target, capacity=capacity)
    meets, misses = capacity * 1e-6, capacity
    if not metric(meets) <= target:
        raise ValueError(f"target = {target} is below {metric(meets):.6g}, what an almost empty system gives; ask for "
                         "more than that, or make the service shorter")
    while misses - meets > rtol * meets:
        middle = (meets + misses) / 2
        meets, misses = (middle, misses) if metric(middle) <= target else (meets, middle)
    return meets


def min_replicas(metric: Callable[[int], float], target: float, load: float, *, k_max: int | None = None) -> int:
    """Return the fewest servers k for which `metric(k) <= target`: k - 1 miss it or saturate.

    `load` is lam * mean_s (erlang); fewer than floor(load) + 1 servers have no steady state. The search goes up from
    there in doubled steps, to `k_max`: left out, 4 load + 100, with which no job of usual arrivals waits.
    ValueError, with what they give, if `k_max` servers miss the target.
    """
    checks.positive(target=target, load=load)
    k_max = math.ceil(4 * load + 100) if k_max is None else k_max
    checks.whole(least=int(load) + 1, k_max=k_max)
    too_few, step = int(load), 1
    while not (value := metric(enough := min(too_few + step, k_max))) <= target:
        if enough == k_max:
            raise ValueError(f"target = {target} is missed by k_max = {k_max} servers too, which give {value:.6g}; "
                             "relax it, shorten the service or raise k_max")
        too_few, step = enough, 2 * step
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if metric(middle) <= target else (middle, enough)
    return enough


def read_target(text: str) -> tuple[str, float]:
    """Return the metric of `job_metrics`, and the most seconds it may be, that a target such as "p95=6" names.

    mean, wq or a percentile of the response time, p1 to p99.9; "slo=6:0.95", a share of at least 95 % answered within
    6 s, is p95=6. ValueError for any other text.
    """
    name, _, limit = text.partition("=")
    if name == "slo":
        limit, _, share = limit.partition(":")
        name = f"p{100 * _number(share)}"
    if name not in ("mean", "wq"):
        name = f"p{_number(name[1:]):g}" if name.startswith("p") and 1 <= _number(name[1:]) <= 99.9 else None
    if name is None or not 0 < _number(limit) < math.inf:
        raise ValueError(f"target {text!r}: give mean, wq or a percentile, p1 to p99.9, and seconds, such as p95=6; "
                         "or a deadline and the share answered by then, 0.01 to 0.999, such as slo=6:0.95")
    return name, _number(limit)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
