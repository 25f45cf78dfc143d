"""Servers that are not ours, of known queues: measured by their URL alone, predicted, and served beside it."""

import json
import re
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest

from stlib import paths
from stlib.experiment import Costs
from stlib.experiment.ramp import fit_places, rounds_as_one
from stlib.experiment.system import read_spec, requests_of
from stlib.serving.images_server import METHOD, ImagesServer, Server

sys.path.append(str(paths.ROOT / "tests" / "serving"))
from image_servers import STEP_S, Places, StepWise, serving
from service import Command

DESIGN = """
seed: 1
experiments:
  server:
    levels: {image_size: [64, 128], steps: [4, 8, 16], n_panels: [1, 2]}
    fixed: {negative_prompt: ""}
    replicates: REPLICATES
"""
MIX = """
workload: story
pool: stories
texts: [captions]
exact_tokens: false
n_panels: 1
steps: {4: 1, 8: 2, 16: 1}
llm_tokens: 64
image_size: 64
guidance_scale: 1
"""


SPREAD = 0.15


@pytest.fixture
def files(tmp_path):
    def written(replicates=3):
        (tmp_path / "design.yml").write_text(DESIGN.replace("REPLICATES", str(replicates)))
        (tmp_path / "mix.yml").write_text(MIX)
        return tmp_path

    return written


def by_steps(body, seconds=0.01, rng=None):
    """Seconds a step; with an rng lognormal about it, a standard deviation of 15 %."""
    scatter = 1.0 if rng is None else float(rng.lognormal(-SPREAD**2 / 2, SPREAD))
    return seconds * body["n"] * body["num_inference_steps"] * scatter


def ramp_of(throughput, se=0.003):
    levels = np.array(list(throughput))
    flow = np.array(list(throughput.values()))
    return pd.DataFrame({"level": levels, "run_s": levels / flow, "se": se, "throughput": flow})


def test_places_are_found_where_throughput_ends_to_grow():
    found = fit_places(ramp_of({1: 1.0, 2: 1.99, 3: 3.01, 4: 3.0, 5: 2.99, 6: 3.0}))
    assert list(found["busy"]) == [1, 2, 3] and found["speed"].to_numpy() == pytest.approx(1, abs=0.01)
    flow = {c: c / np.interp(c, list(STEP_S), list(STEP_S.values())) for c in range(1, 9)}
    found = fit_places(ramp_of(flow | dict.fromkeys((10, 12, 14), flow[8])))
    assert len(found) in (7, 8)  # which do nearly the same
    assert len(found) * found["speed"].iloc[-1] == pytest.approx(8 * STEP_S[1] / STEP_S[8], rel=0.01)
    one = fit_places(ramp_of({1: 2.0, 2: 2.0, 3: 2.01, 4: 2.0}))
    assert len(one) == 1 and one["se"].tolist() == [0]
    assert len(fit_places(ramp_of({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}))) == 4  # it may do more
    idle = {1: 1 / 1.04, 2: 1.0, 3: 1.001, 4: 0.999}  # one place that waits 40 ms for its next request
    assert len(fit_places(ramp_of(idle))) == 2 and len(fit_places(ramp_of(idle), trip_s=0.02)) == 1


def test_a_machine_that_changes_is_not_taken_for_more_places():
    """One place; the machine is a tenth faster in the first round's second level, slower in its third."""
    drift = {(2, 0): 1.10, (3, 0): 1.03, (4, 0): 0.94, (2, 1): 0.98, (3, 1): 1.01, (4, 1): 1.04, (3, 2): 0.96}
    rows = pd.DataFrame([{"level": level, "turn": turn, "se": 0.004, "run_s": level / drift.get((level, turn), 1.0)}
                         for level in range(1, 6) for turn in range(3)])
    assert len(fit_places(rounds_as_one(rows))) == 1
    first = rows[rows["turn"] == 0]
    assert len(fit_places(rounds_as_one(first))) > 1
    still = rows.assign(run_s=rows["level"] / rows["level"].clip(upper=2) * (1 + 0.001 * rows["turn"]))
    found = fit_places(rounds_as_one(still))
    assert len(found) == 2 and (found["speed"] == 1).all()


