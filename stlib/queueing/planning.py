"""The inverse questions: the largest arrival rate, or the fewest servers, that meet a target.

The metric is any callable, a formula, an exact chain or a simulation, that returns seconds (a mean or a
percentile) and rises with the load. A simulated metric must reuse its random numbers from call to call
(a generator made anew from the same seed inside it), else bisection chases noise.
"""

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
        raise ValueError(
            f"target = {target} is below {metric(meets):.6g}, what an almost empty system gives; "
            "ask for more than that, or make the service shorter"
        )
    while misses - meets > rtol * meets:
        middle = (meets + misses) / 2
        meets, misses = (middle, misses) if metric(middle) <= target else (meets, middle)
    return meets


def min_replicas(metric: Callable[[int], float], target: float, load: float, *, k_max: int = 1024) -> int:
    """Return the fewest servers k for which `metric(k) <= target`: k - 1 miss it or saturate.

    `load` is lam * mean_s (erlang); fewer than floor(load) + 1 servers have no steady state.
    ValueError if `k_max` servers miss the target.
    """
    checks.positive(target=target, load=load)
    checks.whole(least=int(load) + 1, k_max=k_max)
    too_few, enough = int(load), int(load) + 1
    while not metric(min(enough, k_max)) <= target:
        if enough >= k_max:
            raise ValueError(f"target = {target} is missed by k_max = {k_max} servers; relax it or raise k_max")
        too_few, enough = enough, 2 * enough
    enough = min(enough, k_max)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if metric(middle) <= target else (middle, enough)
    return enough
