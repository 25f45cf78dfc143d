"""Predicted against served: every prediction of a served cell, beside what was served, a row a metric.

A prediction reads of the run its arrivals, its jobs, its probes and the calibration around it, never a service time;
`recursion` alone, which splits the error, takes the measured ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stlib.experiment.costs import Costs
from stlib.experiment.jobs import JobMix, listed
from stlib.paths import whole
from stlib.prediction.calibration import Calibration
from stlib.prediction.cell import Campaign, read_cell, read_fitted
from stlib.prediction.predict import System, declared_speed, work_se
from stlib.queueing.arrivals import arrival_process
from stlib.queueing.job_table import job_metrics
from stlib.queueing.simulation import recursion

COLUMNS = ("cell", "run", "workload", "method", "replicas", "routing", "arrivals", "rho", "rho_realised", "n_jobs",
           "seed", "metric", "slo_s", "served", "traced", "traced_lo", "traced_hi", "plain", "recursion", "formula",
           "beforehand_lo", "beforehand_median", "beforehand_hi", "quantile", "quantile_given_arrivals", "overhead")


def machine_factors(table: pd.DataFrame, products: pd.DataFrame, costs: Costs, ratios,
                    reference_s: float | None = None) -> np.ndarray:
    """Each job's machine factor (n,), from the means of its probes, each over its ratio with as many replicas busy.

    ratios: (k + 1,), the probe's seconds by number of busy replicas, over those alone. reference_s: as of
    `Costs.factor`. The probe before a job is its own if it ran two, else the one that ended the job before on its
    replica. table and products by job_id.
    """
    order = table["start_s"].argsort().to_numpy()
    last = products["busy_finish"].iloc[order].groupby(table["replica"].iloc[order]).shift().reindex(table.index)
    before = products["busy_start"].where((products["probes"] == 2) | last.isna(), last).astype(int)
    probes = [products[f"probe_{when}_s"] / np.asarray(ratios)[busy.astype(int)]
              for when, busy in (("before", before), ("after", products["busy_finish"]))]
    return costs.factor(np.mean(probes, axis=0), table["start_s"], reference_s)


def predict_cell(folder: Path, **sizes) -> pd.DataFrame:
    """Every prediction of a served cell beside what was served: a row a metric, the columns COLUMNS.

    folder: of `run_cell`, with the costs and the calibration that it holds. sizes: as of `predict_run`.
    """
    return predict_run(*read_cell(Path(folder)), *read_fitted(Path(folder)), **sizes)


def predict_run(cell: dict, table: pd.DataFrame, jobs: pd.DataFrame, products: pd.DataFrame, costs: Costs,
                calibration: pd.DataFrame | None = None, *, draws: int = 1000, runs: int = 10_000) -> pd.DataFrame:
    """The same for a run in memory: cell as in cell.json, the tables in order of arrival.

    calibration: traced uses the jobs before and after the run, beforehand those before it, plain none; left out, the
    work is that of the costs. draws: of the work, given arrivals and jobs (traced: at each job's machine factor; plain:
    at factor 1). runs: replications of the prediction beforehand, at the level before the run. Random numbers come from
    the cell's seed. The metric `first` is the mean time until a job's first part (panel) is finished. `workload` is the
    mix; `rho_realised` the replicas' own seconds over those they had until the last arrival. Raises ValueError for a
    run in which a job did not complete.
    """
    if failed := (table["outcome"] != "completed").sum():
        raise ValueError(f"cell {cell['cell']}: {failed} jobs did not complete; give a run whose jobs all do")
    plain_of, ahead, around, probe_s = systems(cell, costs, jobs, calibration)
    arrival_s, slo_s = table["arrival_s"].to_numpy(), tuple(cell["slo_s"])
    process = arrival_process(cell["lam"], **cell["arrivals"])
    factor = machine_factors(table, products, costs, costs.probe_ratios(cell["method"], plain_of.k), probe_s)
    again = recursion(arrival_s, table["service_s"] + costs.dispatch_s, table["replica"], table["start_s"])

    def simulated(of: System, draw, n_runs):
        return of.finite(draw, n_runs, np.random.default_rng([cell["seed"], 2]), slo_s)

    traced, plain = (simulated(of, of.given_jobs(arrival_s, jobs, f), draws)
                     for of, f in ((around, factor), (plain_of, np.ones(len(jobs)))))
    anew, given = (simulated(ahead, ahead.beforehand(arrivals, len(jobs)), runs)
                   for arrivals in (process.sample, lambda n, rng: arrival_s))
    queue = ahead.formula(process.rate, len(jobs))
    formula = {} if queue is None else {"mean": queue.w, "wq": queue.wq}
    served, recursed = (job_metrics(one, slo_s=slo_s) for one in (table, again))
    if share := first_share(products, calibration):
        recursed, traced, plain, anew, given = (
            with_first(one, share) for one in (recursed, traced, plain, anew, given))
        served["first"] = (table["start_s"] - table["scheduled_s"] + products["first_s"]).mean()
        formula |= {"first": with_first(pd.Series(formula), share)["first"]} if formula else {}
    at = served[traced.columns]
    rows = pd.DataFrame({
        "served": at, "traced": traced.mean(), "traced_lo": traced.quantile(0.025), "traced_hi": traced.quantile(0.975),
        "plain": plain.mean(), "recursion": recursed, "formula": pd.Series(formula, dtype=float),
        "beforehand_lo": anew.quantile(0.025), "beforehand_median": anew.median(), "overhead": served - recursed,
        "beforehand_hi": anew.quantile(0.975), "quantile": (anew.lt(at).mean() + anew.le(at).mean()) / 2,
        "quantile_given_arrivals": (given.lt(at).mean() + given.le(at).mean()) / 2}, index=traced.columns)
    metrics, _, seconds = zip(*(name.partition("_") for name in rows.index), strict=True)
    rows = rows.assign(
        **{name: cell[name] for name in ("cell", "run", "method", "replicas", "routing", "rho", "n_jobs", "seed")},
        rho_realised=table["service_s"].sum() / (plain_of.k * arrival_s[-1]), arrivals=cell["arrivals"]["name"],
        workload=cell["mix"], metric=metrics, slo_s=[float(one or "nan") for one in seconds])
    return rows[list(COLUMNS)].reset_index(drop=True)


def first_share(products: pd.DataFrame, calibration: pd.DataFrame | None) -> float | None:
    """The time until a job's first part over that of the whole, of the whole jobs beside the run; None if not kept."""
    kept = calibration is not None and all("first_s" in one for one in (products, calibration))
    return float(calibration["first_s"].sum() / calibration["service_s"].sum()) if kept else None


