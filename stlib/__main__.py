"""The shell: python -m stlib tell | serve | predict | replay | models | pdf."""

import functools
import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from stlib import paths

ModelFile = Annotated[Path, typer.Option("--model", help="the fitted service-time model")]
SpeedFile = Annotated[Path, typer.Option("--speed", help="what busy replicas do to each other, measured")]
Mix = Annotated[str, typer.Option(help="a job mix of data/mixes, or a YAML file")]
Method = Annotated[str, typer.Option(help="inference method: sequential or parallel")]
Replicas = Annotated[int, typer.Option(help="number of replicas", min=1)]
Routing = Annotated[str, typer.Option(help="central, jsq, least_work or round_robin")]
MODEL, SPEED = paths.REFERENCE / "service_time.json", paths.REFERENCE / "speed.json"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Tell stories with an LLM, illustrate them with a latent diffusion model.")


@app.command()
def tell(
    prompt: Annotated[str, typer.Argument(help="what the story is about, such as 'a fox and a red balloon'")],
    method: Annotated[str, typer.Option(help="inference method: sequential or parallel")] = "sequential",
    panels: Annotated[int, typer.Option(help="number of panels, one sentence each")] = 4,
    steps: Annotated[int, typer.Option(help="denoising steps a panel")] = 20,
    llm_tokens: Annotated[int, typer.Option(help="upper limit of story tokens")] = 64,
    guidance: Annotated[float, typer.Option(help="guidance scale; 1 is without guidance")] = 2.5,
    seed: Annotated[int, typer.Option(help="reproduces story and pictures")] = 0,
    llm: Annotated[str, typer.Option(help="a causal LM: 'embedded', a hub name or a folder")] = "embedded",
    ldm: Annotated[str, typer.Option(help="a diffusers text-to-image pipeline: likewise")] = "embedded",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    out: Annotated[Path, typer.Option(help="folder for story, panels, strip and times")] = Path("story"),
):
    """Tell and illustrate one story and save it."""
    from stlib.generation import StoryJob, Storyteller

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and not an empty folder: name another one with --out")
    job = StoryJob(prompt=prompt, n_panels=panels, method=method, steps=steps, llm_tokens=llm_tokens,
                   guidance_scale=guidance, seed=seed)
    storyteller = Storyteller.from_pretrained({"llm": llm, "ldm": ldm}, device=device)
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
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
    token: Annotated[str | None, typer.Option(envvar="STORYTELLER_TOKEN", help="bearer token of callers")] = None,
    max_waiting: Annotated[int, typer.Option(help="jobs that may wait; one more is refused", min=0)] = 64,
    probe: Annotated[bool, typer.Option("--probe", help="time a probe after each job, as in a campaign")] = False,
    model: ModelFile = MODEL, speed: SpeedFile = SPEED,
):
    """Serve stories over HTTP: a page, POST /stories, the OpenAI Images call."""
    from stlib.experiment.costs import service_estimator
    from stlib.serving.api import make_app
    from stlib.serving.dispatcher import Dispatcher
    from stlib.serving.server import listen, run

    sock = listen(host, port, token)
    estimate = service_estimator(*_fitted(model, speed), method, replicas, probes=float(probe))
    print(f"loading {replicas} replicas ...", flush=True)
    with Dispatcher("story", replicas, routing=routing, method=method, estimate=estimate, max_waiting=max_waiting,
                    probe=probe) as dispatcher:
        print(f"Storyteller is served at http://{host}:{port} (stop with Ctrl-C)", flush=True)
        run(make_app(dispatcher, token), sock)


