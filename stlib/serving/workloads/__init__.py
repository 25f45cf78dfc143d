"""What a replica can do: a workload is loaded once, then does one job after another. One module a workload."""

from stlib.serving.workloads.mixed import MixedWorkload
from stlib.serving.workloads.protocol import Cancelled, Part, Progress, Workload
from stlib.serving.workloads.sleep import SleepWorkload
from stlib.serving.workloads.story import StoryWorkload
from stlib.serving.workloads.table import TableWorkload
from stlib.settings import known

__all__ = ["WORKLOADS", "Cancelled", "MixedWorkload", "Part", "Progress", "SleepWorkload", "StoryWorkload",
           "TableWorkload", "Workload", "make_workload"]

WORKLOADS = {workload.name: workload for workload in (StoryWorkload, TableWorkload, MixedWorkload,
                                                    SleepWorkload)}


def make_workload(name: str, **options) -> Workload:
    """The workload of that name, not yet loaded. Raises ValueError for an unknown name."""
    return WORKLOADS[known("workload", name, WORKLOADS)](**options)