def test_a_server_is_measured_and_replayed_by_its_url(files, shell):
    """With a token, and fields of its own; the folder knows the URL and not the token."""
    folder = files(2)
    with serving(Places(2, by_steps), token="secret") as (url, seen):
        measure = ["measure", "--url", url, "--model", "dots", "--design", folder / "design.yml", "--out",
                   folder / "it"]
        assert "401" in shell(*measure)[1] and not (folder / "it" / "system.json").exists()
        told, code = shell(*measure, "--token", "secret")
        assert code == 0, told
        assert re.search("it works on [123] requests at once", told) and "panel steps[server]" in told
        assert {one["model"] for one in seen} == {"dots"} and {one["negative_prompt"] for one in seen} == {""}
        assert {one["size"] for one in seen} == {"64x64", "128x128"} and "guidance_scale" not in seen[0]
        spec, costs = read_spec(folder / "it"), Costs.read("story", folder / "it")
        own = Server(url=url, model="dots", fields={"negative_prompt": ""})
        assert 0 < spec.trip_s < 0.1 and spec.but(trip_s=0.0).model_dump() == own.model_dump()
        assert costs.methods == (METHOD,)
        assert "secret" not in (folder / "it" / "system.json").read_text()
        kept = len(seen)
        assert shell(*measure, "--token", "secret")[1] == 0 and len(seen) == kept  # nothing is asked twice

        replay = ["replay", "--system", folder / "it", "--mix", folder / "mix.yml", "--token", "secret", "--rho", 0.4]
        told, code = shell(*replay, "--jobs", 40, "--out", folder / "sent")
        assert code == 0 and "40 completed" in told and "stable: load 0." in told and "the mean " in told, (told, code)
        rows = pd.read_csv(folder / "sent" / "metrics.csv").set_index("metric")
        assert list(rows.index) == ["mean", "p50", "p95", "p99", "within", "throughput"]
        assert rows["predicted"]["mean"] >= rows["more"]["mean"]
        assert not rows["fewer"]["mean"] < rows["predicted"]["mean"]
        assert len(pd.read_csv(folder / "sent" / "served.csv")) == 40
        assert "is there already" in shell(*replay, "--out", folder / "sent")[1]

        (folder / "list.txt").write_text("\n".join(
            f"Request(request_id={i}, prompt='a fox', width=64, height=64, num_inference_steps=4, "
            f"timestamp={0.1 * i}, slo_ms=500)" for i in range(12)))
        told, code = shell(*replay[:3], "--token", "secret", "--requests", folder / "list.txt", "--out", folder / "l")
        assert code == 0 and "12 completed" in told, (told, code)
        (folder / "trace.jsonl").write_text("\n".join(json.dumps({"timestamp": 100 * i, "steps": 4 + 4 * (i % 2)})
                                                      for i in range(20)))
        told, code = shell(*replay[:-2], "--arrivals", folder / "trace.jsonl", "--trace-unit", "ms", "--trace-window",
                           "0.5:1.5", "--trace-rate", 0.5, "--out", folder / "t")
        assert code == 0 and "10 completed" in told, (told, code)
        jobs = pd.read_csv(folder / "t" / "jobs.csv")
        assert jobs["steps"].tolist() == [8, 4] * 5
        sent = pd.read_csv(folder / "t" / "served.csv")["scheduled_s"]
        assert np.allclose(sent, np.arange(10) * 0.2)
    assert re.search("no server at .*--url", shell(*replay, "--out", folder / "gone")[1])
    told, _ = shell("predict", "--system", folder / "it", "--mix", folder / "mix.yml", "--rate", 5)
    assert "server, 5 jobs/s on " in told
    assert "is the server at" in shell("serve", "--system", folder / "it")[1]
    assert "measured by its URL" in shell("replay", "--url", url)[1]


def test_tls_is_trusted_by_its_certificate(files, shell, tmp_path):
    pem = tmp_path / "own.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", pem, "-out",
                    tmp_path / "crt.pem", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "crt.pem").read_text())
    folder = files(2)
    with serving(Places(1, by_steps), certificate=pem) as (url, _):
        measure = ["measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it", "--most", 4]
        assert "CERTIFICATE_VERIFY_FAILED" in shell(*measure)[1]
        told, code = shell(*measure, "--ca", tmp_path / "crt.pem")
        assert code == 0 and re.search("it works on [12] requests at once", told)


def refuses(handler, n, body):
    return handler.reply(429, {"error": "slow down"}) or True


def lies(handler, n, body):
    return handler.reply(200, {"error": {"message": "out of memory"}}) or True


def is_another(handler, n, body):
    return handler.reply(404, {"detail": "Not Found"}) or True


def hangs(handler, n, body):
    return threading.Event().wait(3) or True


