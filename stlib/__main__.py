"""The shell: python -m stlib tell | measure | serve | predict | policy | replay | check | table | models."""

import math
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from tqdm import tqdm

from stlib import paths

MOST_REPLICAS = 1000  # of a prediction: seconds a simulation
JOBS, CALIBRATION = 60, 10  # of a replay
LEAST_DRIFT = 200  # arrivals of a trace, for its rate to be said to move
System = Annotated[Path, typer.Option(help="a folder of `measure`: what is served, and what jobs cost there; left out, "
                                           "the embedded models' reference")]
Mix = Annotated[str, typer.Option(help="a job mix of data/mixes, or a YAML file")]
MenuFile = Annotated[Path, typer.Option("--menu", help="what a method's name stands for: a YAML file")]
Method = Annotated[str, typer.Option(help="inference method: a name of the menu")]
Replicas = Annotated[int, typer.Option(min=1, help="number of replicas")]
Routing = Annotated[str, typer.Option(help="which replica a job goes to: central, jsq, least_work, power_of_two, "
                                           "round_robin, random")]
LLM = Annotated[str, typer.Option(help="a causal LM: 'embedded', a hub name or a folder; 'none': captions alone")]
LDM = Annotated[str, typer.Option(help="a diffusers text-to-image pipeline: 'embedded', a hub name or a folder")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; in a replica cuda needs --gpus")]
Precision = Annotated[str, typer.Option(help="of weights and arithmetic: fp32, fp16, bf16, "
                                             "int8, nf4, dynamic-int8, torchao-int8, sdnq-int8")]
Threads = Annotated[int, typer.Option(min=1, help="torch threads of a replica")]
GPUs = Annotated[float, typer.Option(min=0, help="GPUs of a replica; 0.5 is one that another takes too")]
Table = Annotated[Path, typer.Option(help="a table's model: a folder of `table fit`")]
COLUMN = "the file's column of these, 'none' for none; left out, it is found by a usual name"
Column = Annotated[str | None, typer.Option(help=COLUMN)]
TimeColumn = Annotated[str | None, typer.Option(help="the trace's column of times; left out, it is found by its name")]
TraceUnit = Annotated[str | None, typer.Option(help="of a trace's numbers: s, ms, us or ns")]
TraceWindow = Annotated[str | None, typer.Option(help="600:1200, the seconds of the trace that are sent")]
TraceRate = Annotated[float | None, typer.Option(min=0, help="2: twice the trace's own rate")]
URL = Annotated[str | None, typer.Option(help="of a server that is not ours, up to the /v1 of its Images call")]
Token = Annotated[str | None, typer.Option(envvar="STORYTELLER_TOKEN", help="bearer token; kept nowhere")]
CA = Annotated[Path | None, typer.Option(help="certificates to trust, a PEM file")]
Timeout = Annotated[float, typer.Option(min=0.1, help="seconds; a request without an answer for so long failed")]
MENU, TABLE = paths.DATA / "menu.yml", paths.MODELS / "table"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Tell stories with an LLM, illustrate them with a latent diffusion model.")
table = typer.Typer(no_args_is_help=True, help="Fit a diffusion model to a table, draw rows like its own.")
app.add_typer(table, name="table")


@app.command()
def tell(
    prompt: Annotated[str, typer.Argument(help="what the story is about, such as 'a fox and a red balloon'")],
    method: Method = "sequential",
    panels: Annotated[int, typer.Option(help="number of panels, one sentence each")] = 4,
    steps: Annotated[int, typer.Option(help="denoising steps a panel")] = 20,
    llm_tokens: Annotated[int, typer.Option(help="upper limit of story tokens")] = 64,
    guidance: Annotated[float, typer.Option(help="guidance scale; 1 is without guidance")] = 2.5,
    seed: Annotated[int, typer.Option(help="reproduces story and pictures")] = 0,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads; left out, torch's own number")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="0: none, even where there is one")] = None,
    menu: MenuFile = MENU,
    out: Annotated[Path, typer.Option(help="folder for story, panels, strip and times")] = Path("story"),
):
    """Tell and illustrate one story and save it."""
    check_folder("--out", out, replaced=True)
    if gpus == 0 and device.startswith("cuda"):
        raise ValueError(f"--device {device} with --gpus 0: give one of the two")
    device = {None: device, 0: "cpu"}.get(gpus, "cuda" if device == "auto" else device)
    _say_unused_gpu(device == "cpu")
    from stlib.generation import METHODS, StoryJob, Storyteller
    from stlib.serving.rules import options_of, read_menu

    plain = {name: {"method": name} for name in METHODS} if menu == MENU else {}  # those not measured yet, too
    job = StoryJob(prompt=prompt, **{"n_panels": panels, "steps": steps, "llm_tokens": llm_tokens, "seed": seed,
                                     "guidance_scale": guidance} | options_of(method, plain | read_menu(menu)))
    if threads:
        import torch

        torch.set_num_threads(threads)
    storyteller = Storyteller.from_pretrained({"llm": llm, "ldm": ldm}, device=device, precision=precision)
    with tqdm(total=1, desc="loading", bar_format="{desc:>16} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        result = storyteller.tell(job, on_progress=lambda stage, done, total: _advance(bar, stage, done, total))
    result.save(out)
    print(result.story)
    print(f"{result.timings['total']:.2f} s; saved in {out}/")


def _advance(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.desc, bar.n, bar.total = stage, done, total
    bar.refresh()


@app.command()
def serve(
    replicas: Replicas = 1, method: Method = "sequential", routing: Routing = "central",
    host: Annotated[str, typer.Option(help="address to listen on; any but 127.0.0.1 needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on, 0 for any free one")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="STORYTELLER_TOKEN", help="bearer token of callers")] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="jobs that may wait, one more is refused")] = 64,
    probe: Annotated[bool, typer.Option("--probe", help="time a probe after each job, as in a campaign")] = False,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Threads = 1, gpus: GPUs = 0, menu: MenuFile = MENU,
    workload: Annotated[str, typer.Option(help="story, table, or mixed: both in one queue")] = "story",
    table: Table = TABLE, system: System = paths.REFERENCE,
):
    """Serve over HTTP: stories (a page, POST /stories, the OpenAI Images call), tables (POST /tables), or both."""
    from stlib.experiment import Costs
    from stlib.prediction.predict import estimator
    from stlib.serving.api import make_app
    from stlib.serving.dispatcher import Dispatcher
    from stlib.serving.learned import Learned
    from stlib.serving.rules import read_menu
    from stlib.serving.server import listen, run, url_of

    spec = _spec(system, workload, llm, ldm, device, precision, threads, gpus, table)
    fitted = Costs.read(workload, system)
    busy = fitted.busy_speed(method, replicas)[replicas]
    made = spec.make()
    estimate = Learned(estimator(fitted, made, level=1 / busy, probing=probe),
                       beyond=lambda job: fitted.beyond(made.resolve(job)))
    estimate(_small_job(spec), method)  # refuses a method not measured; the first request need not load
    sock = listen(host, port, token)
    print(f"loading {replicas} replicas ...", flush=True)
    with Dispatcher(spec, replicas, routing=routing, method=method, estimate=estimate, max_waiting=max_waiting,
                    probe=probe, menu=read_menu(menu)) as dispatcher:
        print(f"Storyteller is served at {url_of(sock)} (stop with Ctrl-C)", flush=True)
        run(make_app(dispatcher, token), sock)


