"""Cells are checked before anything runs, kept when finished and leave nothing when interrupted."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from served import a_cell, calibration_rows, fitted_costs, serve

from stlib import paths
from stlib.experiment import JobMix
from stlib.experiment.jobs import drawn
from stlib.prediction import cell as cells
from stlib.prediction.cell import Campaign, Cell, finished, read_cell, run_cell
from stlib.prediction.compare import predict_cell
from stlib.prediction.predict import System
from stlib.queueing.variability import arrival_variability
from stlib.serving.replica import ReplicaSpec, stop_replica

FILE = paths.DATA / "campaign.yml"
SHARING = {"mix": "images", "method": "parallel", "replicas": 1, "routing": "central"}
CELL = SHARING | {"arrivals": "poisson", "rho": 0.5}


@pytest.fixture(scope="module")
def costs():
    return fitted_costs()


@pytest.fixture
def simulated(costs, monkeypatch):
    """Cells served by simulation; the machine is 10 % slow."""
    def serve_simulated(jobs, arrival_s, cell, spec, handles, estimate, menu):
        params = jobs.drop(columns=["job_id", "workload"]).to_dict("records")[0]
        assert len(handles) == cell.replicas and estimate(params, cell.method) > 0
        made = a_cell(costs, n_jobs=len(jobs), replicas=cell.replicas, lam=len(jobs) / arrival_s[-1])
        _, table, _, products = serve(made, costs, np.random.default_rng(1))
        return table, products, {"job_seconds": 1.0, "elapsed_s": 2.0}

    monkeypatch.setattr(cells, "serve", serve_simulated)
    monkeypatch.setattr(cells, "side_by_side", lambda doers, jobs, label: calibration_rows(
        costs, np.random.default_rng(2), replicas=len(doers), method=jobs["method"].iloc[0], ratio={label: 1.0}))


def small(**given):
    return Campaign.from_yaml().but(n_jobs=50, **given)


def run(number, costs, folder, plan=None, **options):
    return run_cell(plan or small(), number, costs, lambda i: f"replica {i}", results=folder, **options)


def test_the_committed_campaign_is_the_issue_s():
    plan = Campaign.from_yaml()
    assert (plan.n_jobs, plan.calibration, plan.slo_factors, plan.baseline) == (300, 50, (2, 3, 5), "sequential")
    assert [cell.replicas for cell in plan.cells.values()] == [1, 1, 1, 1, 1, 2, 2, 2, 1, 2]
    assert [cell.rho for cell in plan.cells.values()] == [0.5, 0.75, None, 0.7, 0.8, 0.75, None, 0.75, 0.75, 0.8]
    assert [cell.same_as for cell in plan.cells.values()] == [None, None, 2, None, None, None, 6, None, None, None]
    assert [cell.routing for cell in plan.cells.values()] == ["central"] * 6 + ["jsq", "least_work", "central", "jsq"]
    assert [cell.http for cell in plan.cells.values()] == [None] * 8 + ["/v1/images/generations", "/stories"]


def test_a_cell_may_be_longer_than_the_others():
    plan = Campaign.from_yaml().but(n_jobs=50)
    assert plan.jobs_of(plan.cells[1]) == 50 and plan.jobs_of(plan.cells[1].but(length=2.5)) == 125
    with pytest.raises(ValueError, match="length = 0"):
        plan.cells[1].but(length=0)


@pytest.mark.parametrize("change, message", [
    ({"routing": "fastest"}, "unknown routing 'fastest'"),
    ({"method": "telepathy"}, "unknown method 'telepathy'"),
    ({"mix": "poems"}, "unknown job mix 'poems': use one of images"),
    ({"arrivals": "tides"}, "unknown arrivals 'tides': use one of bursty, poisson"),
    ({"rho": 1.0}, "rho = 1.0: give a load above 0, below 1"),
    ({"replicas": 0}, "replicas = 0"),
    ({"rho": None}, "give arrivals with either rho or rate"),
    ({"rho": None, "arrivals": None, "same_as": 12}, "unknown same_as 12: use one of 2, 4, 5"),
    ({"rho": None, "arrivals": None, "same_as": 3}, "unknown same_as 3: use one of 2, 4, 5"),
    ({"speed": 2}, r"cells\[1\]: unknown field 'speed'"),
    ({"http": "/tables"}, "unknown http '/tables': use one of /stories"),
])
def test_bad_cells_are_refused_before_anything_runs(tmp_path, change, message):
    text = yaml.safe_load(FILE.read_text())
    text["cells"][1] = {name: value for name, value in (text["cells"][1] | change).items() if value is not None}
    (tmp_path / "campaign.yml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match=message):
        Campaign.from_yaml(tmp_path / "campaign.yml")


@pytest.mark.parametrize("number, change, message", [
    (1, {"replicas": "2"}, r"cells\[1\]: replicas = '2'"),
    (1, {"replicas": 2.0}, r"cells\[1\]: replicas = 2.0"),
    (1, {"replicas": True}, r"cells\[1\]: replicas = True"),
    (1, {"replicas": float("nan")}, r"cells\[1\]: replicas = nan"),
    (1, {"rho": True}, r"cells\[1\]: rho = True"),
    (1, {"rho": [0.5]}, r"cells\[1\]: rho = \[0.5\]"),
    (1, {"rho": "0.5"}, r"cells\[1\]: rho = '0.5'"),
    (1, {"rho": float("nan")}, r"cells\[1\]: rho = nan"),
    (1, {"rho": None, "rate": 0.5}, "a value is empty"),
    (1, {"rho": -0.5}, r"cells\[1\]: rho = -0.5"),
    (1, {"mix": None}, "a value is empty"),
    (1, {"mix": ["images"]}, r"cells\[1\]: mix = \['images'\]"),
    (1, {"method": True}, r"cells\[1\]: method = True"),
    (1, {"routing": 3}, r"cells\[1\]: routing = 3"),
    (1, {"http": True}, r"cells\[1\]: http = True"),
    (1, {"arrivals": ["poisson"]}, r"cells\[1\]: arrivals = \['poisson'\]"),
    (1, {"arrivals": {"scv": 2, "idc": 4}}, r"cells\[1\]: arrivals = {'idc': 4"),
    (1, {"arrivals": 2}, r"cells\[1\]: arrivals = 2"),
    (3, {"same_as": "2"}, r"cells\[3\]: same_as = '2'"),
    (3, {"same_as": 3}, r"cells\[3\]: unknown same_as 3"),
    (7, {"same_as": 0}, r"cells\[7\]: unknown same_as 0"),
])
def test_wrong_fields_of_a_cell_are_refused(tmp_path, number, change, message):
    text = yaml.safe_load(FILE.read_text())
    text["cells"][number] |= change
    refused(tmp_path, yaml.safe_dump(text), rf"campaign\.yml(: |, line \d+: ){message}")


@pytest.mark.parametrize("change, message", [
    ({"seed": -1}, "seed = -1"),
    ({"seed": 1.5}, "seed = 1.5"),
    ({"n_jobs": "300"}, "n_jobs = '300'"),
    ({"n_jobs": 0}, "n_jobs = 0"),
    ({"n_jobs": True}, "n_jobs = True"),
    ({"n_jobs": None}, "a value is empty"),
    ({"calibration": 50.0}, "calibration = 50.0"),
    ({"calibration": 1}, "calibration = 1"),
    ({"slo_factors": []}, r"slo_factors = \[\]"),
    ({"slo_factors": [2, "3"]}, r"slo_factors\[1\] = '3'"),
    ({"slo_factors": [2, 0]}, r"slo_factors\[1\] = 0"),
    ({"slo_factors": [2, float("inf")]}, r"slo_factors\[1\] = inf"),
    ({"slo_factors": {2: 3}}, "slo_factors"),
    ({"baseline": "telepathy"}, "unknown baseline 'telepathy'"),
    ({"baseline": ["sequential"]}, r"baseline = \['sequential'\]"),
    ({"speed": 3}, "unknown field 'speed': use seed, n_jobs"),
    ({"cells": [{"mix": "images"}]}, r"cells = \[\{'mix': 'images'\}\]"),
    ({"cells": None}, "a value is empty"),
    ({"cells": {}}, "cells = {}"),
    ({"cells": {1: None}}, "a value is empty"),
    ({"cells": {1: "images"}}, r"cells\[1\] = 'images'"),
    ({"cells": {1: {"mix": "images"}}}, r"cells\[1\]: method is missing"),
    ({"cells": {-1: CELL}}, "cells.* = -1"),
    ({"cells": {"one": CELL}}, "cells.* = 'one'"),
    ({"cells": {0: CELL, 1: SHARING | {"same_as": 0}, 2: SHARING | {"same_as": 1}}}, r"cells\[2\]: unknown same_as 1"),
    ({"arrivals": None}, "a value is empty"),
    ({"arrivals": ["poisson"]}, r"arrivals = \['poisson'\]"),
    ({"arrivals": {"poisson": None, "bursty": {}}}, "a value is empty"),
    ({"arrivals": {"poisson": {}, "bursty": {"scv": "2", "idc": 4}}}, r"arrivals\['bursty'\]: scv = '2'"),
    ({"arrivals": {"poisson": {}, "bursty": {"scv": 2, "idc": True}}}, r"arrivals\['bursty'\]: idc = True"),
    ({"arrivals": {"poisson": {}, "bursty": {"scv": 8, "idc": 4}}}, r"cells\[4\]: .*scv"),
    ({"arrivals": {"poisson": {}, "bursty": {"scv": 2, "peak": 4}}}, r"arrivals\['bursty'\]: unknown field 'peak'"),
])
def test_wrong_fields_of_a_campaign_are_refused(tmp_path, change, message):
    text = yaml.safe_dump(yaml.safe_load(FILE.read_text()) | change)
    refused(tmp_path, text, rf"campaign\.yml(: |, line \d+: ){message}")


def test_a_cell_given_twice_or_no_campaign_is_refused(tmp_path):
    refused(tmp_path, FILE.read_text() + "  1: {mix: images}\n", r"campaign\.yml, line \d+: 1 is given twice")
    refused(tmp_path, "", r"campaign\.yml holds None")
    refused(tmp_path, "seed: 1\n\tn_jobs: 3\n", r"campaign\.yml, line 2")
    (tmp_path / "campaign.yml").unlink()
    with pytest.raises(ValueError, match=r"campaign\.yml cannot be read"):
        Campaign.from_yaml(tmp_path / "campaign.yml")


def refused(folder, text, message):
    (folder / "campaign.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        Campaign.from_yaml(folder / "campaign.yml")


def test_one_deadline_is_a_list_of_one(tmp_path):
    (tmp_path / "campaign.yml").write_text(yaml.safe_dump(yaml.safe_load(FILE.read_text()) | {"slo_factors": 3}))
    assert Campaign.from_yaml(tmp_path / "campaign.yml").slo_factors == (3,)


def test_a_trace_shorter_than_the_jobs_is_refused(tmp_path):
    (tmp_path / "trace.csv").write_text("at\n1\n2\n3\n")
    cell = Cell("images", "parallel", 1, "central", arrivals=str(tmp_path / "trace.csv"))
    with pytest.raises(ValueError, match=r"n_jobs = 50 of .*trace.csv: .*at most 3, the trace's length; ask for fewer"):
        small(cells={1: cell})
    plan = Campaign.from_yaml().but(n_jobs=3, cells={1: cell.but(rate=2.0)})
    _, arrival_s, lam = drawn(JobMix.from_yaml("images"), plan.process_of(cell.arrivals), 2.0, 1, 3)
    assert lam == pytest.approx(2) and np.allclose(np.diff(arrival_s), 0.5)


def test_arrivals_are_what_they_are_called():
    plan = Campaign.from_yaml()
    bursty = plan.process_of(plan.cells[4].arrivals)
    _, arrival_s, lam = drawn(JobMix.from_yaml("images"), bursty, 0.5, 1, 20_000)
    seen = arrival_variability(arrival_s)
    assert lam == 0.5 and 1 / seen.mean_s == pytest.approx(0.5, rel=0.08)
    assert seen.scv == pytest.approx(2, rel=0.15) and seen.dispersion > 2


def test_a_cell_is_kept_whole_and_not_repeated(simulated, costs, tmp_path, capsys):
    folder = run(6, costs, tmp_path)
    assert folder == tmp_path / "served" / "cell_6_run_1" and finished(tmp_path, 6) == [folder]
    cell, table, jobs, products = read_cell(folder)
    mix = JobMix.from_yaml("stories_exact")
    assert cell["rho"] == pytest.approx(0.75)
    capacity = System.of(costs, mix, "sequential", 2, probing=True, level=cell["level"]).capacity
    assert cell["lam"] == pytest.approx(0.75 * capacity)
    assert cell["level"] == pytest.approx(1.1**costs.gamma, rel=0.1)
    assert cell["seed"] == 86 and not cell["generator_limited"]
    whole = pd.read_parquet(folder / "calibration.parquet")
    assert whole.groupby(["when", "replica"]).size().to_dict() == {
        (when, replica): 50 for when in ("before", "after") for replica in (0, 1)}
    assert cell["provenance"]["commit"] and (cell["job_seconds"], cell["elapsed_s"]) == (1.0, 2.0)
    assert (table["job_id"] == jobs["job_id"]).all() and (products["job_id"] == jobs["job_id"]).all()
    assert len(predict_cell(folder, draws=40, runs=40)) == 7
    assert run(6, costs, tmp_path) == folder and "1 runs kept\n" in capsys.readouterr().out
    other = small(seed=9)  # another cell under the same number
    assert run(6, costs, tmp_path, plan=other).name == "cell_6_run_2" and folder.exists()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the library whose sources are hashed, with a function that edits a file of it."""
    shutil.copytree(paths.ROOT / "stlib", tmp_path / "copy" / "stlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "ROOT", tmp_path / "copy")

    def edit(name, old, new):
        file = tmp_path / "copy" / "stlib" / name
        assert file.read_text().count(old) == 1
        file.write_text(file.read_text().replace(old, new))
    return edit


@pytest.mark.parametrize("change", ["costs", "speed", "calibration", "scheduler", "its route"])
def test_a_cell_served_by_something_else_is_not_kept(simulated, costs, tmp_path, library, change):
    """The costs set the rate and are the prediction's; the others served the jobs."""
    assert run(10, costs, tmp_path) == run(10, costs, tmp_path)
    plan = small()
    if change == "costs":
        costs = dataclasses.replace(costs, beta=costs.beta * 1.1)
    elif change == "speed":
        costs = dataclasses.replace(costs, dispatch_s=0.1)
    elif change == "calibration":
        plan = plan.but(calibration=20)
    elif change == "scheduler":
        library("serving/dispatcher.py", "    def queue(self", "    moved = True\n\n    def queue(self")
    else:
        library("serving/targets.py", "class HttpTarget:", "class HttpTarget(object):")
    assert run(10, costs, tmp_path, plan=plan).name == "cell_10_run_2"


def test_words_and_other_methods_leave_a_cell_kept(simulated, costs, tmp_path, library):
    folder = run(6, costs, tmp_path)
    library("serving/dispatcher.py", "    def queue(self", "    # a comment\n    def queue(self")
    library("generation/methods/parallel.py", "def parallel(pipe, captions", "def parallel(pipe, captions, *, more=1")
    library("queueing/formulas.py", "def mmk(", "def mmk(_, ")
    library("prediction/cell.py", '"""Serve a cell and keep it;', '"""Serve one cell and keep it;')
    assert run(6, costs, tmp_path) == folder


def test_the_menu_counts_as_what_a_cell_takes_of_it(simulated, costs, tmp_path):
    """Another name on it changes nothing; what the cell's own method stands for is another cell."""
    folder = run(6, costs, tmp_path)
    more = small().menu | {"hasty": {"method": "parallel", "steps": 2}}
    assert run(6, costs, tmp_path, plan=small(menu=more)) == folder
    other = more | {"sequential": {"method": "sequential", "steps": 2}}
    assert run(6, costs, tmp_path, plan=small(menu=other)) != folder
    with pytest.raises(ValueError, match="unknown baseline 'sequential': use one of hasty"):
        small(menu={"hasty": {"method": "parallel"}})


def test_a_trace_with_other_times_is_served_anew(simulated, costs, tmp_path):
    """The same name is not the same arrivals."""
    trace = tmp_path / "trace.csv"
    trace.write_text("at\n" + "\n".join(map(str, range(60))))
    plan = small(cells={1: Cell("images", "parallel", 1, "central", arrivals=str(trace))})
    folder = run(1, costs, tmp_path, plan=plan)
    assert run(1, costs, tmp_path, plan=plan) == folder
    trace.write_text("at\n" + "\n".join(str(2 * i) for i in range(60)))
    assert run(1, costs, tmp_path, plan=plan) != folder


def test_shared_arrivals_are_those_of_the_last_run(simulated, costs, tmp_path):
    """Cell 2 served again at another rate: cell 3 has to be served again too."""
    for number in (2, 3):
        run(number, costs, tmp_path)
    slow = dataclasses.replace(costs, beta=costs.beta * 1.1)
    assert run(2, slow, tmp_path).name == "cell_2_run_2" and run(3, costs, tmp_path).name == "cell_3_run_2"


def test_cells_that_share_have_the_same_arrivals_and_jobs(simulated, costs, tmp_path):
    with pytest.raises(ValueError, match="serve it first"):
        run(3, costs, tmp_path)
    two, three = (read_cell(run(number, costs, tmp_path))[0] for number in (2, 3))
    assert all(two[name] == three[name] for name in ("arrivals", "lam", "seed", "n_jobs"))
    assert three["rho"] < two["rho"] == pytest.approx(0.75) and three["method"] == "parallel"
    mix = JobMix.from_yaml("stories_exact")
    one, other = (drawn(mix, *(cell[name] for name in ("arrivals", "lam", "seed", "n_jobs"))) for cell in (two, three))
    assert one[0].equals(other[0]) and np.array_equal(one[1], other[1])


def test_an_interrupted_cell_leaves_nothing(simulated, costs, tmp_path, monkeypatch):
    for name, breaks in (("serve", KeyboardInterrupt), ("provenance", OSError)):
        with monkeypatch.context() as patch, pytest.raises(breaks):
            patch.setattr(cells, name, raising(breaks))
            run(1, costs, tmp_path)
        assert not finished(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(cells.json, "dumps", raising(OSError))  # the last file of the folder
        cells._keep(tmp_path, {"cell": 1, "run": 1}, {}, costs)
    assert not finished(tmp_path, 1)
    assert run(1, costs, tmp_path).name == "cell_1_run_1"
    assert [one.name for one in (tmp_path / "served").iterdir()] == ["cell_1_run_1"]


def raising(error):
    def broken(*_, **__):
        raise error("interrupted")
    return broken


@pytest.mark.slow
def test_a_real_cell_is_served_and_predicted(cluster, costs, tmp_path):
    plan = Campaign.from_yaml().but(n_jobs=12)
    handles = [ReplicaSpec().start() for _ in range(2)]
    try:
        folder = run_cell(plan, 8, costs, handles.__getitem__, results=tmp_path)
    finally:
        for handle in handles:
            stop_replica(handle)
    cell, table, _, products = read_cell(folder)
    assert (table["outcome"] == "completed").all() and set(products["probes"]) <= {1, 2}
    area = (table["reply_s"] - table["arrival_s"]).sum()
    assert cell["job_seconds"] == pytest.approx(area, rel=0.01)
    rows = predict_cell(folder, draws=40, runs=40)
    recursion = rows["recursion"] / rows["served"]
    assert recursion.iloc[0] == pytest.approx(1, abs=0.05)
