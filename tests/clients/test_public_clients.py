"""Load generators of others, each in an environment of its own, against our server: their counts and times beside ours.

The environments lie in build/clients and are made once; a client that does not install here is skipped with the reason.
"""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import httpx
import numpy as np
import pytest

from stlib import paths
from stlib.queueing.simulation import finite_run

sys.path.append(str(paths.ROOT / "tests" / "serving"))
from service import Command

N, RHO, WARM = 80, 0.6, 30
BODY = {"prompt": "a fox", "size": "64x64", "num_inference_steps": 8, "response_format": "b64_json"}
pytestmark = pytest.mark.slow


def environment(name: str, *packages: str) -> Path:
    """The folder of an environment with these packages; skips the test where they do not install."""
    folder = paths.BUILD / "clients" / name
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        done = subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *packages], text=True,
                              capture_output=True)
        if done.returncode:
            pytest.skip(f"{name} does not install here: {done.stderr.strip().splitlines()[-1][:200]}")
        (folder / "whole").touch()
    return folder


def run(*command) -> str:
    done = subprocess.run([str(part) for part in command], text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def loadgen(url, rate, folder):
    """Completed requests, mean and P95 in seconds, as MLPerf's LoadGen says."""
    home = environment("loadgen", "mlcommons-loadgen", "httpx")
    told = json.loads(run(home / "bin" / "python", Path(__file__).with_name("loadgen_client.py"), url, rate, N, folder,
                          json.dumps(BODY)).splitlines()[-1])
    said = (folder / "mlperf_log_summary.txt").read_text()
    mean, p95 = (float(re.search(rf"{name} latency \(ns\)\s*: (\d+)", said)[1]) / 1e9
                 for name in ("Mean", r"95.00 percentile"))
    return told["completed"], mean, p95


def aiperf(url, rate, folder):
    """The same of NVIDIA's AIPerf, Poisson arrivals."""
    home = environment("aiperf", "aiperf==0.13.0")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text(json.dumps({"text": BODY["prompt"]}) + "\n")
    run(home / "bin" / "aiperf", "profile", "--url", url, "--model", "storyteller", "--endpoint-type",
        "image_generation", "--tokenizer", "builtin", "--input-file", folder / "prompts.jsonl", "--custom-dataset-type",
        "single_turn", "--extra-inputs", f"size:{BODY['size']}", f"num_inference_steps:{BODY['num_inference_steps']}",
        "--request-rate", rate, "--arrival-pattern", "poisson", "--request-count", N, "--ui", "none",
        "--artifact-dir", folder)
    told = json.loads(next(folder.rglob("profile_export_aiperf.json")).read_text())
    return int(told["request_count"]["avg"]), *(told["request_latency"][name] / 1000 for name in ("avg", "p95"))


@pytest.fixture(scope="module")
def service():
    """The service, what one of these requests takes it and that time's coefficient of variation."""
    with Command("--method", "parallel", "--max-waiting", "1000") as one:
        spans = []
        for _ in range(WARM):
            answer = httpx.post(f"{one.url}/v1/images/generations", json=BODY, timeout=60).raise_for_status()
            spans.append(answer.elapsed.total_seconds())
        spans = np.array(spans[5:])
        yield one, spans.mean(), spans.std() / spans.mean()


@pytest.mark.parametrize("client", [loadgen, aiperf], ids=["LoadGen", "AIPerf"])
def test_a_public_client_counts_and_times_as_we_do(client, service, tmp_path, record_summary):
    """Every request ends once by its count and ours; its mean and P95 lie within our prediction of such a run."""
    server, mean_s, cv = service
    rate = RHO / mean_s
    before = server.queue()
    completed, mean, p95 = client(server.url, rate, tmp_path / "out")
    after = server.queue()
    ours = {name: after[name] - before[name] for name in ("offered", "completed", "failed", "cancelled")}

    def draw(rng, m):
        work = mean_s * rng.gamma(1 / cv**2, cv**2, (m, N))
        return rng.exponential(1 / rate, (m, N)).cumsum(axis=1), work, None

    runs = finite_run(draw, 1, 4000, np.random.default_rng(0))
    predicted = {name: [float(runs[name].quantile(q)) for q in (0.5, 0.025, 0.975)] for name in ("mean", "p95")}
    record_summary(f"client_{client.__name__}", {
        "requests": N, "rate": rate, "alone_s": mean_s, "completed": completed, "ours": ours, "mean_s": mean,
        "p95_s": p95, "predicted": predicted})
    assert ours == {"offered": N, "completed": N, "failed": 0, "cancelled": 0} and completed == N
    for name, value in (("mean", mean), ("p95", p95)):
        assert predicted[name][1] < value < predicted[name][2], (name, value, predicted)
