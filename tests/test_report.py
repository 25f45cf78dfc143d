import matplotlib.pyplot as plt
import pandas as pd
import pytest

from stlib import paths, report


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    for folder in ("figures", "generated", "build"):
        monkeypatch.setattr(paths, folder, lambda folder=folder: tmp_path / folder)


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
    assert report.write_macros().read_text() == (
        "\\newcommand{\\MeanWait}{1.23\\fromhere}\n\\newcommand{\\ShareOfTime}{45.6\\%\\fromreference}\n")


@pytest.mark.parametrize("arguments, message", [
    (("mean_wait", 1.0, ".2f", "here"), "letters only"),
    (("MeanWait", float("nan"), ".2f", "here"), "finite"),
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
    for folder in ("figures", "generated"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    try:
        report._pdflatex()
    except FileNotFoundError:
        pytest.skip("no pdflatex here: `make report` installs one")
    with pytest.raises(RuntimeError, match="Undefined control sequence"):
        report.build_pdf(tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()


def test_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("PROFILE", "tiny")
    with pytest.raises(ValueError, match=r"'tiny'.*smoke, quick, full"):
        paths.profile()
