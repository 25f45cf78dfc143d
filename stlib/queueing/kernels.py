"""The event loop of the simulator, compiled.

All compiled functions live in this file: numba's cache notices a change of the called function's file, of no other.
"""

from collections import namedtuple

import numpy as np
from numba import njit

CENTRAL, JSQ, LEAST_WORK, POWER_OF_TWO, ASSIGNED = range(5)
COMPLETED, REJECTED, TIMED_OUT = range(3)
STARTS, WAITS, LEAVES = range(3)

# What decides: codes and shared arrays, then arrays with one entry a job (empty where the rule has no use for them).
Rules = namedtuple("Rules", "routing policy speed max_waiting estimate ties expiry order")
# What happened to each job. `replica` holds the assignment beforehand where the routing is ASSIGNED.
Rows = namedtuple("Rows", "start finish service replica method n_outstanding outcome")
# Replicas: when a busy one will finish, on the work clock, or an idle one did; its job (-1: idle); the estimates
# of the jobs waiting for it. Queues, one or one a replica: jobs present and a linked list of those waiting.
State = namedtuple("State", "target running declared present head tail after")


def _jit(**options):
    """njit, its machine code kept on disk where a folder for that can be written."""

    def decorate(function):
        try:
            return njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # numba: "no locator available", neither the package's folder nor the user's is writable
            return njit(nogil=True, **options)(function)

    return decorate


# Parts of the loop are inlined and allocate nothing: without counting references to arrays it is 15 times as fast.
part = _jit(forceinline=True, _nrt=False)


@_jit()
def simulate_rows(first, last, arrival, work, k, rules, rows):
    """Simulate the independent runs first ... last - 1; every array of one entry a job has shape (runs, jobs)."""
    n = arrival.shape[1]
    for m in range(first, last):
        run_rules = Rules(rules.routing, rules.policy, rules.speed, rules.max_waiting,
                          rules.estimate[m], rules.ties[m], rules.expiry[m], rules.order[m])
        run_rows = Rows(rows.start[m], rows.finish[m], rows.service[m], rows.replica[m],
                        rows.method[m], rows.n_outstanding[m], rows.outcome[m])
        state = State(np.zeros(k), np.full(k, -1), np.zeros(k), np.zeros(k, np.int64), np.full(k, -1), np.full(k, -1),
                      np.full(n, -1, np.int32))
        _simulate(arrival[m], work[m], run_rules, run_rows, state)


@_jit(_nrt=False)
def _simulate(arrival, work, rules, rows, state):
    """One run. At equal times departures come first, then expiries, then arrivals.

    `v` is the work clock: the work that a replica busy all along has done. It runs at speed[busy], the same for all
    busy replicas, so a job of work w started at v0 ends when v reaches v0 + w; without `speed` it equals the time t.
    """
    n = arrival.size
    paced = rules.speed.size > 0
    t = v = 0.0
    i = busy = waiting = expired = 0
    while i < n or busy > 0:
        r, depart = _next_to_finish(state)
        if paced and busy > 0:
            depart = t + max(0.0, depart - v) / rules.speed[busy]
        arrive = arrival[i] if i < n else np.inf
        expired, expire = _next_expiry(expired, i, rules, rows)
        now = min(depart, expire, arrive)
        if not paced:
            v = now
        elif busy > 0:
            v += (now - t) * rules.speed[busy]
        t = now
        if depart == now:
            v = state.target[r]
            started = _depart(r, t, v, waiting, work, rules, state, rows)
            waiting -= started
            busy -= 1 - started
        elif expire == now:
            _expire(rules.order[expired], rules, state, rows)
            waiting -= 1
        else:
            outcome = _arrive(i, t, v, waiting, work, rules, state, rows)
            busy += outcome == STARTS
            waiting += outcome == WAITS
            i += 1


@part
def _arrive(i, t, v, waiting, work, rules, state, rows):
    """Job i arrives: it starts, waits or is rejected."""
    r = _choose(i, t, rules, state, rows)
    q = 0 if rules.routing == CENTRAL else r
    idle = state.running[r] < 0
    if not idle and waiting >= rules.max_waiting:
        rows.replica[i] = -1
        rows.outcome[i] = REJECTED
        return LEAVES
    state.present[q] += 1
    if idle:
        _start(i, r, state.present[q], t, v, work, rules, state, rows)
        return STARTS
    if state.head[q] < 0:
        state.head[q] = i
    else:
        state.after[state.tail[q]] = i
    state.tail[q] = i
    rows.replica[i] = r  # of a central queue: whichever, until it starts
    if rules.routing == LEAST_WORK:
        state.declared[r] += rules.estimate[i]
    return WAITS