def _spec(system: Path | None, workload: str, llm: str, ldm: str, device: str, precision: str, threads: int,
          gpus: float, table: Path):
    """The replicas of these options, checked; what is as always is left out, for the keys of what was measured.

    Those of a measured system are as they were measured.
    """
    from stlib.experiment.system import read_spec
    from stlib.serving.replica import ReplicaSpec

    if device.startswith("cuda") and gpus == 0:
        raise ValueError(f"--device {device}: a replica sees no GPU but those of --gpus; give --gpus 1, or a share")
    models = {name: value for name, value in (("llm", llm), ("ldm", ldm)) if value != "embedded"}
    options = {"models": (models, {}), "device": (device, "auto"), "precision": (precision, "fp32"),
               "table": (table, TABLE)}
    given = {name: value if name == "models" else str(value) for name, (value, usual) in options.items()
             if value != usual}
    for name in given:
        if workload != "mixed" and (name == "table") != (workload == "table"):
            raise ValueError(f"--{'llm or --ldm' if name == 'models' else name} is not of the workload {workload}: "
                             "leave it out, or name another --workload")
    spec = ReplicaSpec(workload, given, threads, gpus)
    if measured := read_spec(system) if system else None:
        if not isinstance(measured, ReplicaSpec):
            raise ValueError(f"--system {system} is the server at {measured.url}: `replay` sends jobs there, `predict` "
                             "says what to expect; it has no replicas here")
        if spec not in (ReplicaSpec(workload), measured):
            raise ValueError(f"--system {system} is of {measured!r}, the other options say {spec!r}: leave them out, "
                             "or measure that system")
        spec = measured
    _say_unused_gpu(gpus == 0 and spec.gpus == 0)
    spec.make().validate(_small_job(spec))  # refuses models that are not there
    return spec