def with_first(metrics, share: float):
    """Metrics, of one run or a row a run, and `first`: the mean wait and that share of the mean time in service."""
    metrics = metrics.copy()
    metrics["first"] = metrics["wq"] + share * (metrics["mean"] - metrics["wq"])
    return metrics


def read_validation(path: Path, campaign: Campaign) -> pd.DataFrame:
    """The rows of a validation.csv that are of this campaign's cells."""
    rows = pd.read_csv(path)
    return rows[rows["cell"].isin(campaign.cells)].reset_index(drop=True)


def keep_validation(rows: pd.DataFrame, path: Path, campaign: Campaign) -> None:
    """Put the rows of a campaign's cells into a validation.csv, in place of those that it had of them."""
    others = pd.read_csv(path) if path.exists() else rows.head(0)
    both = pd.concat([others[~others["cell"].isin(campaign.cells)], rows]).sort_values(["cell", "run"], kind="stable")
    with whole(path) as file:
        both.to_csv(file, index=False, float_format="%.8g")


def systems(cell: dict, costs: Costs, jobs: pd.DataFrame, calibration: pd.DataFrame | None = None) -> tuple:
    """The system of a served cell as known without calibration, before the run, and around it; and the probe of 1.

    Without calibration the level before the run is that of the factor which cell.json holds, and the work is uncertain
    by the speed of the processes, the fit and the speed of busy replicas.
    """
    method, k = cell["method"], cell["replicas"]
    before, after, probe_s = {"level": cell.get("factor", 1.0)**costs.gamma}, {}, None
    if calibration is not None:
        ahead, around = (Calibration.fit(rows, costs, method)
                         for rows in (calibration[calibration["when"] == "before"], calibration))
        before, after = ({"level": one.level, "level_se": one.se} for one in (ahead, around))
        probe_s = around.probe_s
    mix = listed(JobMix.from_yaml(cell["mix"]), cell["arrivals"])
    plain = System.of(costs, mix, method, k, seed=[cell["seed"], 1], routing=cell["routing"],
                      arrivals=cell["arrivals"], level_se=work_se(costs, jobs, method, k), probing=True,
                      declared=before["level"] / declared_speed(cell, costs))
    return plain, replace(plain, **before), replace(plain, **after), probe_s
