import json
import re
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import seaborn as sns

from report import build
from stlib import paths, report
from stlib.prediction.cell import Campaign
from stlib.prediction.compare import read_validation

MAIN = (paths.ROOT / "report" / "main.tex").read_text()
NOTEBOOKS = paths.ROOT / "notebooks"


def tagged(notebook: str, tag: str) -> str:
    """The code of a notebook's cells with this tag."""
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", 4).cells
    return "\n".join(cell.source for cell in cells if tag in cell.metadata.get("tags", []))


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    for folder in ("figures", "generated", "build"):
        monkeypatch.setattr(paths, folder, lambda folder=folder: tmp_path / folder)
    monkeypatch.setattr(report, "_notebook", "")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project: notebooks 05 and 08, a report of one table, nothing made."""
    monkeypatch.undo()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(report, "_notebook", "")
    for folder in ("notebooks", "figures/reference", "report"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("05_cost", "08_served"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    (tmp_path / "report" / "main.tex").write_text("\\input{generated/05_cost} \\MeanJob")
    (tmp_path / "figures" / "reference" / "01_strip.png").write_text("committed")
    return tmp_path


def run_as(profile, monkeypatch, notebook, value):
    """A notebook's table, figure and number of this profile."""
    monkeypatch.setenv("PROFILE", profile)
    report.begin(notebook)
    report.save_table(pd.DataFrame({"made by": [profile]}), f"{notebook[:2]}_cost", origin="here")
    report.save_figure(report.axes().figure, f"{notebook[:2]}_curve")
    report.save_macro("MeanJob", value, ".1f", origin="here")
    plt.close("all")


def test_figure_is_written_as_pdf_and_png_with_its_data(tmp_path):
    report.set_theme()
    fig, ax = plt.subplots()
    ax.plot([0, 1], [1, 2])
    png = report.save_figure(fig, "line", pd.DataFrame({"x": [0, 1], "y": [1, 2]}))
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "figures" / "line.pdf").read_bytes()[:4] == b"%PDF"
    assert (tmp_path / "figures" / "line.csv").read_text() == "x,y\n0,1\n1,2\n"


def test_macro_keeps_value_and_origin():
    report.save_macro("MeanWait", 1.23456, ".2f", origin="here")
    report.save_macro("ShareOfTime", 0.456, ".1%", origin="reference")
    assert build.write_macros().read_text() == (
        "\\newcommand{\\MeanWait}{1.23\\fromhere}\n\\newcommand{\\ShareOfTime}{45.6\\%\\fromreference}\n")


@pytest.mark.parametrize("arguments, message", [
    (("mean_wait", 1.0, ".2f", "here"), "letters only"),
    *((("MeanWait", value, spec, "here"), "finite") for value, spec in (
        (float("nan"), ".2f"), (float("nan"), ".1%"), (float("inf"), "+.1%"), (np.float32("-inf"), "g"), (np.nan, ""),
        (np.array(np.nan), ".1f"), (pd.NA, ""), (pd.NaT, ""), (None, ""), ("nan", ""), ("nan%", ""), ("  ", ""),
        ([1.0], ""))),
    (("MeanWait", 1.0, ".2f", "elsewhere"), "origin"),
])
def test_macro_refuses(arguments, message):
    *given, origin = arguments
    with pytest.raises(ValueError, match=message):
        report.save_macro(*given, origin=origin)
    assert report.load_macros() == {}


def test_table_escapes_and_says_its_origin():
    text = report.save_table(pd.DataFrame({"share_%": [0.12345]}), "shares", origin="here").read_text()
    assert "share\\_\\%" in text and "0.123 " in text and text.endswith("\\tableorigin{here}\n")


def test_table_writes_percentages_that_tex_can_read():
    text = report.save_table(pd.DataFrame({"error": [0.123]}), "errors", origin="here", float_format="+.1%").read_text()
    assert "+12.3\\%" in text


