"""The dispatcher: the simulator's rules on real replicas (Ray actors that sleep), failures, bad input."""

import asyncio
import os
import signal

import numpy as np
import pandas as pd
import pytest

from stlib.queueing.job_table import JOB_COLUMNS, OUTCOMES
from stlib.queueing.simulation import ROUTINGS, simulate
from stlib.serving.dispatcher import Dispatcher, Reply
from stlib.serving.replay import replay
from stlib.serving.replica import ReplicaSpec
from stlib.serving.workloads.sleep import SleepWorkload

ray = pytest.importorskip("ray")

QUICK_S = 0.08
MENU = {"slow": {}, "quick": {"seconds": QUICK_S}, "fail": {"seconds": "long"}}
DECIDED = ["replica", "outcome", "n_outstanding", "method"]


def sleepers(seconds) -> pd.DataFrame:
    return pd.DataFrame({"job_id": np.arange(len(seconds)), "workload": "sleep", "seconds": seconds})




def separated_case(k: int, least_s: float = 0.012, **rules):
    """Arrivals and work of 8 jobs whose events lie apart, so that an overhead of 0 ... 10 ms a job reorders none."""
    for rng in (np.random.default_rng([k, i]) for i in range(50_000)):
        arrival = np.cumsum(rng.uniform(0.015, 0.2 / k, 8)).round(3)
        work = rng.uniform(0.05, 0.3, 8).round(3)
        if "work_estimate_s" in rules:
            rules["work_estimate_s"] = (work * rng.uniform(0.5, 1.5, 8)).round(3)
        columns = work if "policy" not in rules else np.column_stack([work, np.full(8, QUICK_S)])
        run = simulate(arrival, columns + 0.005, k, **rules)
        waited = ~(run["start_s"] == run["arrival_s"]) & (run["outcome"] != "rejected")
        expiries = (arrival + rules["deadline_s"])[waited] if "deadline_s" in rules else []
        if np.diff(np.sort(np.concatenate([arrival, run["finish_s"].dropna(), expiries]))).min() < least_s:
            continue
        others = [simulate(arrival, columns + extra, k, **rules) for extra in (0.0, 0.01)]
        seen = {"completed", "rejected", "timed_out"} if "deadline_s" in rules else {"completed"}
        if set(run["outcome"]) == seen and all(run[DECIDED].equals(other[DECIDED]) for other in others):
            return arrival, work, run, rules
    raise AssertionError("no case found: ask for smaller gaps")


CASES = [pytest.param(routing, k, {}, marks=[pytest.mark.slow] if k == 1 and routing != "central" else [])
         for routing in ROUTINGS for k in (1, 2, 3)]
CASES += [(routing, 2, {"max_waiting": 1, "deadline_s": 0.09}) for routing in ROUTINGS]
CASES += [("central", 2, {"policy": [0, 0, 0, 1]}), ("jsq", 2, {"policy": [0, 0, 1]})]


@pytest.mark.filterwarnings("ignore:the load generator was late")
@pytest.mark.parametrize("routing, k, rules", CASES,
                         ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else None)
def test_it_decides_as_the_simulator_does(replicas, routing, k, rules):
    rules = dict(rules)
    if routing == "least_work":
        rules["work_estimate_s"] = None
    methods = {"methods": ("slow", "quick")} if "policy" in rules else {}
    arrival, work, expected, rules = separated_case(k, routing=routing, **methods, **rules)
    menu = MENU if methods else None
    estimates = dict(zip(work.tolist(), rules.get("work_estimate_s", work), strict=True))
    target = Dispatcher("sleep", k, routing=routing, handles=replicas[:k], policy=rules.get("policy"),
                        max_waiting=rules.get("max_waiting"), estimate=lambda params, _: estimates[params["seconds"]],
                        menu=menu, **methods)
    with target:
        for _ in range(4):  # a run that the machine disturbed beyond the case's tolerance says nothing about the rules
            served, products = replay(sleepers(work), arrival, target, deadline_s=rules.get("deadline_s"),
                                      progress=False)
            overhead = served["finish_s"] - served["start_s"] - served["service_s"]
            if max(overhead.max(), products["lag_s"].max()) < 0.01:
                break
    pd.testing.assert_frame_equal(served[DECIDED].astype(str), expected[DECIDED].astype(str))
    assert served["finish_s"].max() == pytest.approx(expected["finish_s"].max(), abs=0.1)