def _say_unused_gpu(unused: bool) -> None:
    if unused and os.path.exists("/dev/nvidia0"):
        print("note: a GPU is there and not used; give --device cuda --gpus 1", file=sys.stderr)


def _small_job(spec) -> dict:
    told = "captions" if spec.options.get("models", {}).get("llm") == "none" else "prompt"
    return {"rows": 2, "steps": 1} if spec.workload == "table" else {told: "a fox", "image_size": 128} | (
        {"kind": "story"} if spec.workload == "mixed" else {})


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="the system's folder; what is measured there already is kept")],
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Threads = 1, gpus: GPUs = 0, menu: MenuFile = MENU,
    workload: Annotated[str, typer.Option(help="story or table")] = "story", table: Table = TABLE,
    design: Annotated[Path | None, typer.Option(help="the runs: a YAML file as data/design_system.yml")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="for the runs; left out, all of the design's")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="how many work side by side: what they do to each other")] = 1,
    url: URL = None,
    model: Annotated[str | None, typer.Option(help="the name that requests to --url carry")] = None,
    most: Annotated[int, typer.Option(min=4, help="requests to --url at once, at the most")] = 64,
    token: Token = None, ca: CA = None, timeout: Timeout = 600,
):
    """Measure what jobs cost, on this machine or by --url: a folder for serve, predict and replay --system."""
    from stlib.experiment.system import coefficients, measure_system, plan_of
    from stlib.serving.rules import read_menu

    seconds = math.inf if minutes is None else 60 * minutes
    if url is not None:
        return _measure_url(out, design, seconds, url, model, most, token, ca, timeout)

    spec, methods = _spec(None, workload, llm, ldm, device, precision, threads, gpus, table), read_menu(menu)
    design = design or paths.DATA / f"design_{'system' if workload == 'story' else 'tables'}.yml"
    runs, refused = plan_of(spec, design, methods)
    check_folder("--out", out)
    for reason, n in refused.items():
        print(f"left out, {n} runs: {reason}")
    costs, worth = measure_system(spec, runs, out, menu=methods, replicas=replicas, seconds=seconds)
    _show_costs(coefficients(costs), costs, worth)
    for method, speeds in costs.speed.items():
        print(f"speed of each of {len(speeds)} busy replicas, {method}: {speeds[-1]:.3f} of one alone")
    print(f"kept in {out}/: python -m stlib predict --system {out} --rate 0.1")


def _show_costs(prices, costs, worth) -> None:
    print(prices.to_string(index=False, float_format="%.2f"))
    print(f"{costs.n_rows} runs; a job's own spread {costs.residual_cv:.1%}; unseen runs: mean off by "
          f"{worth['mean'].abs().mean():.1%}, a job by {worth['job'].mean():.1%}")


def _measure_url(out: Path, design: Path | None, seconds: float, url: str, model: str | None, most: int,
                 token: str | None, ca: Path | None, timeout: float) -> None:
    """`measure` of a server that is not ours."""
    from stlib.experiment.system import coefficients, measure_server, requests_of
    from stlib.prediction.sent import places
    from stlib.serving.images_server import METHOD, ImagesServer, Server

    runs, extra = requests_of(design or paths.DATA / "design_images.yml")
    server = ImagesServer(Server(url=url.rstrip("/"), model=model, fields=extra), token, ca, timeout)
    server.reset()
    check_folder("--out", out)
    costs, worth, ramp = measure_server(server, runs, out, most=most, seconds=seconds)
    print(ramp[["level", "run_s", "throughput"]].to_string(index=False, float_format="%.3f"))
    k, speeds = places(costs), costs.speed[METHOD]
    grown = ", which is all that was tried: it may do more" if k == ramp["level"].iloc[-1] else ""
    print(f"it works on {k} requests at once{grown}; speed of each with 1 ... {k} there: "
          + ", ".join(f"{one:.3f}" for one in speeds))
    _show_costs(coefficients(costs), costs, worth)
    print(f"kept in {out}/: python -m stlib replay --system {out} --mix requests --rho 0.6")


