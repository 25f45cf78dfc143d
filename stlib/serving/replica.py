"""Replicas: a process that holds one loaded workload and does one job at a time; Ray actors, on one machine or more.

`RAY_ADDRESS` names a running Ray cluster; without it Ray is started on this machine for this program.
"""

import math
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Annotated, Any

from pydantic import Field

from stlib.serving.workloads import WORKLOADS, Cancelled, Workload, make_workload
from stlib.settings import Fields, whole

Tell = Callable[[str, Any], None]

LOAD_S = 300.0
IDLE_S = 0.1  # after a longer pause the last probe no longer tells the machine's speed
PROGRESS_S = 0.25
CONTROL = "control"  # the calls that a replica answers while it does a job
LONGEST = 36  # bytes: a socket's path has at most 103 or 107, of which Ray's own part takes 64


class Replica:
    """Does jobs, one at a time, with `threads` torch threads; the workload is loaded once, here.

    workload: its class, options its keyword arguments.
    """

    def __init__(self, workload: type, options: dict | None = None, threads: int = 1):
        import torch

        torch.set_num_threads(threads)
        self.workload: Workload = workload(**(options or {}))
        self.workload.load()
        self._probe_s, self._probed_at, self._stopped = float("nan"), float("-inf"), None

    def stop(self, token: str) -> None:
        """End the job of that token at its next token or step, also if it has not begun; called beside `run`."""
        self._stopped = token

    def run(self, params: dict, probe: bool = True, token: str | None = None, tell: Tell = lambda kind, data: None):
        """Do one job; returns its payload and its products. tell: told of what `stream` yields on the way.

        To the workload's products are added `run_s`, the run alone, `first_s`, from the start until its first part was
        finished (a panel; the run's end where there are no parts), and `service_s`, run and probes; with `probe` also
        `probe_before_s`, `probe_after_s`, their mean `probe_s`, how many `probes` were run (1 or 2) and `probe_cost_s`,
        what they took in all.
        The probe after the last job is the one before this, unless the replica has idled since. An error of the
        workload is raised here and leaves the replica able to work; so is Cancelled, once `stop(token)` was called.
        """
        def go_on(stage: str = "", done: int = 0, total: int = 0) -> None:
            if token is not None and self._stopped == token:
                raise Cancelled
            tell("progress", {"stage": stage, "done": done, "total": total})

        def finished(part: dict) -> None:
            first.append(time.monotonic())
            tell("part", part)

        go_on()
        began, first = time.monotonic(), []
        idled = began - self._probed_at > IDLE_S
        if probe and idled:
            self._probe()
        before, started = self._probe_s, time.monotonic()
        payload, products = self.workload.run(params, go_on, finished)
        ended = time.monotonic()
        products = products | {"run_s": ended - started, "first_s": [*first, ended][0] - began}
        if probe:
            after = self._probe()
            products |= {"probe_before_s": before, "probe_after_s": after, "probe_s": (before + after) / 2,
                         "probes": 1 + idled, "probe_cost_s": time.monotonic() - ended + started - began}
        return payload, products | {"service_s": time.monotonic() - began}

    def stream(self, params: dict, probe: bool = True, token: str | None = None):
        """Do one job as `run`; yields ("progress", stage, done, total) and ("part", a part), and last ("done", both).

        The job is done in a thread of its own and never waits for who reads. Of its progress no more than every
        PROGRESS_S is told, and each stage's end.
        """
        told, last = SimpleQueue(), [-math.inf]

        def tell(kind: str, data) -> None:
            now = time.monotonic()
            if kind != "progress" or now - last[0] > PROGRESS_S or data["done"] == data["total"] > 0:
                last[0] = now
                told.put((kind, data))

        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(self.run, params, probe, token, tell)
            job.add_done_callback(lambda _: told.put(("done", None)))
            while (event := told.get())[0] != "done":
                yield event
            yield "done", job.result()

    def _probe(self) -> float:
        self._probe_s, self._probed_at = self.workload.probe(), time.monotonic()
        return self._probe_s