def served(target: Dispatcher, *requests: dict) -> list:
    """Submit at once, in order, within one event loop; a request's `cancel_s` cancels its task then."""
    async def submit(cancel_s=99, **request):
        return await asyncio.wait_for(target.submit(**request), cancel_s)

    async def all_of_them():
        target.reset()
        replies = await asyncio.gather(*(submit(**request) for request in requests), return_exceptions=True)
        await target.drain()
        return replies

    return asyncio.run(all_of_them())


def of(seconds: float, **request) -> dict:
    return {"params": {"seconds": seconds}, **request}


def by_menu(params: dict, method: str) -> float:
    return QUICK_S if method == "quick" else params["seconds"]


def test_an_error_in_the_model_fails_that_job_alone(replicas, monkeypatch):
    monkeypatch.setattr(SleepWorkload, "validate", lambda *_: None)
    with Dispatcher("sleep", 1, method="slow", menu=MENU, handles=replicas[:1]) as target:
        replies = served(target, of(0.02), of(0.02, method="fail"), of(0.02))
    assert [reply.row["outcome"] for reply in replies] == ["completed", "failed", "completed"]
    assert replies[1].error.startswith("TypeError: ") and replies[1].row["attempt"] == 1
    assert np.isnan(replies[1].row["service_s"]) and replies[1].row["finish_s"] < replies[2].row["finish_s"]


def test_a_cancelled_job_leaves_the_queue_or_stops(replicas):
    with Dispatcher("sleep", 1, handles=replicas[:1]) as target:
        replies = served(target, of(9.0, cancel_s=0.3), of(5.0, cancel_s=0.1), of(0.02))
        state = target.queue()
        after = served(target, of(0.02), of(0.02))
    assert [type(reply) for reply in replies[:2]] == [TimeoutError] * 2
    assert 0.3 <= replies[2].row["start_s"] < 0.6 and replies[2].row["n_outstanding"] == 1
    assert (state["offered"], state["cancelled"], state["completed"], state["in_system"]) == (3, 2, 1, 0)
    assert [reply.row["outcome"] for reply in after] == ["completed"] * 2  # at once cancelled or not


def test_state_and_told_wait_are_true_while_a_cancelled_job_stops(replicas):
    async def watched(target):
        target.reset()
        job = asyncio.create_task(target.submit({"seconds": 9.0}))
        await asyncio.sleep(0.2)
        told = target.expected_wait_s()
        job.cancel()
        await asyncio.sleep(0)
        stopping, soon = target.queue(), target.expected_wait_s()
        began = await target.submit({"seconds": 0.01})
        await target.drain()
        return told, stopping, soon, began, target.queue()

    with Dispatcher("sleep", 1, handles=replicas[:1], estimate=by_menu) as target:
        told, stopping, soon, began, after = asyncio.run(watched(target))
    assert told == pytest.approx(8.8, abs=0.1) and soon == 0
    assert (stopping["busy"], stopping["cancelled"], stopping["in_system"]) == (1, 0, 1)
    assert began.row["start_s"] - began.row["arrival_s"] < 0.3
    assert (after["cancelled"], after["completed"], after["in_system"], after["replicas"]) == (1, 1, 0, 1)
    assert after["job_seconds"] < 1.0


