"""Anybody's log of served jobs: what queue it is, what the model predicts for it, and whether the model holds."""

import heapq
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from stlib.prediction.job_log import Log
from stlib.queueing import formulas, variability
from stlib.queueing.checks import check_jobs, whole
from stlib.queueing.job_table import reduce_runs
from stlib.queueing.simulation import finite_run, recursion, replication_interval, run_jobs, simulate
from stlib.queueing.variability import Variability

LAWS = {"exponential": stats.expon, "gamma": stats.gamma, "lognormal": stats.lognorm}
CONSTANT_SCV = 1e-4  # a standard deviation of 1 % of the mean
KS_DRAWS, SCV_DRAWS, CURVE_DRAWS = 99, 1000, 100
MOST_INFERRED = 64  # replicas, in a log without starts
NEAR = 0.05  # of the served mean response, or of the waiting
FEW = 0.01  # of the jobs, or the level at which inferred services depend on the number found
HOLE = 1e-4  # the chance that the longest of exponential gaps is told
GRID = np.linspace(0.005, 0.995, 199)  # probabilities of the quantiles that are kept


@dataclass(frozen=True)
class Found:
    """What `check_log` found: k replicas, the name of the service law, whether the model holds.

    sentences: all of it in words, the verdict last. tables: metrics, replicas, laws, tests, services, responses,
    arrivals; candidates for k, if it was inferred; classes, if there are any. Times in seconds.
    """

    k: int
    law: str
    holds: bool
    sentences: tuple[str, ...]
    tables: dict[str, pd.DataFrame]


def check_log(log: Log, replicas: int | None = None, *, slo_s=(), draws: int = 1000, seed: int = 0) -> Found:
    """Say which queue a log is of, and what the model predicts for it beside what was served.

    replicas: k, stated; left out, as many as the log names, else the most jobs in service at once, else inferred from
    the replies. Three predictions: the formula of `select_model`'s model; a simulation of one queue, first come first
    served, in front of k replicas, with the log's arrivals and services drawn anew, `draws` times, from those of the
    same class; a recursion on the measured services, on the log's replicas where it names them, and in one queue.
    Served less recursion is overhead or a hidden queue; recursion less one queue the routing; one queue less simulated
    this run's services; simulated less formula the finite run and the approximation. The model holds if neither of the
    first two is more than 5 % of the served mean response, this lies in the 95 % interval of the simulation (the true
    model misses that in one log of twenty), and inferred services do not depend on the number found. Raises ValueError
    for a k that the log contradicts, or draws < 40.
    """
    jobs, k, how, candidates = find_replicas(log.jobs, replicas)
    arrival, service = jobs["arrival_s"].to_numpy(), (jobs["finish_s"] - jobs["start_s"]).clip(lower=0).to_numpy()
    choice = variability.select_model(arrival, service, k)
    arrivals, services = variability.arrival_variability(arrival), variability.service_variability(service)
    laws, quantiles, of_services = describe_services(service, np.random.default_rng([seed, 0]))
    draw = _redrawn(arrival, service, jobs.get("class", pd.Series("all", jobs.index)))
    runs = {one: finite_run(draw, one, draws, np.random.default_rng([seed, 1]), slo_s=slo_s)
            for one in range(max(1, k - 1), k + 2)}  # common random numbers
    metrics = _compare(jobs, service, k, runs[k], _formula(choice.model, arrivals, services, k), slo_s)
    plan = pd.DataFrame([
        {"replicas": one, "rho": services.mean_s / (one * arrivals.mean_s),
         **_interval("mean", run["mean"]), **_interval("p95", run["p95"])} for one, run in runs.items()])
    idle, overtaken = _disorder(jobs, k) if "start" in log.columns else (0.0, 0.0)
    broken = [claim for claim, seen in choice.tests.groupby("claim", sort=False)["rejected"].any().items() if seen]
    holds, verdict = _verdict(metrics.loc["mean"], jobs, idle, overtaken, broken, candidates)
    sentences = [
        f"{len(jobs)} completed jobs in {jobs['reply_s'].max():.6g} s, {log.left_out} others left out; "
        + ", ".join(f"{role} is {column!r}" for role, column in log.columns.items()),
        f"k = {k}: {how}", of_services,
        f"arrivals: {1 / arrivals.mean_s:.4g} a second, SCV {arrivals.scv:.3g}, index of dispersion for counts "
        f"{arrivals.dispersion:.3g}, correlation of neighbours {arrivals.lag1:.2f}",
        f"queue: {choice.model}", *choice.reasons, *_holes(jobs),
        f"{idle:.1%} of the waiting passed while fewer than {k} were busy; {overtaken:.1%} of the jobs were overtaken",
        *(f"{one.replicas} replicas do not carry the load (rho = {one.rho:.2f}): the queue grows, and their numbers "
          "are those of a log as long as this one" for one in plan.itertuples() if one.rho >= 1),
        verdict]
    counts, edges = np.histogram(arrival, bins=50)
    tables = {"metrics": metrics.rename_axis("metric").reset_index(), "replicas": plan, "laws": laws,
              "tests": choice.tests, "services": quantiles, "responses": _responses(jobs, draw, k, seed),
              "arrivals": pd.DataFrame({"from_s": edges[:-1], "to_s": edges[1:], "arrivals": counts})}
    tables |= {} if candidates is None else {"candidates": candidates}
    return Found(k, laws["law"].iloc[0], holds, tuple(sentences), tables)


