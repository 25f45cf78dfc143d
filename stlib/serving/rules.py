"""The dispatcher's rules as plain functions; the routings are those of `stlib.queueing.simulation.simulate`.

A server is a replica's place: `queue`, the jobs that wait for it (one for all under "central"), `handle` (None: its
replica is down), the running `job`, `idle` and `idle_s`, since when. A job has its `method` (None: the policy's, at its
start), `declared_s` by method, its `row` of the job table, and whether it is `cancelled`.
"""

import heapq
import math
from collections.abc import Callable, Sequence

from stlib import paths
from stlib.queueing.simulation import ROUTINGS
from stlib.settings import mapping, read_yaml


def left_s(server, now: float) -> float:
    """The declared work; an idle replica comes before a busy one that has outrun its estimates."""
    return -1.0 if server.idle else running_s(server, now) + sum(job.declared_s[job.method] for job in server.queue)


def running_s(server, now: float) -> float:
    """What is left of the running job's declared work; 0 once it has outrun it, or is cancelled and stops."""
    job = server.job
    if job is None or job.cancelled:
        return 0.0
    return max(0.0, job.declared_s[job.row["method"]] - (now - job.row["start_s"]))


LOADS = {  # the server with the least takes the job
    "central": lambda server, now: server.idle_s if server.idle else math.inf,
    "jsq": lambda server, now: len(server.queue) + (server.job is not None),
    "least_work": left_s,
}


def candidates(routing: str, servers: list, now: float, offered: int) -> list:
    """The servers that job number `offered` may go to; one whose replica is down only in its turn, or if all are."""
    if routing == "round_robin":
        return [servers[offered % len(servers)]]
    up = [server for server in servers if server.handle] or servers
    loads = [LOADS[routing](server, now) for server in up]
    return [server for server, load in zip(up, loads, strict=True) if load == min(loads)]


def in_order(queue) -> list:
    """The jobs of a queue in the order that they start: first come, first served, one tried again before all."""
    return list(queue)


def wait_s(servers: list, queue, now: float, method_of: Callable) -> float:
    """Seconds until a job would start that joins a queue now, whose replicas that are up are `servers`.

    method_of(job, outstanding): the method of a job that starts with so many jobs outstanding, itself included. Those
    that wait start with the ones behind them, the new one and those on the other replicas; none comes after.
    """
    free, waiting = sorted(running_s(server, now) for server in servers), in_order(queue)
    for i, job in enumerate(waiting):
        heapq.heapreplace(free, free[0] + job.declared_s[method_of(job, len(waiting) - i + len(servers))])
    return free[0]


def check(routing: str, estimate, method: str | None, methods: Sequence[str], policy) -> None:
    """Raise ValueError for rules that are unknown or do not go together; arguments as of `Dispatcher`."""
    if routing not in ROUTINGS:
        raise ValueError(f"routing {routing!r} is unknown; choose one of {ROUTINGS}")
    if routing == "least_work" and (estimate is None or policy is not None):
        raise ValueError("least_work needs estimate(params, method) and one method, no policy; or take jsq")
    if policy is not None and (method or not len(policy) or not all(c in range(len(methods)) for c in policy)):
        raise ValueError(f"policy {list(policy)} must be indices 0 ... {len(methods) - 1} of methods "
                         f"{tuple(methods)}, in place of one method (method is {method!r})")


def read_menu(path=paths.DATA / "menu.yml") -> dict[str, dict]:
    """The menu of a YAML file: each name with the job's options that it stands for. Raises as `read_yaml`."""
    return {str(name): mapping(f"{path}: {name}", options) for name, options in read_yaml(path).items()}


def options_of(method: str | None, menu: dict | None = None, known=()) -> dict:
    """The job's parameters that a method's name stands for: its entry in the menu, without one the name itself.

    known: the names that there are without a menu (empty: any). Raises ValueError for a name that is not known.
    """
    names = known if menu is None else menu
    if names and method not in names:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(names)}")
    return menu[method] if menu else {} if method is None else {"method": method}
