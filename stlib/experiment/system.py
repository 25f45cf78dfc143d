"""A system is a folder: what its replicas are, and what jobs cost on them, measured there.

`system.json` (workload, models, device, threads, GPUs, and where it was measured), `costs_<workload>.json` (the fitted
costs and the speed of busy replicas), `runs.jsonl` (the runs behind them). The embedded models' is the reference.
"""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from stlib import paths
from stlib.experiment import design as doe
from stlib.experiment.costs import Costs
from stlib.experiment.jobs import with_stories
from stlib.experiment.machine import contention
from stlib.experiment.measure import FreshReplicas, measure_contention, measure_dispatch, run_on
from stlib.experiment.rows import Store, measure, provenance, row_seeds
from stlib.experiment.sources import in_replica
from stlib.serving.replica import ReplicaSpec, stop_replica
from stlib.serving.rules import options_of
from stlib.settings import FieldError, known, within

FOLDS = 5  # of the cross-validation
RUNS_A_PROCESS, WARM_UP = 60, 4  # runs of a replica, the first of which are left out
BLOCKS = 12  # of the measurement of busy replicas, a job each


def read_spec(folder: Path) -> ReplicaSpec | None:
    """What the replicas of a system are; None for the embedded models on this machine. ValueError for no system."""
    file = Path(folder) / "system.json"
    if not file.exists():
        if not any(Path(folder).glob("costs_*.json")):
            raise ValueError(f"{folder} holds no system: make one with `python -m stlib measure --out {folder}`")
        return None
    with within(str(file)):
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
            return ReplicaSpec(**{name: given[name] for name in ReplicaSpec.model_fields})
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"no system of this version ({type(error).__name__}: {error}): measure it") from error


def plan_of(spec: ReplicaSpec, design: Path, menu: dict) -> tuple[pd.DataFrame, Counter]:
    """The runs of a design that these models can do, in their order, and how many others were refused for which field.

    An image_size of "auto" is the models' own. Raises ValueError if no run is left.
    """
    workload = spec.make()
    runs = pd.concat([part.assign(experiment=name) for name, part in doe.read_design(design).items()],
                     ignore_index=True)
    if spec.workload == "story":
        runs = with_stories(runs)
    else:
        runs["seed"] = row_seeds(runs).astype(np.int64) % 2**31
    for one in runs.get("method", pd.Series([None])).unique():
        known("method of the menu", one, menu)
    kept, first, refused = [], {}, Counter()
    for row in runs.to_dict("records"):
        job = {name: row[name] for name in {*workload.fields} & {*row}}
        try:
            params = job | options_of(row["method"], menu)
            workload.validate(params)
            own = workload.resolve(params)
            kept.append({name: own[name] for name in workload.fields} | row | (
                {"image_size": own["image_size"]} if "image_size" in own else {}))
        except FieldError as error:
            refused[first.setdefault(error.field, str(error))] += 1
    if not kept:
        raise ValueError(f"{Path(design).name}: these models can do none of its runs: {next(iter(refused))}")
    return pd.DataFrame(kept), refused


def measure_system(spec: ReplicaSpec, runs: pd.DataFrame, folder: Path, *, menu: dict, replicas: int = 1,
                   seconds: float = math.inf) -> tuple[Costs, pd.DataFrame]:
    """Measure the runs, as many as fit into `seconds`, and what 1 ... replicas do to each other; keep it in `folder`.

    Returns the costs and what the fit is worth: a row a fold, the error of the mean and of a job that it did not see.
    What is measured already is kept. Raises ValueError if the runs are too few to fit: give more time.
    """
    workload, code, folder = spec.make(), in_replica(spec.workload), Path(folder)
    run = FreshReplicas(spec, RUNS_A_PROCESS, menu)
    rows = measure(runs, run, Store(folder / "runs.jsonl"), lambda job: workload.weights_hash(menu[job["method"]]),
                   code=code, menu=menu, label="runs", seconds=seconds)
    run.stop()
    place = rows.sort_values("at_s").groupby("process").cumcount().reindex(rows.index)
    rows = rows[place >= WARM_UP].sort_values("at_s").reset_index(drop=True)
    with within(f"{len(rows)} runs measured; give more --minutes or a smaller --design"):
        costs = Costs.fit(rows, rows, spec.workload)
        worth = held_out(rows, spec.workload)
    if replicas > 1:
        handles = [spec.start() for _ in range(replicas)]
        some = [part.sample(BLOCKS, replace=True, random_state=0).assign(job_id=range(BLOCKS))
                for _, part in runs.groupby("method")]
        busy = pd.concat([measure_contention([run_on(one, menu) for one in handles], part, blocks=BLOCKS)
                          for part in some])
        for handle in handles:
            stop_replica(handle)
        costs = costs.with_speed(contention(busy), measure_dispatch())
    with paths.whole(folder / "system.json") as file:
        file.write_text(json.dumps(spec.model_dump() | {"provenance": provenance()}, indent=1) + "\n", encoding="utf-8")
    costs.to_json(folder / f"costs_{spec.workload}.json")
    return costs, worth


def coefficients(costs: Costs) -> pd.DataFrame:
    """Cost of each term, milliseconds, with its 95 % interval."""
    half = stats.norm.ppf(0.975) * np.sqrt(np.diag(costs.covariance))
    return pd.DataFrame({"term": costs.terms, "ms": 1000 * costs.beta, "low": 1000 * (costs.beta - half),
                         "high": 1000 * (costs.beta + half)})


def held_out(rows: pd.DataFrame, workload: str) -> pd.DataFrame:
    """Cross-validation: a row a fold, the predicted over the measured sum less 1, and a job's mean absolute error."""
    fold, found = np.random.default_rng(0).permutation(len(rows)) % FOLDS, []
    for i in range(FOLDS):
        fitted, unseen = Costs.fit(rows[fold != i], rows, workload), rows[fold == i]
        mean = fitted.mean_s(unseen, unseen["method"], fitted.factor(unseen["probe_s"], unseen["at_s"]))
        found.append({"mean": mean.sum() / unseen["run_s"].sum() - 1, "job": (mean / unseen["run_s"] - 1).abs().mean()})
    return pd.DataFrame(found)
