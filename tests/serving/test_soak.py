"""Half an hour of load over HTTP: nothing is lost, memory does not grow, and whether jobs get slower."""

import threading
import time

import numpy as np
import pytest
import scipy.stats
from service import Command

from stlib.experiment import Costs, JobMix
from stlib.serving.replay import replay
from stlib.serving.targets import HttpTarget

pytest.importorskip("ray")
RHO, REPLICAS, MINUTES, SETTLED_MIN = 0.7, 2, 30, 5


@pytest.mark.slow
def test_half_an_hour_of_load(record_summary):
    rng, mix = np.random.default_rng(30), JobMix.from_yaml("stories_exact")
    costs = Costs.read("story")
    with Command("--replicas", str(REPLICAS), "--routing", "jsq", "--method", "parallel", "--probe") as command:
        target = HttpTarget(command.url)
        first, _ = replay(mix.sample(40, rng), np.zeros(40), target, progress=False)
        rate = RHO * REPLICAS / first["service_s"].mean()
        arrival_s = np.cumsum(rng.exponential(1 / rate, int(rate * MINUTES * 60)))
        jobs = mix.sample(len(arrival_s), rng)
        with sampled(command.pss_mib, every_s=20) as memory:
            table, products = replay(jobs, arrival_s, target)
        state = target.queue()
    minute, pss_mib = np.array(memory).T
    settled = minute >= SETTLED_MIN
    growth = np.polyfit(minute[settled], pss_mib[settled], 1)[0] * np.ptp(minute[settled]) / pss_mib[settled].mean()
    # a job's time over its costs', and the same with the machine's speed taken out
    ratio = np.log(table["service_s"] / (costs.mean_s(jobs, "parallel") + costs.probe_cost_s))
    factor = np.log(costs.factor(products["probe_s"], table["start_s"]))
    per_run = arrival_s[-1]
    drift = {name: interval_of_slope(table["start_s"] / per_run, values) for name, values in
             (("service_time", ratio), ("at_equal_machine_speed", ratio - costs.gamma * factor))}
    record_summary("soak", {
        "minutes": round(per_run / 60, 1), "jobs": len(table), "rho_realised": float(
            table["service_s"].sum() / (REPLICAS * per_run)),
        "outcomes": table["outcome"].value_counts().to_dict(), "mean_response_s": float(
            (table["reply_s"] - table["scheduled_s"]).mean()),
        "pss_growth": growth, "pss_mib": dict(zip(minute.round(2).tolist(), pss_mib.round(1).tolist(), strict=True)),
        "service_time_drift": drift, "little": state["job_seconds"] / float(
            (table["reply_s"] - table["scheduled_s"]).sum())})
    assert (table["outcome"] == "completed").all() and state["offered"] == state["completed"] == len(jobs)
    assert state["in_system"] == 0 and per_run > 0.9 * MINUTES * 60
    assert growth < 0.02


def interval_of_slope(x, y) -> list[float]:
    """Least squares slope and its 95 % interval, errors taken as independent."""
    fit = scipy.stats.linregress(x, y)
    return [fit.slope, fit.slope - 1.96 * fit.stderr, fit.slope + 1.96 * fit.stderr]


class sampled:
    """Within it, (minutes, value()) every `every_s` seconds."""

    def __init__(self, value, every_s: float):
        self.value, self.every_s, self.seen, self.over = value, every_s, [], threading.Event()

    def __enter__(self) -> list:
        self.began, self.thread = time.monotonic(), threading.Thread(target=self._sample)
        self.thread.start()
        return self.seen

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def _sample(self):
        while not self.over.wait(self.every_s):
            self.seen.append(((time.monotonic() - self.began) / 60, self.value()))
