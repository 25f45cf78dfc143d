"""The shape of the project: one-way imports, thin library, clean notebooks, nothing private in the tree."""

import ast
import io
import re
import subprocess
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import yaml

from stlib import paths

LIBRARY = sorted((paths.ROOT / "stlib").rglob("*.py"))
NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
ROOMS_IT_MAY_USE = {
    "generation": {"generation"},
    "queueing": {"queueing"},
    "serving": {"serving", "generation", "queueing"},
    "experiment": {"experiment", "serving", "generation", "queueing"},
    "prediction": {"prediction", "experiment", "serving", "generation", "queueing"},
}
LIMITS_S = {"smoke": 720, "quick": 1800}  # the whole workbook, all thirteen notebooks


def modules(root: Path = paths.ROOT) -> set[str]:
    return {module_of(file.relative_to(root)) for file in (root / "stlib").rglob("*.py")}


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


KNOWN = modules()


def imported(source: str, file: str = "stlib/report.py", known=KNOWN) -> set[str]:
    """Every module that a source names in an import of any form, at the top or in a function, by its full name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = Path(file).parts[:-node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {base if f"{base}.{alias.name}" not in known else f"{base}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def offences(file: str, source: str) -> set[str]:
    """What a file of the library imports and must not, by its place."""
    room, names = room_of(module_of(Path(file))), imported(source, file)
    wrong = {name for name in names if name.split(".")[0] in ("matplotlib", "seaborn")} if room != "report" else set()
    if room in ROOMS_IT_MAY_USE:
        own = {name for name in names if name.split(".")[0] == "stlib"}
        doors = {"stlib"} if room == "queueing" else {"stlib", "stlib.paths", "stlib.settings"}
        wrong |= {name for name in own - doors if room_of(name) not in ROOMS_IT_MAY_USE[room]}
    if room == "queueing":
        wrong |= {name for name in names if name.split(".")[0] in ("torch", "pathlib", "os")}
    return wrong


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(paths.ROOT)))
def test_imports_point_one_way(file):
    assert not offences(str(file.relative_to(paths.ROOT)), file.read_text())


@pytest.mark.parametrize("file, source", [
    ("stlib/queueing/x.py", "from stlib import paths"), ("stlib/queueing/x.py", "import stlib.paths as p"),
    ("stlib/queueing/x.py", "from ..paths import ROOT"), ("stlib/queueing/x.py", "from .. import paths"),
    ("stlib/queueing/x.py", "def f():\n    import os.path"), ("stlib/queueing/x.py", "from pathlib import Path"),
    ("stlib/queueing/x.py", "from stlib.serving import dispatcher"),
    ("stlib/generation/x.py", "from ..queueing import formulas"), ("stlib/generation/x.py", "from stlib import report"),
    ("stlib/generation/x.py", "from stlib import paths, report"),
    ("stlib/generation/x.py", "def f():\n    from stlib import queueing"),
    ("stlib/serving/workloads/x.py", "from ...experiment import rows"),
    ("stlib/serving/x.py", "import stlib.experiment.rows as y"), ("stlib/serving/x.py", "from .. import report"),
    ("stlib/experiment/x.py", "from stlib.prediction.cell import Cell"),
    ("stlib/experiment/x.py", "import matplotlib.pyplot as plt"), ("stlib/__main__.py", "from seaborn import lineplot"),
    ("stlib/prediction/x.py", "from stlib.__main__ import main"),
])
def test_every_form_of_a_forbidden_import_is_seen(file, source):
    assert offences(file, source)


def test_allowed_imports_are_no_offence():
    assert not offences("stlib/experiment/x.py", "from stlib import paths\nfrom ..serving import replica")
    assert not offences("stlib/queueing/x.py", "from stlib.queueing import formulas\nfrom .checks import whole")
    assert not offences("stlib/prediction/x.py", "from stlib.experiment import rows\nfrom stlib.queueing import chains")
    assert not offences("stlib/report.py", "import seaborn")


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    """Not in functions either: a circle put off is still one."""
    graph = {module_of(file.relative_to(paths.ROOT)):
             imported(file.read_text(), str(file.relative_to(paths.ROOT))) & KNOWN for file in LIBRARY}
    assert not circle(graph)
    late = imported("def f():\n    from stlib.queueing import chains", "stlib/queueing/checks.py")
    assert circle(graph | {"stlib.queueing.checks": late})


def code_lines(file: Path) -> int:
    """Lines that hold code: no blanks, comments or docstrings."""
    source = file.read_text()
    docs = {line for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            for line in range(node.lineno, node.end_lineno + 1)}
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in skip for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docs)


def test_library_stays_thin():
    sizes = {str(file.relative_to(paths.ROOT)): code_lines(file) for file in LIBRARY}
    assert sum(sizes.values()) <= 7000, sizes  # 6000 when the planned rooms stand and the house is tidied


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_committed_without_outputs(file):
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_profiles_set_parameters_that_the_notebook_has(file):
    [cell] = [cell for cell in nbformat.read(file, 4).cells if "parameters" in cell.metadata.get("tags", [])]
    names = {node.targets[0].id for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)}
    for profile in paths.PROFILES:
        given = yaml.safe_load((file.parent / "profiles" / profile / f"{file.stem}.yml").read_text()) or {}
        assert given.keys() <= names, profile


@pytest.mark.parametrize("profile", LIMITS_S)
def test_declared_seconds_fit_the_profile(profile):
    seconds = {file.stem: nbformat.read(file, 4).metadata["storyteller"]["seconds"][profile] for file in NOTEBOOKS}
    assert sum(seconds.values()) <= LIMITS_S[profile] * (8 / 12 if profile == "smoke" and len(NOTEBOOKS) < 7 else 1)


def test_readme_lists_every_notebook_and_their_declared_time():
    readme = (paths.ROOT / "README.md").read_text()
    assert all(file.stem in readme for file in NOTEBOOKS)
    for profile, words in (("quick", r"on your machine, in about (\d+) minutes"),
                           ("smoke", r"`PROFILE=smoke` takes about (\d+) minutes")):
        seconds = sum(nbformat.read(file, 4).metadata["storyteller"]["seconds"][profile] for file in NOTEBOOKS)
        assert abs(int(re.search(words, readme)[1]) - seconds / 60) <= 0.1 * seconds / 60 + 0.5


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_begins_under_its_own_name_and_shows_no_place(file):
    cells = [cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    assert sum(f'report.begin("{file.stem}")' in source for source in cells) == 1
    assert f'report.begin("{file.stem}")' in cells[0]
    for source in cells:
        last = ast.parse(source).body[-1:]
        assert not any(isinstance(node, ast.Expr) and shows_a_place(node.value) for node in last), source


def shows_a_place(expression: ast.expr) -> bool:
    """Whether a cell's last expression is a path: one of stlib.paths, or what writes a file and returns its place."""
    text = ast.unparse(expression)
    if isinstance(expression, ast.Call) and text.split("(")[0].split(".")[-1] in ("export", "whole"):
        return True
    return text.startswith("paths.") and not text.startswith("paths.profile")


def test_places_are_seen():
    for text in ("export(rows, x)", "paths.results() / 'x'", "paths.ROOT"):
        assert shows_a_place(ast.parse(text, mode="eval").body)
    assert not shows_a_place(ast.parse("report.save_figure(f, 'x')", mode="eval").body)


def test_nothing_private_is_in_the_tree():
    hosts = ["py" + "pi.org", "python" + "hosted", "npm" + "js.org", "deb." + "debian"]
    machine = ["/" + "work/", "/" + "root/", "/" + "home/[a-z]+/"]
    private = "|".join([*map(re.escape, hosts), "hf_[A-Za-z0-9]{30}", *machine])
    try:
        found = subprocess.run(["git", "grep", "-nIE", private], cwd=paths.ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    assert not found.stdout
