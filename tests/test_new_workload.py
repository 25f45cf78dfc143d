"""A workload of its own goes the whole road by the public names, and no file of the library knows it.

mix -> design -> measured rows -> costs -> predicted -> served by the dispatcher and over HTTP -> compared.
"""

import re
import sys
import time
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import ray
from pydantic import BaseModel

from stlib import paths
from stlib.experiment import Costs, JobMix, Store, measure, run_on
from stlib.experiment.design import full_factorial, run_order
from stlib.experiment.machine import contention
from stlib.experiment.measure import measure_contention, measure_dispatch
from stlib.prediction.cell import Campaign, Cell, read_cell, run_cell
from stlib.prediction.compare import predict_cell
from stlib.prediction.predict import System
from stlib.serving.replica import ReplicaSpec, stop_replica
from stlib.serving.workloads import WORKLOADS, SleepWorkload

NAP_S, TURN_S = 0.04, 0.001
LATE_S = 0.1  # a stall: far above the milliseconds of a busy machine
MENU = {"deep": {"pace": 1.0}, "light": {"pace": 0.5}}


class NapRequest(BaseModel):
    """Naps, as asked for over HTTP."""

    naps: int
    seed: int = 0
    method: str | None = None
    deadline_s: float | None = None

    def params(self):
        return {"naps": self.naps, "seed": self.seed}

    @classmethod
    def body(cls, params, method, deadline_s):
        return {"naps": params["naps"], "seed": params["seed"]}

    def reply(self, payload):
        return {"turns": payload}


class Naps(SleepWorkload):
    """Each nap takes NAP_S times the pace; how often the sleeper turns, TURN_S each, only the run tells."""

    name = "nap"
    routes: ClassVar = {"/naps": NapRequest}
    fields: ClassVar = {"naps": ..., "turns": None, "seed": None}
    shared = ("turns",)
    counts: ClassVar = {"turns_run": ("naps",)}

    def validate(self, params):
        if params.get("naps") not in range(1, 40):
            raise ValueError(f"naps = {params.get('naps')!r}: give 1 to 39")

    def run(self, params, on_progress=None, on_part=None):
        turns = params.get("turns")
        turns = np.random.default_rng(params["seed"]).integers(2 * params["naps"] + 1) if turns is None else turns
        time.sleep(params["naps"] * NAP_S * params.get("pace", 1.0) + turns * TURN_S)
        return int(turns), {"turns_run": int(turns)}

    def resolve(self, params):
        return {"turns": None, **params}

    @staticmethod
    def terms(job):
        return {"turns": job["turns_run"], "naps": job["naps"] * 1.0, "start": np.ones_like(job["naps"] * 1.0)}

    @staticmethod
    def known(job):
        turns = job.get("turns")
        return {"turns_run": np.full(np.shape(job["naps"]), np.nan) if turns is None else np.asarray(turns, float)}

    @staticmethod
    def ranged(job):
        return {}


@pytest.fixture(scope="module")
def spec(cluster):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORKLOADS, Naps.name, Naps)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield ReplicaSpec(Naps.name)
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def handles(spec):
    two = [spec.start() for _ in range(2)]
    yield two
    for handle in two:
        stop_replica(handle)


BARS = {"mean": 0.05, "p95": 0.075, "slo": 0.02}  # relative, deadlines met absolute: those of the campaign
WIDE = {"mean": 0.3, "p95": 0.4, "slo": 0.1}  # short jobs, of which a busy machine's hiccups are a large part


@pytest.fixture(scope="module", params=[pytest.param((1, WIDE), id="short"),
                                        pytest.param((8, BARS), id="long", marks=pytest.mark.slow)])
def length(request):
    """How many naps the shortest job takes, and the bars that such jobs are held to."""
    return request.param


@pytest.fixture(scope="module")
def naps(length):
    return [length[0], 2 * length[0], 4 * length[0]]


@pytest.fixture(scope="module")
def bars(length):
    return length[1]


@pytest.fixture(scope="module")
def mix(spec, naps, tmp_path_factory):
    file = tmp_path_factory.mktemp("mix") / "naps.yml"
    file.write_text(f"workload: nap\nnaps: {dict(zip(naps, (2, 1, 1), strict=True))}\n")
    return str(file)


