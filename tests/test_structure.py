"""The shape of the project: one-way imports, thin library, clean notebooks, nothing private in the tree."""

import ast
import io
import re
import subprocess
import tokenize
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


def imported(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])}


def room_of(file: Path) -> str:
    return file.relative_to(paths.ROOT / "stlib").parts[0]


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(paths.ROOT)))
def test_imports_point_one_way(file):
    names = imported(file)
    room = room_of(file)
    if room in ROOMS_IT_MAY_USE:
        used = {name.split(".")[1] for name in names if name.startswith("stlib.")} & ROOMS_IT_MAY_USE.keys()
        assert used <= ROOMS_IT_MAY_USE[room]
    if room == "queueing":
        assert not any(name.split(".")[0] in ("torch", "pathlib", "os") or name == "stlib.paths" for name in names)
    if room != "report.py":
        assert not any(name.split(".")[0] in ("matplotlib", "seaborn") for name in names)


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
    assert sum(sizes.values()) <= 4200, sizes


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


def test_readme_lists_every_notebook():
    readme = (paths.ROOT / "README.md").read_text()
    assert all(file.stem in readme for file in NOTEBOOKS)


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