def find_replicas(jobs: pd.DataFrame, stated: int | None = None) -> tuple[pd.DataFrame, int, str, pd.DataFrame | None]:
    """Return a log's jobs with their starts, k, how it was found, and the candidates for it if it was inferred.

    Without starts a job starts, on a named replica, on its arrival or when the job that finished there before it has;
    in one queue, first come first served, on its arrival or when fewer than k of the jobs before it are left. Of the k
    that leave all services positive, that is taken whose services depend least on the number found at arrival
    (Spearman): with too many replicas waits count as service. Raises ValueError for a stated k that cannot be.
    """
    candidates, named = None, jobs["replica"].nunique() if "replica" in jobs else 0
    least, how = named, "replicas are named"
    if "start_s" not in jobs and named:
        before = jobs.sort_values("finish_s", kind="stable").groupby("replica")["finish_s"].shift()
        jobs, how = jobs.assign(start_s=np.fmax(jobs["arrival_s"], before)), f"{how}, starts inferred"
    elif "start_s" not in jobs:
        arrival, finish = jobs["arrival_s"].to_numpy(), jobs["finish_s"].to_numpy()
        candidates = _candidates(arrival, finish, stated)
        least, *others = candidates["replicas"].tolist()
        jobs = jobs.assign(start_s=_starts(arrival, finish, least))
        how = "inferred from the replies, as one queue, first come first served"
        if open_to := sorted(set(others) & set(candidates["replicas"][candidates["p_value"] >= NEAR])):
            how += f"; {', '.join(map(str, open_to))} cannot be excluded"
    elif not named:
        least, how = int(_timeline(jobs)[1].max()), "so many jobs were in service at once"
    if stated is not None and whole(replicas=stated) < least:
        raise ValueError(f"replicas = {stated}: {how}, {least} of them; state at least {least}, or leave it out")
    return jobs, least if stated is None else int(stated), how if stated is None else "stated", candidates


