"""What the service tells callers of their wait, on a machine that its model was not fitted on."""

import numpy as np
import pytest
from service import Command

from stlib.experiment import Costs, JobMix
from stlib.queueing.arrivals import arrival_process
from stlib.serving.replay import replay
from stlib.serving.targets import HttpTarget

pytest.importorskip("ray")
N, RHO, METHOD = 200, 0.8, "parallel"


@pytest.mark.slow
def test_the_told_waits_are_right_though_the_model_is_another_machine_s(record_summary):
    """200 jobs at a load of 0.8 after ten that the service learns from: the mean told wait within 10 % of the real."""
    mix, rng = JobMix.from_yaml("images"), np.random.default_rng(5)
    jobs, first = mix.sample(N, rng), mix.sample(10, rng)
    with Command("--method", METHOD) as service:
        target = HttpTarget(service.url, "/stories")
        replay(first, np.arange(10) * 0.01, target, progress=False)
        ratio = service.queue()["speed_ratio"][METHOD]
        mean_s = ratio * Costs.read("story").mean_s(jobs, METHOD).mean()
        table, products = replay(jobs, arrival_process(RHO / mean_s).sample(N, rng), target, progress=False)
        state = service.queue()
    told, real = products.set_index("job_id")["expected_wait_s"], table["start_s"] - table["arrival_s"]
    told = told.loc[table["job_id"]].to_numpy()
    record_summary("told_waits", {
        "jobs": N, "measured_over_model": state["speed_ratio"][METHOD], "told_s": told.mean(), "real_s": real.mean(),
        "error": told.mean() / real.mean() - 1, "mean_absolute_error_s": np.abs(told - real).mean(),
        "correlation": np.corrcoef(told, real)[0, 1]})
    assert (table["outcome"] == "completed").all()
    assert told.mean() == pytest.approx(real.mean(), rel=0.1)
    assert state["waits"] == N + len(first)
