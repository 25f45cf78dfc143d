"""A system is a folder: what its replicas are, and what jobs cost on them, measured there.

`system.json` (workload, models, device, threads, GPUs, and where it was measured), `costs_<workload>.json` (the fitted
costs and the speed of busy replicas), `runs.jsonl` (the runs behind them). The embedded models' is the reference. Of a
server that is not ours `system.json` holds a `Server`, and `ramp.jsonl` how many requests it works on at once.
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
from stlib.experiment.measure import LABELS, FreshReplicas, measure_contention, measure_dispatch, run_on
from stlib.experiment.ramp import fit_places, measure_ramp
from stlib.experiment.rows import Store, key_of, measure, provenance, row_seeds
from stlib.experiment.sources import in_replica
from stlib.serving.images_server import METHOD, ImagesServer, Server
from stlib.serving.replica import ReplicaSpec, stop_replica
from stlib.serving.rules import options_of
from stlib.serving.workloads import StoryWorkload
from stlib.settings import FieldError, known, within

FOLDS = 5  # of the cross-validation
RUNS_A_PROCESS, WARM_UP = 60, 4  # runs of a replica, the first of which are left out
BLOCKS = 12  # of the measurement of busy replicas, a job each


def read_spec(folder: Path) -> ReplicaSpec | Server | None:
    """What the replicas of a system are, or where its server is; None for the embedded models on this machine.

    Raises ValueError for a folder that holds no system.
    """
    file = Path(folder) / "system.json"
    if not file.exists():
        if not any(Path(folder).glob("costs_*.json")):
            raise ValueError(f"{folder} holds no system: make one with `python -m stlib measure --out {folder}`")
        return None
    with within(str(file)):
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
            kind = Server if "url" in given else ReplicaSpec
            return kind(**{name: given[name] for name in kind.model_fields})
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"no system of this version ({type(error).__name__}: {error}): measure it") from error


def read_runs(design: Path) -> pd.DataFrame:
    """The runs of all experiments of a design, in their order; `experiment` says of which."""
    return pd.concat([part.assign(experiment=name) for name, part in doe.read_design(design).items()],
                     ignore_index=True)


def plan_of(spec: ReplicaSpec, design: Path, menu: dict) -> tuple[pd.DataFrame, Counter]:
    """The runs of a design that these models can do, in their order, and how many others were refused for which field.

    An image_size of "auto" is the models' own. Raises ValueError if no run is left.
    """
    workload, runs = spec.make(), read_runs(design)
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
    keep_system(spec, costs, folder)
    return costs, worth


def keep_system(spec: ReplicaSpec | Server, costs: Costs, folder: Path) -> None:
    """Write system.json and the costs."""
    with paths.whole(folder / "system.json") as file:
        file.write_text(json.dumps(spec.model_dump() | {"provenance": provenance()}, indent=1) + "\n", encoding="utf-8")
    costs.to_json(folder / f"costs_{spec.workload}.json")


def requests_of(design: Path) -> tuple[pd.DataFrame, dict]:
    """The runs of a design as requests to a server that is not ours, captions alone, and what every request says.

    The latter are the columns that are no fields of a job. Raises ValueError for a request that is no job, or a design
    that varies what a job does not have.
    """
    runs = read_runs(design)
    runs = runs.assign(method=METHOD, llm_tokens=0, n_panels=runs.get("n_panels", 1),
                       guidance_scale=runs.get("guidance_scale"))
    extra = {}
    with within(Path(design).name):
        for name in [one for one in runs if one not in {*StoryWorkload.fields, *LABELS}]:
            if runs[name].nunique() > 1:
                raise ValueError(f"{name} is no field of a job, so every request says it alike: give it as fixed")
            extra[name] = json.loads(runs[name].to_json(orient="values"))[0]
        runs = with_stories(runs.drop(columns=list(extra)))
        for row in runs.to_dict("records"):
            StoryWorkload.check(job_of(row))
    return runs, extra


def job_of(row: dict) -> dict:
    """The fields of a job among a row's entries."""
    return {name: value for name, value in row.items() if name in StoryWorkload.fields and value is not None}


def measure_server(server: ImagesServer, runs: pd.DataFrame, folder: Path, *, most: int = 64,
                   seconds: float = math.inf) -> tuple[Costs, pd.DataFrame, pd.DataFrame]:
    """Measure a server that is not ours into `folder`: how many requests it works on at once, what a request costs.

    runs: of `requests_of`. most: requests at once, at the most. Returns the costs, whose `speed` tells the places, what
    the fit is worth, and the ramp. What is measured already is kept. Raises RuntimeError for a server that does not
    answer with pictures, ValueError for too few runs to fit.
    """
    folder, told = Path(folder), key_of(server.server.model_dump(exclude={"trip_s"}))
    order = runs.assign(work=runs["n_panels"] * runs["steps"]).sort_values("work", kind="stable")
    ramp = measure_ramp(server, job_of(order.iloc[len(order) // 2].to_dict()) | {"seed": 0}, folder, told, most)
    rows = measure(runs, server, Store(folder / "runs.jsonl"), told, code=(), label="requests", seconds=seconds)
    trip_s = server.trip_s()
    with within(f"{len(rows)} requests measured; give more --minutes or a smaller --design"):
        rows = rows.assign(run_s=rows["run_s"] - trip_s)
        costs, worth = Costs.fit(rows), held_out(rows, "story")
    costs = costs.with_speed(fit_places(ramp, trip_s).assign(method=METHOD))
    keep_system(server.server.but(trip_s=trip_s), costs, folder)
    return costs, worth, ramp


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
