"""The campaign: cells of jobs served for real, each kept in a folder of its own.

A cell's folder `served/cell_<n>_run_<m>` has `served.parquet` (the job table), `jobs.parquet` (the jobs' parameters),
`products.parquet`, `calibration.parquet` (whole jobs before and after the run), `costs.json` (what was fitted where it
was served) and `cell.json` (what was run, at which rate, where, and what the dispatcher counted): all that its
prediction takes.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from stlib import paths
from stlib.experiment.costs import Costs
from stlib.experiment.jobs import JobMix, drawn
from stlib.experiment.measure import WARM_UP, run_on, side_by_side
from stlib.experiment.rows import key_of, provenance
from stlib.experiment.sources import SERVED, code_hash, in_replica
from stlib.prediction.calibration import LEAST_JOBS, Calibration
from stlib.prediction.predict import MixWork, System, declared_speed, estimator
from stlib.queueing import checks
from stlib.queueing.arrivals import arrival_process
from stlib.queueing.simulation import ROUTINGS
from stlib.serving.replica import ReplicaSpec
from stlib.serving.rules import options_of, read_menu
from stlib.serving.workloads import make_workload
from stlib.settings import build, many, mapping, read_yaml


@dataclass(frozen=True)
class Cell:
    """One served run: jobs of a mix, done by a method on `replicas` replicas.

    arrivals: parameters of `arrival_process`. One of: rho, the load that sets the rate; rate, arrivals per second;
    same_as, another cell, whose arrivals and jobs these are; none of them for a trace at its own rate.
    http: the route of the service that takes the jobs; left out, they go to the dispatcher directly.
    """

    mix: str
    method: str
    replicas: int
    routing: str
    arrivals: dict | None = None
    rho: float | None = None
    rate: float | None = None
    same_as: int | None = None
    http: str | None = None


@dataclass(frozen=True)
class Campaign:
    """Cells by number, `n_jobs` each, cell n with the seed `seed` + n; deadlines are slo_factors x the baseline's work.

    calibration: whole jobs that each replica does before a run, and again after it. menu: as of `rules.read_menu`.

    Raises ValueError for a cell that cannot be run, before anything runs.
    """

    seed: int
    n_jobs: int
    calibration: int
    slo_factors: many(float)
    baseline: str
    cells: dict[Annotated[int, Field(ge=0)], Cell]
    menu: dict[str, dict] = field(default_factory=read_menu)

    def __post_init__(self):
        checks.whole(n_jobs=self.n_jobs)
        checks.whole(LEAST_JOBS, calibration=self.calibration)
        checks.whole(0, seed=self.seed)
        checks.positive(**{f"slo_factors[{i}]": factor for i, factor in enumerate(self.slo_factors)})
        for number, cell in self.cells.items():
            _check(number, cell, self)

    @classmethod
    def from_yaml(cls, path: str | Path = paths.DATA / "campaign.yml") -> "Campaign":
        """Read a campaign; its cells name the arrival processes that the file defines."""
        file, text = Path(path).name, read_yaml(path)
        known = text.pop("arrivals", None)
        for number, given in mapping(f"{file}: cells", text.get("cells")).items():
            where = f"{file}: cell {number}"
            if "arrivals" in mapping(where, given):
                given["arrivals"] = _named(where, given["arrivals"], known)
            text["cells"][number] = build(where, Cell, given)
        return build(file, cls, text)


def named_arrivals(name: str, path: str | Path = paths.DATA / "campaign.yml") -> dict:
    """The parameters of `arrival_process` that a campaign's file gives a name; a CSV file stands for itself."""
    return _named(Path(path).name, name, read_yaml(path).get("arrivals"))


def _named(where: str, name: str, known) -> dict:
    if not isinstance(name, str) or (name not in mapping(f"{where}: arrivals", known) and not name.endswith(".csv")):
        raise ValueError(f"{where}: unknown arrivals {name!r}: use one of {', '.join(map(str, known))}, or a trace, a "
                         "CSV file")
    given = known.get(name, {})
    build(f"{where}: arrivals {name}", partial(arrival_process, 1.0, name), given)
    return {"name": name, **given}


def finished(results: Path, number: int) -> list[Path]:
    """The folders of a cell's finished runs, in their order."""
    return sorted((results / "served").glob(f"cell_{number}_run_*"), key=_run)


