"""Replicas: what they measure, in this process and as Ray actors."""

import os
import time

import pytest

from stlib.serving import replica
from stlib.serving.replica import IDLE_S, Replica, start_ray, start_replica, stop_replica
from stlib.serving.workloads import WORKLOADS
from stlib.serving.workloads.sleep import SleepWorkload

ray = pytest.importorskip("ray")


class CountingSleeper(SleepWorkload):
    """A sleeper that counts its probes, each one 10 ms longer than the last."""

    probes = 0

    def probe(self):
        self.probes += 1
        time.sleep(0.01 * self.probes)
        return 0.01 * self.probes


@pytest.fixture
def sleeper(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "sleep", CountingSleeper)
    return Replica("sleep")


def test_a_job_is_its_run_and_its_probes(sleeper):
    _, products = sleeper.run({"seconds": 0.05})
    assert (products["probe_before_s"], products["probe_after_s"], products["probes"]) == (0.01, 0.02, 2)
    assert products["probe_s"] == pytest.approx(0.015)
    assert products["run_s"] >= products["slept_s"] >= 0.05
    assert 0.03 <= products["probe_cost_s"] < products["service_s"] - products["run_s"] + 1e-3
    assert products["service_s"] == pytest.approx(products["run_s"] + products["probe_cost_s"], abs=1e-3)


def test_the_last_probe_serves_until_the_replica_idles(sleeper):
    sleeper.run({"seconds": 0})
    _, products = sleeper.run({"seconds": 0})
    assert (products["probe_before_s"], products["probes"]) == (0.02, 1)  # the one after the job before
    time.sleep(1.1 * IDLE_S)
    _, products = sleeper.run({"seconds": 0})
    assert (products["probe_before_s"], products["probes"]) == (0.04, 2)


def test_without_probes_nothing_is_added(sleeper):
    _, products = sleeper.run({"seconds": 0.02}, probe=False)
    assert sleeper.workload.probes == 0 and "probe_s" not in products
    assert products["service_s"] == pytest.approx(products["run_s"], abs=1e-3)


def test_the_menu_turns_a_method_into_parameters():
    quick = Replica("sleep", menu={"nap": {"seconds": 0.01}})
    assert quick.run({}, "nap", probe=False)[1]["slept_s"] < 0.1
    with pytest.raises(ValueError, match="unknown method 'night': the menu has nap"):
        quick.run({}, "night")


def test_unknown_workloads_are_refused_before_ray_starts():
    with pytest.raises(ValueError, match="unknown workload 'dream': use one of story, sleep"):
        start_replica("dream")


def test_an_unreachable_cluster_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="unset RAY_ADDRESS"):
        start_ray()
    assert time.monotonic() - began < 10


@pytest.fixture(scope="module")
def actor():
    handle = start_replica("sleep", threads=2)
    yield handle
    ray.shutdown()


def test_an_actor_has_its_own_process_and_threads(actor):
    about = ray.get(actor.about.remote())
    assert about["threads"] == 2 and about["pid"] != os.getpid()


def test_an_actor_does_one_job_at_a_time(actor):
    began = time.monotonic()
    done = ray.get([actor.run.remote({"seconds": 0.1}, probe=False) for _ in range(3)])
    assert time.monotonic() - began >= 0.3
    assert all(products["service_s"] < 0.2 for _, products in done)


def test_an_error_fails_that_job_alone(actor):
    with pytest.raises(TypeError):
        ray.get(actor.run.remote({"seconds": "long"}))
    assert ray.get(actor.run.remote({"seconds": 0.0}))[1]["slept_s"] >= 0


def test_a_stopped_replica_answers_no_more_and_another_takes_its_place(actor):
    doomed = start_replica("sleep")
    job = doomed.run.remote({"seconds": 30})
    stop_replica(doomed)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(job)
    assert ray.get(start_replica("sleep").run.remote({"seconds": 0.0}))[1]["slept_s"] >= 0


def test_more_replicas_than_slots_are_refused_with_the_remedy(actor, monkeypatch):
    monkeypatch.setattr(replica, "LOAD_S", 1.0)
    with pytest.raises(RuntimeError, match="start fewer"):
        for _ in range(1 + int(ray.cluster_resources()["CPU"])):
            start_replica("sleep", threads=1)
