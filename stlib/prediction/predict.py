"""A system on paper: what its jobs will do, in finite runs and in the long run."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from joblib import cpu_count

from stlib.experiment.costs import ServiceTimeModel
from stlib.experiment.jobs import JobMix
from stlib.experiment.machine import Speed
from stlib.prediction.calibration import Calibration
from stlib.queueing import formulas
from stlib.queueing.arrivals import Poisson, arrival_process
from stlib.queueing.checks import check_jobs
from stlib.queueing.job_table import reduce_runs
from stlib.queueing.simulation import run_jobs
from stlib.serving.replica import IDLE_S

LAW_DRAWS = 200_000  # of a mix's work, shared equally among the combinations of job parameters


@dataclass(frozen=True)
class MixWork:
    """The work of a mix's jobs by one method at machine factor 1, without probes.

    The parameters that cost time take few combinations: `shares` (c,) their probabilities, `mean_s` (c,) their mean
    work, `work_s` (draws, c) independent draws of it.
    """

    shares: np.ndarray
    mean_s: np.ndarray
    work_s: np.ndarray

    @classmethod
    def of(cls, model: ServiceTimeModel, mix: JobMix, method: str, rng: np.random.Generator) -> "MixWork":
        """Draw the work of every combination of the mix."""
        jobs, shares = mix.combinations()
        draws = model.sample_s(jobs, method, rng, draws=-(-LAW_DRAWS // len(jobs)))
        return cls(shares, model.mean_s(jobs, method), draws)

    def sample(self, rng: np.random.Generator, shape) -> tuple[np.ndarray, np.ndarray]:
        """Work of random jobs and its mean given their parameters, both of `shape`."""
        job = np.searchsorted(self.shares.cumsum()[:-1], rng.random(shape), side="right")
        return self.work_s[rng.integers(len(self.work_s), size=shape), job], self.mean_s[job]

    @property
    def moments(self) -> tuple[float, float]:
        """Mean and variance."""
        mean = self.shares @ self.mean_s
        return float(mean), float(self.shares @ (self.work_s**2).mean(axis=0) - mean**2)


def after_idle(start_s, finish_s, replica) -> np.ndarray:
    """Whether each job's replica had idled longer than IDLE_S when it started, (runs, n).

    Times in seconds and replicas, (runs, n); each replica serves its jobs in the order of the columns.
    """
    idle = np.zeros(start_s.shape, bool)
    for one in range(replica.max() + 1):
        here = replica == one
        last = np.maximum.accumulate(np.where(here, finish_s, -np.inf), axis=1)
        before = np.concatenate([np.full((len(last), 1), -np.inf), last[:, :-1]], axis=1)
        idle |= here & (start_s - before > IDLE_S)
    return idle


def with_probes(arrival_s, work_s, probe_s, estimate_s, k: int, rng, **options) -> np.ndarray:
    """Work (runs, n) with its probes: one after each job, and one before a job that follows an idle spell.

    Which jobs do, a simulation with one probe a job says. Neglected: that the second probes shorten the idle spells
    after them. probe_s: what a probe takes at each job's machine factor, (n,) or (runs, n).
    """
    once = work_s + probe_s
    rows = run_jobs(*check_jobs(arrival_s, once, estimate_s), k, rng=rng, **options)
    return once + probe_s * after_idle(rows.start, rows.finish, rows.replica)


@dataclass(frozen=True)
class System:
    """What a cell's predictions simulate.

    speed: (k + 1,). factor: the machine's before the run. ratio: of whole jobs' seconds to the model's. work_se:
    relative standard error of the work of all jobs of a run alike: the calibration's, or, without one, of the speed of
    its processes, of the fit, and of `speed`.
    """

    model: ServiceTimeModel
    method: str
    k: int
    routing: str
    speed: np.ndarray
    dispatch_s: float
    factor: float
    work_se: float
    ratio: float = 1.0

    @classmethod
    def of(cls, cell: dict, model: ServiceTimeModel, speed: Speed, jobs: pd.DataFrame) -> "System":
        """From cell.json and the jobs."""
        method, k = cell["method"], cell["replicas"]
        mean = model.moments(jobs, method)
        parts = (model.process_sd / np.sqrt(k), mean.mean_se_s / mean.mean_s, speed.relative_se(method, k))
        return cls(model, method, k, cell["routing"], speed.of(method, k), speed.dispatch_s, cell["factor"],
                   float(np.linalg.norm(parts)))

    def calibrated(self, by: Calibration) -> "System":
        """The same with the work that whole jobs showed."""
        return replace(self, ratio=by.ratio, work_se=by.se)

    @property
    def options(self) -> dict:
        """Of the simulator."""
        return {"routing": self.routing, "speed": self.speed if self.k > 1 else None}

    def given_jobs(self, arrival_s, jobs: pd.DataFrame, factor):
        """draw(rng, m): these arrivals, this list of jobs at their machine factors (n,), and work drawn anew."""
        estimate = self.ratio * self.model.mean_s(jobs, self.method, factor=self.factor, probes=1)

        def draw(rng, m):
            work = self.model.sample_s(jobs, self.method, rng, draws=m)
            return [np.array(one) for one in np.broadcast_arrays(arrival_s, work, factor, estimate)]

        return draw

    def beforehand(self, law: MixWork, arrivals, n: int):
        """draw(rng, m): jobs, their work and the path of the machine's factor drawn anew; arrivals(n, rng) -> (n,)."""

        def draw(rng, m):
            arrival_s = np.stack([arrivals(n, rng) for _ in range(m)])
            work, mean = law.sample(rng, (m, n))
            estimate = self.ratio * (mean + self.model.probe_cost_s) * self.factor**self.model.gamma
            return arrival_s, work, self.factor * self.model.factor_path(n, rng, m), estimate

        return draw

    def complete(self, draw):
        """`draw` for `finite_run`: the work at its machine factor, with the dispatcher's time and the probes."""

        def completed(rng, m):
            arrival_s, work, factor, estimate = draw(rng, m)
            level = self.ratio * factor**self.model.gamma * np.exp(self.work_se * rng.standard_normal((m, 1)))
            work = with_probes(arrival_s, work * level + self.dispatch_s, self.model.probe_cost_s * level, estimate,
                               self.k, rng, **self.options)
            return arrival_s, work, estimate

        return completed

    def formula(self, law: MixWork, process, n: int) -> dict:
        """Mean response and wait of M/G/k at the factor before the run, all replicas at speed[k]; {} if not valid."""
        if not isinstance(process, Poisson) or (self.k > 1 and self.routing != "central"):
            return {}
        level = self.ratio * self.factor**self.model.gamma
        rng = np.random.default_rng(0)
        arrival_s, work, _, estimate = self.beforehand(law, process.sample, n)(rng, 50)
        probes = with_probes(arrival_s, work * level, self.model.probe_cost_s * level, estimate, self.k, rng,
                             **self.options) - work * level
        mean, variance = law.moments
        mean_s = (mean * level + probes.mean() + self.dispatch_s) / self.speed[self.k]
        if process.rate * mean_s >= self.k:
            return {}
        scv = variance * (level / self.speed[self.k] / mean_s) ** 2
        queue = formulas.mgk(process.rate, mean_s, scv, self.k)
        return {"mean": queue.w, "wq": queue.wq}