def describe_services(service_s, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return the laws of service times (n,), the best first, the quantiles served and fitted, and a sentence.

    Constant if the SCV is below CONSTANT_SCV; else the law of LAWS with the least AIC (Akaike, 1974), fitted by maximum
    likelihood to those above 0, with scipy's shape and scale. Its Kolmogorov-Smirnov p-value is that of a parametric
    bootstrap, for the law was fitted to the same data. 95 % intervals: Student's of the mean, of the SCV a bootstrap's.
    """
    mean, scv = service_s.mean(), service_s.var(ddof=1) / service_s.mean() ** 2
    if scv < CONSTANT_SCV:
        laws, fitted = pd.DataFrame({"law": ["constant"], "scale_s": mean}), mean
    else:
        positive = service_s[service_s > 0]
        fits = {name: law.fit(positive, floc=0) for name, law in LAWS.items()}
        laws = pd.DataFrame([
            {"law": name, "aic": 2 * len(fit[1:]) - 2 * LAWS[name].logpdf(positive, *fit).sum(),
             "shape": fit[0] if fit[1:-1] else np.nan, "scale_s": fit[-1]} for name, fit in fits.items()])
        laws = laws.sort_values("aic", ignore_index=True)
        law, fit = LAWS[laws["law"][0]], fits[laws["law"][0]]
        laws.loc[0, "ks_p"], fitted = _ks(law, positive, fit, rng), law.ppf(GRID, *fit)
    drawn = (rng.choice(service_s, len(service_s)) for _ in range(SCV_DRAWS))
    scv_lo, scv_hi = np.quantile([one.var(ddof=1) / one.mean() ** 2 for one in drawn], [0.025, 0.975])
    lo, hi = replication_interval(service_s)
    fit_told = f"KS p = {laws['ks_p'][0]:.2g}" if "ks_p" in laws else "standard deviation below 1 % of the mean"
    told = (f"service: {laws['law'][0]} ({fit_told}), mean {mean:.4g} s ({lo:.4g} to {hi:.4g}), SCV {scv:.3g} "
            f"({scv_lo:.3g} to {scv_hi:.3g})")
    return laws, pd.DataFrame({"probability": GRID, "served_s": np.quantile(service_s, GRID), "fitted_s": fitted}), told


def _ks(law, values, fit, rng) -> float:
    steps = np.arange(len(values) + 1) / len(values)

    def distance(values, fit):
        cdf = law.cdf(np.sort(values), *fit)
        return max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max())

    drawn, least = (law.rvs(*fit, size=len(values), random_state=rng) for _ in range(KS_DRAWS)), distance(values, fit)
    return (1 + sum(distance(one, law.fit(one, floc=0)) >= least for one in drawn)) / (KS_DRAWS + 1)


def _candidates(arrival, finish, stated) -> pd.DataFrame:
    found = np.arange(len(arrival)) - np.searchsorted(np.sort(finish), arrival, side="right")
    rows, most = [], min(MOST_INFERRED, int(found.max()) + 1)
    for k in range(1, most + 1) if stated is None else [whole(replicas=stated)]:
        service = np.round(finish - _starts(arrival, finish, k), 9)
        if service.min() > 0:
            flat = np.ptp(service) == 0 or np.ptp(found) == 0
            rows.append((k, *((0.0, 1.0) if flat else stats.spearmanr(found, service))))
    if not rows:
        raise ValueError(f"with {stated or f'1 to {most}'} replicas, one queue, first come first served, some replies "
                         "would come before their service: give starts, a replica column, or state more --replicas")
    table = pd.DataFrame(rows, columns=["replicas", "rank_correlation", "p_value"])
    return table.sort_values("rank_correlation", key=abs, ignore_index=True, kind="stable")


def _starts(arrival, finish, k: int) -> np.ndarray:
    """Starts in one queue, first come first served: not before the k-th largest of the earlier finishes."""
    last, starts = [-np.inf] * k, []
    for arrived, finished in zip(arrival, finish, strict=True):
        starts.append(max(arrived, last[0]))
        heapq.heappushpop(last, finished)
    return np.array(starts)


def _timeline(jobs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How long each moment between events lasts, jobs in service, jobs waiting; finishes come first where times tie."""
    times = jobs[["finish_s", "start_s", "arrival_s"]].to_numpy().T.ravel()
    order = np.argsort(times, kind="stable")
    busy, waiting = (np.repeat(steps, len(jobs))[order].cumsum() for steps in ([-1, 1, 0], [0, -1, 1]))
    return np.diff(times[order], append=times.max()), busy, waiting


def _disorder(jobs, k: int) -> tuple[float, float]:
    """The share of all waiting that passed while fewer than k were busy, and of jobs that a later one overtook."""
    lasts, busy, waiting = _timeline(jobs)
    waited = lasts * waiting
    start = jobs["start_s"].to_numpy()
    later = np.minimum.accumulate(start[::-1])[::-1]
    return float(waited[busy < k].sum() / (waited.sum() or 1.0)), float((start > later).mean())


def _redrawn(arrival, service, classes):
    """draw(rng, m) of `finite_run`: the same arrivals, each service one of its class."""
    groups = classes.reset_index(drop=True).groupby(classes.to_numpy()).indices.values()

    def draw(rng, m):
        work = np.empty((m, len(arrival)))
        for rows in groups:
            work[:, rows] = rng.choice(service[rows], (m, len(rows)))
        return np.broadcast_to(arrival, work.shape), work, None

    return draw


def _interval(name: str, values) -> dict:
    return {name: values.mean(), f"{name}_lo": values.quantile(0.025), f"{name}_hi": values.quantile(0.975)}


def _formula(model: str, arrivals: Variability, services: Variability, k: int) -> dict:
    """Mean and wq of M/M/k, M/G/k or else GI/G/k; nothing without a steady state."""
    lam, mean_s, scv = 1 / arrivals.mean_s, services.mean_s, services.scv
    if lam * mean_s >= k:
        return {}
    queue = (formulas.mmk(lam, 1 / mean_s, k) if model == "M/M/k" else
             formulas.mgk(lam, mean_s, scv, k) if model == "M/G/k" else
             formulas.gigk(lam, arrivals.scv, mean_s, scv, k))
    return {"mean": queue.w, "wq": queue.wq}


def _compare(jobs, service, k: int, runs: pd.DataFrame, formula: dict, slo_s) -> pd.DataFrame:
    """Served, predicted, and the error in four parts that add up: a row a metric."""
    arrival = jobs["arrival_s"].to_numpy()
    one_queue = simulate(arrival, service, k)
    again = (recursion(arrival, service, jobs["replica"].to_numpy(), jobs["start_s"].to_numpy()) if "replica" in jobs
             else one_queue)
    rows = pd.DataFrame({
        "served": _metrics(jobs, slo_s), "recursion": _metrics(again, slo_s), "one_queue": _metrics(one_queue, slo_s),
        **_interval("simulated", runs), "formula": pd.Series(formula, dtype=float)}, index=runs.columns)
    return rows.assign(**{f"{one}_less_{other}": rows[one] - rows[other] for one, other in pairwise(
        ("served", "recursion", "one_queue", "simulated", "formula"))})


def _metrics(table, slo_s) -> pd.Series:
    response, wait = ((table[end] - table["arrival_s"]).to_numpy()[None] for end in ("reply_s", "start_s"))
    return pd.Series({name: float(one[0]) for name, one in reduce_runs(response, wait, slo_s, (50, 95)).items()})


def _verdict(mean: pd.Series, jobs, idle: float, overtaken: float, broken, candidates) -> tuple[bool, str]:
    """Whether the model holds, and in words what does not and what that suggests; broken: claims that tests reject."""
    doubts, named = [], "replica" in jobs
    off, routed = (mean[f"{one}_less_{other}"] / mean["served"] for one, other in
                   (("served", "recursion"), ("recursion", "one_queue")))
    late = (jobs["reply_s"] - jobs["finish_s"]).mean()
    if abs(off) > NEAR:
        why = ("jobs waited less than k replicas let them: there may be more of them" if off < 0 else
               f"replies come {late:.4g} s after the finish" if late > NEAR * mean["served"] else
               "a hidden queue, or overhead, in front of the replicas" + ("" if named else
               "; or each replica has its own queue, which a replica column would show"))
        doubts.append(f"the measured services give a mean response of {mean['recursion']:.4g} s, served were "
                      f"{mean['served']:.4g} s: {why}")
    if abs(routed) > NEAR:
        doubts.append(f"one queue, first come first served, would give these services {mean['one_queue']:.4g} s in "
                      f"place of {mean['recursion']:.4g} s: each replica has its own queue, or the order is another")
    signs = {"jobs waited while replicas were idle": idle > NEAR,
             f"{overtaken:.0%} of the jobs were overtaken": overtaken > FEW,
             "services depend on each other or change over time (a queue may be hidden in them)":
                 variability.STEADY_SERVICES in broken,
             "services depend on the gaps before them": variability.UNRELATED in broken}
    seen = "; ".join(sign for sign, told in signs.items() if told)
    if not mean["simulated_lo"] <= mean["served"] <= mean["simulated_hi"]:
        doubts.append(f"the served mean response, {mean['served']:.4g} s, lies outside {mean['simulated_lo']:.4g} to "
                      f"{mean['simulated_hi']:.4g} s")
    if candidates is not None and (p := candidates["p_value"][0]) < FEW:
        doubts.append(f"whatever k is, inferred services depend on the number found at arrival (p = {p:.1g}): a hidden "
                      "queue, replicas that slow each other down, or another order of service")
    told = ("the model does not hold: " + "; ".join(doubts) if doubts else
            "the model holds: recursion and one queue are within 5 % of the served mean response, and this lies in the "
            "simulation's interval")
    return not doubts, told + (f"; beware: {seen}" if seen else "")


def _holes(jobs) -> list[str]:
    """The gaps without arrivals that are longer than chance allows: exponential ones, or wider by their variability."""
    gaps = np.diff(jobs["arrival_s"])
    usual = gaps[(gaps > 0) & (gaps <= np.quantile(gaps[gaps > 0], 0.99))]
    width = max(1.0, (1 + usual.var() / usual.mean() ** 2) / 2)
    holes = np.flatnonzero(gaps > usual.mean() * width * np.log(len(gaps) / HOLE))
    at = jobs.index
    return [f"no arrivals for {gaps[i]:.4g} s between {at.name}s {at[i]} and {at[i + 1]}, longer than chance allows: a "
            "pause, lost rows, or a clock set forward; if it is none of the load, check the log before and after it"
            for i in holes]


def _responses(jobs, draw, k: int, seed) -> pd.DataFrame:
    """Quantiles of the response time, served and simulated with 95 % of the draws."""
    arrival, work, _ = draw(np.random.default_rng([seed, 2]), CURVE_DRAWS)
    response = run_jobs(*check_jobs(arrival, work), k).finish - arrival
    simulated = pd.DataFrame(np.quantile(response, GRID, axis=1).T)
    return pd.DataFrame({"probability": GRID, "served_s": np.quantile(jobs["reply_s"] - jobs["arrival_s"], GRID),
                         **_interval("simulated_s", simulated)})