def test_a_job_cancelled_as_it_is_sent_does_not_run(replicas):
    async def gone_at_once(target):
        target.reset()
        job = asyncio.create_task(target.submit({"seconds": 9.0}))
        await asyncio.sleep(0)
        assert target.queue()["busy"] == 1
        job.cancel()
        reply = await target.submit({"seconds": 0.01})
        await target.drain()
        return reply

    with Dispatcher("sleep", 1, handles=replicas[:1]) as target:
        assert asyncio.run(gone_at_once(target)).row["start_s"] < 0.3
        assert target.queue()["cancelled"] == 1


def test_every_offered_job_has_one_outcome(replicas, monkeypatch):
    monkeypatch.setattr(SleepWorkload, "validate", lambda *_: None)
    rng = np.random.default_rng(1)
    requests = [of(rng.choice([0.01, 0.08]), method=rng.choice(["slow", "fail"], p=[0.9, 0.1]),
                   deadline_s=rng.choice([0.0, 0.1, np.inf]), cancel_s=rng.choice([0.15, 9])) for _ in range(30)]
    with Dispatcher("sleep", 2, routing="jsq", menu=MENU, handles=replicas[:2], max_waiting=14) as target:
        replies = served(target, *requests)
        state = target.queue()
    assert state["offered"] == 30 == sum(state[outcome] for outcome in OUTCOMES) and state["in_system"] == 0
    assert all(state[outcome] > 0 for outcome in ("completed", "rejected", "timed_out", "failed"))
    rows = pd.Series([reply.row["outcome"] for reply in replies if isinstance(reply, Reply)]).value_counts()
    assert all(rows.get(outcome, 0) == state[outcome] for outcome in OUTCOMES if outcome != "cancelled")


def test_a_job_names_its_own_method_and_busy_replicas_are_counted(replicas):
    with Dispatcher("sleep", 2, method="slow", menu=MENU, handles=replicas[:2], probe=True) as target:
        slow, quick = served(target, of(0.2), of(5.0, method="quick"))
    assert (slow.row["method"], quick.row["method"]) == ("slow", "quick") and quick.row["service_s"] < 0.2
    assert (slow.products["busy_start"], slow.products["busy_finish"]) == (1, 1)
    assert (quick.products["busy_start"], quick.products["busy_finish"]) == (2, 2)
    assert slow.row["probe_s"] > 0.001 and set(slow.row) == set(JOB_COLUMNS)


def test_under_a_policy_the_told_wait_is_of_the_method_that_each_job_will_get(replicas):
    """With four in the system the next to start is quick, then slow again: what the policy gives at each place."""
    with Dispatcher("sleep", 1, methods=("slow", "quick"), policy=[0, 0, 0, 1], menu=MENU, handles=replicas[:1],
                    estimate=by_menu) as target:
        replies = served(target, *[of(0.4)] * 4)
    told = [reply.products["expected_wait_s"] for reply in replies]
    assert told == pytest.approx([0, 0.4, 0.8, 0.4 + QUICK_S + 0.4], abs=0.02)
    assert [reply.row["method"] for reply in replies] == ["slow", "quick", "slow", "slow"]


@pytest.mark.parametrize("routing, k", [("central", 1), ("central", 2), ("jsq", 2), ("round_robin", 2)])
def test_the_last_job_waits_as_told(replicas, routing, k):
    """Nothing comes after it, so that what it is told follows from the methods and places alone."""
    with Dispatcher("sleep", k, routing=routing, methods=("slow", "quick"), policy=[0, 0, 1, 0, 1], menu=MENU,
                    handles=replicas[:k], estimate=by_menu) as target:
        replies = served(target, *[of(seconds) for seconds in (0.3, 0.4, 0.2, 0.45, 0.3, 0.35, 0.25, 0.5)],
                         of(0.15, method="slow"), of(0.1))
    last = replies[-1]
    assert {"slow", "quick"} == {reply.row["method"] for reply in replies}
    assert last.row["start_s"] - last.row["arrival_s"] == pytest.approx(last.products["expected_wait_s"], abs=0.1)


