"""Calibration: whole jobs on the replicas of a run, before and after it, beside what the fitted costs say.

A probe tells how the machine's speed moves from job to job, as one piece of a job feels it. What slows or speeds whole
jobs on these processes in this hour (where their memory lies, a noisy neighbour, how much busy replicas hinder each
other) takes whole jobs to see. None of them is one of the run's.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stlib.experiment.costs import Costs

BATCH = 5  # jobs in a row, taken as independent of the next ones
LEAST_BATCHES = 10  # of a replica; with fewer jobs than these batches take, the batches are smaller
LEAST_JOBS = 10


@dataclass(frozen=True)
class Calibration:
    """level: seconds of whole jobs over those of the costs. se: its relative standard error. probe_s: a probe then."""

    level: float
    se: float
    probe_s: float

    @classmethod
    def fit(cls, rows: pd.DataFrame, costs: Costs, method: str) -> "Calibration":
        """From the rows of `side_by_side`, every replica busy; `when` tells jobs before the run from those after it.

        level: sum of run_s over the sum of the model's means, at each job's machine factor and the speed of as many
        busy replicas; brought to the jobs' own mean factor, so that the factors of a run are those of its probes over
        `probe_s`. se: from the spread of batches about the mean of their `when`; and from before and after being
        apart, if the level drifted from the one to the other like Brownian motion: the run's mean then lies about
        theirs with their distance over sqrt(12) (the standard deviation of a Brownian bridge's mean).
        Raises ValueError for fewer than LEAST_JOBS jobs a replica.
        """
        k, per_replica = rows["replica"].nunique(), rows.groupby(["when", "replica"])
        if (least := per_replica.size().min()) < LEAST_JOBS:
            raise ValueError(f"{least} calibration jobs of a replica: give each at least {LEAST_JOBS}")
        probe_s, factor = rows["probe_s"] / costs.probe_ratios(method, k)[k], np.empty(len(rows))
        for part in rows.groupby("when").indices.values():
            factor[part] = costs.factor(probe_s.iloc[part], rows["at_s"].iloc[part])
        seconds = rows[["when", "replica", "run_s"]].assign(
            model_s=costs.mean_s(rows, method, factor=factor) / costs.busy_speed(method, k)[k],
            batch=per_replica.cumcount() // min(BATCH, least // LEAST_BATCHES))
        batches = seconds.groupby(["when", "replica", "batch"]).sum()
        blocks = batches.groupby("when").sum()
        apart = (batches["run_s"] / batches["model_s"]) / (blocks["run_s"] / blocks["model_s"]) - 1
        drift = np.ptp(np.log(blocks["run_s"] / blocks["model_s"])) / np.sqrt(12)
        se = np.sqrt(np.sum(apart**2) / (len(apart) - len(blocks)) / len(apart))
        mean_factor = float(np.exp(np.log(factor).mean()))
        return cls(float(blocks["run_s"].sum() / blocks["model_s"].sum()) * mean_factor**costs.gamma,
                   float(np.hypot(se, drift)), costs.probe_s * mean_factor)
