"""What a replica can do: a workload is loaded once, then does one job after another. One module a workload."""

from stlib.serving.workloads.protocol import Progress, Workload
from stlib.serving.workloads.sleep import SleepWorkload

__all__ = ["WORKLOADS", "Progress", "SleepWorkload", "Workload", "make_workload"]


def _story(**options) -> Workload:
    """Seconds to import, which a sleeping replica need not wait for."""
    from stlib.serving.workloads.story import StoryWorkload

    return StoryWorkload(**options)


WORKLOADS = {"story": _story, "sleep": SleepWorkload}


def make_workload(name: str, **options) -> Workload:
    """The workload of that name, not yet loaded. Raises ValueError for an unknown name."""
    if name not in WORKLOADS:
        raise ValueError(f"unknown workload {name!r}: use one of {', '.join(WORKLOADS)}")
    return WORKLOADS[name](**options)
