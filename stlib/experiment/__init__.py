"""What a job costs: mixes of jobs, the runner that times them, and the model fitted to the times."""

from stlib.experiment.measurement import Store, measure, provenance
from stlib.experiment.mix import JobMix

__all__ = ["JobMix", "Store", "measure", "provenance"]
