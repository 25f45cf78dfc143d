"""Served runs made by a simulation of its own, event by event: probes, idle spells, contention and the dispatcher."""

from functools import cache

import numpy as np
import pandas as pd

from stlib.experiment import Costs, JobMix
from stlib.experiment.design import full_factorial
from stlib.prediction.predict import System
from stlib.queueing.arrivals import arrival_process
from stlib.queueing.job_table import job_table
from stlib.serving.replica import IDLE_S

METHODS = ("sequential", "parallel")
SPEED = pd.DataFrame([{"method": m, "busy": b, "speed": [1.0, 0.85][b - 1], "se": 0.0, "probe_ratio": [1.0, 1.3][b - 1]}
                      for m in METHODS for b in (1, 2)])
LEVELS = {"method": ["sequential", "parallel"], "n_panels": [1, 2, 4], "steps": [6, 12, 20], "llm_tokens": [4, 16],
          "prompt": ["", "a fox"]}


@cache
def fitted_costs() -> Costs:
    """Costs of synthetic runs: 7 % residual, an AR(1) machine of 10 %, busy replicas at 0.85."""
    rng, rows = np.random.default_rng(1), pd.concat([full_factorial(LEVELS)] * 4).sample(frac=1, random_state=1)
    llm = (rows["prompt"] != "") * (0.1 + 0.02 * rows["llm_tokens"])
    drawing = rows["n_panels"] * rows["steps"] * np.where(rows["method"] == "sequential", 0.03, 0.02)
    noise, path = rng.standard_normal(len(rows)) * 0.1, np.zeros(len(rows))
    for i in range(1, len(rows)):
        path[i] = 0.8 * path[i - 1] + 0.6 * noise[i]
    run_s = (0.1 + llm + drawing) * np.exp(0.9 * path) * rng.gamma(200, 1 / 200, len(rows))
    return Costs.fit(rows.assign(
        exact_tokens=rows["prompt"] != "", threads=1, at_s=np.arange(len(rows)) * 1.0, image_size=128,
        guidance_scale=2.5, run_s=run_s, probe_s=0.06 * np.exp(path), probes=1, probe_cost_s=0.065)
    ).with_speed(SPEED, dispatch_s=0.01)


def a_cell(costs, seed=0, **given) -> dict:
    """A cell.json of stories_exact, its rate set by the load; `factor`: the machine's at its start."""
    cell = {"cell": 1, "run": 1, "mix": "stories_exact", "method": "sequential", "replicas": 1, "routing": "central",
            "arrivals": {"name": "poisson"}, "rho": 0.7, "n_jobs": 60, "seed": seed, "factor": 1.1} | given
    system = System.of(costs, cell["mix"], cell["method"], cell["replicas"], probing=True,
                       level=cell["factor"]**costs.gamma)
    baseline_s = System.of(costs, cell["mix"], "sequential").work.mean[0]
    return {"lam": cell["rho"] * system.capacity} | cell | {"slo_s": [
        round(float(factor * baseline_s), 2) for factor in (2, 3, 5)]}


def serve(cell: dict, costs: Costs, rng) -> tuple:
    """Cell, job table, jobs and products of a run that obeys the costs."""
    n, k, method = cell["n_jobs"], cell["replicas"], cell["method"]
    jobs = JobMix.from_yaml(cell["mix"]).sample(n, rng)
    arrival_s = arrival_process(cell["lam"], **cell["arrivals"]).sample(n, rng)
    factor = cell["factor"] * costs.factor_path(arrival_s, rng)
    work = costs.sample_s(jobs, method, rng, factor=factor)
    probe_s = costs.probe_cost_s * factor**costs.gamma
    estimate = (costs.mean_s(jobs, method) + costs.probe_cost_s) * cell["factor"]**costs.gamma
    speed = costs.busy_speed(method, k)
    rows = _events(arrival_s, work + costs.dispatch_s, probe_s, estimate, k, cell["routing"], speed, rng)
    ratio = costs.probe_ratios(method, k)
    products = pd.DataFrame({
        "job_id": jobs["job_id"], "lag_s": 0.0, "probes": rows["probes"], "busy_start": rows["busy_start"],
        "busy_finish": rows["busy_finish"], "probe_before_s": factor * costs.probe_s * ratio[rows["busy_before"]],
        "probe_after_s": factor * costs.probe_s * ratio[rows["busy_finish"]]})
    table = job_table({
        "job_id": jobs["job_id"], "workload": "story", "scheduled_s": arrival_s, "arrival_s": arrival_s,
        "start_s": rows["start"], "finish_s": rows["finish"], "reply_s": rows["finish"],
        "service_s": rows["finish"] - rows["start"] - costs.dispatch_s, "probe_s": factor, "replica": rows["replica"],
        "method": method, "n_outstanding": 1, "attempt": 1, "outcome": "completed"})
    return cell, table, jobs, products


