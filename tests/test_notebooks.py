"""How notebooks are executed: the copy is whole, names no folder of the machine, and its kernel is not overheard."""

import logging
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import execute
from stlib import paths


def notebook(folder: Path, *sources: str) -> Path:
    parameters = nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    cells = [parameters, *map(nbformat.v4.new_code_cell, sources)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "tiny.ipynb")
    return folder / "tiny.ipynb"


def texts(file: Path) -> str:
    return "\n".join(line for line in file.read_text().splitlines() if '"image/' not in line)


def test_an_executed_notebook_names_no_folder_of_the_machine_and_its_kernel_warns_of_nothing(tmp_path, capfd, caplog):
    caplog.set_level(logging.WARNING)
    places = [str(paths.ROOT), sys.prefix, str(Path.home()), tempfile.gettempdir()]
    source = notebook(
        tmp_path, "import warnings\nwarnings.warn('of a library')",
        f"from pathlib import Path\nPath({places[0]!r}) / 'x'",
        f"for place in {places!r}:\n    print(place + '/file')", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nn")
    done = execute(source, tmp_path / "out" / "tiny.ipynb", {"n": 41})
    written = capfd.readouterr().err + caplog.text
    assert "encrypt" not in written.lower() and "warning" not in written.lower()
    assert not [place for place in places if place in texts(done)]
    assert "./x" in texts(done) and "41" in texts(done) and '"image/png"' in done.read_text()
    nbformat.validate(nbformat.read(done, 4))
    assert [file.name for file in done.parent.iterdir()] == ["tiny.ipynb"]


def test_a_notebook_that_fails_leaves_no_copy(tmp_path):
    with pytest.raises(Exception, match="no such luck"):
        execute(notebook(tmp_path, "raise RuntimeError('no such luck')"), tmp_path / "out.ipynb", {})
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.ipynb"]