def test_each_job_is_told_the_wait_at_the_replica_that_it_joins(replicas):
    """Two equal queues of unequal work: a job told the wait of one must not join the other."""
    with Dispatcher("sleep", 2, routing="jsq", handles=replicas[:2], estimate=by_menu) as target:
        for _ in range(6):  # who joins which is chance
            replies = served(target, of(0.5), of(0.1), of(0.01))
            last = replies[2]
            assert last.products["expected_wait_s"] == pytest.approx(
                replies[0 if last.row["replica"] == replies[0].row["replica"] else 1].row["service_s"], abs=0.05)


def test_a_policy_declares_each_method_s_own_work(replicas):
    with Dispatcher("sleep", 1, methods=("slow", "quick"), policy=[0, 0, 0, 1], menu=MENU, handles=replicas[:1],
                    estimate=by_menu) as target:
        assert target.check({"seconds": 9.0}) == {"slow": 9.0, "quick": QUICK_S}
        assert target.check({"seconds": 9.0}, "slow") == {"slow": 9.0}


@pytest.mark.parametrize("options, message", [
    ({"replicas": 0}, "replicas = 0"),
    ({"spec": "dream"}, "unknown workload 'dream'"),
    ({"routing": "shortest"}, "unknown routing 'shortest': use one of"),
    ({"routing": "least_work"}, "least_work needs estimate"),
    ({"routing": "least_work", "estimate": len, "policy": [0], "methods": ("a",)}, "no policy"),
    ({"method": "night", "menu": MENU}, "unknown method 'night': use one of slow, quick"),
    ({"policy": [0, 2], "methods": ("slow", "quick"), "menu": MENU}, r"policy = \[0, 2\] names .* outside 0 ... 1"),
    ({"policy": [0.5], "methods": ("slow",)}, r"policy = \[0.5\] must be a row of integers"),
    ({"max_waiting": -1}, "max_waiting = -1"),
    ({"handles": []}, "0 handles for 1 replicas"),
])
def test_bad_options_are_refused_before_ray_starts(options, message):
    with pytest.raises(ValueError, match=message):
        Dispatcher(**{"spec": "sleep"} | options)


def test_bad_jobs_are_refused_before_they_count(replicas):
    with Dispatcher("sleep", 1, menu=MENU, handles=replicas[:1]) as target:
        replies = served(target, of(-1.0, method="slow"), of(0.1, method="night"), of(0.1),
                         of(0.1, method="slow", deadline_s=-1))
        assert target.queue()["offered"] == 0
    for reply, message in zip(replies, ["seconds = -1", "unknown method 'night'", "unknown method 'only': use one",
                                        "deadline_s = -1"], strict=True):
        assert isinstance(reply, ValueError) and message in str(reply)
    assert isinstance(served(Dispatcher("sleep"), of(0.1))[0], RuntimeError)


def test_more_replicas_than_slots_are_refused_at_once(replicas):
    with pytest.raises(ValueError, match="replicas = 99: Ray has 10 CPU slots"):
        Dispatcher("sleep", 99).start()


def pid_of(handle) -> int:
    return ray.get(handle.__ray_call__.remote(lambda replica: os.getpid()))


class Killer:
    """Knows the processes of a dispatcher's replicas, also of those that it starts later."""

    def __init__(self, target: Dispatcher):
        self.target, self.start = target, target._start_one
        self.pids = {server.handle: pid_of(server.handle) for server in target.servers}
        target._start_one = self.start_one

    def start_one(self):
        handle = self.start()
        self.pids[handle] = pid_of(handle)
        return handle

    async def run(self, jobs: list[dict], kills: int) -> list:
        """Submit the jobs at once; as often as asked, wait until replica 0 works and kill its process."""
        self.target.reset()
        tasks = [asyncio.create_task(self.target.submit(**job)) for job in jobs]
        for _ in range(kills):
            await asyncio.sleep(0.05)
            while (handle := self.target.servers[0].handle) is None or self.target.servers[0].job is None:
                await asyncio.sleep(0.02)
            os.kill(self.pids[handle], signal.SIGKILL)
            while self.target.servers[0].handle is handle:
                await asyncio.sleep(0.02)
        replies = await asyncio.wait_for(asyncio.gather(*tasks), 120)
        await self.target.drain()
        return replies