def test_a_report_that_does_not_compile_says_why_and_leaves_no_pdf(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "main.tex").write_text(
        "\\documentclass{article}\\begin{document}\\Undefined\\end{document}")
    for folder in ("figures", "build"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    try:
        build.pdflatex()
    except FileNotFoundError:
        pytest.skip("no pdflatex here: `make report` installs one")
    with pytest.raises(RuntimeError, match="Undefined control sequence"):
        build.pdf()
    assert not (tmp_path / "build" / "report.pdf").exists()


def test_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("PROFILE", "tiny")
    with pytest.raises(ValueError, match=r"'tiny'.*smoke, quick, full"):
        paths.profile()


def test_macro_takes_numbers_of_every_kind_and_texts():
    for value in (1, True, np.int64(3), np.float32(0.5), np.array(2.0), "AMD EPYC", "2026-01-01"):
        assert report.save_macro("Value", value, origin="here") == format(value)


def test_two_processes_that_save_at_once_lose_no_number(tmp_path):
    code = """
import sys, time, pathlib
from stlib import paths, report
paths.BUILD = pathlib.Path(sys.argv[2])
time.sleep(max(0, float(sys.argv[3]) - time.time()))
for i in range(60):
    report.save_macro(sys.argv[1] * (i + 1), i, "d", origin="here")
    report.save_table(report.pd.DataFrame({"i": range(200)}), "01_same", origin="here")
"""
    start = str(time.time() + 6)
    runs = [subprocess.Popen([sys.executable, "-c", code, name, str(tmp_path), start], cwd=paths.ROOT,
                             stderr=subprocess.PIPE, text=True) for name in "AB"]
    assert [run.communicate(timeout=120)[1] for run in runs] == ["", ""]
    [store] = tmp_path.rglob("macros.json")
    assert len(json.loads(store.read_text())) == 120
    assert len((store.parent / "01_same.tex").read_text().splitlines()) == 207
    assert sorted(file.name for file in store.parent.iterdir()) == ["01_same.tex", "macros.json"]  # no scratch is left


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), paths.whole(file) as scratch:
        scratch.write_text("half")
        raise KeyboardInterrupt
    assert [one.name for one in tmp_path.iterdir()] == ["rows.csv"] and file.read_text() == "old"
    with paths.whole(file) as one, paths.whole(file) as other:
        assert one != other and one.suffix == other.suffix == ".csv"
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"


def test_a_notebook_that_begins_drops_what_it_stored_before_and_nothing_else(project, monkeypatch):
    run_as("quick", monkeypatch, "05_cost", 1.0)
    report.save_macro("NoLongerWritten", 1.0, origin="here")
    run_as("quick", monkeypatch, "08_served", 2.0)
    report.save_macro("OfEight", 1.0, origin="here")
    report.save_table(pd.DataFrame({"x": [1]}), "03_of_a_notebook_that_is_no_more", origin="here")
    (paths.build() / "05_cost.ipynb").touch()
    report.begin("05_cost")
    assert report.load_macros().keys() == {"MeanJob", "OfEight"}  # MeanJob is now 08's
    assert {file.name for file in paths.generated().glob("[0-9]*")} == {"08_cost.tex"}
    assert {file.stem for file in paths.figures().iterdir()} == {"08_curve"}
    assert not (paths.build() / "05_cost.ipynb").exists()  # so that make executes it again
    with pytest.raises(ValueError, match="no notebook '5'"):
        report.begin("5")


def test_what_the_report_asks_for_and_this_run_did_not_store_is_named(project, monkeypatch):
    with pytest.raises(AssertionError, match=r"05_cost, MeanJob"):
        exec(tagged("13_report_figures", "missing"), {"re": re, "paths": paths, "report": report})
    run_as("quick", monkeypatch, "05_cost", 1.0)
    exec(tagged("13_report_figures", "missing"), {"re": re, "paths": paths, "report": report})


def test_every_profile_has_its_own_folders(monkeypatch):
    monkeypatch.undo()
    made = {}
    for profile in paths.PROFILES:
        monkeypatch.setenv("PROFILE", profile)
        made[profile] = [paths.results(), paths.figures(), paths.generated()]
        assert all(folder.is_relative_to(paths.BUILD / profile) for folder in made[profile])
    assert len({folder for folders in made.values() for folder in folders}) == 9


def test_an_exported_report_shows_one_run_whatever_was_interrupted(project, monkeypatch):
    run_as("quick", monkeypatch, "05_cost", 1.0)
    (paths.build() / "report.pdf").write_text("quick's")
    build.export()
    (project / "figures" / "05_of_an_older_run.pdf").touch()
    run_as("full", monkeypatch, "05_cost", 2.0)  # and is interrupted here: no PDF, nothing exported
    with pytest.raises(FileNotFoundError, match="make report"):
        build.export()
    assert "quick" in (project / "report" / "generated" / "05_cost.tex").read_text()
    monkeypatch.setenv("PROFILE", "quick")
    build.export()
    shown = project / "report"
    assert "1.0" in (shown / "generated" / "macros.json").read_text()
    assert "quick" in (shown / "generated" / "05_cost.tex").read_text()
    assert (shown / "report.pdf").read_text() == "quick's"
    assert {file.name for file in (project / "figures").iterdir()} == {"05_curve.pdf", "05_curve.png", "reference"}
    assert (project / "figures" / "reference" / "01_strip.png").read_text() == "committed"


def test_an_export_that_is_interrupted_leaves_no_pdf(project, monkeypatch):
    run_as("quick", monkeypatch, "05_cost", 1.0)
    (paths.build() / "report.pdf").write_text("new")
    (project / "report" / "report.pdf").write_text("old")
    (project / "report" / "generated").touch()  # no folder, so the export fails midway
    with pytest.raises(OSError):
        build.export()
    assert not (project / "report" / "report.pdf").exists()


