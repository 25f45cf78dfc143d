"""Open-loop replay: what it sends and when, its tables, its clocks, bad input."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from stlib.queueing.job_table import JOB_COLUMNS, job_metrics
from stlib.serving.dispatcher import UNSTARTED, Dispatcher
from stlib.serving.replay import replay
from stlib.serving.targets import COUNTED, HttpTarget
from stlib.serving.workloads.sleep import SleepWorkload

ray = pytest.importorskip("ray")


def sleepers(seconds, **columns) -> pd.DataFrame:
    return pd.DataFrame({"job_id": np.arange(len(seconds)), "workload": "sleep", "seconds": seconds} | columns)


@pytest.fixture
def pair(replicas):
    with Dispatcher("sleep", 2, handles=replicas[:2]) as target:
        yield target


def makespan_and_overhead(target) -> tuple[float, float]:
    table, _ = replay(sleepers([0.1] * 20), np.zeros(20), target, progress=False)
    return table["finish_s"].max(), (table["finish_s"] - table["start_s"] - table["service_s"]).median()


def test_it_is_nearly_work_conserving(pair):
    runs = np.array([makespan_and_overhead(pair) for _ in range(3)])
    assert np.median(runs[:, 0]) <= 1.12 and np.median(runs[:, 1]) <= 0.010


@pytest.mark.slow
def test_work_conserving_within_six_percent_and_five_milliseconds_a_job(pair):
    runs = np.array([makespan_and_overhead(pair) for _ in range(10)])
    assert np.median(runs[:, 0]) <= 1.06 and np.median(runs[:, 1]) <= 0.005


def test_the_tables_and_littles_law(pair):
    """Little: the dispatcher's own count against the times of the table, from empty to empty."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(0.09, 14))
    jobs = sleepers(rng.uniform(0.15, 0.3, 14))
    jobs["job_id"] = rng.permutation(14)
    table, products = replay(jobs, arrival, pair, progress=False)
    state = pair.queue()
    assert state["job_seconds"] == pytest.approx((table["reply_s"] - table["scheduled_s"]).sum(), rel=0.01)
    assert list(table) == list(JOB_COLUMNS) and list(table["job_id"]) == list(range(14)) == list(products["job_id"])
    np.testing.assert_array_equal(table["scheduled_s"], arrival[np.argsort(jobs["job_id"])])
    times = table[["scheduled_s", "arrival_s", "start_s", "finish_s", "reply_s"]].to_numpy()
    assert (np.diff(times, axis=1) >= 0).all()
    asked = jobs.sort_values("job_id")["seconds"].to_numpy()
    assert (products["slept_s"] >= asked).all() and (table["service_s"] >= asked).all()
    assert job_metrics(table)["completed"] == 14 and set(table["method"]) == {"only"}
    assert {"lag_s", "error", "busy_start", "busy_finish", "run_s"} <= set(products)
    assert table.attrs["generator_limited"] == (products["lag_s"].quantile(0.99) > 0.005)


def test_jobs_are_sent_whatever_becomes_of_the_others(pair):
    table, _ = replay(sleepers([0.5] * 6), np.arange(6) * 0.02, pair, deadline_s=[9, 9, 9, 9, 0.1, np.inf],
                      progress=False)
    assert (table["arrival_s"] - table["scheduled_s"]).max() < 0.05
    assert list(table["outcome"]) == ["completed"] * 4 + ["timed_out", "completed"]
    out = table.iloc[4]
    assert out["replica"] == -1 and out[["start_s", "finish_s", "service_s", "reply_s", "method"]].isna().all()


def test_parameters_left_out_are_not_sent(pair, monkeypatch):
    seen = []
    monkeypatch.setattr(SleepWorkload, "validate", lambda self, params: seen.append(params))
    jobs = sleepers([0.01, 0.02], captions=[("a fox",), None], steps=pd.array([4, None], "Int64"), method=[None, "nap"])
    table, _ = replay(jobs, [0, 0], pair, method="rest", progress=False)
    assert seen[:2] == [{"seconds": 0.01, "captions": ("a fox",), "steps": 4, "method": "rest"},
                        {"seconds": 0.02, "method": "nap"}]
    assert type(seen[0]["steps"]) is int and list(table["method"]) == ["rest", "nap"]


def test_a_late_generator_is_told(pair, monkeypatch):
    monkeypatch.setattr(SleepWorkload, "validate", lambda *_: time.sleep(0.02))
    with pytest.warns(UserWarning, match="the load generator was late"):
        table, products = replay(sleepers([0.0] * 5), np.zeros(5), pair, progress=False)
    assert table.attrs["generator_limited"] and products["lag_s"].max() > 0.05


