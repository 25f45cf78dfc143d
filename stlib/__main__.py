"""The shell: python -m stlib tell | serve | predict | replay | models | pdf."""

import functools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from stlib import paths
from stlib.options import Command, UsageError, check_folder, number, ranged

MOST_REPLICAS = 1000  # of a prediction: seconds a simulation
JOBS, CALIBRATION = 60, 10  # of a replay without a campaign
CostsFile = Annotated[Path, typer.Option("--costs", help="what jobs cost, measured")]
Mix = Annotated[str, typer.Option(help="a job mix of data/mixes, or a YAML file")]
MenuFile = Annotated[Path, typer.Option("--menu", help="what a method's name stands for: a YAML file")]
Method = Annotated[str, typer.Option(help="inference method")]
Replicas = Annotated[int, ranged("replicas", int, "number of replicas", at_least=1)]
Routing = Annotated[str, typer.Option(help="which replica a job goes to")]
LLM = Annotated[str, typer.Option(help="a causal LM: 'embedded', a hub name or a folder; 'none': captions alone")]
LDM = Annotated[str, typer.Option(help="a diffusers text-to-image pipeline: 'embedded', a hub name or a folder")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; in a replica cuda needs --gpus")]
Precision = Annotated[str, typer.Option(help="of the pipeline's weights and arithmetic")]
Threads = Annotated[int, ranged("threads", int, "torch threads of a replica", at_least=1)]
GPUs = Annotated[float, ranged("gpus", float, "GPUs of a replica; 0.5 is one that another takes too", at_least=0)]
COSTS, MENU = paths.REFERENCE / "costs.json", paths.DATA / "menu.yml"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Tell stories with an LLM, illustrate them with a latent diffusion model.")


@app.command(cls=Command)
def tell(
    prompt: Annotated[str, typer.Argument(help="what the story is about, such as 'a fox and a red balloon'")],
    method: Method = "sequential",
    panels: Annotated[int, typer.Option(parser=number, help="number of panels, one sentence each")] = 4,
    steps: Annotated[int, typer.Option(parser=number, help="denoising steps a panel")] = 20,
    llm_tokens: Annotated[int, typer.Option(parser=number, help="upper limit of story tokens")] = 64,
    guidance: Annotated[float, typer.Option(parser=number, help="guidance scale; 1 is without guidance")] = 2.5,
    seed: Annotated[int, typer.Option(parser=number, help="reproduces story and pictures")] = 0,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    menu: MenuFile = MENU,
    out: Annotated[Path, typer.Option(help="folder for story, panels, strip and times")] = Path("story"),
):
    """Tell and illustrate one story and save it."""
    check_folder("--out", out, replaced=True)
    from stlib.generation import StoryJob, Storyteller
    from stlib.serving.rules import options_of, read_menu

    options = {"n_panels": panels, "steps": steps, "llm_tokens": llm_tokens, "guidance_scale": guidance, "seed": seed}
    job = StoryJob(prompt=prompt, **options | options_of(method, read_menu(menu)))
    storyteller = Storyteller.from_pretrained({"llm": llm, "ldm": ldm}, device=device, precision=precision)
    with tqdm(total=1, desc="loading", bar_format="{desc:>16} |{bar}| {n_fmt}/{total_fmt} [{elapsed}]") as bar:
        result = storyteller.tell(job, on_progress=lambda stage, done, total: _advance(bar, stage, done, total))
    result.save(out)
    print(result.story)
    print(f"{result.timings['total']:.2f} s; saved in {out}/")


def _advance(bar: tqdm, stage: str, done: int, total: int) -> None:
    bar.desc, bar.n, bar.total = stage, done, total
    bar.refresh()


@app.command(cls=Command)
def serve(
    replicas: Replicas = 1, method: Method = "sequential", routing: Routing = "central",
    host: Annotated[str, typer.Option(help="address to listen on; any but 127.0.0.1 needs a token")] = "127.0.0.1",
    port: Annotated[int, ranged("port", int, "port to listen on, 0 for any free one", at_least=0,
                                at_most=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="STORYTELLER_TOKEN", help="bearer token of callers")] = None,
    max_waiting: Annotated[int, ranged("max_waiting", int, "jobs that may wait, one more is refused",
                                       at_least=0)] = 64,
    probe: Annotated[bool, typer.Option("--probe", help="time a probe after each job, as in a campaign")] = False,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Threads = 1, gpus: GPUs = 0, menu: MenuFile = MENU,
    costs: CostsFile = COSTS,
):
    """Serve stories over HTTP: a page, POST /stories, the OpenAI Images call."""
    from stlib.experiment import Costs
    from stlib.prediction.predict import estimator
    from stlib.serving.api import make_app
    from stlib.serving.dispatcher import Dispatcher
    from stlib.serving.rules import read_menu
    from stlib.serving.server import listen, run, url_of

    names = read_menu(menu)
    fitted, spec = Costs.from_json(costs), _spec(llm, ldm, device, precision, threads, gpus)
    busy = fitted.busy_speed(method, replicas)[replicas]
    estimate = estimator(fitted, spec.make(), level=1 / busy, probing=probe)
    estimate(_small_job(llm), method)  # refuses a method that was not measured; the first request need not load
    sock = listen(host, port, token)
    print(f"loading {replicas} replicas ...", flush=True)
    with Dispatcher(spec, replicas, routing=routing, method=method, estimate=estimate, max_waiting=max_waiting,
                    probe=probe, menu=names) as dispatcher:
        print(f"Storyteller is served at {url_of(sock)} (stop with Ctrl-C)", flush=True)
        run(make_app(dispatcher, token), sock)


def _spec(llm: str, ldm: str, device: str, precision: str, threads: int, gpus: float):
    """The replicas of these options, checked; what is as always is left out, for the keys of what was measured."""
    from stlib.serving.replica import ReplicaSpec

    if device.startswith("cuda") and gpus == 0:
        raise ValueError(f"--device {device}: a replica sees no GPU but those of --gpus; give --gpus 1, or a share")
    models = {name: value for name, value in (("llm", llm), ("ldm", ldm)) if value != "embedded"}
    options = {"models": (models, {}), "device": (device, "auto"), "precision": (precision, "fp32")}
    spec = ReplicaSpec("story", {name: value for name, (value, usual) in options.items() if value != usual}, threads,
                       gpus)
    spec.make().validate(_small_job(llm) | {"image_size": 128})  # refuses models that are not there
    return spec


def _small_job(llm: str) -> dict:
    return {"captions": "a fox"} if llm == "none" else {"prompt": "a fox"}


@app.command(cls=Command)
def predict(
    rate: Annotated[float, ranged("rate", float, "jobs a second", above=0, at_most=10**6)],
    replicas: Annotated[int, ranged("replicas", int, "number of replicas", at_least=1, at_most=MOST_REPLICAS)] = 1,
    method: Method = "sequential", mix: Mix = "stories_exact", routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson or bursty")] = "poisson",
    slo: Annotated[float | None, ranged("slo", float, "a deadline, seconds: the share of jobs answered by then",
                                        above=0)] = None,
    target: Annotated[list[str] | None, typer.Option(
        help="p95=6: the 95th percentile may be 6 s, likewise any other one, mean and wq; slo=6:0.95: a share of 0.95 "
             "within 6 s. Tells the fewest replicas for the rate and the largest rate of the replicas; may be given "
             "again")] = None,
    costs: CostsFile = COSTS,
):
    """Predict the steady state: mean response, wait, percentiles, with 95 % intervals of the simulation."""
    from stlib.experiment import Costs
    from stlib.prediction.cell import Campaign
    from stlib.prediction.predict import System
    from stlib.queueing.planning import read_target

    wanted = {text: read_target(text) for text in target or ()}
    if arrivals.endswith(".csv"):
        raise ValueError(f"arrivals {arrivals}: a trace ends, so it has no steady state; take poisson or bursty, or "
                         "replay, which serves a trace and predicts that run")
    fitted = Costs.from_json(costs)
    times = Campaign.from_yaml().process_of(arrivals)
    system = System.of(fitted, mix, method, replicas, routing=routing, arrivals=times)
    capacity, known = system.capacity, len(fitted.speed.get(method, [1]))
    answers = _answers(system, rate, known, wanted)
    told = f"{method}, {rate:g} jobs/s on {replicas} replicas (rho {rate / capacity:.2f})"
    if rate < capacity:
        print(f"{told}, seconds: {_steady_state(system, rate, slo, wanted)}")
        if replicas == 1 and (exact := system.formula(rate)) is not None:
            print(f"exact (Pollaczek and Khinchine): mean {exact.w:.3f}, wq {exact.wq:.3f}")
    else:
        print(f"{told}: the queue only grows, {replicas} replicas do less than {capacity:.3f} jobs/s")
    for (text, (name, seconds)), (fewest, most) in zip(wanted.items(), answers, strict=True):
        print(f"{text} ({name} up to {seconds:g} s): {fewest} replicas for {rate:g} jobs/s; "
              f"{replicas} replicas up to {most:.3f} jobs/s")
    if max([replicas, *(fewest for fewest, _ in answers)]) > known:
        print(f"assumed: with more than {known} replicas busy (not measured) each has the speed of {known}, "
              f"{fitted.busy_speed(method, known)[-1]:.3f}")


def _answers(system, rate: float, known: int, wanted: dict) -> list[tuple[int, float]]:
    """Of each target the fewest replicas for the rate, and the largest rate of the replicas; speeds are `known` to k.

    Raises ValueError for a rate that is not carried, if no target is asked for, and for a target out of reach.
    """
    from stlib.queueing.planning import max_rate, min_replicas

    of = functools.cache(lambda k: replace(system, k=k))
    loads = [rate * k / of(k).capacity for k in range(1, known + 1)]
    capacity, k_max, method = system.capacity, math.ceil(4 * max(loads) + 100), system.methods[0]
    carry = min_replicas(lambda k: 0.0 if rate < of(k).capacity else math.inf, 1.0, min(loads), k_max=k_max)
    if rate >= capacity and not wanted:
        raise ValueError(f"rate = {rate:g}: {system.k} replicas do less than {capacity:.3f} jobs a second (rho = 1) by "
                         f"{method}; take {carry} replicas or more, or a lower rate")
    if carry > MOST_REPLICAS and wanted:
        raise ValueError(f"rate = {rate:g} takes at least {carry} replicas by {method}: a target is answered "
                         f"up to {MOST_REPLICAS}; take a lower rate")
    most = [max_rate(functools.partial(system.metric, name), seconds, capacity, rtol=1e-3)
            for name, seconds in wanted.values()]  # first, since it refuses what even an empty system misses
    fewest = [min_replicas(lambda k, name=name: of(k).metric(name, rate), seconds, min(loads),
                           k_max=min(k_max, MOST_REPLICAS)) for name, seconds in wanted.values()]
    return list(zip(fewest, most, strict=True))


def _steady_state(system, rate: float, slo: float | None, wanted: dict) -> str:
    from stlib.queueing.simulation import replication_interval

    percentiles = sorted({50, 95} | {float(name[1:]) for name, _ in wanted.values() if name.startswith("p")})
    runs = system.long_run(rate, slo_s=() if slo is None else (slo,), percentiles=percentiles)
    return ", ".join(f"{name} {runs[name].mean():.3f} ({{:.3f}} to {{:.3f}})".format(*replication_interval(runs[name]))
                     for name in runs)


@app.command(cls=Command)
def replay(
    cell: Annotated[int | None, ranged("cell", int, "a cell of data/campaign.yml, in place of options",
                                       at_least=0)] = None,
    mix: Mix = "stories_exact", method: Method = "sequential", replicas: Replicas = 1, routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson, bursty or a CSV trace of times")] = "poisson",
    time_column: Annotated[str | None, typer.Option(help="the trace's column of times; left out, it is found by its "
                                                    "name")] = None,
    rho: Annotated[float | None, ranged("rho", float, "the load that sets the rate", above=0, below=1)] = None,
    rate: Annotated[float | None, ranged("rate", float, "jobs a second, in place of rho; a trace has its own",
                                         above=0, at_most=10**6)] = None,
    jobs: Annotated[int | None, ranged("jobs", int, f"number of jobs; left out, {JOBS} or all of a shorter trace, or "
                                       "the campaign's for a cell", at_least=1)] = None,
    calibration: Annotated[int | None, ranged("calibration", int, "jobs each replica does before the run and after it, "
                                              f"for the prediction; left out, {CALIBRATION}, or the campaign's for a "
                                              "cell", at_least=CALIBRATION)] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the results; left out, this profile's")] = None,
    seed: Annotated[int, ranged("seed", int, "reproduces arrivals and jobs", at_least=0, at_most=2**32 - 1)] = 0,
    http: Annotated[str | None, typer.Option(help="over HTTP, by one of its routes")] = None,
    again: Annotated[bool, typer.Option(help="serve a finished cell once more, both are kept")] = False,
    llm: LLM = "embedded", ldm: LDM = "embedded", device: Device = "auto", precision: Precision = "fp32",
    threads: Threads = 1, gpus: GPUs = 0, menu: MenuFile = MENU,
    costs: CostsFile = COSTS,
):
    """Serve jobs for real and show the metrics beside their prediction."""
    from stlib.experiment import Costs
    from stlib.prediction.cell import Arrivals, Campaign, Cell, run_cell
    from stlib.prediction.compare import predict_cell
    from stlib.serving.rules import read_menu

    campaign = Campaign.from_yaml().but(menu=read_menu(menu))
    sizes = {"n_jobs": jobs, "calibration": calibration}
    if cell is None:
        one = Cell(mix, method, replicas, routing, arrivals, rho, rate, http=http)
        times = campaign.process_of(arrivals) | ({"time_column": time_column} if time_column else {})
        sizes = {"n_jobs": jobs or _n_jobs(times), "calibration": calibration or CALIBRATION, "seed": seed,
                 "cells": {0: one}}
        if arrivals.endswith(".csv"):
            sizes["arrivals"] = {arrivals: Arrivals(time_column=time_column)}
    campaign = campaign.but(**{name: size for name, size in sizes.items() if size is not None})
    if (cell or 0) not in campaign.cells:
        raise ValueError(f"no cell {cell}: data/campaign.yml has {', '.join(map(str, campaign.cells))}")
    check_folder("--out", out or paths.results())
    fitted, spec = Costs.from_json(costs), _spec(llm, ldm, device, precision, threads, gpus)
    folder = run_cell(campaign, cell or 0, fitted, functools.cache(lambda i: spec.start()), results=out, again=again,
                      spec=spec)
    rows = predict_cell(folder)
    print(rows[["metric", "slo_s", "served", "traced", "traced_lo", "traced_hi", "beforehand_lo", "beforehand_hi"]]
          .to_string(index=False, float_format="%.3f", na_rep=""))
    print(f"kept in {folder}/")


def _n_jobs(arrivals: dict) -> int:
    """How many jobs a replay has; arrivals: the parameters of `arrival_process`."""
    from stlib.queueing.arrivals import arrival_process

    process = arrival_process(1.0, **arrivals)  # refuses what is not the process's, as a column of times
    return min(JOBS, len(process.arrival_s)) if arrivals["name"].endswith(".csv") else JOBS


@app.command()
def models():
    """Fetch and check the embedded models; what is there already is kept."""
    from stlib.generation import fetch_models

    fetch_models()


@app.command()
def pdf(target: Annotated[Path, typer.Argument(help="where the PDF goes")]):
    """Typeset the report from what the notebooks of this PROFILE stored."""
    if target.is_dir():
        raise ValueError(f"{target} is a folder: name the file that the PDF becomes")
    check_folder("target", target.parent)
    paths.profile()  # an unknown one is refused first
    from stlib.report import build_pdf

    print(f"{build_pdf(target)} written")


def main() -> None:
    """Run the command of the arguments; what is wrong with them or their files ends it in one line."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:  # its message is empty where no command is named, and the help was shown
        sys.exit(f"error: {message}" if (message := error.format_message()) else 2)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