def test_smoke_is_never_exported(project, monkeypatch):
    run_as("smoke", monkeypatch, "05_cost", 1.0)
    (paths.build() / "report.pdf").touch()
    with pytest.raises(ValueError, match="smoke"):
        build.export()
    assert not (project / "report" / "generated").exists()


def test_a_saved_figure_s_place_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repr(report.save_figure(report.axes().figure, "line")) == "PosixPath('figures/line.png')"


def test_every_method_has_a_colour_and_keeps_it():
    rows = pd.DataFrame({"x": [0, 1] * 4, "y": range(8), "method": np.repeat(["joint+nf4", "parallel", "x", "y"], 2)})
    colours = report.method_colours(rows["method"])
    sns.lineplot(rows, x="x", y="y", hue="method", palette=colours)
    assert len(set(colours.values())) == 4
    assert report.method_colours(["y"])["y"] == colours["y"] and report.method_colours(["parallel"])["parallel"] == \
        sns.color_palette("colorblind")[1]


def test_mean_interval_is_the_t_interval():
    middle, low, high = report.mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (middle, low, high) == pytest.approx((2.5, 0.445739743239121, 4.554260256760879))
    assert report.mean_interval([1.0])[0] == 1.0 and np.isnan(report.mean_interval([1.0])[1:]).all()


def stated_errors() -> dict:
    """The macros of errors, as notebook 08's own cells make them of the committed rows."""
    names = {"pd": pd, "report": report, "key": ["cell", "run"], "origin": "reference",
             "validation": read_validation(paths.REFERENCE / "validation.csv", Campaign.from_yaml())}
    exec(tagged("08_predicted_vs_served", "errors"), names)
    return {name: macro["text"] for name, macro in report.load_macros().items()}


@pytest.mark.parametrize("name, campaigns", [("First", [1]), ("Second", [2]), ("Every", [1, 2])])
def test_errors_and_their_count_are_of_the_same_runs(name, campaigns):
    stated = stated_errors()
    rows = read_validation(paths.REFERENCE / "validation.csv", Campaign.from_yaml())
    rows = rows.query("metric == 'mean' and run in @campaigns and rho < 0.81")
    error = 100 * (rows["traced"] / rows["served"] - 1).abs()
    assert stated[f"{name}MeanError"] == f"{error.median():.1f}"
    assert stated[f"{name}MeanErrorWorst"] == f"{error.max():.1f}"
    assert stated[f"{name}MeanErrorBusy"] == f"{error[rows['rho'] >= 0.7].median():.1f}"
    assert stated[f"{name}Runs"] == str(len(rows)) and stated[f"{name}Cells"] == str(rows["cell"].nunique())
    [each] = set(rows["n_jobs"])
    assert stated[f"{name}JobsEach"] == str(each)


FAMILY = re.compile(r"\\(First|Second|Every|Served)[A-Z]\w*")


def mixed_claims(text: str) -> list[str]:
    """Sentences in which the macros of errors and of counts belong to different selections of runs."""
    claims = re.split(r"(?<=[.;:])\s|In the first campaign|over all", text)
    return [claim for claim in claims if "Error" in claim and len(set(FAMILY.findall(claim))) > 1]


def test_no_sentence_of_the_report_counts_other_runs_than_its_errors_are_of():
    abstract = MAIN[MAIN.index("\\begin{abstract}"):MAIN.index("\\end{abstract}")]
    assert set(FAMILY.findall(abstract)) == {"Second", "Every"} and not mixed_claims(MAIN)
    assert mixed_claims(r"Over \ServedCells{} served cells the mean is off by \SecondMeanError\,\%.")
    assert not re.search(r"\d+ (served )?(cells|jobs|runs)\b", MAIN)


def test_the_readme_counts_the_runs_that_its_errors_are_of():
    stated, readme = stated_errors(), " ".join((paths.ROOT / "README.md").read_text().split())
    newer = readme[readme.index("In the newer of two"):readme.index("Over all")]
    every = readme[readme.index("Over all"):readme.index("Every one of them is shown")]
    assert f"{stated['SecondRuns']} runs of {stated['SecondJobsEach']} jobs each" in newer
    assert f"{stated['SecondMeanError']} % in the median over runs" in newer
    assert f"(worst run {stated['SecondMeanErrorWorst']} %)" in newer
    assert f"{stated['SecondTailError']} %" in newer and f"{stated['SecondSloError']} percentage points" in newer
    assert f"all {stated['EveryRuns']} runs" in every
    assert f"{stated['EveryMeanError']} % (worst run {stated['EveryMeanErrorWorst']} %)" in every