@pytest.fixture
def heeds_ctrl_c():
    """A shell's background jobs, and so their tests, ignore it otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_cancels_what_waits_and_leaves_the_dispatcher_able_to_work(pair, heeds_ctrl_c):
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        replay(sleepers([0.6] * 10), np.arange(10) / 20, pair)
    state = pair.queue()
    assert state["in_system"] == 0 and state["cancelled"] == state["offered"] < 10
    table, _ = replay(sleepers([0.01]), [0.0], pair, progress=False)
    assert table["outcome"][0] == "completed"


@pytest.mark.parametrize("jobs, arrival_s, options, message", [
    (sleepers([0.1] * 3), [0, 1], {}, "2 arrivals for 3 jobs"),
    (sleepers([0.1] * 2), [1, 0], {}, "arrival_s falls from 1 to 0 s at job 1"),
    (sleepers([0.1] * 2), [0, np.nan], {}, r"arrival_s\[1\] is nan"),
    (sleepers([0.1] * 2), [-1, 0], {}, r"arrival_s\[0\] is -1"),
    (sleepers([0.1, -1]), [0, 1], {}, "job 1: seconds = -1"),
    (sleepers([]), [], {}, "0 jobs"),
    (sleepers([0.1] * 2).assign(job_id=1), [0, 1], {}, "1 different job_id"),
    (sleepers([0.1]).assign(workload="story"), [0], {}, "job 0: .*'story'.*'sleep'"),
    (sleepers([0.1] * 2), [0, 1], {"deadline_s": [1, -1]}, "deadline_s"),
    (sleepers([0.1]), [0], {"method": "night"}, "job 0: unknown method 'night'"),
])
def test_bad_input_is_refused_before_any_job_runs(replicas, jobs, arrival_s, options, message):
    with Dispatcher("sleep", 2, methods=("only",), handles=replicas[:2]) as target:
        with pytest.raises(ValueError, match=message):
            replay(jobs, arrival_s, target, **options)
        assert target.queue()["offered"] == 0


def test_arrivals_beyond_the_jobs_are_not_used(pair):
    assert len(replay(sleepers([0.01]), [0.0, 100.0], pair, progress=False)[0]) == 1


ROW = {"job_id": 0, "workload": "story", "scheduled_s": None, "arrival_s": 0.1, **UNSTARTED, "reply_s": None,
       "attempt": 1, "outcome": "completed"}
ANSWERS = {  # status, headers and body by the job's seed; None: the connection is closed, 0: no answer comes
    0: (200, {"X-Job": json.dumps(ROW, default=str).replace("NaN", "null"), "X-Products": '{"told": 1}'}, "{}"),
    1: None,
    2: (502, {}, "<html>bad gateway</html>"),
    3: (200, {}, '{"data": []}'),
    4: (200, {"X-Job": "garbage", "X-Products": "{}"}, "{}"),
    5: (200, {"X-Job": "[1, 2]", "X-Products": "{}"}, "{}"),
    6: (200, {"X-Job": json.dumps(ROW | {"arrival_s": "soon"}), "X-Products": "{}"}, "{}"),
    7: (200, {"X-Job": json.dumps(ROW | {"outcome": "splendid"}), "X-Products": "{}"}, "{}"),
    8: (200, {"X-Job": json.dumps({"outcome": "completed"}), "X-Products": "{}"}, "{}"),
    9: (200, {"X-Job": json.dumps(ROW), "X-Products": "7"}, "{}"),
    10: (500, {"X-Job": json.dumps(ROW | {"outcome": "failed"}), "X-Products": "{}"}, "no JSON"),
    11: (200, {"X-Job": json.dumps(ROW), "X-Products": '{"job_id": 99, "lag_s": "late"}'}, "{}"),
    12: (200, {"X-Job": json.dumps(ROW | {"method": ["a"]}), "X-Products": "{}"}, "{}"),
    13: 0,
}


class Stranger(BaseHTTPRequestHandler):
    """A service that answers each job in its own bad way."""

    def do_GET(self):
        self.answer(200, {}, json.dumps(dict.fromkeys((*COUNTED, "in_system"), 0)))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = ANSWERS[body["seed"]]
        if answer == 0:
            time.sleep(1.5)
        if answer:
            self.answer(*answer)

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        """Quiet."""


@contextmanager
def stranger():
    """Its URL, and how to end it at once."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def end():
        server.shutdown()
        server.server_close()

    try:
        yield f"http://127.0.0.1:{server.server_port}", end
    finally:
        end()
        thread.join()


def stories(seeds) -> pd.DataFrame:
    return pd.DataFrame({"job_id": range(len(seeds)), "workload": "story", "captions": [("a fox",)] * len(seeds),
                         "seed": seeds})


@pytest.mark.filterwarnings("ignore:the load generator was late")
def test_a_job_without_an_answer_is_a_failed_row_and_the_run_goes_on():
    seeds = [*ANSWERS, 0]
    with stranger() as (url, _):
        table, products = replay(stories(seeds), np.arange(len(seeds)) * 0.02, HttpTarget(url, timeout_s=1.0),
                                 progress=False)
    answered = [0, 11, len(seeds) - 1]
    assert list(table["job_id"]) == list(range(len(seeds))) == list(products["job_id"])
    assert list(table) == list(JOB_COLUMNS)
    assert list(table.index[table["outcome"] == "completed"]) == answered
    failed = table.drop(answered)
    assert (failed["outcome"] == "failed").all() and products["error"].drop(answered).str.len().min() > 5
    assert (failed["replica"] == -1).all() and failed["start_s"].isna().all() and (products["lag_s"] >= 0).all()
    assert (failed["scheduled_s"] == failed["job_id"] * 0.02).all()
    assert "502" in products["error"][2] and "splendid" in products["error"][7]
    assert "Timeout" in products["error"][13] and job_metrics(table)["failed"] == len(seeds) - 3


@pytest.mark.filterwarnings("ignore:the load generator was late")
def test_a_service_that_goes_away_leaves_the_whole_table():
    with stranger() as (url, end):
        threading.Timer(0.5, end).start()
        table, products = replay(stories([0] * 3), [0.0, 1.0, 1.1], HttpTarget(url), progress=False)
    assert list(table["outcome"]) == ["completed", "failed", "failed"]
    assert products["error"][1:].str.startswith("ConnectError").all() and table["arrival_s"][1:].isna().all()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
                                   b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
                                   b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"SSH-2.0\r\n"])
def test_a_service_that_is_none_at_the_start_is_refused(reply):
    def answer(sock):
        connection, _ = sock.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=answer, args=[sock])
        thread.start()
        with pytest.raises(RuntimeError, match=r"no service at .*: start one with python -m stlib serve"):
            replay(stories([0]), [0.0], HttpTarget(f"http://127.0.0.1:{sock.getsockname()[1]}"), progress=False)
        thread.join()
