"""The service-time model: what a story job costs, from what is known at its submission.

Job i by method m at machine factor f_i takes

    t_i = f_i**gamma * (x_i . beta_m) * r_i,    E[r] = 1.

x: physical terms (`job_terms`), their costs beta_m estimated by least squares on the relative error: a run's standard
deviation is proportional to its mean, so each row weighs 1 / mean**2, the means those of the fit itself (iteratively
reweighted). f: the machine factor, the level behind the probes over their geometric mean in the experiment; its
exponent gamma is the slope of the log residual on log f. r: the residual's law, kept as quantiles. log f follows an
AR(1) over jobs.
"""

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from stlib.experiment.jobs import JobMix
from stlib.experiment.least_squares import between_sd, hc3, independent, slope_se, solve
from stlib.experiment.machine import Level, Speed, draw_ar1, fit_level, lag_correlation, smoothed

PIXELS = 128  # the image terms are in units of one picture of this side
LEVELS = np.linspace(0, 1, 201)  # at which the residual's quantiles are kept
COMMON = ("llm", "tokens", "sentence starts")


def job_terms(jobs: pd.DataFrame, tokens) -> dict[str, np.ndarray]:
    """The physical terms of jobs, each (n,).

    jobs: columns prompt, n_panels, steps, image_size, guidance_scale. tokens: (n,), those the LLM decodes.
    The terms of COMMON cost the same under every method; the others are the drawing's and cost by method: a constant,
    panels (text and pipeline), their pixels (VAE), steps (calls of the denoiser when it takes all panels at once),
    panel steps, and their pixels (a guided step is two passes).
    """
    llm, panels, steps = has_llm(jobs), _column(jobs, "n_panels"), _column(jobs, "steps")
    area = (_column(jobs, "image_size") / PIXELS) ** 2
    passes = np.where(_column(jobs, "guidance_scale") > 1, 2, 1)
    return {"llm": llm, "tokens": llm * tokens, "sentence starts": llm * (panels - 1), "job": np.ones(len(jobs)),
            "panels": panels, "panel pixels": panels * area, "steps": steps, "panel steps": panels * steps,
            "panel step pixels": panels * steps * passes * area}


def design_matrix(jobs, method, tokens, methods) -> tuple[list[str], np.ndarray]:
    """Names and columns, (n, terms), of the terms: the common ones, then the others once for each of `methods`.

    method: (n,) names. tokens: (n,), those the LLM decodes.
    """
    terms = job_terms(jobs, tokens)
    columns = {name: terms[name] for name in COMMON}
    columns |= {f"{name}[{one}]": values * (method == one)
                for one in methods for name, values in terms.items() if name not in COMMON}
    return list(columns), np.column_stack(list(columns.values()))


def has_llm(jobs: pd.DataFrame) -> np.ndarray:
    """1 where a prompt makes the LLM run, 0 for captions alone."""
    return jobs["prompt"].fillna("").astype(bool).to_numpy(float)


@dataclass(frozen=True)
class MixMoments:
    """Mean (seconds) with its standard error from the fit, SCV and third moment (s^3) of the work of a job mix."""

    mean_s: float
    mean_se_s: float
    scv: float
    third: float


