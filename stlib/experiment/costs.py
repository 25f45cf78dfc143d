"""What a job costs, from what is known at its submission: the one file that measuring leaves to predicting.

Job i by method m at machine factor f_i takes

    t_i = f_i**gamma * (x_i . beta_m) * r_i,    E[r] = 1.

x: physical terms, which the workload names (`terms`), their costs beta_m estimated by least squares on the relative
error: a run's standard deviation is proportional to its mean, so each row weighs 1 / mean**2, the means those of the
fit itself (iteratively reweighted). Counts that only the run tells (tokens of a natural story) follow a law of their
own. f: the machine factor, the level behind the probes over their geometric mean in the experiment; its exponent gamma
is the slope of the log residual on log f. r: the residual's law, kept as quantiles.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from stlib import paths
from stlib.experiment.counts import fit_laws, law_of, nearest_mean, of_method, values_of
from stlib.experiment.least_squares import between_sd, hc3, independent, solve
from stlib.experiment.machine import Level, draw_level, fit_level, lag_correlation, smoothed
from stlib.experiment.terms import check_rows, mapping, term_columns
from stlib.serving.workloads import WORKLOADS
from stlib.settings import known

LEVELS = np.linspace(0, 1, 201)  # at which the residual's quantiles are kept


@dataclass(frozen=True)
class MixMoments:
    """Mean (seconds) with its standard error from the fit, SCV and third moment (s^3) of the work of a job mix."""

    mean_s: float
    mean_se_s: float
    scv: float
    third: float


@dataclass(frozen=True)
class Costs:
    """Fitted costs of one workload's jobs. Made by `fit` (then `with_speed`) or `from_json`.

    methods: names, of the menu. terms: names, `beta` their costs in seconds at factor 1, `covariance` of beta (HC3);
    "steps[parallel]" is a term of one method. gamma, gamma_se: the factor's exponent. residual: quantiles of r at
    LEVELS. residual_lag1: its correlation from one run to the next. process_sd: of the logarithm of the speed that a
    process has for its life, in the residual too. level: of log f, in time. probe_s: the probe at factor 1,
    probe_cost_s: what one probe takes in all. ranges: smallest and largest value fitted, of the workload's `ranged`.
    counts: for each random count, and each value of the fields it depends on, the sorted counts that were run.
    speed, speed_se: for each method its speed while 1, 2, ... replicas are busy, relative to one alone, and its
    relative standard error; probe_ratio: the probe's seconds then, over those alone. dispatch_s: the dispatcher's own
    time a job.
    """

    workload: str
    methods: tuple[str, ...]
    terms: tuple[str, ...]
    beta: np.ndarray
    covariance: np.ndarray
    gamma: float
    gamma_se: float
    residual: np.ndarray
    residual_lag1: float
    level: Level
    probe_s: float
    probe_cost_s: float
    ranges: dict[str, list[float]]
    n_rows: int
    counts: dict[str, dict[str, list[int]]]
    process_sd: float = 0.0
    speed: dict[str, list[float]] = field(default_factory=dict)
    speed_se: dict[str, list[float]] = field(default_factory=dict)
    probe_ratio: dict[str, list[float]] = field(default_factory=dict)
    dispatch_s: float = 0.0

    @classmethod
    def fit(cls, rows: pd.DataFrame, counts: pd.DataFrame | None = None, workload: str = "story") -> "Costs":
        """Fit to measured runs, one row a run: the job's parameters, `method`, `run_s`, `probe_s`, `at_s`.

        All rows of one number of `threads`, their counts known beforehand. A constant `probe_s` leaves the factor out.
        `process`, if there, tells their replicas apart. counts: rows of other jobs, with what only the run told as
        columns (`tokens_run` of natural jobs, `panel_steps_run` of methods that end early). Terms that the rows cannot
        tell from earlier ones are left out.
        Raises ValueError for fewer rows than parameters, NaN, mixed threads, or random counts among the rows.
        """
        kind = WORKLOADS[workload]
        check_rows(rows, kind)
        methods = tuple(sorted(rows["method"].unique()))
        laws = {} if counts is None else fit_laws(kind, counts)
        told = {count: np.where([of_method(count, one) in laws for one in rows["method"]],
                                rows.get(count, np.nan), said) for count, said in kind.known(rows).items()}
        columns = independent(term_columns(kind, rows, rows["method"], methods, told))
        x = np.column_stack(list(columns.values()))
        if len(rows) <= x.shape[1]:
            raise ValueError(f"{len(rows)} rows for {x.shape[1]} parameters: measure more runs")
        y, at_s, probe_s = rows[["run_s", "at_s", "probe_s"]].to_numpy(float).T
        middle = np.log(probe_s).mean()
        level = fit_level(np.log(probe_s), at_s)
        log_factor = smoothed(np.log(probe_s) - middle, at_s, level)
        beta, gamma, gamma_se = solve(x, y, log_factor)
        mean = x @ beta
        ratio = y / (mean * np.exp(gamma * log_factor))
        spread = np.sqrt(len(rows) / (len(rows) - x.shape[1]))
        residual = np.quantile(1 + (ratio - 1) * spread, LEVELS)
        return cls(
            workload, methods, tuple(columns), beta, hc3(x / mean[:, None], ratio - 1), gamma, gamma_se,
            residual / _moment(residual, 1), lag_correlation(ratio - 1, at_s), level, float(np.exp(middle)),
            probe_cost_s=rows["probe_cost_s"].sum() / rows["probes"].sum() if "probes" in rows else 0.0,
            ranges={name: [float(v.min()), float(v.max())] for name, v in kind.ranged(rows).items()}, n_rows=len(rows),
            counts=laws,
            process_sd=between_sd(np.log(ratio), rows["process"]) if "process" in rows else 0.0)

    def with_speed(self, contention: pd.DataFrame, dispatch_s: float = 0.0) -> "Costs":
        """The same with what busy replicas do to each other (the table of `machine.contention`) and `dispatch_s`."""
        named = contention.rename(columns={"se": "speed_se"}).sort_values("busy").groupby("method", observed=True)
        return replace(self, dispatch_s=dispatch_s, **named[["speed", "speed_se", "probe_ratio"]].agg(list).to_dict())

    def factor(self, probe_s, at_s=None, reference_s: float | None = None) -> np.ndarray:
        """The machine factor of probes taken while no other replica is busy, (n,).

        at_s: (n,), seconds, when their jobs started: then the probes' noise is smoothed away, each job's factor being
        the expected level given the probes of all. Left out: the ratio as it is. reference_s: the probe that counts
        as 1; left out, the experiment's.
        """
        ratio = np.asarray(probe_s, float) / (reference_s or self.probe_s)
        if at_s is None:
            return ratio
        mean = np.log(ratio).mean()  # their own: a sequence may be slower as a whole
        return np.exp(mean + smoothed(np.log(ratio) - mean, at_s, self.level))

    def factor_path(self, at_s, rng: np.random.Generator) -> np.ndarray:
        """Machine factors at the times `at_s`, seconds, in order along the last axis: of `at_s`' shape, mean log 0."""
        return np.exp(draw_level(self.level, np.asarray(at_s, float), rng))

    def mean_s(self, jobs: pd.DataFrame, method, factor=1.0) -> np.ndarray:
        """Mean seconds of each job by `method`, one name or one a job, (n,). factor: machine factor, scalar or (n,).

        Raises ValueError for a method or a kind of job that was not measured.
        """
        self._check(jobs, method)
        means = {count: values.mean(axis=1) for count, values in self._values(jobs, method).items()}
        return self._seconds(jobs, method, means) * np.asarray(factor, float) ** self.gamma

    def estimate(self, job: Mapping, method: str) -> float:
        """Mean seconds of one job, a mapping of its workload's fields; beyond the fitted range extrapolated.

        Raises ValueError for a method that was not measured.
        """
        known("method of the costs", method, self.methods)
        kind = WORKLOADS[self.workload]
        counts = kind.known(job)
        for count, told in counts.items():
            name = law_of(self.counts, count, method)
            if np.isnan(told) or name != count:
                counts[count] = nearest_mean(self.counts.get(name, {}), job, kind.counts[count])
        return float(self._seconds(job, method, counts))

    def beyond(self, job: Mapping) -> bool:
        """Whether the estimate of one job is an extrapolation of the fitted range."""
        return any(not (self.ranges[name][0] <= value <= self.ranges[name][1])
                   for name, values in WORKLOADS[self.workload].ranged(job).items() for value in np.atleast_1d(values))

    def sample_s(self, jobs: pd.DataFrame, method, rng: np.random.Generator, draws: int | None = None, factor=1.0,
                 within: bool = False) -> np.ndarray:
        """Random seconds of each job, (n,) or (draws, n): counts and residual drawn. Arguments as of `mean_s`.

        within: the jobs are of one process, whose own speed is not drawn with them.
        """
        self._check(jobs, method)
        shape, drawn = (len(jobs),) if draws is None else (draws, len(jobs)), {}
        for count, values in self._values(jobs, method).items():
            pick = rng.integers(values.shape[1], size=shape) if values.shape[1] > 1 else 0
            drawn[count] = values[np.arange(len(jobs)), pick]
        residual = np.interp(rng.random(shape), LEVELS, self.residual_within if within else self.residual)
        return self._seconds(jobs, method, drawn) * residual * np.asarray(factor, float) ** self.gamma

    def moments(self, jobs: pd.DataFrame, method: str) -> MixMoments:
        """Moments of the work of a job drawn from `jobs`, at factor 1, without probes.

        By the law of total variance: E[T^p] is the mean over jobs of E[T^p | job], counts and residual integrated out.
        """
        self._check(jobs, method)
        apart = {count: values[:, np.random.default_rng(i).permutation(values.shape[1])]  # independent of the others
                 for i, (count, values) in enumerate(self._values(jobs, method).items())}
        columns = self._columns({name: values[:, None] for name, values in mapping(jobs).items()}, method, apart)
        work, x = sum(map(np.multiply, self.beta, columns)), np.array([np.mean(column) for column in columns])
        first, second, third = (np.mean(work**p) * _moment(self.residual, p) for p in (1, 2, 3))
        return MixMoments(first, float(np.sqrt(x @ self.covariance @ x)), second / first**2 - 1, third)

    def busy_speed(self, method: str, k: int) -> np.ndarray:
        """Speed (k + 1,) as the simulator takes it; beyond the replicas measured, the last measured one."""
        return self._while_busy(self.speed, method, k)

    def probe_ratios(self, method: str, k: int) -> np.ndarray:
        """The probe's ratios (k + 1,), by the number of busy replicas; likewise."""
        return self._while_busy(self.probe_ratio, method, k)

    def busy_speed_se(self, method: str, k: int) -> float:
        """Relative standard error of the speed of k busy replicas; 0 for one, which is the unit."""
        return self._while_busy(self.speed_se, method, k, alone=0.0)[k]

    @property
    def residual_cv(self) -> float:
        """Coefficient of variation of a job's time, given its parameters and the machine factor."""
        return float(np.sqrt(_moment(self.residual, 2) - 1))

    @property
    def residual_within(self) -> np.ndarray:
        """The residual's quantiles among the jobs of one process: without the variance between processes."""
        between = (self.process_sd / self.residual_cv) ** 2 if self.process_sd else 0.0
        return 1 + (self.residual - 1) * np.sqrt(max(1 - between, 0.0))

    def to_json(self, path: str | Path) -> Path:
        """Write as JSON, whole or not at all."""
        with paths.whole(Path(path)) as file:
            file.write_text(json.dumps(asdict(self), indent=1, default=np.ndarray.tolist) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> "Costs":
        """Read what `to_json` wrote. Raises ValueError, naming the file, for anything else."""
        try:
            given = json.loads(Path(path).read_text())
            arrays = {name: np.array(given[name], float) for name in ("beta", "covariance", "residual")}
            tuples = {name: tuple(given[name]) for name in ("methods", "terms")}
            return cls(**given | {"level": Level(*given["level"])} | arrays | tuples)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no costs of this version ({error}): measure them with `python -m stlib "
                             "measure`, or run notebooks 05 and 08") from error

    @classmethod
    def read(cls, workload: str, system: str | Path = paths.REFERENCE) -> "Costs":
        """A workload's costs on a system, a folder. Raises ValueError where it was not measured."""
        file = Path(system) / f"costs_{workload}.json"
        if not file.exists() and (others := sorted(Path(system).glob("costs_*.json"))):
            raise ValueError(f"{system} holds the costs of {', '.join(one.stem[6:] for one in others)}, none of the "
                             f"workload {workload!r}: measure it, or give another --system")
        costs = cls.from_json(file)
        if costs.workload != workload:
            raise ValueError(f"{file} holds the costs of the workload {costs.workload!r}: it was renamed")
        return costs

    def _columns(self, job, method, counts: Mapping) -> list:
        """Of each term; job: a table, or a mapping of numbers or arrays."""
        columns = term_columns(WORKLOADS[self.workload], job, method, self.methods, counts)
        return [columns[term] for term in self.terms]

    def _seconds(self, job, method, counts: Mapping):
        """The mean, given the counts."""
        return sum(cost * column for cost, column in zip(self.beta, self._columns(job, method, counts), strict=True))

    def _values(self, jobs: pd.DataFrame, method) -> dict[str, np.ndarray]:
        return values_of(self.counts, WORKLOADS[self.workload], jobs, method)

    @staticmethod
    def _while_busy(measured: dict[str, list[float]], method: str, k: int, alone: float = 1.0) -> np.ndarray:
        if method not in measured and k > 1:
            raise ValueError(f"no speed of method {method!r} while others are busy was measured, it was of "
                             f"{', '.join(measured) or 'none'}: measure its contention, or take one replica")
        values = measured.get(method, [alone])
        return np.array([alone, *values[:k], *[values[-1]] * (k - len(values))])

    def _check(self, jobs: pd.DataFrame, method) -> None:
        for one in {method} if isinstance(method, str) else set(method):
            known("method of the costs", one, self.methods)
        for name, values in WORKLOADS[self.workload].ranged(jobs).items():
            low, high = self.ranges[name]
            outside = values[~((values >= low) & (values <= high))]
            if len(outside):
                raise ValueError(f"{name} = {outside[0]:g}: fitted were {low:g} to {high:g}; measure and fit such jobs")


def _moment(quantiles, p: int) -> float:
    """E[r**p] of the law whose quantile function is linear between LEVELS."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    return float(np.mean(np.interp(grid, LEVELS, quantiles) ** p))
