"""Tables, and tables with stories in one queue, served by the dispatcher as it is."""

import sys

import numpy as np
import pandas as pd
import pytest

from stlib import paths
from stlib.experiment import Costs, JobMix
from stlib.experiment.terms import mapping, term_columns
from stlib.generation.tables.fair import survey
from stlib.prediction.cell import Campaign
from stlib.serving.replay import replay
from stlib.serving.workloads import WORKLOADS, Cancelled, MixedWorkload, StoryWorkload, TableWorkload, make_workload

sys.path.append(str(paths.ROOT / "tests" / "serving"))
from service import Served

STORY = {"kind": "story", "captions": ["The fox sleeps."], "steps": 2, "image_size": 64}
TABLE = {"kind": "table", "rows": 40, "steps": 3}


@pytest.fixture(scope="module")
def both():
    one = MixedWorkload(device="cpu")
    one.load()
    return one


def test_each_job_is_done_by_the_workload_of_its_kind(both):
    payload, products = both.run(STORY)
    assert len(payload["panels"]) == 1 and (products["panel_steps_run"], products["row_steps_run"]) == (2, 0)
    rows, products = both.run(TABLE | {"prompt": None, "captions": float("nan")})
    assert (rows.dtypes == survey().dtypes).all() and len(rows) == 40
    assert (products["panel_steps_run"], products["row_steps_run"], products["tokens_run"]) == (0, 120, 0)
    assert both.probe() > 0


@pytest.mark.parametrize("wrong, message", [
    ({}, "unknown kind None: use one of story, table"), ({"kind": "cake"}, "unknown kind 'cake'"),
    (STORY | {"rows": 3}, "rows"), (TABLE | {"prompt": "a fox"}, "prompt"), (TABLE | {"rows": 0}, "rows = 0"),
    (TABLE | {"conditions": {"occupation": "pirate"}}, "'pirate': use one of student")])
def test_a_job_is_refused_by_the_workload_of_its_kind(both, wrong, message):
    with pytest.raises(ValueError, match=message):
        both.validate(wrong)


def test_a_table_stops_at_any_step_and_the_next_is_unharmed(both):
    def stop(stage, done, total):
        if done >= 80:
            raise Cancelled

    with pytest.raises(Cancelled):
        both.run(TABLE | {"batch_rows": 20}, stop)
    assert len(both.run(TABLE)[0]) == 40


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_the_terms_of_a_mixture_are_those_of_each_kind_and_0_for_the_other(method):
    jobs = JobMix.from_yaml("stories_and_tables").sample(40, np.random.default_rng(5))
    terms = term_columns(MixedWorkload, jobs, method, [method], MixedWorkload.known(jobs))
    for kind in (StoryWorkload, TableWorkload):
        mine = jobs["kind"] == kind.name
        assert 5 < mine.sum() < 35
        own = jobs[mine][list(kind.fields)].infer_objects()
        alone = term_columns(kind, own, method, [method], kind.known(own))
        for name, values in alone.items():
            assert np.array_equal(terms[f"{kind.name} {name}"][mine], values)
            assert not terms[f"{kind.name} {name}"][~mine].any()
    assert len(terms) == sum(len(term_columns(kind, jobs[jobs["kind"] == kind.name].infer_objects(), method, [method],
                                              kind.known(jobs[jobs["kind"] == kind.name].infer_objects())))
                             for kind in (StoryWorkload, TableWorkload))


@pytest.mark.parametrize("i", range(6))
def test_one_job_s_terms_are_those_of_its_row(i):
    jobs = JobMix.from_yaml("stories_and_tables").sample(6, np.random.default_rng(0))
    job = make_workload("mixed").resolve(jobs.iloc[i].drop(["job_id", "workload"]).to_dict())
    told, one = MixedWorkload.known(jobs), MixedWorkload.known(job)
    assert {name: values[i] for name, values in told.items()} == one
    terms = MixedWorkload.terms(mapping(jobs) | told)
    assert MixedWorkload.terms(job | one) == {name: values[i] for name, values in terms.items()}


def test_a_mixture_s_costs_are_drawn_and_estimated_alike():
    costs, mix = Costs.read("mixed"), JobMix.from_yaml("stories_and_tables")
    jobs = mix.sample(60, np.random.default_rng(3))
    mean = costs.mean_s(jobs, "sequential")
    estimated = [costs.estimate(make_workload("mixed").resolve(job), "sequential")
                 for job in jobs.drop(columns=["job_id", "workload"]).to_dict("records")]
    assert np.allclose(mean, estimated)
    draws = costs.sample_s(jobs, "sequential", np.random.default_rng(0), draws=4000)
    assert np.allclose(draws.mean(axis=0), mean, rtol=0.02)
    moments = costs.moments(mix.sample(4000, np.random.default_rng(4)), "sequential")
    alone = JobMix.from_yaml("tables").sample(4000, np.random.default_rng(4))
    tables = Costs.read("table").moments(alone, "sequential")
    assert moments.mean_s > tables.mean_s and moments.scv > tables.scv


@pytest.mark.parametrize("workload", ["story", "table", "mixed"])
def test_costs_are_read_by_their_workload(workload):
    assert Costs.read(workload).workload == workload
    with pytest.raises(ValueError, match="none of the workload 'sleep'"):
        Costs.read("sleep")


def test_the_committed_campaign_of_tables_can_be_run():
    campaign = Campaign.from_yaml(paths.DATA / "campaign_tables.yml")
    assert {JobMix.from_yaml(cell.mix).workload for cell in campaign.cells.values()} == {"table", "mixed"}
    assert not {*campaign.cells} & {*Campaign.from_yaml().cells}


@pytest.fixture(scope="module")
def served(cluster):
    with Served(1, workload="mixed") as one:
        yield one


def test_both_kinds_are_served_over_http(served):
    answer = served.client.post("/tables", json={"rows": 12, "steps": 2, "conditions": {"occupation": "student"}})
    told = answer.raise_for_status().json()
    assert told["rows"] == 12 and set(told["table"]["occupation"]) == {"student"} and set(told["table"]) == {*survey()}
    assert told["times_s"]["denoising"] > 0
    story = served.client.post("/stories", json={"captions": ["a fox"], "steps": 2, "image_size": 64})
    assert len(story.raise_for_status().json()["panels"]) == 1
    for wrong, field in (({"rows": 0}, "rows"), ({"rows": 10**8}, "rows"), ({}, "rows"),
                         ({"rows": 2, "conditions": {"occupation": "pirate"}}, "conditions"),
                         ({"rows": 2, "prompt": "a fox"}, "prompt"), ({"rows": 2, "kind": "story"}, "kind")):
        refused = served.client.post("/tables", json=wrong)
        assert refused.status_code == 422 and refused.json()["error"]["param"] == field, refused.text


def test_a_mixture_is_replayed_job_by_job(served):
    jobs = pd.DataFrame([STORY | {"job_id": 0}, TABLE | {"job_id": 1}, STORY | {"job_id": 2}], dtype=object)
    jobs = jobs.where(jobs.notna(), None).assign(workload="mixed")
    table, products = replay(jobs, [0.0, 0.0, 0.1], served.dispatcher, progress=False)
    assert (table["outcome"] == "completed").all() and (table["workload"] == "mixed").all()
    assert products["row_steps_run"].tolist() == [0, 120, 0]


def test_every_workload_that_is_served_has_its_code_named():
    from stlib.experiment.sources import DONE_BY, in_replica

    assert {"sleep", *DONE_BY} == {*WORKLOADS}
    assert all(f"serving/workloads/{name}.py" in in_replica(name) for name in DONE_BY)