@part
def _choose(i, t, rules, state, rows):
    """The replica of job i: its assigned one, or one of least load, of all or of two."""
    if rules.routing == ASSIGNED:
        return rows.replica[i]
    k = state.running.size
    if rules.routing == POWER_OF_TWO:
        if k == 1:
            return 0
        drawn = float(rules.ties[i]) * k
        one = int(drawn)
        other = int((drawn - one) * (k - 1))
        other += other >= one
        return one if state.present[one] <= state.present[other] else other
    best, least, tied = 0, np.inf, 0
    for r in range(k):
        load = _load(r, t, rules, state, rows)
        if load < least:
            best, least, tied = r, load, 1
        elif load == least:
            tied += 1
    if tied > 1 and rules.ties.size > 0:
        for _ in range(int(float(rules.ties[i]) * tied)):
            best += 1
            while _load(best, t, rules, state, rows) != least:
                best += 1
    return best


@part
def _load(r, t, rules, state, rows):
    """What the routing minimises. Central: the longest idle first, a busy one is no choice."""
    j = state.running[r]
    if rules.routing == CENTRAL:
        return state.target[r] if j < 0 else np.inf
    if rules.routing == JSQ:
        return float(state.present[r])
    if j < 0:
        return -1.0  # before a busy one that has outrun its estimates
    return state.declared[r] + max(0.0, rules.estimate[j] - (t - rows.start[j]))


@part
def _start(j, r, outstanding, t, v, work, rules, state, rows):
    column = rules.policy[min(outstanding, rules.policy.size - 1)]
    state.running[r] = j
    state.target[r] = v + work[j, column]
    rows.start[j] = t
    rows.service[j] = work[j, column]
    rows.replica[j] = r
    rows.method[j] = column
    rows.n_outstanding[j] = outstanding


@part
def _depart(r, t, v, waiting, work, rules, state, rows):
    """Replica r finishes its job and starts the next that waits for it, if any: 1 if it does, else 0."""
    j = state.running[r]
    rows.finish[j] = t
    if rules.speed.size > 0:
        rows.service[j] = t - rows.start[j]
    state.running[r] = -1
    state.target[r] = t
    q = 0 if rules.routing == CENTRAL else r
    state.present[q] -= 1
    if waiting == 0 or (rules.routing != CENTRAL and state.present[q] == 0):
        return 0
    j = state.head[q]
    while rows.outcome[j] == TIMED_OUT:
        j = state.after[j]
    state.head[q] = state.after[j]
    if rules.routing == LEAST_WORK:
        _withdraw(j, r, rules, state)
    _start(j, r, state.present[q], t, v, work, rules, state, rows)
    return 1


@part
def _next_to_finish(state):
    """The busy replica that will be the first to finish, and when on the work clock: inf if all are idle."""
    best, soonest = 0, np.inf
    for r in range(state.running.size):
        if state.running[r] >= 0 and state.target[r] < soonest:
            best, soonest = r, state.target[r]
    return best, soonest


@part
def _next_expiry(expired, i, rules, rows):
    """Advance over jobs that wait no more; a job that has not arrived cannot expire before the next arrival."""
    while expired < rules.order.size:
        j = rules.order[expired]
        if j >= i:
            break
        if np.isnan(rows.start[j]) and rows.outcome[j] == COMPLETED:
            return expired, rules.expiry[j]
        expired += 1
    return expired, np.inf


@part
def _expire(j, rules, state, rows):
    r = rows.replica[j]
    state.present[0 if rules.routing == CENTRAL else r] -= 1
    if rules.routing == LEAST_WORK:
        _withdraw(j, r, rules, state)
    rows.replica[j] = -1
    rows.outcome[j] = TIMED_OUT


@part
def _withdraw(j, r, rules, state):
    """Job j waits for replica r no more; if none does, no rounding may stay behind, for it would decide ties."""
    state.declared[r] -= rules.estimate[j]
    if state.present[r] == 1:
        state.declared[r] = 0.0
