"""The dispatcher: in front of k replicas it chooses each job's replica and method, and holds what waits.

Its rules (`rules`) are those of `stlib.queueing.simulation.simulate`, name by name. It knows jobs, methods and times
only.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from stlib.queueing.checks import nonnegative, whole
from stlib.queueing.job_table import OUTCOMES
from stlib.serving import rules
from stlib.serving.learned import Learned
from stlib.serving.replica import ReplicaSpec, check_slots, error_text, start_ray, stop_job, stop_replica
from stlib.serving.rules import UNSTARTED, Job, Reply, Server

CLOCK_S = 1e-6  # asyncio's timers may ring early by less


class Dispatcher:
    """In front of k replicas: routing, choice of the method, queues.

    spec: what each replica is, or a workload's name. replicas: how many; `start` starts them, unless as many `handles`
    of running ones are given, which outlive the dispatcher (one that dies is replaced by an own, of the spec).
    routing, max_waiting: as in `simulate`; ties are broken as there without rng, job by job.
    method: every job's that does not name its own; or policy: integers, policy[n] the index in `methods` for a job
    that starts with n jobs outstanding, as in `simulate`. With none of these the method is "only": for workloads that
    do not tell methods apart. menu: for each method's name the job's parameters that it stands for; left out, the name
    itself is the parameter `method`; `names` are those of the menu, else `methods`. estimate: estimate(params, method),
    seconds, which least_work and the expected wait need; one that is `Learned` is told what jobs took. probe: whether
    replicas run their probes.

    Raises ValueError for an input out of its range.
    """

    def __init__(self, spec: ReplicaSpec | str, replicas: int = 1, *, routing: str = "central",
                 method: str | None = None, methods: Sequence[str] = (), policy=None, menu: dict | None = None,
                 estimate: Callable[[dict, str], float] | None = None, max_waiting: int | None = None,
                 probe: bool = False, handles: Sequence | None = None):
        whole(replicas=replicas)
        rules.check(routing, estimate, method, methods, policy)
        if handles is not None and len(handles) != replicas:
            raise ValueError(f"{len(handles)} handles for {replicas} replicas: give one each")
        spec = ReplicaSpec(spec) if isinstance(spec, str) else spec
        self.name, self.workload, self._start_one = spec.workload, spec.make(), spec.start
        self.routing, self.estimate, self.probe = routing, estimate, probe
        self.names, self._options = tuple(menu or methods), partial(rules.options_of, menu=menu, methods=methods)
        self.by_outstanding = [method or "only"] if policy is None else [methods[int(column)] for column in policy]
        self.max_waiting = math.inf if max_waiting is None else whole(0, max_waiting=max_waiting)
        for name in filter(None, [*methods, method]):
            self._options(name)
        self._given, self._running = handles or (), False
        self.queues = [deque() for _ in range(1 if routing == "central" else replicas)]
        self.servers = [Server(number, self.queues[number % len(self.queues)]) for number in range(replicas)]
        self.reset()

    def start(self) -> "Dispatcher":
        """Start the replicas side by side and wait until all are loaded; raises as `ReplicaSpec.start`."""
        handles = self._given
        if not handles:
            start_ray()
            check_slots(len(self.servers))
            with ThreadPoolExecutor(len(self.servers)) as pool:
                handles = list(pool.map(lambda _: self._start_one(), self.servers))
        for server, handle in zip(self.servers, handles, strict=True):
            server.handle, server.lost = handle, ""
        self._running = True
        self.reset()
        return self

    def stop(self) -> None:
        """End the replicas that were started here; what still waits or runs there fails."""
        self._now()
        self._running = False
        for server in self.servers:
            handle, server.handle, server.lost = server.handle, None, "the dispatcher was stopped"
            if handle and handle not in self._given:
                stop_replica(handle)
        self._feed()

    __enter__ = start

    def __exit__(self, *_) -> None:
        self.stop()

    def reset(self) -> None:
        """Begin a run: time zero is now, all counts are 0. Raises RuntimeError while jobs are in the system."""
        if self._in_system():
            raise RuntimeError(f"{self._in_system()} jobs are in the system: await them before a new run")
        self.zero_s, self._counted_s, self._job_seconds = time.monotonic(), 0.0, 0.0
        self.counts, self.offered = dict.fromkeys(OUTCOMES, 0), 0
        self._rng = np.random.default_rng(0)
        for server in self.servers:
            server.idle_s = 0.0

    def check(self, params: dict, method: str | None = None) -> dict[str, float]:
        """The seconds of work that a job is estimated to be (0 without `estimate`), by the methods it may get.

        Raises ValueError for a job that would be refused under one of them, RuntimeError if not started.
        """
        if not self._running:
            raise RuntimeError("the dispatcher is not started: call start(), or use it in a with statement")
        chosen = [method] if method else dict.fromkeys(self.by_outstanding)
        for name in chosen:
            self.workload.validate(params | self._options(name))
        declared = {name: self.estimate(params, name) if self.estimate else 0.0 for name in chosen}
        nonnegative(**{f"estimate by {name}": seconds for name, seconds in declared.items()})
        return declared

    async def submit(self, params: dict, *, method: str | None = None, deadline_s: float | None = None,
                     job_id: int | None = None, scheduled_s: float = math.nan,
                     on_event: Callable[[str, dict], None] | None = None) -> Reply:
        """Have a job done, in the running event loop; returns when it has its outcome.

        method: in place of the dispatcher's. deadline_s: if it has not started so many seconds after now it leaves,
        timed out. job_id, scheduled_s: noted in its row. on_event(name, data): called, in this loop, when the job is
        "queued" (its place, 1 the next to start; the expected wait), "started" (replica, method, attempt), and with the
        "progress" and each "part" that its replica tells of. If the awaiting task is cancelled a waiting job leaves,
        and one that runs stops at its next token or step.
        Raises ValueError for a job that is refused, which does not count as offered; RuntimeError if not started.
        """
        nonnegative(deadline_s=0.0 if deadline_s in (None, math.inf) else deadline_s)
        declared, now = self.check(params, method), self._now()
        row = UNSTARTED | {"job_id": self.offered if job_id is None else job_id, "workload": self.name,
                           "scheduled_s": scheduled_s, "arrival_s": now}
        job = Job(row, params=params, declared_s=declared, method=None if len(declared) > 1 else next(iter(declared)),
                  expiry_s=math.inf if deadline_s is None else now + deadline_s, on_event=on_event)
        chance = float(self._rng.random(dtype=np.float32))
        least = rules.candidates(self.routing, self.servers, now, self.offered, chance)
        server = least[int(chance * len(least))]
        job.products["expected_wait_s"] = self._wait_at(server, now)
        if isinstance(self.estimate, Learned):
            job.products["extrapolated"] = self.estimate.beyond(params)
        self.offered += 1
        if not server.idle and self._waiting() >= self.max_waiting:
            self._end(job, "rejected")
        else:
            server.queue.append(job)
            self._tell(job, "queued", place=len(server.queue), expected_wait_s=job.products["expected_wait_s"])
            if job.expiry_s < math.inf:
                asyncio.get_running_loop().call_at(self.zero_s + job.expiry_s, self._now)
            self._feed()
        try:
            await job.ended
        except asyncio.CancelledError:
            self._now()
            for server in self.servers:
                if server.job is job and server.handle:
                    stop_job(server.handle, job.token)
            raise
        return job

    async def drain(self) -> None:
        """Wait until no job runs and no replica is being replaced: before the event loop is closed."""
        while tasks := [server.task for server in self.servers if server.task and not server.task.done()]:
            await asyncio.wait(tasks)

    def queue(self) -> dict:
        """The state: replicas up and busy, jobs waiting, in_system, offered and by outcome.

        job_seconds: the number of jobs in the system, integrated over the elapsed_s seconds since `reset`. What a
        Learned estimate found, too.
        """
        return {"elapsed_s": self._now(), "job_seconds": self._job_seconds,
                "replicas": sum(server.handle is not None for server in self.servers), "busy": self._busy(),
                "waiting": self._waiting(), "in_system": self._in_system(), "offered": self.offered, **self.counts,
                **(self.estimate.state() if isinstance(self.estimate, Learned) else {})}

    def expected_wait_s(self) -> float:
        """Seconds until a job that came now would start, by the estimates of those ahead; NaN without any.

        Under a policy the work of a job that waits is that of the method it will get if none comes after this one.
        """
        now = self._now()
        return self._wait_at(rules.candidates(self.routing, self.servers, now, self.offered)[0], now)

    def _wait_at(self, server: Server, now: float) -> float:
        """The same for a job that joins this server's queue."""
        up = [other for other in self.servers if other.queue is server.queue and other.handle]
        return rules.wait_s(up, server.queue, now, self._method_of) if self.estimate and up else math.nan

    def _method_of(self, job: Job, outstanding: int) -> str:
        return job.method or self.by_outstanding[min(outstanding, len(self.by_outstanding) - 1)]

    def _feed(self) -> None:
        """Idle replicas, the longest idle first, take what waits for them; where none will ever come it fails."""
        for server in sorted(self.servers, key=lambda server: server.idle_s):
            peers = [other for other in self.servers if other.queue is server.queue]
            if server.idle and server.queue:
                outstanding = len(server.queue) + sum(other.job is not None for other in peers)
                job = server.job = server.queue.popleft()
                job.row |= {"start_s": self._counted_s, "replica": server.number, "n_outstanding": outstanding,
                            "method": self._method_of(job, outstanding)}
                job.products["busy_start"] = self._busy()
                self._tell(job, "started", **{name: job.row[name] for name in ("replica", "method", "attempt")})
                if isinstance(self.estimate, Learned) and job.row["attempt"] == 1:
                    self.estimate.waited(self._counted_s, job.products["expected_wait_s"],
                                         self._counted_s - job.row["arrival_s"])
                if server.task is None or server.task.done():
                    server.task = asyncio.get_running_loop().create_task(self._serve(server))
            while server.queue and all(other.lost for other in peers):
                self._end(server.queue.popleft(), "failed", error=server.lost)

    async def _serve(self, server: Server) -> None:
        """Do the server's job, then, in the same turn of the loop, the next that waits for it, until none does."""
        from ray.exceptions import RayActorError

        while job := server.job:
            params = job.params | self._options(job.row["method"])
            try:
                done = await self._done(server, job, params)
            except RayActorError as death:
                await self._replace(server, death)
            except Exception as error:
                self._depart(server, "failed", error=error_text(error))
            else:
                if isinstance(self.estimate, Learned):
                    self.estimate.learn(job.params, job.row["method"], self._now() - job.row["start_s"])
                self._depart(server, "completed", *done)

    async def _done(self, server: Server, job: Job, params: dict) -> tuple:
        """Its payload and products, once the replica has done the job, whose reader is told how it goes."""
        if job.on_event is None:
            return await server.handle.run.remote(params, self.probe, job.token)
        async for told in server.handle.stream.options(num_returns="streaming").remote(params, self.probe, job.token):
            name, data = await told
            if name == "done":
                return data
            self._tell(job, name, **data)
        raise RuntimeError("its replica ended the stream without the job")

    @staticmethod
    def _tell(job: Job, name: str, **data) -> None:
        if job.on_event and not job.ended.done():
            job.on_event(name, data)

    def _depart(self, server: Server, outcome: str, payload=None, products=None, error=None) -> None:
        now, job, busy = self._now(), server.job, self._busy()
        server.job, server.idle_s = None, now
        self._feed()
        job.products |= (products or {}) | {"busy_finish": busy}
        job.row |= {"finish_s": now, **{name: job.products.get(name, math.nan) for name in ("service_s", "probe_s")}}
        self._end(job, outcome, payload, error)

    async def _replace(self, server: Server, death: Exception) -> None:
        """A replica died: its job is tried once more, before all others, and a new replica is started."""
        self._now()
        job, server.handle = server.job, None
        if job.ended.cancelled() or job.row["attempt"] > 1:
            self._depart(server, "failed", error=f"its replica died: {error_text(death)}")
        else:
            job.row |= UNSTARTED | {"attempt": 2}
            server.job, job.expiry_s = None, math.inf  # it had started in time
            server.queue.appendleft(job)
            self._feed()
        try:
            handle = await asyncio.to_thread(self._start_one) if self._running else None
            if self._running:  # else the handle goes, and the replica with it
                server.handle = handle
        except Exception as error:
            server.lost = f"replica {server.number} died and could not be replaced: {error_text(error)}"
        server.idle_s = self._now()
        self._feed()

    def _end(self, job: Job, outcome: str, payload=None, error: str | None = None) -> None:
        """A job that waits no more gets its one outcome."""
        job.payload, job.error, job.row["outcome"] = payload, error, "cancelled" if job.ended.cancelled() else outcome
        self.counts[job.row["outcome"]] += 1
        if not job.ended.done():
            job.ended.set_result(None)

    def _now(self) -> float:
        """Seconds since the run's start; adds up the jobs in the system until now.

        Of those that wait, the ones that nobody awaits, or whose time is over, leave.
        """
        now = time.monotonic() - self.zero_s
        self._job_seconds += self._in_system() * (now - self._counted_s)
        self._counted_s = now
        for queue in self.queues:
            for job in [job for job in queue if job.ended.cancelled() or job.expiry_s <= now + CLOCK_S]:
                queue.remove(job)
                self._end(job, "timed_out")
        return now

    def _busy(self) -> int:
        return sum(server.job is not None for server in self.servers)

    def _waiting(self) -> int:
        return sum(map(len, self.queues))

    def _in_system(self) -> int:
        return self._waiting() + self._busy()
