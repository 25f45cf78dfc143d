"""The campaign: cells of jobs served for real, each kept in a folder of its own.

A cell's folder `served/cell_<n>_run_<m>` has `served.parquet` (the job table), `jobs.parquet` (the jobs' parameters),
`products.parquet`, `calibration.parquet` (whole jobs before and after the run), `costs.json` (what was fitted where it
was served) and `cell.json` (what was run, at which rate, where, and what the dispatcher counted): all that its
prediction takes.
"""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from stlib import paths
from stlib.experiment.costs import Costs
from stlib.experiment.jobs import JobMix, drawn, listed
from stlib.experiment.measure import WARM_UP, run_on, side_by_side
from stlib.experiment.rows import key_of, provenance, storable
from stlib.experiment.sources import SERVED, code_hash, in_replica
from stlib.prediction.calibration import LEAST_JOBS, Calibration
from stlib.prediction.predict import MixWork, System, declared_speed, estimator
from stlib.queueing.arrivals import arrival_process, is_trace
from stlib.queueing.simulation import ROUTINGS
from stlib.serving.replica import ReplicaSpec
from stlib.serving.rules import options_of, read_menu
from stlib.serving.workloads import make_workload
from stlib.settings import Fields, known, many, one_of, read_yaml, within


class Cell(Fields):
    """One served run: jobs of a mix, done by a method on `replicas` replicas.

    arrivals: a name of the campaign's, or a trace, a file. One of: rho, the load that sets the rate; rate, arrivals
    per second; same_as, another cell, whose arrivals and jobs these are; none of them for a trace at its own rate.
    http: the route of the service that takes the jobs; left out, they go to the dispatcher directly. length: the
    run's jobs, in the campaign's `n_jobs`; left out, 1.
    """

    mix: str
    method: str
    replicas: Annotated[int, Field(ge=1)]
    routing: one_of("routing", ROUTINGS)
    arrivals: str | None = None
    rho: Annotated[float | None, Field(gt=0, lt=1, description="a load above 0, below 1: at 1 the queue grows")] = None
    rate: Annotated[float | None, Field(gt=0)] = None
    same_as: int | None = None
    http: str | None = None
    length: Annotated[float | None, Field(gt=0)] = None

    @model_validator(mode="after")
    def _fits(self):
        given = sum(value is not None for value in (self.rho, self.rate, self.same_as))
        traced = is_trace(self.arrivals or "")
        if given not in ((0, 1) if traced else (1,)) or (self.arrivals is None) != (self.same_as is not None):
            raise ValueError("give arrivals with either rho or rate, or same_as alone")
        return self


class Arrivals(Fields):
    """The parameters of `arrival_process`."""

    scv: float | None = None
    idc: float | None = None
    time_column: str | None = None
    unit: str | None = None
    window: Annotated[many(float), Field(min_length=2, max_length=2, description="from and to, seconds")] | None = None
    scale: Annotated[float | None, Field(gt=0, description="how many times its own rate")] = None