@pytest.mark.slow
@pytest.mark.parametrize("routing, k", [("central", 1), ("central", 2), ("jsq", 2), ("round_robin", 2)])
def test_a_killed_replica_costs_a_retry_and_is_replaced(replicas, routing, k):
    with Dispatcher("sleep", k, routing=routing) as target:
        replies = asyncio.run(Killer(target).run([of(0.4)] * 6, kills=1))
        state = target.queue()
        again = served(target, *[of(0.1)] * 2 * k)
    rows = pd.DataFrame([reply.row for reply in replies])
    assert (rows["outcome"] == "completed").all() and sorted(rows["attempt"]) == [1] * 5 + [2]
    assert (state["offered"], state["completed"], state["replicas"], state["in_system"]) == (6, 6, k, 0)
    retry = rows[rows["attempt"] == 2].iloc[0]
    others = rows[(rows["attempt"] == 1) & (rows["start_s"] > 0.1)]
    if routing == "central":
        assert (others["start_s"] > retry["start_s"]).sum() >= 3  # it went to the head of the queue
    else:
        assert retry["replica"] == 0 and (others.loc[others["replica"] == 0, "start_s"] > retry["start_s"]).all()
    assert {reply.row["replica"] for reply in again} == set(range(k))


def test_a_replica_that_is_replaced_is_of_the_same_spec(replicas):
    """Also where the first ones were started elsewhere."""
    spec = ReplicaSpec("sleep", threads=2)
    first = spec.start()
    with Dispatcher(spec, 1, handles=[first]) as target:
        reply, = asyncio.run(Killer(target).run([of(0.4)], kills=1))
        other = target.servers[0].handle
        threads = ray.get(other.__ray_call__.remote(lambda replica: __import__("torch").get_num_threads()))
    assert (reply.row["outcome"], reply.row["attempt"]) == ("completed", 2)
    assert other is not first and threads == 2


@pytest.mark.slow
def test_a_second_death_fails_the_job(replicas):
    with Dispatcher("sleep", 1) as target:
        killed, spared = asyncio.run(Killer(target).run([of(1.0), of(0.1)], kills=2))
        assert target.queue()["replicas"] == 1
    assert (killed.row["outcome"], killed.row["attempt"], spared.row["outcome"]) == ("failed", 2, "completed")
    assert killed.error.startswith("its replica died: ")


@pytest.mark.slow
@pytest.mark.parametrize("routing, completed", [("central", 6), ("round_robin", 3)])
def test_jobs_of_a_replica_that_cannot_be_replaced_fail_with_the_reason(replicas, routing, completed):
    def no_slot():
        raise RuntimeError("no slot")

    with Dispatcher("sleep", 2, routing=routing) as target:
        killer = Killer(target)
        target._start_one = no_slot
        replies = asyncio.run(killer.run([of(0.2)] * 6, kills=1))
        late = served(target, of(0.1), of(0.1))
    failed = [reply for reply in replies if reply.row["outcome"] == "failed"]
    assert len(failed) == 6 - completed and all("not be replaced: RuntimeError: no slot" in r.error for r in failed)
    assert [r.row["outcome"] for r in late] == (["completed"] * 2 if completed == 6 else ["failed", "completed"])


@pytest.mark.slow
def test_jobs_fail_when_the_dispatcher_is_stopped(replicas):
    async def stopped(target):
        tasks = [asyncio.create_task(target.submit({"seconds": 5.0})) for _ in range(2)]
        await asyncio.sleep(0.1)
        target.stop()
        return await asyncio.wait_for(asyncio.gather(*tasks), 10)

    replies = asyncio.run(stopped(Dispatcher("sleep").start()))
    assert [reply.row["outcome"] for reply in replies] == ["failed"] * 2
    assert replies[1].error == "the dispatcher was stopped"
