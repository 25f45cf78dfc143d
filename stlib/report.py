"""Figures, tables and numbers for the report, which report/build.py builds: alone it touches matplotlib."""

import json
import os
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from filelock import FileLock
from scipy import stats

from stlib import paths
from stlib.settings import known

WIDTH = 6.0  # inches, the report's text width
ORIGINS = ("here", "reference")  # measured in this run, or read from the committed reference run
WITH_BARS = {"errorbar": ("ci", 95), "err_style": "bars", "marker": "o"}  # seaborn: means over runs, with intervals
DOTS = WITH_BARS | {"linestyle": "", "color": "k"}
METHODS = ("sequential", "parallel", "joint", "autoregressive", "consistent")  # these have the palette's first colours
NO_VALUE = re.compile(r"[-+\s]*(nan|inf|none|nat|<na>|\[.*)?[%\s]*", re.IGNORECASE | re.DOTALL)  # of a macro

_notebook = ""  # the number of the one that runs in this process


def begin(notebook: str) -> None:
    """A notebook's first call: one look for every figure, and its earlier figures, tables and numbers are gone.

    notebook: its file's name, such as "07_queueing_models". What it does not store again is then missing, not old;
    make executes it again unless this is make. Pieces of a notebook that is no more go too.
    """
    global _notebook
    if not (paths.ROOT / "notebooks" / f"{notebook}.ipynb").exists():
        raise ValueError(f"no notebook {notebook!r}: give the file's name without its suffix, as '07_queueing_models'")
    _notebook = notebook[:2]
    others = {file.name[:2] for file in (paths.ROOT / "notebooks").glob("[0-9]*.ipynb")} - {_notebook}
    (paths.build() / f"{notebook}.ipynb").unlink(missing_ok=True)
    for piece in (*paths.figures().glob("[0-9]*"), *paths.generated().glob("[0-9]*")):
        if piece.name[:2] not in others:
            piece.unlink(missing_ok=True)
    _keep(lambda macros: {name: macro for name, macro in macros.items() if macro.get("notebook") in others})
    set_theme()


def method_colours(names: Iterable[str]) -> dict:
    """A colour for each of these methods, whatever they are called; a name has the same one everywhere."""
    first = dict(zip(METHODS, sns.color_palette("colorblind"), strict=False))
    return {name: first.get(name) or sns.husl_palette(1, h=zlib.crc32(name.encode()) / 2**32, l=0.5)[0]
            for name in names}


def set_theme() -> None:
    """One look for every figure."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (WIDTH, 0.5 * WIDTH), "figure.constrained_layout.use": True,
                         "savefig.dpi": 200, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False})


def mean_interval(values, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of independent values (n,) and Student's t interval for it: middle, low, high (NaN below two values)."""
    values = pd.Series(values, dtype=float)
    middle, error = values.mean(skipna=False), values.sem(skipna=False)
    return middle, *stats.t.interval(level, len(values) - 1, middle, error)


def points(ax, data: pd.DataFrame, x: str, label: str | None = None) -> None:
    """Black dots with intervals, from the columns `simulated`, `low` and `high` of `data`."""
    bars = [data["simulated"] - data["low"], data["high"] - data["simulated"]]
    ax.errorbar(data[x], data["simulated"], bars, fmt="k.", capsize=2, label=label, zorder=3)


def axes(**settings):
    """One empty plot of the report's width; `settings` as of matplotlib's `Axes.set`."""
    return plt.subplots(subplot_kw=settings)[1]


def save_figure(fig, name: str, data: pd.DataFrame | None = None) -> Path:
    """Write a figure as PDF and PNG, its data beside it as CSV; returns the PNG's path from the working folder."""
    figure = paths.figures() / f"{name}.png"
    if data is not None:
        with paths.whole(figure.with_suffix(".csv")) as csv:
            data.to_csv(csv, index=False)
    with paths.whole(figure.with_suffix(".pdf")) as pdf, paths.whole(figure) as png:
        fig.savefig(pdf, metadata={"CreationDate": None})
        fig.savefig(png)
    return Path(os.path.relpath(figure))  # a notebook that shows it tells nobody where on this machine it was run