@app.command()
def predict(
    rate: Annotated[float, typer.Option(min=0, max=10**6, help="jobs a second")],
    replicas: Annotated[int, typer.Option(min=1, max=MOST_REPLICAS, help="number of replicas")] = 1,
    method: Method = "sequential", mix: Mix = "stories_exact", routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson or bursty")] = "poisson",
    slo: Annotated[float | None, typer.Option(min=0, help="a deadline, seconds: the share answered by then")] = None,
    target: Annotated[list[str], typer.Option(
        help="p95=6: the 95th percentile may be 6 s, likewise any other one, mean and wq; slo=6:0.95: a share of 0.95 "
             "within 6 s. Tells the fewest replicas for the rate and the largest rate of the replicas; may be given "
             "again")] = (),
    system: System = paths.REFERENCE,
):
    """Predict the steady state: mean response, wait, percentiles, with 95 % intervals of the simulation."""
    import numpy as np

    from stlib.experiment import Costs, JobMix
    from stlib.prediction.cell import Campaign
    from stlib.prediction.predict import System, work_se
    from stlib.prediction.sent import METHOD, places
    from stlib.queueing.arrivals import is_trace
    from stlib.queueing.checks import positive
    from stlib.queueing.planning import read_target
    from stlib.queueing.simulation import replication_interval

    positive(rate=rate)
    targets = [read_target(text) for text in target]
    if is_trace(arrivals):
        raise ValueError(f"arrivals {arrivals}: a trace ends, so it has no steady state; take poisson or bursty, or "
                         "replay, which serves a trace and predicts that run")
    jobs = JobMix.from_yaml(mix)
    fitted = Costs.read(jobs.workload, system)
    if fitted.methods == (METHOD,):  # a server that is not ours: its places
        method, replicas = METHOD, places(fitted) if replicas == 1 else replicas
    times = Campaign.from_yaml().process_of(arrivals)
    system = System.of(fitted, jobs, method, replicas, routing=routing, arrivals=times)
    capacity, known = system.capacity, len(fitted.speed.get(method, [1]))
    plans = [system.plan(rate, *one, k_max=MOST_REPLICAS) for one in targets]
    error = 2 * work_se(fitted, jobs.sample(1000, np.random.default_rng(0)), method, replicas)
    told = f"{method}, {rate:g} jobs/s on {replicas} replicas (rho {rate / capacity:.2f})"
    if rate >= capacity and plans:  # without a target the run refuses it
        print(f"{told}: the queue only grows, {replicas} replicas do less than {capacity:.3f} jobs/s")
    elif capacity > rate >= (most := capacity / (1 + error)):
        print(f"{told}: the work is known to {error:.1%}, so this load cannot be told from 1 and the queue may only "
              f"grow; take at most {most:.3f} jobs/s, more replicas, or measure longer")
    else:
        percentiles = sorted({50, 95} | {float(name[1:]) for name, _ in targets if name.startswith("p")})
        runs = system.long_run(rate, slo_s=() if slo is None else (slo,), percentiles=percentiles)
        print(f"{told}, seconds: " + ", ".join(
            f"{name} {values.mean():.3f} ({{:.3f}} to {{:.3f}})".format(*replication_interval(values))
            for name, values in runs.items()))
        low, high = (scale * system.metric("mean", scale * rate) for scale in (1 - error, 1 + error))
        print(f"as well as the work is known ({error:.1%}, twice its standard error): mean {low:.3f} to {high:.3f}")
        if replicas == 1 and (exact := system.formula(rate)) is not None:
            print(f"exact (Pollaczek and Khinchine): mean {exact.w:.3f}, wq {exact.wq:.3f}")
    for text, (name, seconds), (fewest, most) in zip(target, targets, plans, strict=True):
        print(f"{text} ({name} up to {seconds:g} s): {fewest} replicas for {rate:g} jobs/s; "
              f"{replicas} replicas up to {most:.3f} jobs/s")
    if max([replicas, *(fewest for fewest, _ in plans)]) > known:
        print(f"assumed: with more than {known} replicas busy (not measured) each has the speed of {known}, "
              f"{fitted.busy_speed(method, known)[-1]:.3f}")


