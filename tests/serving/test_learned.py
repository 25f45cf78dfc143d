"""The told wait follows the machine: the ratio of measured to estimated seconds, and a service of another speed."""

import numpy as np
import pandas as pd
import pytest

from stlib.experiment import Costs
from stlib.serving.dispatcher import Dispatcher
from stlib.serving.learned import HOUR_S, Learned
from stlib.serving.replay import replay

ray = pytest.importorskip("ray")


def test_the_ratio_follows_within_thirty_jobs():
    learned = Learned(lambda params, method: params["seconds"])
    assert learned({"seconds": 2.0}, "nap") == 2.0 and learned.state()["told_wait_s"] is None
    for _ in range(30):
        learned.learn({"seconds": 1.0}, "nap", 1.3)
    assert learned.ratio("nap") == pytest.approx(1.3, rel=0.02) and learned.ratio("other") == learned.ratio("nap")
    for _ in range(30):  # the machine's speed halves
        learned.learn({"seconds": 1.0}, "nap", 2.6)
    assert learned.ratio("nap") == pytest.approx(2.6, rel=0.05)
    learned.learn({"seconds": 1.0}, "rest", 2.6)  # a new method begins where all the others are
    assert learned.ratio("rest") == pytest.approx(2.6, rel=0.05)


def test_a_job_beyond_the_fitted_range_is_marked(replicas):
    estimate = Learned(lambda params, method: 0.1, beyond=lambda params: params["seconds"] > 0.05)
    jobs = pd.DataFrame({"job_id": range(2), "workload": "sleep", "seconds": [0.02, 0.06]})
    with Dispatcher("sleep", 1, handles=replicas[:1], estimate=estimate) as target:
        products = replay(jobs, np.array([0.01, 0.02]), target, progress=False)[1]
    assert products.set_index("job_id")["extrapolated"].to_dict() == {0: False, 1: True}
    costs = Costs.read("story")
    job = {"image_size": 128, "guidance_scale": 2.5}
    assert not costs.beyond(job) and costs.beyond(job | {"image_size": "1024x64"})


def test_long_jobs_count_by_their_seconds():
    """A job of the tenth of another's work tells a tenth, as it does of the work ahead in a queue."""
    learned = Learned(lambda params, method: params["seconds"])
    for _ in range(60):
        learned.learn({"seconds": 1.0}, "nap", 2.0)
        learned.learn({"seconds": 0.1}, "nap", 0.1)
    assert learned.ratio("nap") == pytest.approx(2.1 / 1.1, rel=0.1)


def test_the_last_hour_is_kept():
    learned = Learned(lambda params, method: 1.0)
    learned.waited(0.0, 1.0, 3.0)
    learned.waited(HOUR_S / 2, 2.0, 5.0)
    assert learned.state()["told_wait_s"] == 1.5 and learned.state()["real_wait_s"] == 4.0
    learned.waited(HOUR_S + 1, 4.0, 7.0)
    assert learned.state() | {"speed_ratio": None} == {"speed_ratio": None, "waits": 2, "told_wait_s": 3.0,
                                                       "real_wait_s": 6.0}


def test_a_service_whose_estimates_are_far_off_tells_true_waits(replicas):
    """Sleeping jobs that are said to take a third of what they do; the first jobs teach it."""
    estimate = Learned(lambda params, method: params["seconds"] / 3)
    rng = np.random.default_rng(4)
    jobs = pd.DataFrame({"job_id": range(60), "workload": "sleep", "seconds": rng.uniform(0.04, 0.12, 60)})
    with Dispatcher("sleep", 1, handles=replicas[:1], estimate=estimate) as target:
        table, products = replay(jobs, rng.exponential(0.1, 60).cumsum(), target, progress=False)
        state = target.queue()
    real = table["start_s"] - table["arrival_s"]
    late = table["job_id"] >= 20
    assert state["speed_ratio"]["only"] == pytest.approx(3, rel=0.2) and state["waits"] == 60
    assert products["expected_wait_s"][late].mean() == pytest.approx(real[late].mean(), rel=0.25, abs=0.02)