@pytest.mark.parametrize("answer, message", [
    (refuses, r"of 1 requests, 1 at once, 1 fail, the first: .*images/generations: 429, .*slow down"),
    (lies, r"200, .*out of memory.* is not the 1 pictures asked for"), (is_another, "404, .*Not Found"),
    (hangs, "ReadTimeout"),
], ids=["429", "200 with an error", "no images server", "hangs"])
def test_a_server_that_does_not_draw_is_named_and_nothing_kept(files, shell, answer, message):
    folder = files()
    with serving(Places(1, by_steps), answer=answer) as (url, _):
        error = shell("measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it", "--timeout",
                      0.5)[1]
    assert re.search(message, error), error
    assert not (folder / "it" / "system.json").exists() and not list((folder / "it").glob("costs*"))


def test_a_server_that_is_not_there(files, shell):
    folder = files()
    error = shell("measure", "--url", "http://127.0.0.1:9/v1", "--design", folder / "design.yml", "--out",
                  folder / "it")[1]
    assert "no server at http://127.0.0.1:9/v1 (ConnectError" in error and not (folder / "it").exists()
    assert "url = 'ftp://x'" in shell("measure", "--url", "ftp://x", "--out", folder / "it")[1]


def test_a_level_at_which_it_refuses_ends_the_ramp(files, shell):
    """It holds three requests at once and refuses more."""
    here, lock = [0], threading.Lock()

    class Door(Places):
        def serve(self, body):
            super().serve(body)
            with lock:
                here[0] -= 1

    def crowded(handler, n, body):
        with lock:
            full = here[0] >= 3
            here[0] += not full
        return full and (handler.reply(429, {"error": "full"}) or True)

    folder = files(2)
    with serving(Door(3, by_steps), answer=crowded) as (url, _):
        told, code = shell("measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it")
    assert code == 0 and "requests, 4 at once, " in told and "fail, the first:" in told and "429" in told, (told, code)
    assert re.search("it works on (2|3 requests at once, which is all that was tried)", told)


def drops_every_tenth(handler, n, body):
    if n % 10 == 0 and n > DROPS_FROM:
        handler.close_connection = True
        handler.connection.close()
        return True
    return False


DROPS_FROM = 10_000


def test_dropped_requests_are_counted_and_named(files, shell, monkeypatch):
    folder = files(2)
    with serving(Places(2, by_steps), answer=drops_every_tenth) as (url, _):
        assert shell("measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it")[1] == 0
        monkeypatch.setitem(globals(), "DROPS_FROM", 0)
        told, code = shell("replay", "--system", folder / "it", "--mix", folder / "mix.yml", "--rho", 0.3, "--jobs", 40,
                           "--out", folder / "sent")
    assert code == 0 and "36 completed, 4 failed; the first error: " in told, (told, code)
    assert len(pd.read_csv(folder / "sent" / "served.csv")) == 40


