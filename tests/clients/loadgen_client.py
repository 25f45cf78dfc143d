"""MLPerf's LoadGen, Server scenario, against an Images server; run by a Python that has mlcommons-loadgen and httpx.

Arguments: URL of the server, rate per second, number of requests, a folder for LoadGen's own logs.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import mlperf_loadgen as loadgen


def main(url: str, rate: float, n: int, folder: Path, body: dict) -> None:
    pool, client, answers = ThreadPoolExecutor(n), httpx.Client(timeout=300), []

    def ask(sample) -> None:
        answers.append(client.post(f"{url}/v1/images/generations", json=body).status_code)
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings, logs, output = loadgen.TestSettings(), loadgen.LogSettings(), loadgen.LogOutputSettings()
    settings.scenario, settings.mode = loadgen.TestScenario.Server, loadgen.TestMode.PerformanceOnly
    settings.server_target_qps, settings.server_target_latency_ns = rate, 10**11
    settings.min_query_count = settings.max_query_count = n
    settings.min_duration_ms = 0
    folder.mkdir(parents=True, exist_ok=True)
    output.outdir, logs.log_output = str(folder), output
    system = loadgen.ConstructSUT(lambda samples: [pool.submit(ask, one) for one in samples], lambda: None)
    library = loadgen.ConstructQSL(n, n, lambda _: None, lambda _: None)
    loadgen.StartTestWithLogSettings(system, library, settings, logs)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    print(json.dumps({"completed": answers.count(200), "asked": len(answers)}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5]))