@dataclass(frozen=True)
class ServiceTimeModel:
    """A fitted service-time model. Made by `fit` or `from_json`.

    terms: names, `beta` their costs in seconds at factor 1, `covariance` of beta (HC3); "steps[parallel]" is a term
    of one method. gamma, gamma_se: the factor's exponent. residual: quantiles of r at LEVELS. residual_lag1: its
    correlation from one run to the next. process_sd: of the logarithm of the speed that a process has for its life, in
    the residual too. level: of log f, in time; phi: its correlation from one run to the next.
    probe_s: the probe at factor 1, probe_cost_s: what one probe takes in all. ranges: smallest and largest value
    fitted, of image_size and passes. tokens_run: for "panels, llm_tokens" the sorted numbers of tokens that natural
    jobs decoded.
    """

    methods: tuple[str, ...]
    terms: tuple[str, ...]
    beta: np.ndarray
    covariance: np.ndarray
    gamma: float
    gamma_se: float
    residual: np.ndarray
    residual_lag1: float
    level: Level
    phi: float
    probe_s: float
    probe_cost_s: float
    ranges: dict
    n_rows: int
    tokens_run: dict
    process_sd: float = 0.0

    @classmethod
    def fit(cls, rows: pd.DataFrame, tokens: pd.DataFrame | None = None) -> "ServiceTimeModel":
        """Fit to measured runs, one row a run: the job's parameters, `method`, `run_s`, `probe_s`, `at_s`.

        All rows of one number of `threads`, their LLM decoding an exact number of tokens (or none). A constant
        `probe_s` leaves the factor out. `process`, if there, tells their replicas apart. tokens: rows of natural jobs
        (n_panels, llm_tokens, tokens_run), from prompts of their own. Terms that the rows cannot tell from earlier
        ones are left out.
        Raises ValueError for fewer rows than parameters, NaN, mixed threads, or natural jobs among the rows.
        """
        _check_rows(rows)
        methods = tuple(sorted(rows["method"].unique()))
        names, x = design_matrix(rows, rows["method"].to_numpy(), _column(rows, "llm_tokens"), methods)
        kept = independent(x)
        names, x = [names[i] for i in kept], x[:, kept]
        if len(rows) <= x.shape[1]:
            raise ValueError(f"{len(rows)} rows for {x.shape[1]} parameters: measure more runs")
        y, at_s, log_probe = _column(rows, "run_s"), _column(rows, "at_s"), np.log(_column(rows, "probe_s"))
        level = fit_level(log_probe, at_s)
        log_factor = smoothed(log_probe - log_probe.mean(), at_s, level)
        beta, gamma = solve(x, y, log_factor)
        mean = x @ beta
        ratio = y / (mean * np.exp(gamma * log_factor))
        spread = np.sqrt(len(rows) / (len(rows) - x.shape[1]))
        residual = np.quantile(1 + (ratio - 1) * spread, LEVELS)
        return cls(methods, tuple(names), beta, hc3(x / mean[:, None], ratio - 1), gamma,
                   slope_se(log_factor, ratio), residual / _moment(residual, 1),
                   lag_correlation(ratio - 1, at_s), level,
                   float(np.exp(-np.median(np.diff(np.sort(at_s))) / level.tau_s)), float(np.exp(log_probe.mean())),
                   rows["probe_cost_s"].sum() / rows["probes"].sum() if "probes" in rows else 0.0,
                   {name: [float(v.min()), float(v.max())] for name, v in _ranged(rows).items()}, len(rows),
                   _token_law(tokens), between_sd(np.log(ratio), rows["process"]) if "process" in rows else 0.0)

    def factor(self, probe_s, at_s=None) -> np.ndarray:
        """The machine factor of probes taken while no other replica is busy, (n,).

        at_s: (n,), seconds, when their jobs started: then the probes' noise is smoothed away, each job's factor being
        the expected level given the probes of all. Left out: the ratio as it is.
        """
        ratio = np.asarray(probe_s, float) / self.probe_s
        if at_s is None:
            return ratio
        mean = np.log(ratio).mean()  # their own: a sequence may be slower as a whole
        return np.exp(mean + smoothed(np.log(ratio) - mean, at_s, self.level))

    def mean_s(self, jobs: pd.DataFrame, method: str, factor=1.0, probes=0.0) -> np.ndarray:
        """Mean seconds of each job by `method`, one name or one a job, (n,).

        factor: machine factor, scalar or (n,). probes: how many probes each job pays for, scalar or (n,).
        Raises ValueError for a method or a kind of job that the model was not fitted to.
        """
        work = self._fixed(jobs, method) + self._cost("tokens") * self._tokens(jobs).mean(axis=1)
        return (work + probes * self.probe_cost_s) * np.asarray(factor, float) ** self.gamma

    def sample_s(self, jobs: pd.DataFrame, method: str, rng: np.random.Generator, draws: int | None = None,
                 factor=1.0, probes=0.0) -> np.ndarray:
        """Random seconds of each job, (n,) or (draws, n): tokens and residual drawn. Arguments as of `mean_s`."""
        shape = (len(jobs),) if draws is None else (draws, len(jobs))
        law = self._tokens(jobs)
        tokens = law[np.arange(len(jobs)), rng.integers(law.shape[1], size=shape)]
        work = self._fixed(jobs, method) + self._cost("tokens") * tokens
        residual = np.interp(rng.random(shape), LEVELS, self.residual)
        return (work * residual + probes * self.probe_cost_s) * np.asarray(factor, float) ** self.gamma

    def prediction_interval(self, jobs: pd.DataFrame, method: str, factor=1.0, level: float = 0.95) -> np.ndarray:
        """Lower and upper bound, (2, n), within which a job's time lies with probability `level`."""
        draws = self.sample_s(jobs, method, np.random.default_rng(0), draws=4000, factor=factor)
        return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)

    def moments(self, jobs: pd.DataFrame, method: str) -> MixMoments:
        """Moments of the work of a job drawn from `jobs`, at factor 1, without probes.

        By the law of total variance: E[T^p] is the mean over jobs of E[T^p | job], tokens and residual integrated out.
        """
        law = self._tokens(jobs)
        work = self._fixed(jobs, method)[:, None] + self._cost("tokens") * law
        first, second, third = (np.mean(work**p) * _moment(self.residual, p) for p in (1, 2, 3))
        x = self._x(jobs, method, law.mean(axis=1)).mean(axis=0)
        return MixMoments(first, float(np.sqrt(x @ self.covariance @ x)), second / first**2 - 1, third)

    def factor_path(self, n: int, rng: np.random.Generator, draws: int | None = None) -> np.ndarray:
        """Machine factors of n jobs in a row, (n,) or (draws, n): a stationary AR(1) of the logarithm, its mean 0."""
        path = np.exp(draw_ar1(n, self.phi, self.level.sd, rng, 1 if draws is None else draws))
        return path[0] if draws is None else path

    def coefficients(self) -> pd.DataFrame:
        """Term, cost in seconds, standard error, and 95 % interval."""
        se = np.sqrt(np.diag(self.covariance))
        table = pd.DataFrame({"term": self.terms, "seconds": self.beta, "se": se})
        return table.assign(low=self.beta - 1.96 * se, high=self.beta + 1.96 * se)

    @property
    def residual_cv(self) -> float:
        """Coefficient of variation of a job's time, given its parameters and the machine factor."""
        return float(np.sqrt(_moment(self.residual, 2) - 1))

    def to_json(self, path: str | Path) -> Path:
        """Write the model as JSON."""
        text = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text, indent=1) + "\n")
        return path

    @classmethod
    def from_json(cls, path: str | Path) -> "ServiceTimeModel":
        """Read a model that `to_json` wrote."""
        model = cls(**json.loads(Path(path).read_text()))
        arrays = {name: np.array(getattr(model, name)) for name in ("beta", "covariance", "residual")}
        tuples = {name: tuple(getattr(model, name)) for name in ("methods", "terms")}
        return replace(model, level=Level(*model.level), **tuples, **arrays)

    def _cost(self, term: str) -> float:
        return dict(zip(self.terms, self.beta, strict=True)).get(term, 0.0)

    def _x(self, jobs, method, tokens) -> np.ndarray:
        method = np.broadcast_to(method, len(jobs))
        unknown = set(map(str, method)) - set(self.methods)
        if unknown:
            raise ValueError(f"the model knows no method {unknown.pop()!r}: it was fitted to {', '.join(self.methods)}")
        for name, values in _ranged(jobs).items():
            low, high = self.ranges[name]
            outside = values[~((values >= low) & (values <= high))]
            if len(outside):
                raise ValueError(f"{name} = {outside[0]:g}: the model was fitted to {low:g} to {high:g}; "
                                 "measure such jobs and fit again")
        names, x = design_matrix(jobs, method, tokens, self.methods)
        return x[:, [names.index(term) for term in self.terms]]

    def _fixed(self, jobs, method) -> np.ndarray:
        """Mean seconds without any token."""
        return self._x(jobs, method, np.zeros(len(jobs))) @ self.beta

    def _tokens(self, jobs: pd.DataFrame) -> np.ndarray:
        """Equally likely numbers of tokens of each job, (n, values)."""
        llm, exact = has_llm(jobs).astype(bool), jobs["exact_tokens"].to_numpy(bool)
        asked = np.where(llm, _column(jobs, "llm_tokens"), 0.0)[:, None]
        natural = llm & ~exact
        if not natural.any():
            return asked
        law = np.repeat(asked, 128, axis=1)
        for i in np.flatnonzero(natural):
            law[i] = self._law(int(jobs["n_panels"].iloc[i]), int(jobs["llm_tokens"].iloc[i]))
        return law

    def _law(self, n_panels: int, llm_tokens: int) -> np.ndarray:
        key = f"{n_panels}, {llm_tokens}"
        if key not in self.tokens_run:
            known = "; ".join(self.tokens_run) or "none"
            raise ValueError(f"natural jobs with n_panels, llm_tokens = {key} were not fitted (known: {known}): "
                             "give `fit` rows of such jobs as `tokens`")
        return np.quantile(self.tokens_run[key], (np.arange(128) + 0.5) / 128, method="inverted_cdf")


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    return rows[name].to_numpy(float)


