"""Replicas: what they measure, in this process and as Ray actors."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stlib.serving import replica
from stlib.serving.replica import IDLE_S, Replica, ReplicaSpec, start_ray, stop_job, stop_replica
from stlib.serving.workloads import Cancelled
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
def sleeper():
    return Replica(CountingSleeper)


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


def test_unknown_workloads_are_refused_before_ray_starts():
    with pytest.raises(ValueError, match="unknown workload 'dream': use one of story, table, mixed, sleep"):
        ReplicaSpec("dream").start()


@pytest.mark.parametrize("wrong, message", [({"threads": 0}, "threads = 0"), ({"threads": 1.5}, "threads = 1.5"),
                                            ({"gpus": -1}, "gpus = -1"), ({"gpus": float("nan")}, "gpus = nan")])
def test_a_spec_s_numbers_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        ReplicaSpec(**wrong)


def test_an_unreachable_cluster_is_an_error_within_seconds(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by the other tests
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="unset RAY_ADDRESS"):
        start_ray()
    assert time.monotonic() - began < 10


START = """
import ray
from stlib.serving.replica import ReplicaSpec
replica = ReplicaSpec("sleep").start()
assert ray.get(replica.run.remote({"seconds": 0.0}))[1]["slept_s"] >= 0
visible = ray.get(replica.__ray_call__.remote(lambda self: __import__("os").environ.get("CUDA_VISIBLE_DEVICES")))
print("visible", repr(visible), "in", ray._private.worker.global_worker.node.get_session_dir_path())
"""


@pytest.fixture
def short_folder():
    """Ray's sockets lie in it: pytest's own would be too long."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def started(**env) -> str:
    """What a program prints that starts a replica in this environment (None: unset)."""
    kept = {name: value for name, value in (os.environ | env).items() if value is not None and name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", START], env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_ray_starts_with_a_long_temporary_folder_and_no_home_and_a_replica_sees_no_gpu(short_folder):
    folder = short_folder / ("x" * 90)
    folder.mkdir()
    said = started(TMPDIR=str(folder), HOME="/proc/nowhere", RAY_TMPDIR=None)
    assert "visible '' in /tmp/ray" in said


@pytest.mark.slow
def test_ray_joins_no_cluster_that_was_left_on_the_machine(short_folder):
    """`ray start` leaves its address in this file, for whoever starts Ray without one."""
    (short_folder / "ray").mkdir()
    (short_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert f"in {short_folder}/ray/session" in started(RAY_TMPDIR=str(short_folder))


@pytest.mark.parametrize("env, folder", [
    ({"TMPDIR": "/tmp"}, "/tmp/ray"),
    ({"RAY_TMPDIR": "/var/tmp"}, "/var/tmp/ray"),
    ({"RAY_TMPDIR": "/tmp/" + "x" * 90}, "/tmp/ray"),
    ({"RAY_TMPDIR": "/tmp/" + "ü" * 20}, "/tmp/ray"),  # 20 characters are 40 bytes
    ({"TMPDIR": "/nowhere/at/all"}, "/tmp/ray"),
    ({"TMPDIR": ""}, "/tmp/ray"),
    ({"RAY_TMPDIR": "near"}, os.path.join("/var/tmp", "near", "ray")),
])
def test_the_folder_of_ray_is_short_and_absolute(monkeypatch, env, folder):
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it found before
    monkeypatch.chdir("/var/tmp")
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert replica._ray_folder() == folder


@pytest.fixture(scope="module")
def actor(cluster):
    handle = ReplicaSpec("sleep", threads=2).start()
    yield handle
    stop_replica(handle)


def test_an_actor_has_its_own_process_and_threads(actor):
    pid, threads = ray.get(actor.__ray_call__.remote(
        lambda replica: (os.getpid(), __import__("torch").get_num_threads())))
    assert threads == 2 and pid != os.getpid()


def test_an_actor_does_one_job_at_a_time(actor):
    began = time.monotonic()
    done = ray.get([actor.run.remote({"seconds": 0.1}, probe=False) for _ in range(3)])
    assert time.monotonic() - began >= 0.3
    assert all(products["service_s"] < 0.2 for _, products in done)


def test_a_job_that_is_stopped_ends_at_its_next_slice_and_no_other_does(actor):
    began = time.monotonic()
    doomed, spared = (actor.run.remote({"seconds": seconds}, probe=False, token=token)
                      for seconds, token in ((30.0, "a"), (0.2, "b")))
    time.sleep(0.3)
    stop_job(actor, "a")
    with pytest.raises(Cancelled):
        ray.get(doomed)
    assert ray.get(spared)[1]["slept_s"] >= 0.2 and time.monotonic() - began < 5
    stop_job(actor, "b")  # too late
    assert ray.get(actor.run.remote({"seconds": 0.2}, probe=False))[1]["slept_s"] >= 0.2


def test_a_job_that_is_stopped_before_it_starts_never_runs(actor):
    stop_job(actor, "early")
    time.sleep(0.2)
    with pytest.raises(Cancelled):
        ray.get(actor.run.remote({"seconds": 30.0}, token="early"), timeout=10)


def test_the_thread_that_computes_has_the_replicas_threads(actor):
    def at_work(replica):
        """How many of the process's threads share in a product of matrices."""
        import psutil
        import torch

        a, before = torch.ones(600, 600), {one.id: one.user_time for one in psutil.Process().threads()}
        until = time.process_time() + 1.0
        while time.process_time() < until:
            a @ a
        spent = [one.user_time - before.get(one.id, 0.0) for one in psutil.Process().threads()]
        return torch.get_num_threads(), sum(seconds > 0.2 for seconds in spent)

    single = ReplicaSpec("sleep").start()
    seen = [ray.get(one.__ray_call__.remote(at_work)) for one in (single, actor)]
    stop_replica(single)
    assert seen == [(1, 1), (2, 2)]


def test_an_error_fails_that_job_alone(actor):
    with pytest.raises(TypeError):
        ray.get(actor.run.remote({"seconds": "long"}))
    assert ray.get(actor.run.remote({"seconds": 0.0}))[1]["slept_s"] >= 0


def test_a_stopped_replica_answers_no_more_and_another_takes_its_place(actor):
    doomed = ReplicaSpec("sleep").start()
    job = doomed.run.remote({"seconds": 30})
    stop_replica(doomed)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(job)
    other = ReplicaSpec("sleep").start()
    assert ray.get(other.run.remote({"seconds": 0.0}))[1]["slept_s"] >= 0
    stop_replica(other)


def test_more_replicas_than_slots_are_refused_with_the_remedy(actor, monkeypatch):
    monkeypatch.setattr(replica, "LOAD_S", 1.0)
    others = ray.remote(num_cpus=ray.available_resources()["CPU"])(SleepWorkload).remote()
    ray.get(others.load.remote())
    with pytest.raises(RuntimeError, match=r"Ray has 0 free CPU slots.*start fewer"):
        ReplicaSpec("sleep").start()
    ray.kill(others)