@app.command()
def replay(
    mix: Mix = "stories_exact", method: Method = "sequential", replicas: Replicas = 1, routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson, bursty or a trace of times, .csv or .jsonl, whose columns "
                                               "named as a job's fields (steps, width, height, ...) set these")
                        ] = "poisson",
    time_column: TimeColumn = None, trace_unit: TraceUnit = None, trace_window: TraceWindow = None,
    trace_rate: TraceRate = None,
    rho: Annotated[float | None, typer.Option(min=0, max=1, help="the load that sets the rate")] = None,
    rate: Annotated[float | None, typer.Option(min=0, max=10**6, help="jobs a second, in place of rho; a trace has its "
                                               "own")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help=f"number of jobs; left out, {JOBS} or all of a shorter trace"
                                             )] = None,
    calibration: Annotated[int | None, typer.Option(
        min=CALIBRATION, help=f"jobs each replica does before the run and after it, for the prediction; left out, "
        f"{CALIBRATION}, and for a server that is not ours none")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the results; left out, this profile's")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="reproduces arrivals and jobs")] = 0,
    http: Annotated[str | None, typer.Option(help="over HTTP, by one of its routes, such as /stories")] = None,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Threads = 1, gpus: GPUs = 0, table: Table = TABLE, menu: MenuFile = MENU, system: System = paths.REFERENCE,
    url: URL = None, token: Token = None, ca: CA = None, timeout: Timeout = 600,
    requests: Annotated[Path | None, typer.Option(help="to a server that is not ours: a published list, a line "
                                                  "`Request(prompt=..., width=..., ...)` or JSON a request")] = None,
):
    """Serve jobs for real and show the metrics beside their prediction, and the verdict: was it stable?

    A --system that was measured by its URL is sent the jobs there.
    """
    from stlib.experiment import Costs, JobMix
    from stlib.experiment.system import read_spec
    from stlib.prediction.cell import Arrivals, Campaign, Cell, read_cell, read_fitted, run_cell
    from stlib.prediction.compare import predict_cell, systems
    from stlib.prediction.sent import verdict
    from stlib.serving.images_server import ImagesServer, Server
    from stlib.serving.rules import read_menu

    campaign = Campaign.from_yaml()
    server = read_spec(system) if (system / "system.json").exists() else None
    if isinstance(server, Server):
        times = campaign.process_of(arrivals) | _trace_options(time_column, trace_unit, trace_window, trace_rate)
        server = server.but(url=url.rstrip("/")) if url else server
        return _replay_url(ImagesServer(server, token, ca, timeout), system, mix, times, rho, rate, jobs, requests,
                           seed, calibration or 0, out or paths.results() / "sent")
    if url or requests:
        raise ValueError(f"--url and --requests are of a system measured by its URL, {system} is none: "
                         f"python -m stlib measure --url {url or 'http://...'} --out FOLDER")
    cell = Cell(mix, method, replicas, routing, arrivals, rho, rate, http=http)
    times = campaign.process_of(arrivals) | _trace_options(time_column, trace_unit, trace_window, trace_rate)
    n_jobs = jobs or _n_jobs(times)  # refuses what is not the process's, as a column of times
    own = {"arrivals": {arrivals: Arrivals(**{key: value for key, value in times.items() if key != "name"})}}
    check_folder("--out", out or paths.results())
    workload = JobMix.from_yaml(mix).workload
    fitted = Costs.read(workload, system)
    baseline = campaign.baseline if campaign.baseline in fitted.methods else method  # of a system without it
    campaign = campaign.but(menu=read_menu(menu), n_jobs=n_jobs, calibration=calibration or CALIBRATION, seed=seed,
                            cells={0: cell}, baseline=baseline, **own)
    spec = _spec(system, workload, llm, ldm, device, precision, threads, gpus, table)
    folder = run_cell(campaign, 0, fitted, cache(lambda i: spec.start()), results=out, spec=spec)
    rows = predict_cell(folder)
    (told, answered, asked, _), (costs, whole) = read_cell(folder), read_fitted(folder)
    around = systems(told, costs, asked, whole)[2]
    named, sentence = verdict(answered, told["lam"] / around.capacity, around.level_se)
    print(rows[["metric", "slo_s", "served", "traced", "traced_lo", "traced_hi", "beforehand_lo", "beforehand_hi"]]
          .to_string(index=False, float_format="%.2g" if named == "overloaded" else "%.3f", na_rep=""))
    print(sentence)
    print(f"kept in {folder}/")