@app.command()
def predict(
    rate: Annotated[float, typer.Option(help="jobs a second")],
    replicas: Replicas = 1, method: Method = "sequential", mix: Mix = "stories_exact", routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson or bursty")] = "poisson",
    slo: Annotated[float | None, typer.Option(help="a deadline, seconds: the share of jobs answered by then")] = None,
    target: Annotated[str | None, typer.Option(help="mean, wq, p50 or p95, and seconds, such as p95=6: the fewest "
                                               "replicas for the rate and the largest rate for the replicas")] = None,
    model: ModelFile = MODEL, speed: SpeedFile = SPEED,
):
    """Predict the steady state: mean response, wait, percentiles, with 95 % intervals of the simulation."""
    from stlib.prediction.cell import named_arrivals
    from stlib.prediction.predict import Service
    from stlib.queueing.planning import max_rate, min_replicas
    from stlib.queueing.simulation import replication_interval

    fitted, measured = _fitted(model, speed)
    service = Service.of(fitted, measured, mix, method, routing, named_arrivals(arrivals))
    metric, _, seconds = (target or "mean=1").partition("=")
    if metric not in ("mean", "wq", "p50", "p95") or not seconds.replace(".", "", 1).isdigit():
        raise ValueError(f"target {target!r}: give one of mean, wq, p50, p95 and its seconds, such as p95=6")
    runs = service.steady_state(rate, replicas, slo_s=() if slo is None else (slo,))
    told = [f"{name} {runs[name].mean():.3f} ({{:.3f}} to {{:.3f}})".format(*replication_interval(runs[name]))
            for name in runs]
    print(f"{method}, {rate:g} jobs/s on {replicas} replicas (rho {rate / service.capacity(replicas):.2f}), seconds: "
          + ", ".join(told))
    if (exact := service.exact(rate, replicas)) is not None:
        print(f"exact (Pollaczek and Khinchine): mean {exact.w:.3f}, wq {exact.wq:.3f}")
    most_replicas = replicas
    if target is not None:
        most = max_rate(functools.partial(service.metric, metric, k=replicas), float(seconds),
                        service.capacity(replicas), rtol=1e-3)
        most_replicas = min_replicas(functools.partial(service.metric, metric, rate), float(seconds),
                                     rate * service.mean_s, k_max=64)
        print(f"{target} s: {most_replicas} replicas for {rate:g} jobs/s; {replicas} replicas up to {most:.3f} jobs/s")
    known = len(measured.speed[method])
    if max(replicas, most_replicas) > known:
        print(f"assumed: with more than {known} replicas busy (not measured) each has the speed of {known}, "
              f"{measured.speed[method][-1]:.3f}")


@app.command()
def replay(
    cell: Annotated[int | None, typer.Option(help="a cell of data/campaign.yml, in place of options")] = None,
    mix: Mix = "stories_exact", method: Method = "sequential", replicas: Replicas = 1, routing: Routing = "central",
    arrivals: Annotated[str, typer.Option(help="poisson, bursty or a CSV trace of times")] = "poisson",
    rho: Annotated[float | None, typer.Option(help="the load that sets the rate")] = None,
    rate: Annotated[float | None, typer.Option(help="jobs a second, in place of rho; a trace has its own")] = None,
    jobs: Annotated[int | None, typer.Option(help="number of jobs; 60, or the campaign's for a cell")] = None,
    calibration: Annotated[int | None, typer.Option(help="jobs each replica does before the run and after it, for the "
                                                    "prediction; 10, or the campaign's for a cell")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the results; left out, this profile's")] = None,
    seed: Annotated[int, typer.Option(help="reproduces arrivals and jobs")] = 0,
    http: Annotated[str | None, typer.Option(help="over HTTP: /stories or /v1/images/generations")] = None,
    again: Annotated[bool, typer.Option(help="serve a finished cell once more, both are kept")] = False,
    model: ModelFile = MODEL, speed: SpeedFile = SPEED,
):
    """Serve jobs for real and show the metrics beside their prediction."""
    from dataclasses import replace

    from stlib.prediction.cell import Campaign, Cell, named_arrivals, run_cell
    from stlib.prediction.compare import predict_cell
    from stlib.serving.replica import ReplicaSpec

    campaign = Campaign.from_yaml()
    if cell is None:
        one = Cell(mix, method, replicas, routing, named_arrivals(arrivals), rho, rate, http=http)
        campaign = replace(campaign, seed=seed, n_jobs=60, calibration=10, cells={0: one})
    sizes = {"n_jobs": jobs, "calibration": calibration}
    campaign = replace(campaign, **{name: size for name, size in sizes.items() if size is not None})
    if (cell or 0) not in campaign.cells:
        raise ValueError(f"no cell {cell}: data/campaign.yml has {', '.join(map(str, campaign.cells))}")
    fitted = _fitted(model, speed)
    replica_of = functools.cache(lambda i: ReplicaSpec().start())
    folder = run_cell(campaign, cell or 0, *fitted, replica_of, results=out, again=again)
    rows = predict_cell(folder)
    print(rows[["metric", "slo_s", "served", "traced", "traced_lo", "traced_hi", "beforehand_lo", "beforehand_hi"]]
          .to_string(index=False, float_format="%.3f", na_rep=""))
    print(f"kept in {folder}/")


def _fitted(model: Path, speed: Path) -> tuple:
    from stlib.experiment import ServiceTimeModel
    from stlib.experiment.machine import Speed

    for file, option, notebook in ((model, "--model", "05"), (speed, "--speed", "08")):
        if not file.exists():
            raise ValueError(f"no file {file}: name one with {option}, or run notebook {notebook}, which measures it")
    return ServiceTimeModel.from_json(model), Speed.from_json(speed)


@app.command()
def models():
    """Fetch and check the embedded models; what is there already is kept."""
    from stlib.generation import fetch_models

    fetch_models()


@app.command()
def pdf(target: Annotated[Path, typer.Argument(help="where the PDF goes")]):
    """Typeset the report from what the notebooks of this PROFILE stored."""
    from stlib.report import build_pdf

    print(f"{build_pdf(target)} written")


if __name__ == "__main__":
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