@dataclass(frozen=True)
class Service:
    """Replicas that serve a mix by one method in the long run, at factor 1, without probes.

    work: of the mix, seconds; the dispatcher's time `dispatch_s` is added. arrivals: as of `arrival_process`.
    """

    work: MixWork
    method: str
    routing: str
    arrivals: dict
    speed: Speed

    @classmethod
    def of(cls, model: ServiceTimeModel, speed: Speed, mix: str, method: str, routing: str = "central",
           arrivals: dict | None = None) -> "Service":
        """From the fitted model and the name or file of a mix; Poisson arrivals if left out."""
        work = MixWork.of(model, JobMix.from_yaml(mix), method, np.random.default_rng(0))
        return cls(work, method, routing, arrivals or {"name": "poisson"}, speed)

    @property
    def mean_s(self) -> float:
        """Mean service time on a replica while no other is busy, seconds."""
        return self.work.moments[0] + self.speed.dispatch_s

    def capacity(self, k: int) -> float:
        """The rate at which k replicas saturate, all busy."""
        return float(k * self.speed.of(self.method, k)[k] / self.mean_s)

    def steady_state(self, lam: float, k: int, *, slo_s=(), percentiles=(50, 95), runs: int = 20,
                     n_jobs: int = 20_000) -> pd.DataFrame:
        """Metrics of long runs, their first tenth left out: a row a run; always the same random numbers.

        With many replicas the runs are longer than n_jobs: their first tenth has at least five jobs a replica.

        Raises ValueError at or above the capacity.
        """
        if not 0 < lam < self.capacity(k):
            raise ValueError(f"rate = {lam:g}: {k} replicas do less than {self.capacity(k):.3f} jobs a second "
                             f"(rho = 1) by {self.method}; lower the rate or add replicas")
        n_jobs, rng, process = max(n_jobs, 50 * k), np.random.default_rng(0), arrival_process(lam, **self.arrivals)
        arrival_s = np.stack([process.sample(n_jobs, rng) for _ in range(runs)])
        work, mean = self.work.sample(rng, arrival_s.shape)
        rows = run_jobs(*check_jobs(arrival_s, work + self.speed.dispatch_s, mean), k, routing=self.routing, rng=rng,
                        speed=self.speed.of(self.method, k) if k > 1 else None, workers=cpu_count())
        response, wait = ((column - arrival_s)[:, n_jobs // 10 :] for column in (rows.finish, rows.start))
        return pd.DataFrame(reduce_runs(response, wait, slo_s, percentiles))

    def metric(self, name: str, lam: float, k: int) -> float:
        """A metric of `steady_state`, infinite at or above the capacity: for `planning`."""
        if lam >= self.capacity(k):
            return np.inf
        percentiles = [float(name[1:])] if name.startswith("p") else []
        return float(self.steady_state(lam, k, percentiles=percentiles)[name].mean())

    def exact(self, lam: float, k: int) -> formulas.QueueMetrics | None:
        """The formula of Pollaczek and Khinchine, where it holds: Poisson arrivals, one replica."""
        if k > 1 or self.arrivals["name"] != "poisson":
            return None
        return formulas.mg1(lam, self.mean_s, self.work.moments[1] / self.mean_s**2)