def _ranged(jobs: pd.DataFrame) -> dict[str, np.ndarray]:
    return {"image_size": _column(jobs, "image_size"),
            "passes": np.where(_column(jobs, "guidance_scale") > 1, 2.0, 1.0)}


def _check_rows(rows: pd.DataFrame) -> None:
    numbers = rows[["run_s", "probe_s", "at_s", "n_panels", "steps", "image_size", "guidance_scale"]].to_numpy(float)
    if not np.isfinite(numbers).all() or (rows[["run_s", "probe_s"]].to_numpy() <= 0).any():
        raise ValueError("the rows hold NaN, infinite or non-positive numbers: leave out runs that failed, "
                         "and give image_size and guidance_scale as numbers")
    if "threads" in rows and rows["threads"].nunique() > 1:
        raise ValueError(f"threads = {sorted(rows['threads'].unique())}: fit one model a number of threads")
    if (has_llm(rows).astype(bool) & ~rows["exact_tokens"].to_numpy(bool)).any():
        raise ValueError("rows of natural stories: fit on exact_tokens jobs, and give the natural ones as `tokens`")


def _moment(quantiles, p: int) -> float:
    """E[r**p] of the law whose quantile function is linear between LEVELS."""
    grid = (np.arange(20_000) + 0.5) / 20_000
    return float(np.mean(np.interp(grid, LEVELS, quantiles) ** p))