@pytest.mark.parametrize("text, message", [
    (DESIGN.replace("replicates: REPLICATES", "").replace("steps: [4, 8, 16]", "steps: [0, 8]"), "steps = 0"),
    (DESIGN.replace("REPLICATES", "1").replace("fixed: {negative_prompt: \"\"}", "").replace(
        "n_panels: [1, 2]", "n_panels: [1, 2], loras: [a, b]"), "loras is no field of a job.* fixed"),
    (DESIGN.replace("REPLICATES", "1").replace("steps: [4, 8, 16]", "steps: [4]"), "two different ones"),
], ids=["no job", "a foreign factor", "one level"])
def test_a_design_that_cannot_be_asked_is_refused(tmp_path, text, message):
    (tmp_path / "my.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        requests_of(tmp_path / "my.yml")


def test_the_same_requests_come_from_the_same_design():
    first, extra = requests_of(paths.DATA / "design_images.yml")
    again, _ = requests_of(paths.DATA / "design_images.yml")
    assert first.equals(again) and extra == {} and set(first["method"]) == {METHOD}
    server = ImagesServer(Server(url="http://127.0.0.1:1/v1"))
    body = server.body(first[["captions", "n_panels", "image_size", "steps", "seed"]].iloc[0].to_dict())
    assert set(body) == {"prompt", "n", "size", "num_inference_steps", "seed", "response_format"}


@pytest.mark.slow
def test_three_sleeping_places_are_found_and_predicted(files, shell, record_summary):
    folder, rng = files(12), np.random.default_rng(1)
    with serving(Places(3, lambda body: by_steps(body, 0.06, rng))) as (url, _):
        told, code = shell("measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it")
        assert code == 0 and "it works on 3 requests at once" in told, told
        told, code = shell("replay", "--system", folder / "it", "--mix", folder / "mix.yml", "--rho", 0.6, "--jobs",
                           400, "--out", folder / "sent")
        assert code == 0, told
    rows = pd.read_csv(folder / "sent" / "metrics.csv").set_index("metric")
    record_summary("three_places", rows[["served", "predicted", "low", "high"]].to_dict("index"))
    assert rows["predicted"]["mean"] == pytest.approx(rows["served"]["mean"], rel=0.03), rows


@pytest.mark.slow
def test_step_wise_batching_is_found_and_predicted_where_plain_queues_are_off(files, shell, record_summary):
    """Published step times over 5; at two loads mean and P95 within 5 %, M/G/8 and M/G/1 are not."""
    from stlib.prediction import sent
    from stlib.queueing.formulas import mgk

    folder, found = files(3), {}
    with serving(StepWise(8, 0.2)) as (url, _):
        told, code = shell("measure", "--url", url, "--design", folder / "design.yml", "--out", folder / "it")
        assert code == 0, told
        costs = Costs.read("story", folder / "it")
        k = sent.places(costs)
        speeds = costs.busy_speed(METHOD, k)
        for b, step_s in STEP_S.items():  # of b requests together; 7 and 8 do nearly the same
            together = min(b, k) * speeds[min(b, k)]
            assert together == pytest.approx(b * STEP_S[1] / step_s, rel=0.05), (b, speeds)
        for rho in (0.4, 0.75):
            told, code = shell("replay", "--system", folder / "it", "--mix", folder / "mix.yml", "--rho", rho, "--jobs",
                               400, "--out", folder / f"sent_{rho}")
            assert code == 0, told
            rows = pd.read_csv(folder / f"sent_{rho}" / "metrics.csv").set_index("metric")
            jobs = pd.read_csv(folder / f"sent_{rho}" / "jobs.csv")
            mean_s = costs.mean_s(jobs.assign(prompt=""), METHOD)
            rate = rho * k * speeds[k] / mean_s.mean()
            scv = mean_s.var() / mean_s.mean() ** 2
            plain = {"M/G/8": mgk(rate, mean_s.mean(), scv, 8).w,
                     "M/G/1": mgk(rate, mean_s.mean() / (k * speeds[k]), scv, 1).w}
            found[rho] = rows[["served", "predicted"]].to_dict("index") | plain
            for metric in ("mean", "p95"):
                assert rows["predicted"][metric] == pytest.approx(rows["served"][metric], rel=0.05), (rho, rows)
            assert all(abs(one / rows["served"]["mean"] - 1) > 0.1 for one in plain.values()), (plain, rows)
    record_summary("step_wise", found | {"places": k, "speeds": speeds[1:].tolist()})


OWN_DESIGN = """
seed: 1
experiments:
  server:
    levels: {image_size: [64, 128], steps: [8, 14, 20], n_panels: [1, 2]}
    replicates: 6
"""
OWN_MIX = MIX.replace("{4: 1, 8: 2, 16: 1}", "{8: 1, 14: 2, 20: 1}").replace("n_panels: 1", "n_panels: [1, 2]")
CELLS = [(1, "poisson", 0.4), (1, "bursty", 0.35), (2, "poisson", 0.4)]


@pytest.mark.slow
def test_our_own_server_is_predicted_as_a_stranger_s(tmp_path, shell, record_summary):
    """By its URL alone, over three cells: mean within 7.5 %, P95 10 %, share in time 3 points."""
    (tmp_path / "design.yml").write_text(OWN_DESIGN)
    (tmp_path / "mix.yml").write_text(OWN_MIX)
    found = {}
    for replicas in (1, 2):
        out = tmp_path / f"it_{replicas}"
        with Command("--replicas", str(replicas), "--method", "parallel") as service:
            told, code = shell("measure", "--url", f"{service.url}/v1", "--model", "storyteller", "--design",
                               tmp_path / "design.yml", "--out", out, "--most", 3)
            assert code == 0 and f"it works on {replicas} requests at once" in told, told
            for cell in (one for one in CELLS if one[0] == replicas):
                _, arrivals, rho = cell
                sent = tmp_path / f"sent_{replicas}_{arrivals}"
                told, code = shell("replay", "--system", out, "--mix", tmp_path / "mix.yml", "--rho", rho, "--jobs",
                                   150, "--calibration", 100, "--arrivals", arrivals, "--seed", 5, "--out", sent)
                assert code == 0, told
                rows = pd.read_csv(sent / "metrics.csv").set_index("metric")
                found[" ".join(map(str, cell))] = rows[["served", "predicted", "low", "high"]].to_dict("index")
    record_summary("own_server_as_a_stranger", found)
    for cell, rows in found.items():
        for metric, bar in (("mean", 0.075), ("p95", 0.1)):
            assert rows[metric]["predicted"] == pytest.approx(rows[metric]["served"], rel=bar), (cell, metric, found)
        assert abs(rows["within"]["predicted"] - rows["within"]["served"]) <= 0.03, (cell, found)
