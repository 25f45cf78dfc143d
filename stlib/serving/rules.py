"""What is in the system, jobs and the servers that they wait for, and the dispatcher's rules as plain functions.

The routings are those of `stlib.queueing.simulation.simulate`.
"""

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from stlib import paths
from stlib.queueing.checks import check_policy
from stlib.queueing.simulation import ROUTINGS
from stlib.settings import known, mapping, read_yaml

UNSTARTED = dict.fromkeys(("start_s", "finish_s", "reply_s", "service_s", "probe_s"), math.nan) \
    | {"replica": -1, "method": None, "n_outstanding": 0, "attempt": 1}


@dataclass(eq=False)
class Reply:
    """What became of a job.

    row: its row of the job table; reply_s is left to the load generator. products: what the replica reported, how
    many replicas were busy, its own included, at its start (`busy_start`) and finish (`busy_finish`), and the wait it
    was told (`expected_wait_s`). error: why it failed.
    """

    row: dict
    payload: Any = None
    products: dict = field(default_factory=dict)
    error: str | None = None


@dataclass(eq=False, kw_only=True)
class Job(Reply):
    """A job in the system. method: None if it is chosen at its start; declared_s: by the methods it may get.

    ended: cancelled with the task that awaits it. on_event: told how it goes.
    """

    params: dict
    method: str | None
    expiry_s: float
    declared_s: dict[str, float]
    on_event: Callable[[str, dict], None] | None = None
    ended: asyncio.Future = field(default_factory=asyncio.Future)
    token: str = field(default_factory=lambda: uuid4().hex)  # names it to the replica


@dataclass(eq=False)
class Server:
    """A replica's place: its process (None: being replaced), its job, the queue it takes from (all one if central)."""

    number: int
    queue: deque
    handle: Any = None
    job: Job | None = None
    idle_s: float = 0.0
    lost: str = ""  # why no replica is or will be here
    task: asyncio.Task | None = None

    @property
    def idle(self) -> bool:
        """Whether it would start a job at once."""
        return self.job is None and self.handle is not None


def running_s(server: Server, now: float) -> float:
    """What is left of the running job's declared work; 0 once it has outrun it, or is cancelled and stops."""
    if (job := server.job) is None or job.ended.cancelled():
        return 0.0
    return max(0.0, job.declared_s[job.row["method"]] - (now - job.row["start_s"]))


def left_s(server: Server, now: float) -> float:
    """The declared work; an idle replica comes before a busy one that has outrun its estimates."""
    return -1.0 if server.idle else running_s(server, now) + sum(job.declared_s[job.method] for job in server.queue)


def present(server: Server, now: float = 0.0) -> int:
    """Jobs waiting and in service."""
    return len(server.queue) + (server.job is not None)


# the server with the least takes the job
LOADS = {"central": lambda server, now: server.idle_s if server.idle else math.inf, "jsq": present,
         "least_work": left_s}


def candidates(routing: str, servers: Sequence[Server], now: float, offered: int, chance: float = 0.0) -> list[Server]:
    """The servers that job number `offered` may go to; one whose replica is down only in its turn, or if all are.

    chance: in [0, 1), what random and power_of_two draw by.
    """
    if routing == "round_robin":
        return [servers[offered % len(servers)]]
    up = [server for server in servers if server.handle] or servers
    if routing in ("random", "power_of_two"):
        one, rest = divmod(chance * len(up), 1)
        others = [server for i, server in enumerate(up) if i != one]
        if routing == "random" or not others:
            return [up[int(one)]]
        return [min(up[int(one)], others[int(rest * len(others))], key=present)]
    loads = [LOADS[routing](server, now) for server in up]
    return [server for server, load in zip(up, loads, strict=True) if load == min(loads)]


def wait_s(servers: Sequence[Server], queue: deque, now: float, method_of: Callable[[Job, int], str]) -> float:
    """Seconds until a job would start that joins a queue now, whose replicas that are up are `servers`.

    method_of(job, outstanding): the method of a job that starts with so many jobs outstanding, itself included. Those
    that wait start with the ones behind them, the new one and those on the other replicas; none comes after.
    """
    free = sorted(running_s(server, now) for server in servers)
    for i, job in enumerate(queue):
        heapq.heapreplace(free, free[0] + job.declared_s[method_of(job, len(queue) - i + len(servers))])
    return free[0]


def check(routing: str, estimate, method: str | None, methods: Sequence[str], policy) -> None:
    """Raise ValueError for rules that are unknown or do not go together; arguments as of `Dispatcher`."""
    known("routing", routing, ROUTINGS)
    if routing == "least_work" and (estimate is None or policy is not None):
        raise ValueError("least_work needs estimate(params, method) and one method, no policy; or take jsq")
    if policy is not None:
        check_policy(policy, len(methods))
        if method:
            raise ValueError(f"method {method!r} beside a policy, which chooses each job's: give one of the two")


def read_menu(path=paths.DATA / "menu.yml") -> dict[str, dict]:
    """The menu of a YAML file: each name with the job's options that it stands for. Raises as `read_yaml`."""
    return {str(name): mapping(f"{path}: {name}", options) for name, options in read_yaml(path).items()}


def options_of(method: str | None, menu: dict | None = None, methods=()) -> dict:
    """The job's parameters that a method's name stands for: its entry in the menu, without one the name itself.

    methods: the names that there are without a menu (empty: any). Raises FieldError for a name that is not there.
    """
    if names := methods if menu is None else menu:
        known("method", method, names)
    return menu[method] if menu else {} if method is None else {"method": method}