def _replay_url(server, system: Path, mix: str, arrivals: dict, rho: float | None, rate: float | None,
                n_jobs: int | None, requests: Path | None, seed: int, calibration: int, out: Path) -> None:
    """`replay` of a server that is not ours; arrivals: the parameters of `arrival_process`."""
    import numpy as np

    from stlib.experiment import Costs, JobMix
    from stlib.experiment.jobs import drawn, listed
    from stlib.experiment.request_lists import read_requests
    from stlib.prediction import sent
    from stlib.queueing.arrivals import arrival_process, is_trace
    from stlib.serving.images_server import METHOD, counted
    from stlib.serving.replay import replay

    costs, arrival_s, deadline_s = Costs.read("story", system), None, None
    if out.exists():
        raise ValueError(f"--out {out} is there already: name another folder")
    check_folder("--out", out, replaced=True)
    k = sent.places(costs)
    if requests is not None:
        jobs, arrival_s, deadline_s = read_requests(requests)
        jobs = jobs.head(n_jobs or len(jobs))
        mean_s = costs.mean_s(jobs, METHOD).mean()
    else:
        asked, n_jobs = listed(JobMix.from_yaml(mix), arrivals), n_jobs or _n_jobs(arrivals)
        mean_s = costs.mean_s(asked.sample(n_jobs, np.random.default_rng(0)), METHOD).mean()
    if rho is None and rate is None and arrival_s is None and not is_trace(arrivals["name"]):
        raise ValueError("give --rho or --rate, or a trace or --requests with times of their own")
    if rho is not None:
        rate = rho * k * costs.busy_speed(METHOD, k)[k] / mean_s
    if requests is None:
        jobs, arrival_s, _ = drawn(asked, arrivals, rate, seed, n_jobs)
    elif rate is not None or arrival_s is None:
        arrival_s = arrival_process(rate, **arrivals).sample(len(jobs), np.random.default_rng(seed))
    some = jobs.sample(calibration, replace=True, random_state=seed)
    whole = [sent.alone(server, some, costs, "before")] if calibration else []
    table, products = replay(jobs, arrival_s, server)
    whole += [sent.alone(server, some, costs, "after")] if calibration else []
    level = sent.level_of(whole)
    print(counted(table["outcome"], products["error"]))
    if not (table["outcome"] == "completed").any():
        raise RuntimeError("no request was answered: nothing to compare")
    rows = sent.predict_sent(table, jobs, costs, *level, server.server.trip_s,
                             slo_s=None if deadline_s is None else deadline_s[: len(jobs)], seed=seed)
    load = sent.offered_load(table, jobs, costs, *level)
    named, sentence = sent.verdict(table, *load)
    print(rows.to_string(index=False, float_format="%.2g" if named == "overloaded" else "%.3f", na_rep=""))
    print(sentence, sent.difference(rows), sep="\n")
    with paths.whole(out) as folder:
        folder.mkdir()
        for name, one in (("metrics", rows), ("served", table.join(products.drop(columns="job_id"))), ("jobs", jobs)):
            one.to_csv(folder / f"{name}.csv", index=False)
    print(f"kept in {out}/")


def _trace_options(time_column: str | None, unit: str | None, window: str | None, scale: float | None) -> dict:
    """Those given, as `arrival_process` takes them."""
    given = {"time_column": time_column, "unit": unit, "scale": scale}
    if window is not None:
        try:
            begin, end = map(float, window.split(":"))
        except ValueError:
            raise ValueError(f"--trace-window {window}: give two times in seconds, as 600:1200") from None
        given["window"] = [begin, end]
    return {name: value for name, value in given.items() if value is not None}


