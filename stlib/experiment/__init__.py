"""What a job costs: mixes of jobs, the runner that times them, and the model fitted to the times."""

from stlib.experiment.execution_time import ServiceTimeModel
from stlib.experiment.measurement import FreshReplicas, Store, export, measure, provenance, reference, run_on
from stlib.experiment.mix import JobMix

__all__ = ["FreshReplicas", "JobMix", "ServiceTimeModel", "Store", "export", "measure", "provenance", "reference",
           "run_on"]