class ReplicaSpec(Fields):
    """What is served, by replicas that are all alike.

    workload: a name of the registry, options its keyword arguments. threads: torch's, of each replica. gpus: that each
    replica takes; a share such as 0.5 is one that others take too. Raises ValueError for what is out of its range.
    """

    workload: str = "story"
    options: dict = Field(default_factory=dict)
    threads: whole(1, 1024) = 1
    gpus: Annotated[float, Field(ge=0)] = 0

    def make(self) -> Workload:
        """The workload, not loaded: it validates jobs. Raises ValueError for an unknown one."""
        return make_workload(self.workload, **self.options)

    def start(self):
        """A loaded replica: the handle of its Ray actor. It takes one CPU slot of Ray's, whatever its threads.

        Raises ValueError for an unknown workload and RuntimeError if the replica does not come up, with the reason.
        """
        self.make()
        start_ray()
        import ray

        hidden = {} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray leaves visible what was not asked for
        env = {"env_vars": {"OMP_NUM_THREADS": str(self.threads)} | hidden}
        actor = ray.remote(num_cpus=1, num_gpus=self.gpus, runtime_env=env, concurrency_groups={CONTROL: 1},
                           scheduling_strategy="SPREAD")
        handle = actor(Replica).remote(WORKLOADS[self.workload], self.options, self.threads)
        try:
            ray.get(handle.__ray_ready__.remote(), timeout=LOAD_S)
        except ray.exceptions.GetTimeoutError:
            free = ray.available_resources()
            raise RuntimeError(f"no replica after {LOAD_S:.0f} s: Ray has {free.get('CPU', 0):.0f} free CPU slots and "
                               f"{free.get('GPU', 0):g} GPUs, a replica takes 1 and {self.gpus:g}; start fewer, or a "
                               "larger cluster") from None
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"the replica did not come up: {error}") from error
        return handle


def start_ray(attempts: int = 2) -> None:
    """Connect to the cluster of `RAY_ADDRESS`, else start Ray on this machine, quietly and for this program only.

    Does nothing if Ray runs already. attempts: on this machine; a first start, from cold files, can outlast Ray's own
    limits. Raises RuntimeError with the remedy.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            if port.isdigit():  # fail fast where nothing listens: Ray itself would try for minutes
                socket.create_connection((host, int(port)), timeout=5).close()
            ray.init(address, logging_level="ERROR", log_to_driver=False)
        else:
            if not os.access(os.path.expanduser("~"), os.W_OK):  # where Ray would write its token
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
            # without an address, rather than "local", Ray would join a cluster that `ray start` left on the machine
            ray.init("local", include_dashboard=False, logging_level="CRITICAL", log_to_driver=False,
                     _node_ip_address="127.0.0.1", object_store_memory=128 * 2**20, _temp_dir=_ray_folder(),
                     _system_config={"worker_niceness": 0})
    except Exception as error:  # Ray raises bare ones
        if not address:
            ray.shutdown()
            if attempts > 1:
                return start_ray(attempts - 1)
        raise RuntimeError(
            f"Ray did not start ({str(error).splitlines()[0]}): is a cluster running at RAY_ADDRESS={address}? unset "
            "RAY_ADDRESS to start Ray on this machine; is that very busy, listening not allowed, or the temporary "
            "folder full or not yours? RAY_TMPDIR names another") from error


def _ray_folder() -> str:
    """Where Ray keeps its sockets and logs: the temporary folder's, or /tmp's where that is too long for a socket."""
    folder = os.path.abspath(os.path.join(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray"))
    return folder if len(os.fsencode(folder)) <= LONGEST else "/tmp/ray"


def stop_job(handle, token: str) -> None:
    """Have a replica end the job of that token, if it is doing it or will; returns at once."""
    handle.stop.options(concurrency_group=CONTROL).remote(token)


def stop_replica(handle) -> None:
    """End a replica's process at once, whatever it is doing."""
    import ray

    ray.kill(handle)


def check_slots(replicas: int) -> None:
    """Raise ValueError if Ray has fewer: the wait for a replica without a slot would last minutes."""
    import ray

    slots = ray.cluster_resources().get("CPU", 0)
    if replicas > slots:
        raise ValueError(f"replicas = {replicas}: Ray has {slots:.0f} CPU slots and a replica takes one; start fewer, "
                         "or a larger cluster")


def error_text(error: Exception) -> str:
    """One line; of an error in a replica its cause, without Ray's traceback."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