def _token_law(tokens: pd.DataFrame | None) -> dict[str, list[int]]:
    if tokens is None:
        return {}
    return {f"{panels}, {asked}": sorted(int(t) for t in group)
            for (panels, asked), group in tokens.groupby(["n_panels", "llm_tokens"])["tokens_run"]}


def mean_work_s(model: ServiceTimeModel, mix: JobMix, method: str, probes: float = 0.0) -> float:
    """Mean seconds of a job of the mix at machine factor 1."""
    jobs, shares = mix.combinations()
    return float(shares @ model.mean_s(jobs, method, probes=probes))


def estimator(model: ServiceTimeModel, factor: float = 1.0, probes: float = 1.0, busy: float = 1.0,
              otherwise_s: float | None = None):
    """`estimate(params, method)` for the dispatcher: the model's mean seconds, at the speed `busy`.

    otherwise_s: of a job outside of what the model was fitted to; left out, such a job raises ValueError. Kept once
    computed: the dispatcher asks at its check, before any job runs, and again when the job arrives.
    """
    from stlib.generation import StoryJob
    from stlib.generation.storyteller import EMBEDDED_GUIDANCE

    @functools.cache
    def seconds(method, prompt, n_panels, steps, llm_tokens, exact_tokens, image_size, guidance_scale) -> float:
        job = pd.DataFrame([{
            "prompt": prompt, "n_panels": n_panels, "steps": steps, "llm_tokens": llm_tokens,
            "exact_tokens": exact_tokens, "image_size": PIXELS if image_size == "auto" else image_size,
            "guidance_scale": EMBEDDED_GUIDANCE if guidance_scale is None else guidance_scale}])
        try:
            return float(model.mean_s(job, method, factor=factor, probes=probes)[0]) / busy
        except ValueError:
            if otherwise_s is None:
                raise
            return otherwise_s / busy

    def estimate(params: dict, method: str) -> float:
        job = StoryJob(**params)
        return seconds(method, "a fox" if job.prompt else "", job.n_panels, job.steps, job.llm_tokens, job.exact_tokens,
                       job.image_size, job.guidance_scale)

    return estimate


def service_estimator(model: ServiceTimeModel, speed: Speed, method: str, k: int, probes: float = 0.0):
    """The same for k replicas that serve any job: all busy, and a job unlike those fitted taken for a mean one."""
    otherwise_s = mean_work_s(model, JobMix.from_yaml("stories"), method, probes)
    return estimator(model, probes=probes, busy=speed.of(method, k)[k], otherwise_s=otherwise_s)
