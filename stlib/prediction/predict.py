"""A system on paper: what its jobs will do, in finite runs and in the long run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
from joblib import cpu_count

from stlib.experiment.costs import Costs
from stlib.experiment.jobs import JobMix
from stlib.queueing import formulas
from stlib.queueing.arrivals import Poisson, arrival_process
from stlib.queueing.checks import check_jobs
from stlib.queueing.job_table import reduce_runs
from stlib.queueing.planning import max_rate, min_replicas
from stlib.queueing.simulation import finite_run, run_jobs
from stlib.serving.replica import IDLE_S
from stlib.serving.workloads import Workload

LAW_DRAWS = 200_000  # of a mix's work, shared equally among the combinations of job parameters


@dataclass(frozen=True)
class MixWork:
    """The work of a mix's jobs by each of some methods at level 1, without probes.

    The parameters that cost time take few combinations: `shares` (c,) their probabilities, `mean_s` (c, methods) their
    mean work, `work_s` (draws, c, methods) independent draws of it; a draw is the same job under every method.
    """

    shares: np.ndarray
    mean_s: np.ndarray
    work_s: np.ndarray

    @classmethod
    def of(cls, costs: Costs, mix: JobMix, methods: Sequence[str], seed=0) -> "MixWork":
        """Draw the work of every combination of the mix."""
        jobs, shares = mix.combinations()
        n = -(-LAW_DRAWS // len(jobs))
        draws = [costs.sample_s(jobs, one, np.random.default_rng(seed), draws=n, within=True) for one in methods]
        means = [costs.mean_s(jobs, method) for method in methods]
        return cls(shares, np.stack(means, axis=-1), np.stack(draws, axis=-1))

    def sample(self, rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
        """Work of random jobs, `shape` + (methods,), and its mean given the job by the first method, `shape`."""
        job = np.searchsorted(self.shares.cumsum()[:-1], rng.random(shape), side="right")
        return self.work_s[rng.integers(len(self.work_s), size=shape), job], self.mean_s[job, 0]

    @property
    def mean(self) -> np.ndarray:
        """Mean by method, (methods,), seconds."""
        return self.shares @ self.mean_s

    @property
    def variance(self) -> np.ndarray:
        """Variance by method, (methods,)."""
        return self.shares @ (self.work_s**2).mean(axis=0) - self.mean**2


def after_idle(start_s, finish_s, replica) -> np.ndarray:
    """Whether each job's replica had idled longer than IDLE_S when it started, (runs, n).

    Times in seconds and replicas, (runs, n), in any order of the columns.
    """
    order = np.lexsort((start_s, replica))
    start_s, finish_s, replica = (np.take_along_axis(one, order, axis=1) for one in (start_s, finish_s, replica))
    idle = np.ones(order.shape, bool)  # the first of a replica follows nothing
    idle[:, 1:] = (start_s[:, 1:] - finish_s[:, :-1] > IDLE_S) | (replica[:, 1:] != replica[:, :-1])
    out = np.empty_like(idle)
    np.put_along_axis(out, order, idle, axis=1)
    return out


def with_probes(arrival_s, work_s, probe_s, estimate_s, k: int, rng, **options) -> np.ndarray:
    """Work (runs, n, methods) with its probes: one after each job, and one before a job that follows an idle spell.

    Which jobs do, a simulation with one probe a job says. Neglected: that the second probes shorten the idle spells
    after them. probe_s: what a probe takes at each job's machine factor, (runs, n).
    """
    once = work_s + probe_s[..., None]
    rows = run_jobs(*check_jobs(arrival_s, once, estimate_s), k, rng=rng, **options)
    return once + (probe_s * after_idle(rows.start, rows.finish, rows.replica))[..., None]


@dataclass(frozen=True)
class System:
    """Replicas that serve a mix, on paper. Made by `of`; `replace(system, k=3)` is the same with three replicas.

    methods: names, `policy[n]` the index of the one for a job that starts with n outstanding, the last for more.
    arrivals: parameters of `arrival_process` but for the rate. level: seconds of whole jobs over those of the costs;
    level_se: relative standard error of the work of all jobs of a run alike. probing: whether replicas run probes.
    declared: a job's declared seconds, which least_work reads, over its mean work with one probe.
    """

    costs: Costs
    work: MixWork
    methods: tuple[str, ...]
    policy: tuple[int, ...] = (0,)
    k: int = 1
    routing: str = "central"
    arrivals: dict = field(default_factory=lambda: {"name": "poisson"})
    level: float = 1.0
    level_se: float = 0.0
    probing: bool = False
    declared: float = 1.0

    @classmethod
    def of(cls, costs: Costs, mix: str | JobMix, method: str | Sequence[str], k: int = 1, *, seed=0,
           **given) -> "System":
        """From fitted costs and a mix; method: of all jobs, or a policy: names by the number of outstanding jobs."""
        mix = JobMix.from_yaml(mix) if isinstance(mix, str) else mix
        if mix.workload != costs.workload:
            raise ValueError(f"mix {mix.name} is of the workload {mix.workload!r}: give one of {costs.workload!r}")
        names = [method] if isinstance(method, str) else list(method)
        methods = tuple(dict.fromkeys(names))
        return cls(costs, MixWork.of(costs, mix, methods, seed), methods, tuple(map(methods.index, names)), k, **given)

    @property
    def options(self) -> dict:
        """Of the simulator; the speed by the number of busy replicas is that of the first method."""
        speed = self.costs.busy_speed(self.methods[0], self.k) if self.k > 1 else None
        policy = None if len(self.methods) == 1 else self.policy
        return {"routing": self.routing, "speed": speed, "methods": self.methods, "policy": policy}

    @property
    def full_speed(self) -> np.ndarray:
        """By method while all replicas are busy, (methods,).

        The simulator takes the first method's for all, so it is given work as that speed would do it.
        """
        return np.array([self.costs.busy_speed(method, self.k)[self.k] for method in self.methods])

    @property
    def service_s(self) -> np.ndarray:
        """Mean service time by method on a replica while no other is busy, (methods,), seconds."""
        return (self.work.mean + self.probing * self.costs.probe_cost_s) * self.level + self.costs.dispatch_s

    @property
    def capacity(self) -> float:
        """The rate at which the replicas saturate, all busy: under a policy by its last method."""
        return float((self.k * self.full_speed / self.service_s)[self.policy[-1]])

    def given_jobs(self, arrival_s, jobs: pd.DataFrame, factor) -> Callable:
        """draw(rng, m): these arrivals, this list of jobs at their machine factors (n,), and work drawn anew.

        Under each method by itself: a job is done by one.
        """
        given = np.stack([arrival_s, factor, self.costs.mean_s(jobs, self.methods[0])])

        def draw(rng, m):
            work = [self.costs.sample_s(jobs, method, rng, draws=m, within=True) for method in self.methods]
            return np.stack(work, axis=-1), *np.repeat(given[:, None], m, axis=1)

        return draw

    def beforehand(self, arrivals: Callable, n: int) -> Callable:
        """draw(rng, m): jobs, their work and the path of the machine's factor drawn anew; arrivals(n, rng) -> (n,)."""

        def draw(rng, m):
            arrival_s = np.stack([arrivals(n, rng) for _ in range(m)])
            work, mean = self.work.sample(rng, (m, n))
            return work, arrival_s, self.costs.factor_path(arrival_s, rng), mean

        return draw

    def finite(self, draw: Callable, runs: int, rng: np.random.Generator, slo_s=()) -> pd.DataFrame:
        """The metrics of `runs` finite runs from empty, as of `finite_run`; draw: of `given_jobs` or `beforehand`."""
        costs = self.costs

        def complete(rng, m):
            """The work at its machine factor, with the dispatcher's time and the probes."""
            work, arrival_s, factor, mean = draw(rng, m)
            level = self.level * factor**costs.gamma * np.exp(self.level_se * rng.standard_normal((m, 1)))
            work = (work * level[..., None] + costs.dispatch_s) * (self.full_speed[0] / self.full_speed)
            estimate = self.declared * (mean + costs.probe_cost_s)
            if self.probing:
                work = with_probes(arrival_s, work, costs.probe_cost_s * level, estimate, self.k, rng, **self.options)
            return arrival_s, work, estimate

        return finite_run(complete, self.k, runs, rng, slo_s=slo_s, **self.options)

    def long_run(self, rate: float, *, slo_s=(), percentiles=(50, 95), runs: int = 20,
                 n_jobs: int = 20_000) -> pd.DataFrame:
        """Metrics of long runs at level 1, their first tenth left out: a row a run; always the same random numbers.

        With many replicas the runs are longer than n_jobs: their first tenth has at least five jobs a replica.

        Raises ValueError at or above the capacity.
        """
        if rate >= self.capacity:
            last = self.methods[self.policy[-1]]
            each = self.costs.busy_speed(last, 1000)[-1] / self.service_s[self.policy[-1]]
            raise ValueError(f"rate = {rate:g}: {self.k} replicas do less than {self.capacity:.3f} jobs/s (rho = 1)"
                             f" by {last}; take {int(rate / each) + 1} replicas or more, or a lower rate")
        n_jobs, rng = max(n_jobs, 50 * self.k), np.random.default_rng(0)
        process = arrival_process(rate, **self.arrivals)
        arrival_s = np.stack([process.sample(n_jobs, rng) for _ in range(runs)])
        work, mean = self.work.sample(rng, arrival_s.shape)
        work = (work + self.costs.dispatch_s) * (self.full_speed[0] / self.full_speed)
        rows = run_jobs(*check_jobs(arrival_s, work, mean), self.k, rng=rng, workers=cpu_count(), **self.options)
        response, wait = ((column - arrival_s)[:, n_jobs // 10 :] for column in (rows.finish, rows.start))
        return pd.DataFrame(reduce_runs(response, wait, slo_s, percentiles))

    def metric(self, name: str, rate: float) -> float:
        """A metric of `long_run` (mean, wq, p95, slo_6), infinite at or above the capacity: for `planning`."""
        if rate >= self.capacity:
            return np.inf
        percentiles = [float(name[1:])] if name.startswith("p") else []
        return float(self.long_run(rate, percentiles=percentiles)[name].mean())

    def plan(self, rate: float, name: str, seconds: float, k_max: int) -> tuple[int, float]:
        """The fewest replicas for the rate and the largest rate of the k replicas whose `metric` is at most `seconds`.

        Raises ValueError for what even an almost empty system misses, or k_max replicas.
        """
        most = max_rate(partial(self.metric, name), seconds, self.capacity, rtol=1e-3)
        load = rate * float(self.service_s.min() / self.costs.busy_speed(self.methods[0], k_max).max())
        fewest = min_replicas(lambda k: replace(self, k=k).metric(name, rate), seconds, min(load, k_max - 1),
                              k_max=k_max)
        return fewest, most

    def formula(self, rate: float, n: int = 300) -> formulas.QueueMetrics | None:
        """M/G/k, all replicas at speed[k]; None where it does not hold. For one replica exact (Pollaczek-Khinchine).

        Probes enter as those that n jobs of a run from empty would have.
        """
        if self.arrivals["name"] != "poisson" or len(self.methods) > 1 or (self.k > 1 and self.routing != "central"):
            return None
        probes_s = self._probes_s(rate, n) if self.probing else 0.0
        mean_s = float(self.work.mean[0]) * self.level + self.costs.dispatch_s + probes_s
        if rate * mean_s >= self.k * self.full_speed[0]:
            return None
        scv_s = float(self.work.variance[0]) * (self.level / mean_s) ** 2
        return formulas.mgk(rate, mean_s / self.full_speed[0], scv_s, self.k)

    def _probes_s(self, rate: float, n: int) -> float:
        """Mean seconds of a job's probes, by 50 runs."""
        rng = np.random.default_rng(0)
        work, arrival_s, _, mean = self.beforehand(Poisson(rate).sample, n)(rng, 50)
        work, probe_s = work * self.level, np.full(arrival_s.shape, self.costs.probe_cost_s * self.level)
        estimate = self.declared * (mean + self.costs.probe_cost_s)
        return float((with_probes(arrival_s, work, probe_s, estimate, self.k, rng, **self.options) - work).mean())


def work_se(costs: Costs, jobs: pd.DataFrame, method: str, k: int) -> float:
    """Relative standard error of the work of all jobs of a run alike: of the fit, the processes and busy replicas."""
    mean = costs.moments(jobs, method)
    return float(np.linalg.norm([costs.process_sd / np.sqrt(k), mean.mean_se_s / mean.mean_s,
                                 costs.busy_speed_se(method, k)]))


def declared_speed(cell: dict, costs: Costs) -> float:
    """What a cell's declared work is divided by: over HTTP a wait is told, in seconds with all replicas busy."""
    return float(costs.busy_speed(cell["method"], cell["replicas"])[-1]) if cell.get("http") else 1.0


def estimator(costs: Costs, workload: Workload, level: float = 1.0,
              probing: bool = False) -> Callable[[dict, str], float]:
    """`estimate(job, method)` for the dispatcher: mean seconds of a job of these parameters at that level.

    workload: of the replicas, not loaded; it says what the models make of parameters that are left open.
    """
    return lambda job, method: level * (costs.estimate(workload.resolve(job), method) + probing * costs.probe_cost_s)