def calibration_rows(costs, rng, *, ratio: dict, n_jobs=50, replicas=1, factor=1.1,
                     method="sequential") -> pd.DataFrame:
    """What `side_by_side` measures before and after a run; ratio: for each `when` how much longer than by the costs."""
    parts, at_s = [], np.arange(n_jobs) * 2.0
    for i, (when, longer) in enumerate(ratio.items()):
        for replica in range(replicas):
            jobs, path = JobMix.from_yaml("stories_exact").sample(n_jobs, rng), factor * costs.factor_path(at_s, rng)
            speed = costs.busy_speed(method, replicas)[replicas]
            parts.append(jobs.assign(
                when=when, replica=replica, at_s=1000.0 * i + at_s,
                run_s=longer * costs.sample_s(jobs, method, rng, factor=path) / speed,
                probe_s=path * costs.probe_s * costs.probe_ratios(method, replicas)[replicas]))
    return pd.concat(parts, ignore_index=True)


def _events(arrival_s, work, probe_s, estimate, k, routing, speed, rng) -> dict:
    n, t, i = len(work), 0.0, 0
    out = {name: np.zeros(n) for name in ("start", "finish")}
    out |= {name: np.zeros(n, int) for name in ("replica", "probes", "busy_start", "busy_finish", "busy_before")}
    queues = [[] for _ in range(k)]  # of a central queue the first
    running, left = [None] * k, np.zeros(k)
    idle_since, busy_then = np.full(k, -np.inf), np.zeros(k, int)

    def start(r):
        j = (queues[0] if routing == "central" else queues[r]).pop(0)
        running[r], busy = j, 1 + sum(one is not None for one in running)
        second = t - idle_since[r] > IDLE_S
        out["start"][j], out["replica"][j], out["probes"][j], out["busy_start"][j] = t, r, 1 + second, busy
        out["busy_before"][j] = busy if second else busy_then[r]
        left[r] = work[j] + (1 + second) * probe_s[j]

    while i < n or any(one is not None for one in running):
        at_work = [r for r in range(k) if running[r] is not None]
        pace = speed[len(at_work)] if at_work else 1.0
        done = min(at_work, key=lambda r: left[r], default=None)
        depart = np.inf if done is None else t + left[done] / pace
        arrive = arrival_s[i] if i < n else np.inf
        now = min(depart, arrive)
        left[at_work] -= (now - t) * pace
        t = now
        if depart <= arrive:
            out["finish"][running[done]], out["busy_finish"][running[done]] = t, len(at_work)
            running[done], idle_since[done], busy_then[done] = None, t, len(at_work)
            if queues[0 if routing == "central" else done]:
                start(done)
            continue
        idle = [r for r in range(k) if running[r] is None]
        load = [(running[r] is not None) + len(queues[r]) for r in range(k)]
        if routing == "least_work":
            load = [-1.0 if running[r] is None else sum(estimate[j] for j in queues[r])
                    + max(0.0, estimate[running[r]] - (t - out["start"][running[r]])) for r in range(k)]
        if routing == "central":
            queues[0].append(i)
            r = min(idle, key=lambda one: idle_since[one]) if idle else None
        else:
            best = rng.permutation(k)
            r = int(best[np.argmin(np.array(load)[best])])
            queues[r].append(i)
        i += 1
        if r is not None and running[r] is None:
            start(r)
    return out