class Campaign(Fields):
    """Cells by number, `n_jobs` each, cell n with the seed `seed` + n; deadlines are slo_factors x the baseline's work.

    calibration: whole jobs that each replica does before a run, and again after it. arrivals: by the names that the
    cells give. menu: as of `rules.read_menu`.

    Raises ValueError for a cell that cannot be run, before anything runs.
    """

    seed: Annotated[int, Field(ge=0)]
    n_jobs: Annotated[int, Field(ge=1)]
    calibration: Annotated[int, Field(ge=LEAST_JOBS)]
    slo_factors: many(Annotated[float, Field(gt=0)])
    baseline: str
    cells: Annotated[dict[Annotated[int, Field(ge=0)], Cell], Field(min_length=1)]
    arrivals: dict[str, Arrivals] = Field(default_factory=dict)
    menu: dict[str, dict] = Field(default_factory=read_menu)

    @model_validator(mode="after")
    def _fits(self):
        known("baseline", self.baseline, self.menu)
        own = [number for number, cell in self.cells.items() if cell.same_as is None]
        routes_of = cache(lambda mix: make_workload(JobMix.from_yaml(mix).workload).routes)
        for number, cell in self.cells.items():
            with within(f"cells[{number}]"):
                known("method", cell.method, self.menu)
                routes = routes_of(cell.mix)
                if cell.http is not None:
                    known("http", cell.http, routes)
                if cell.same_as is not None:
                    known("same_as", cell.same_as, own)
                else:
                    rate = cell.rate or (1.0 if cell.rho or not is_trace(cell.arrivals) else None)
                    process = arrival_process(rate, **self.process_of(cell.arrivals))
                    n_jobs = self.jobs_of(cell)
                    with within(f"n_jobs = {n_jobs} of {cell.arrivals}"):  # a trace may be too short
                        process.sample(n_jobs, np.random.default_rng(0))
        return self

    def jobs_of(self, cell: Cell) -> int:
        """How many jobs a run of the cell has."""
        return max(round(self.n_jobs * (cell.length or 1)), 1)

    @classmethod
    def from_yaml(cls, path: str | Path = paths.DATA / "campaign.yml") -> "Campaign":
        """Read a campaign."""
        return read_yaml(path, cls)

    def process_of(self, name: str) -> dict:
        """The parameters of `arrival_process` that the campaign gives a name; a trace stands for itself."""
        if not is_trace(name):
            known("arrivals", name, [*self.arrivals, "a trace, a .csv or .jsonl file"])
        return {"name": name, **self.arrivals.get(name, Arrivals()).model_dump(exclude_none=True)}


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
             spec: ReplicaSpec | None = None) -> Path:
    """Serve a cell and keep it; returns its folder.

    A finished run is kept and not repeated if all that its serving rests on is the same (the campaign's numbers, the
    cell, its mix, trace and shared arrivals, the costs, the spec, weights and code); else both are kept. An
    interrupted cell leaves nothing. replica_of(i): the handle of the i-th loaded replica of the `spec` (left out:
    stories by the embedded models), which is warmed up and calibrated. The calibration before the run gives the level,
    and rho = lam E[work] level / (k speed[k]) the rate, E[work] with one probe a job. Raises ValueError if the cell
    shares arrivals with one that has no run.
    """
    cell, results = campaign.cells[number], results or paths.results()
    mix, k = JobMix.from_yaml(cell.mix), cell.replicas
    spec = spec or ReplicaSpec(mix.workload)
    if not mix.workload == spec.workload == costs.workload:
        raise ValueError(f"mix {mix.name} is of the workload {mix.workload!r}, the replicas of {spec.workload!r}, the "
                         f"costs of {costs.workload!r}: take those of one workload")
    plan, chosen = _plan(campaign, number, results), options_of(cell.method, campaign.menu)
    name = plan["arrivals"]["name"]
    key = key_of(campaign.model_dump(exclude={"cells", "arrivals", "menu"}), cell.model_dump(exclude_none=True), number,
                 plan, Path(name).read_text("utf-8") if is_trace(name) else None, chosen, mix, costs, spec,
                 spec.make().weights_hash(chosen),
                 code_hash(*SERVED, *in_replica(mix.workload), method=chosen.get("method")))
    runs = finished(results, number)
    kept = [folder for folder in runs if read_cell(folder)[0]["key"] == key]
    print(f"cell {number}: {f'{len(kept)} runs kept' if kept else 'to be served'}")
    if kept:
        return kept[-1]
    asked = listed(mix, plan["arrivals"])
    made, handles = provenance(), [replica_of(i) for i in range(k)]
    doers = [run_on(handle, campaign.menu) for handle in handles]
    whole = mix.sample(campaign.calibration, np.random.default_rng([campaign.seed, number])).assign(method=cell.method)
    side_by_side(doers, whole.head(WARM_UP), label="warm-up")
    before = side_by_side(doers, whole, label="calibration before").assign(when="before")
    level = Calibration.fit(before, costs, cell.method).level
    system = System.of(costs, asked, cell.method, k, probing=True, level=level)
    if cell.rho is not None:
        plan["lam"] = cell.rho * system.capacity
    jobs, arrival_s, lam = drawn(asked, **plan)
    estimate = estimator(costs, spec.make(), system.level / declared_speed(vars(cell), costs), probing=True)
    table, products, queue = serve(jobs, arrival_s, cell, spec, handles, estimate, campaign.menu)
    after = side_by_side(doers, whole, label="calibration after").assign(when="after")
    baseline_s = float(MixWork.of(costs, mix, [campaign.baseline]).mean[0])
    record = {"cell": number, "run": 1 + (_run(runs[-1]) if runs else 0), "key": key, **cell.model_dump(), **plan,
              "lam": lam, "rho": lam / system.capacity, "level": system.level, "job_seconds": queue["job_seconds"],
              "elapsed_s": queue["elapsed_s"], "slo_s": [round(one * baseline_s, 2) for one in campaign.slo_factors],
              "generator_limited": bool(table.attrs.get("generator_limited", False)), "provenance": made}
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
    with (Dispatcher(spec, cell.replicas, routing=cell.routing, method=cell.method, estimate=estimate, probe=True,
                     handles=handles, menu=menu) as dispatcher,
          in_thread(make_app(dispatcher)) if cell.http else nullcontext() as url):
        target = HttpTarget(url, cell.http, workload=spec.workload) if cell.http else dispatcher
        return *replay(jobs, arrival_s, target), target.queue()


def _plan(campaign: Campaign, number: int, results: Path) -> dict:
    """Arrivals, rate (None: rho sets it, or a trace has its own), jobs and seed of a cell, or of the one it shares."""
    cell = campaign.cells[number]
    if cell.same_as is None:
        return {"arrivals": campaign.process_of(cell.arrivals), "lam": cell.rate,
                "n_jobs": campaign.jobs_of(cell), "seed": campaign.seed + number}
    if not (runs := finished(results, cell.same_as)):
        raise ValueError(f"cell {cell.same_as}, whose arrivals and jobs are shared, has no run: serve it first")
    other = read_cell(runs[-1])[0]
    return {name: other[name] for name in ("arrivals", "lam", "n_jobs", "seed")}


def _run(folder: Path) -> int:
    return int(folder.name.rsplit("_", 1)[1])


def _keep(results: Path, record: dict, tables: dict[str, pd.DataFrame], costs: Costs) -> Path:
    """Write the folder of a cell, which is there whole or not at all."""
    folder = results / "served" / f"cell_{record['cell']}_run_{record['run']}"
    with paths.whole(folder) as unfinished:
        unfinished.mkdir()
        for name, table in tables.items():
            storable(table).to_parquet(unfinished / f"{name}.parquet", index=False)
        costs.to_json(unfinished / "costs.json")
        (unfinished / "cell.json").write_text(json.dumps(record, indent=1, default=float) + "\n")
    return folder
