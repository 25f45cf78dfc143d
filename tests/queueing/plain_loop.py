"""The simulator's rules as one plain loop over events, written to be read: lists, and the work left in each job."""

import math


def plain_loop(arrival, work, k, *, routing="central", policy=(0,), estimate=None, speed=None, max_waiting=math.inf,
               deadline=None, ties=None):  # fmt: skip
    """One dict a job. work: a list of columns for each job; deadline and ties: one number a job."""
    jobs = [{"start": math.nan, "finish": math.nan, "replica": -1, "n_outstanding": 0, "outcome": "completed"}
            for _ in arrival]  # fmt: skip
    queues = [[] for _ in range(1 if routing == "central" else k)]
    running, left, idle_since = [None] * k, [0.0] * k, [0.0] * k
    now, i = 0.0, 0

    def start(job, replica, queue):
        present = len(queue) + 1 + (sum(j is not None for j in running) if routing == "central" else 0)
        column = policy[min(present, len(policy) - 1)]
        running[replica], left[replica] = job, work[job][column]
        jobs[job].update(start=now, replica=replica, n_outstanding=present, method=column)

    def choose():
        if routing == "central":
            idle = [r for r in range(k) if running[r] is None]
            return min(idle, key=lambda r: idle_since[r]) if idle else None
        if routing == "round_robin":
            return i % k
        if routing == "random":
            return int(float(ties[i]) * k)
        if routing == "power_of_two":
            if k == 1:
                return 0
            one = int(float(ties[i]) * k)
            others = [r for r in range(k) if r != one]
            other = others[int((float(ties[i]) * k - one) * len(others))]
            return min((one, other), key=lambda r: len(queues[r]) + (running[r] is not None))
        if routing == "jsq":
            loads = [len(queues[r]) + (running[r] is not None) for r in range(k)]
        else:
            loads = [-1 if running[r] is None else sum(estimate[j] for j in queues[r])
                     + max(0, estimate[running[r]] - (now - jobs[running[r]]["start"])) for r in range(k)]  # fmt: skip
        least = [r for r in range(k) if loads[r] == min(loads)]
        return least[int(float(ties[i]) * len(least))] if len(least) > 1 else least[0]

    while i < len(arrival) or any(j is not None for j in running):
        busy = [r for r in range(k) if running[r] is not None]
        rate = speed[len(busy)] if speed is not None else 1.0
        expiries = [(arrival[j] + deadline[j], j, q) for q in queues for j in q] if deadline is not None else []
        events = [(now + left[r] / rate, 0, r) for r in busy]
        events += [(time, 1, n) for n, (time, *_) in enumerate(expiries)]
        events += [(arrival[i], 2, i)] if i < len(arrival) else []
        time, kind, which = min(events)
        for r in busy:
            left[r] -= (time - now) * rate
        now = time
        if kind == 0:
            jobs[running[which]]["finish"] = now
            running[which], idle_since[which] = None, now
            queue = queues[0 if routing == "central" else which]
            if queue:
                start(queue.pop(0), which, queue)
        elif kind == 1:
            _, job, queue = expiries[which]
            queue.remove(job)
            jobs[job]["outcome"] = "timed_out"
        else:
            replica = choose()
            queue = queues[0] if routing == "central" else queues[replica]
            if replica is not None and running[replica] is None:
                start(i, replica, queue)
            elif sum(map(len, queues)) >= max_waiting:
                jobs[i]["outcome"] = "rejected"
            else:
                queue.append(i)
            i += 1
    return jobs
