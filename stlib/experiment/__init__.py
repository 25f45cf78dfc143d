"""What a job costs: mixes of jobs, the runner that times them, and the model fitted to the times."""

from stlib.experiment.costs import Costs
from stlib.experiment.jobs import JobMix
from stlib.experiment.measure import FreshReplicas, run_on
from stlib.experiment.rows import Store, export, measure, provenance, reference

__all__ = ["Costs", "FreshReplicas", "JobMix", "Store", "export", "measure", "provenance", "reference", "run_on"]