def _n_jobs(arrivals: dict) -> int:
    """How many jobs a replay has; arrivals: the parameters of `arrival_process`. Says how a trace's rate moves."""
    from stlib.queueing.arrivals import arrival_process, is_trace

    if not is_trace(arrivals["name"]):
        arrival_process(1.0, **arrivals)
        return JOBS
    trace = arrival_process(None, **arrivals)
    n, told = len(trace.arrival_s), ""
    if n >= LEAST_DRIFT:
        low, high, p = trace.drift()
        told = (f"; over tenths of it the rate moves from {low:.3g} to {high:.3g}, "
                + (f"which no constant rate would do (p = {p:.2g}): its parts differ, and so will their waits"
                   if p < 0.01 else f"as it may at a constant one (p = {p:.2g})"))
    print(f"trace: {n} arrivals in {trace.arrival_s[-1]:.6g} s" + told)
    return min(JOBS, n)


@app.command()
def policy(
    rate: Annotated[float, typer.Option(min=0, help="jobs a second, Poisson, to one replica")],
    score: Annotated[list[str], typer.Option(help="sequential=0.8: what a method's pictures are worth; for each of two "
                                                  "methods or more")],
    quality: Annotated[float, typer.Option(help="the mean score wanted")],
    mix: Mix = "stories_exact", system: System = paths.REFERENCE,
):
    """Say from how many outstanding jobs on which method is taken, for the least mean response at a mean score."""
    import numpy as np

    from stlib.experiment import Costs, JobMix
    from stlib.prediction.predict import MixWork
    from stlib.queueing.policy import Menu, best_mixture, evaluate, policy_for, spans

    try:
        scores = {name: float(value) for name, value in (one.split("=") for one in score)}
    except ValueError:
        raise ValueError(f"--score {' '.join(score)}: give each as METHOD=NUMBER") from None
    jobs = JobMix.from_yaml(mix)
    work, _ = MixWork.of(Costs.read(jobs.workload, system), jobs, list(scores)).sample(np.random.default_rng(0), 4000)
    menu, dropped = Menu(tuple(scores), work, np.array(list(scores.values()))).undominated()
    for name in dropped:
        print(f"{name} is left out: another method is as good and as quick")
    chosen, mixed = policy_for(rate, menu, quality), best_mixture(rate, menu, quality)
    found, other = evaluate(rate, menu, chosen), evaluate(rate, menu, mixed)
    print(*spans(menu, chosen), sep="\n")
    print(f"mean response {found.response_s:.3f} s at a mean score of {found.quality:.3f}; the best mixture by chance "
          f"({spans(menu, mixed)[0].split(': ')[1]}) {other.response_s:.3f} s, so "
          f"{1 - found.response_s / other.response_s:.0%} less")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="a log of served jobs: CSV with a header, JSONL or Parquet")],
    arrival: Column = None, start: Column = None, finish: Column = None, reply: Column = None, replica: Column = None,
    kind: Annotated[str | None, typer.Option("--class", help=COLUMN)] = None, outcome: Column = None,
    unit: Annotated[str | None, typer.Option(help="of times that are numbers: s, ms, us or ns; left out, it is told by "
                                                  "their size")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="number of replicas; left out, it is found")] = None,
    slo: Annotated[float | None, typer.Option(min=0, help="seconds: also the share answered within them")] = None,
    out: Annotated[Path | None, typer.Option(help="a new folder for a page of figures and the tables")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="fixes the simulation")] = 0,
):
    """Say which queue a log of jobs is of, whether the model holds for it, and what more or fewer replicas give."""
    from stlib.prediction.check import check_log
    from stlib.prediction.job_log import read_log

    if out is not None:
        if out.exists():
            raise ValueError(f"--out {out} is there already: name another folder")
        check_folder("--out", out, replaced=True)
    columns = {"arrival": arrival, "start": start, "finish": finish, "reply": reply, "replica": replica, "class": kind,
               "outcome": outcome}
    found = check_log(read_log(file, columns, unit), replicas, slo_s=() if slo is None else (slo,), seed=seed)
    print(*found.sentences[:-1], sep="\n")
    for name in ("metrics", "replicas"):
        print("", found.tables[name].to_string(index=False, float_format="%.4g", na_rep=""), sep="\n")
    print("", found.sentences[-1], sep="\n")
    if out is not None:
        keep_check(found.tables, out)
        print(f"kept in {out}/")