def check_page(tables: dict[str, pd.DataFrame]):
    """One page of what `prediction.check.check_log` found, from its tables: arrivals, services, responses, replicas."""
    set_theme()
    fig, ((top, law), (responses, plan)) = plt.subplots(2, 2, figsize=(WIDTH, 0.8 * WIDTH))
    data = tables["arrivals"]
    top.stairs(data["arrivals"], [*data["from_s"], data["to_s"].iloc[-1]])
    top.set(xlabel="time (s)", ylabel=f"arrivals in {data['to_s'][0]:.3g} s", ylim=(0, None))
    data = tables["services"]
    law.step(data["served_s"], data["probability"], color="k", label="served")
    law.plot(data["fitted_s"], data["probability"], label=tables["laws"]["law"][0])
    law.set(xlabel="service time (s)", ylabel="share of jobs")
    data = tables["responses"]
    responses.step(data["served_s"], data["probability"], color="k", label="served")
    responses.plot(data["simulated_s"], data["probability"], label="simulated")
    responses.fill_betweenx(data["probability"], data["simulated_s_lo"], data["simulated_s_hi"], alpha=0.3)
    responses.set(xlabel="response time (s)", ylabel="share of jobs")
    data = tables["replicas"]
    for name in ("mean", "p95"):
        bars = [data[name] - data[f"{name}_lo"], data[f"{name}_hi"] - data[name]]
        plan.errorbar(data["replicas"], data[name], bars, fmt="o", capsize=2, label=name)
    plan.set(xlabel="replicas", ylabel="response time (s)", xticks=data["replicas"],
             yscale="log" if data["rho"].max() >= 1 else "linear")
    for ax in (law, responses, plan):
        ax.legend()
    return fig


def strip_figure(rows: dict[str, list], captions: list[str]):
    """Panels side by side, one row of PIL images a label; captions under the last row."""
    columns = max(map(len, rows.values()))
    fig, grid = plt.subplots(len(rows), columns, figsize=(WIDTH, len(rows) * WIDTH / columns * 1.02 + 0.35),
                             squeeze=False, subplot_kw={"xticks": [], "yticks": [], "frame_on": False})
    for (label, panels), line in zip(rows.items(), grid, strict=True):
        line[0].set_title(label, loc="left", fontsize=8)
        for panel, ax in zip(panels, line, strict=False):
            ax.imshow(panel)
    for caption, ax in zip(captions, grid[-1], strict=False):
        ax.set_xlabel(textwrap.fill(caption, 30), fontsize=7)
    return fig


def save_table(df: pd.DataFrame, name: str, *, origin: str, float_format: str = ".3g", escape: bool = True) -> Path:
    """Write a table as a booktabs body with a line that says where its numbers come from."""
    known("origin", origin, ORIGINS)
    body = df.to_latex(index=False, escape=escape, na_rep="",
                       float_format=lambda value: format(value, float_format).replace("%", r"\%"))
    table = paths.generated() / f"{name}.tex"
    with paths.whole(table) as file:
        file.write_text(f"{body}\\tableorigin{{{origin}}}\n")
    return table


def save_macro(name: str, value, format_spec: str = "", *, origin: str) -> str:
    """Keep a number (or a text) for the report's prose as `\\name`; returns its text.

    `name` is letters only (TeX allows no others). The mark of its origin is added in the report.
    Raises ValueError for another name, an unknown origin, or a value that is no finite number and no text.
    """
    known("origin", origin, ORIGINS)
    if not re.fullmatch("[A-Za-z]+", name):
        raise ValueError(f"macro name {name!r}: TeX allows letters only, such as 'MeanWait'")
    text = format(value, format_spec)
    if NO_VALUE.fullmatch(text):
        raise ValueError(f"macro {name!r} has the value {value!r}: give a finite number or a text")
    _keep(lambda macros: macros | {name: {"text": text, "origin": origin, "notebook": _notebook}})
    return text


def load_macros() -> dict:
    """The macros kept so far in this profile: name -> text, origin and number of the notebook."""
    store = paths.generated() / "macros.json"
    return json.loads(store.read_text()) if store.exists() else {}


def _keep(changed: Callable[[dict], dict]) -> None:
    """Keep what `changed` makes of the macros kept so far: one process at a time, and stored whole."""
    with FileLock(paths.build() / ".macros.lock"), paths.whole(paths.generated() / "macros.json") as file:
        file.write_text(json.dumps(changed(load_macros()), indent=1, sort_keys=True))
