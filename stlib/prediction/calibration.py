"""Calibration: whole jobs on the replicas of a run, before and after it, beside what the service-time model says.

A probe tells how the machine's speed moves from job to job, as one piece of a job feels it. What slows or speeds whole
jobs on these processes in this hour (where their memory lies, a noisy neighbour, how much busy replicas hinder each
other) takes whole jobs to see. None of them is one of the run's.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stlib.experiment.costs import ServiceTimeModel
from stlib.experiment.machine import Speed

BATCH = 5  # jobs in a row, taken as independent of the next ones


@dataclass(frozen=True)
class Calibration:
    """ratio: seconds of whole jobs over the model's. se: its relative standard error. factor: the machine's then."""

    ratio: float
    se: float
    factor: float

    @classmethod
    def fit(cls, rows: pd.DataFrame, model: ServiceTimeModel, speed: Speed, method: str) -> "Calibration":
        """From the rows of `side_by_side`, every replica busy; `when` tells jobs before the run from those after it.

        ratio: sum of run_s over the sum of the model's means, at each job's machine factor and the speed of as many
        busy replicas. se: from the spread of batches about the mean of their `when`; and from before and after being
        apart, if the ratio drifted from the one to the other like Brownian motion: the run's mean then lies about
        theirs with their distance over sqrt(12) (the standard deviation of a Brownian bridge's mean).
        Raises ValueError for fewer than two batches in each `when`.
        """
        k = rows["replica"].nunique()
        probe_s, factor = rows["probe_s"] / speed.probe_ratios(method, k)[k], np.empty(len(rows))
        for part in rows.groupby("when").indices.values():
            factor[part] = model.factor(probe_s.iloc[part], rows["at_s"].iloc[part])
        seconds = rows[["when", "replica", "run_s"]].assign(
            model_s=model.mean_s(rows, method, factor=factor) / speed.of(method, k)[k],
            batch=rows.groupby(["when", "replica"]).cumcount() // BATCH)
        batches = seconds.groupby(["when", "replica", "batch"]).sum()
        blocks = batches.groupby("when").sum()
        if batches.groupby("when").size().min() < 2:
            raise ValueError(f"{len(rows)} calibration jobs: give each replica at least {2 * BATCH}")
        apart = (batches["run_s"] / batches["model_s"]) / (blocks["run_s"] / blocks["model_s"]) - 1
        drift = np.ptp(np.log(blocks["run_s"] / blocks["model_s"])) / np.sqrt(12)
        se = np.sqrt(np.sum(apart**2) / (len(apart) - len(blocks)) / len(apart))
        return cls(float(blocks["run_s"].sum() / blocks["model_s"].sum()), float(np.hypot(se, drift)),
                   float(np.exp(np.log(factor).mean())))