def keep_check(tables: dict, out: Path) -> None:
    """Write a page of figures, as PDF and PNG, and the tables as CSV into a new folder, whole or not at all."""
    from stlib.report import check_page

    with paths.whole(out) as folder:
        folder.mkdir()
        for name, rows in tables.items():
            rows.to_csv(folder / f"{name}.csv", index=False)
        page = check_page(tables)
        page.savefig(folder / "check.pdf", metadata={"CreationDate": None})
        page.savefig(folder / "check.png")


@app.command()
def models():
    """Fetch and check the embedded models; what is there already is kept."""
    from stlib.generation import fetch_models

    fetch_models()


@table.command("fit")
def fit_table(
    file: Annotated[Path, typer.Argument(help="a CSV file; its first line names the columns")],
    out: Annotated[Path, typer.Option(help="folder for the model")] = Path("table"),
    updates: Annotated[int, typer.Option(min=1, help="of the network; the default takes a minute or two")] = 5000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="fixes the training")] = 0,
):
    """Fit a model to a CSV file; `table sample --table FOLDER` draws rows then, `serve --workload table` serves."""
    from stlib.generation.tables import TableDiffusion
    from stlib.generation.tables.files import read_table

    if out.exists():
        raise ValueError(f"--out {out} is there already: name another folder")
    rows = read_table(file)
    check_folder("--out", out, replaced=True)
    model = TableDiffusion.fit(rows, updates, seed)
    kinds = [f"{column.name} ({'number' if column.knots else f'{len(column.levels)} values'})"
             for column in model.columns.columns]
    print(f"{len(rows)} rows; {', '.join(kinds)}; saved in {model.save(out)}/")


@table.command("sample")
def sample_table(
    rows: Annotated[int, typer.Argument(help="how many")],
    table: Table = TABLE,
    where: Annotated[list[str], typer.Option(help="occupation=student: a value that a column has in all rows; may be "
                                                  "given again")] = (),
    steps: Annotated[int, typer.Option(help="denoising steps")] = 40,
    seed: Annotated[int, typer.Option(help="reproduces the rows")] = 0,
    out: Annotated[Path, typer.Option(help="CSV file for the rows")] = Path("rows.csv"),
):
    """Draw rows of a fitted table (left out, the embedded survey) into a CSV file."""
    from stlib.generation.tables import TableDiffusion, TableJob
    from stlib.generation.tables.files import read_conditions

    model = TableDiffusion.from_pretrained(table)
    job = TableJob(rows=rows, steps=steps, seed=seed, conditions=read_conditions(where, model.columns))
    model.check(job)
    check_folder("--out", out.parent)
    with tqdm(total=1, desc="drawing", bar_format="{desc:>16} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        result = model.draw(job, lambda done, total: _advance(bar, "drawing", done, total))
    with paths.whole(out) as file:
        result.table.to_csv(file, index=False)
    print(f"{rows} rows in {sum(result.timings.values()):.2f} s; saved in {out}")


def check_folder(option: str, folder: Path, *, replaced: bool = False) -> None:
    """Raise ValueError unless `folder` can be written into or, empty, be `replaced`; tried, without trace."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent if replaced else folder) as trial:
            if replaced:
                os.chmod(trial, folder.stat().st_mode)
                os.replace(trial, folder)
    except OSError as error:
        raise ValueError(f"{option} {folder} cannot be written ({error.strerror}): name another place") from error
    finally:
        for one in missing:
            if os.path.isdir(one):
                one.rmdir()


def main() -> None:
    """Run the command of the arguments; what is wrong with them or their files ends it in one line.

    Where no command is named the help is shown, and the error has no message.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except typer.BadParameter.__base__ as error:  # click's UsageError, of which typer may carry a copy
        cause = error.__cause__  # pydantic's, which knows the value
        given = f", not {cause.errors()[0]['input']}" if isinstance(cause, ValidationError) else ""
        sys.exit(f"error: {message}{given}" if (message := error.format_message()) else 2)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
