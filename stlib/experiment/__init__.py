"""What a job costs: mixes of jobs, the runner that times them, and the model fitted to the times."""

from stlib.experiment.execution_time import ServiceTimeModel
from stlib.experiment.measurement import Store, measure, provenance
from stlib.experiment.mix import JobMix

__all__ = ["JobMix", "ServiceTimeModel", "Store", "measure", "provenance"]