@pytest.fixture(scope="module")
def costs(handles, naps, mix, tmp_path_factory):
    """Designed runs whose turns are given, natural ones for the law of turns, contention, the dispatcher."""
    doers, rng = [run_on(handle, MENU) for handle in handles], np.random.default_rng(1)
    store = Store(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    design = full_factorial({"method": list(MENU), "naps": naps, "turns": [0, 3, 8]}).assign(seed=0)
    rows = measure(run_order(design, rng, replicates=3), doers[0], store, "none", code=(), menu=MENU)
    natural = full_factorial({"naps": naps, "seed": list(range(24))}).assign(method="light")
    told = measure(natural, doers[0], store, "none", code=(), menu=MENU)
    jobs = JobMix.from_yaml(mix).sample(20, rng)
    busy = contention(pd.concat([measure_contention(doers, jobs.assign(method=one), blocks=10) for one in MENU]))
    return Costs.fit(rows.assign(threads=1), told, Naps.name).with_speed(busy, measure_dispatch(40, 0.01))


def test_the_fitted_costs_are_the_workload_s(costs, naps):
    found = dict(zip(costs.terms, costs.beta, strict=True))
    assert found["turns"] == pytest.approx(TURN_S, rel=0.1)
    assert found["naps[deep]"] == pytest.approx(NAP_S, rel=0.05)
    assert found["naps[light]"] == pytest.approx(NAP_S / 2, rel=0.05)
    assert set(costs.counts["turns_run"]) == {str(n) for n in naps}


def served_on_time(campaign, costs, handles, spec, results, tries=4):
    """The first run that sent each job on time: one that a stall of the machine held up is no measurement."""
    for attempt in range(tries):
        folder = run_cell(campaign, 1, costs, handles.__getitem__, results=results / str(attempt), spec=spec)
        if read_cell(folder)[3]["lag_s"].max() < LATE_S:
            break
    return folder


@pytest.mark.parametrize("given", [{"method": "deep"}, {"method": "light", "replicas": 2, "routing": "least_work",
                                                        "http": "/naps"}], ids=["dispatcher", "HTTP"])
def test_it_is_served_as_predicted(spec, handles, mix, costs, given, bars, tmp_path):
    """A short job is 20 times shorter than a story: what HTTP takes on both ways, milliseconds, is taken off."""
    usual = {"mix": mix, "replicas": 1, "routing": "central", "arrivals": "poisson", "rho": 0.5}
    cell = Cell(**usual | given)
    campaign = Campaign(1, 120, calibration=20, slo_factors=(3,), baseline="deep", cells={1: cell}, menu=MENU,
                        arrivals={"poisson": {}})
    folder = served_on_time(campaign, costs, handles, spec, tmp_path)
    rows = predict_cell(folder, draws=200, runs=100).set_index("metric")
    table = read_cell(folder)[1]
    ways_s = table["arrival_s"] - table["scheduled_s"] + table["reply_s"] - table["finish_s"]
    on_the_way_s = ways_s.mean() if cell.http else 0.0
    assert on_the_way_s < 0.4 * bars["mean"]
    for metric in ("mean", "p95"):
        served = rows.loc[metric, "served"] - on_the_way_s
        assert rows.loc[metric, "traced"] == pytest.approx(served, rel=bars[metric])
    assert rows.loc["slo", "traced"] == pytest.approx(rows.loc["slo", "served"], abs=bars["slo"])


def test_its_menu_is_predicted_too(mix, costs):
    deep, light, both = (System.of(costs, mix, method) for method in ("deep", "light", ["deep", "deep", "light"]))
    assert deep.capacity < light.capacity == pytest.approx(both.capacity)
    rate = 0.8 * deep.capacity
    assert light.metric("mean", rate) < both.metric("mean", rate) < deep.metric("mean", rate)


def test_no_other_file_knows_it():
    assert not [file for file in (paths.ROOT / "stlib").rglob("*.py") if re.search(r"\bnaps?\b", file.read_text())]