def read_fitted(folder: Path) -> tuple[Costs, pd.DataFrame | None]:
    """What a cell's prediction rests on beside the run: the costs, and the calibration's rows if there are any."""
    file = folder / "calibration.parquet"
    return Costs.from_json(folder / "costs.json"), pd.read_parquet(file) if file.exists() else None


def read_cell(folder: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What a cell's folder holds: cell, job table, jobs and products, the tables in order of arrival."""
    served, jobs, products = (pd.read_parquet(folder / f"{name}.parquet") for name in ("served", "jobs", "products"))
    served = served.sort_values("arrival_s", kind="stable", ignore_index=True)
    others = (one.set_index("job_id").loc[served["job_id"]].reset_index() for one in (jobs, products))
    return json.loads((folder / "cell.json").read_text()), served, *others


def run_cell(campaign: Campaign, number: int, costs: Costs, replica_of, *, results: Path | None = None,
             again: bool = False, spec: ReplicaSpec | None = None) -> Path:
    """Serve a cell and keep it; returns its folder.

    A finished run is kept and not repeated if all that its serving rests on is the same (the campaign's numbers, the
    cell, its mix, trace and shared arrivals, the costs, the spec, weights and code), unless `again`: then both are
    kept. An interrupted cell leaves nothing. replica_of(i): the handle of the i-th loaded replica of the `spec` (left
    out: stories by the embedded models), which is warmed up and calibrated. The calibration before the run gives the
    level, and rho = lam E[work] level / (k speed[k]) the rate, E[work] with one probe a job. Raises ValueError if the
    cell shares arrivals with one that has no run.
    """
    cell, results = campaign.cells[number], results or paths.results()
    mix, k = JobMix.from_yaml(cell.mix), cell.replicas
    spec = spec or ReplicaSpec(mix.workload)
    if not mix.workload == spec.workload == costs.workload:
        raise ValueError(f"mix {mix.name} is of the workload {mix.workload!r}, the replicas of {spec.workload!r}, the "
                         f"costs of {costs.workload!r}: take those of one workload")
    given = {name: value for name, value in asdict(cell).items() if value is not None}
    shared, arrivals = _shared(results, cell), cell.arrivals or {"name": ""}
    trace = Path(arrivals["name"]).read_text("utf-8") if arrivals["name"].endswith(".csv") else None
    chosen = options_of(cell.method, campaign.menu)
    key = key_of(asdict(campaign) | {"cells": given, "menu": chosen}, number, mix, trace, shared, costs, spec,
                 spec.make().weights_hash(),
                 code_hash(*SERVED, *in_replica(spec.workload), method=chosen.get("method")))
    runs = finished(results, number)
    kept = [folder for folder in runs if read_cell(folder)[0]["key"] == key]
    print(f"cell {number}: {len(kept)} runs kept{', one to serve' if again or not kept else ''}")
    if kept and not again:
        return kept[-1]
    made, handles = provenance(), [replica_of(i) for i in range(k)]
    doers = [run_on(handle, campaign.menu) for handle in handles]
    whole = mix.sample(campaign.calibration, np.random.default_rng([campaign.seed, number])).assign(method=cell.method)
    side_by_side(doers, whole.head(WARM_UP), label="warm-up")
    before = side_by_side(doers, whole, label="calibration before").assign(when="before")
    level = Calibration.fit(before, costs, cell.method).level
    system = System.of(costs, mix, cell.method, k, probing=True, level=level)
    plan = {"arrivals": cell.arrivals, "lam": cell.rate or (cell.rho and cell.rho * system.capacity),
            "n_jobs": campaign.n_jobs, "seed": campaign.seed + number} | shared
    jobs, arrival_s, lam = drawn(mix, **plan)
    estimate = estimator(costs, spec.make(), system.level / declared_speed(vars(cell), costs), probing=True)
    table, products, queue = serve(jobs, arrival_s, cell, spec, handles, estimate, campaign.menu)
    after = side_by_side(doers, whole, label="calibration after").assign(when="after")
    baseline_s = float(MixWork.of(costs, mix, [campaign.baseline]).mean[0])
    record = {"cell": number, "run": 1 + (_run(runs[-1]) if runs else 0), "key": key, **asdict(cell), **plan,
              "lam": lam, "rho": lam / system.capacity, "level": system.level,
              "slo_s": [round(times * baseline_s, 2) for times in campaign.slo_factors],
              "job_seconds": queue["job_seconds"], "elapsed_s": queue["elapsed_s"], "provenance": made,
              "generator_limited": bool(table.attrs.get("generator_limited", False))}
    return _keep(results, record, {"served": table, "jobs": jobs, "products": products,
                                   "calibration": pd.concat([before, after], ignore_index=True)}, costs)


def serve(jobs: pd.DataFrame, arrival_s, cell: Cell, spec: ReplicaSpec, handles, estimate, menu: dict) -> tuple:
    """Serve the jobs; returns the job table, the products and what the dispatcher counted."""
    from stlib.serving.api import make_app
    from stlib.serving.dispatcher import Dispatcher
    from stlib.serving.replay import replay
    from stlib.serving.server import in_thread
    from stlib.serving.targets import HttpTarget

    estimate = estimate if cell.http or cell.routing == "least_work" else None  # a millisecond a job
    with Dispatcher(spec, cell.replicas, routing=cell.routing, method=cell.method, estimate=estimate, probe=True,
                    handles=handles, menu=menu) as dispatcher:
        if not cell.http:
            table, products = replay(jobs, arrival_s, dispatcher)
            return table, products, dispatcher.queue()
        with in_thread(make_app(dispatcher)) as url:
            target = HttpTarget(url, cell.http, workload=spec.workload)
            table, products = replay(jobs, arrival_s, target)
            return table, products, target.queue()


def _check(number: int, cell: Cell, campaign: Campaign) -> None:
    workload = make_workload(JobMix.from_yaml(cell.mix).workload)
    routes = workload.routes if cell.http else [None]
    for name, value, known in (("method", cell.method, campaign.menu), ("baseline", campaign.baseline, campaign.menu),
                               ("routing", cell.routing, ROUTINGS), ("http", cell.http, routes)):
        if value not in known:
            raise ValueError(f"cell {number}: unknown {name} {value!r}: use one of {', '.join(known) or 'none'}")
    checks.whole(**{f"cell {number}: replicas": cell.replicas})
    given = [cell.rho is not None, cell.rate is not None, cell.same_as is not None]
    traced = cell.arrivals is not None and cell.arrivals["name"].endswith(".csv")
    if sum(given) not in ((0, 1) if traced else (1,)) or (cell.arrivals is None) != (cell.same_as is not None):
        raise ValueError(f"cell {number}: give arrivals with either rho or rate, or same_as alone")
    if cell.rho is not None and not 0 < cell.rho < 1:
        raise ValueError(f"cell {number}: rho = {cell.rho} must lie between 0 and 1: the queue would only grow")
    if cell.same_as is not None and (
            cell.same_as not in campaign.cells or campaign.cells[cell.same_as].same_as is not None):
        raise ValueError(f"cell {number}: same_as = {cell.same_as} is no cell with arrivals of its own: it may be one "
                         f"of {', '.join(str(n) for n, other in campaign.cells.items() if other.same_as is None)}")
    if cell.rate is not None:
        checks.positive(**{f"cell {number}: rate": cell.rate})
    if cell.arrivals is not None:
        process = arrival_process(cell.rate or 1.0, **cell.arrivals)
        if traced and campaign.n_jobs > len(process.arrival_s):
            raise ValueError(f"cell {number}: n_jobs = {campaign.n_jobs}, but {cell.arrivals['name']} has "
                             f"{len(process.arrival_s)} arrivals: ask for {len(process.arrival_s)} jobs or fewer")


def _shared(results: Path, cell: Cell) -> dict:
    """Arrivals, rate, seed and number of jobs of the cell whose arrivals and jobs these are."""
    if cell.same_as is None:
        return {}
    runs = finished(results, cell.same_as)
    if not runs:
        raise ValueError(f"cell {cell.same_as}, whose arrivals and jobs are shared, has no run: serve it first")
    other = read_cell(runs[-1])[0]
    return {name: other[name] for name in ("arrivals", "lam", "n_jobs", "seed")}


def _run(folder: Path) -> int:
    return int(folder.name.rsplit("_", 1)[1])


def _keep(results: Path, record: dict, tables: dict[str, pd.DataFrame], costs: Costs) -> Path:
    """Write the folder of a cell under another name first, so that it is there whole or not at all."""
    folder = results / "served" / f"cell_{record['cell']}_run_{record['run']}"
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(unfinished / f"{name}.parquet", index=False)
    costs.to_json(unfinished / "costs.json")
    (unfinished / "cell.json").write_text(json.dumps(record, indent=1, default=float) + "\n")
    return unfinished.rename(folder)
