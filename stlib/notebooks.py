"""Run a notebook with the sizes of this profile: python -m stlib.notebooks 07_queueing_models."""

import logging
import sys
import tempfile
from pathlib import Path

import papermill
import yaml
from nbformat import NotebookNode
from traitlets.config import Config

from stlib import paths

# plain TCP on a shared machine would let others read along, and every kernel warns of it; sockets of IPC
# would do too, but fail where the path of their folder is long
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def execute(notebook: Path, target: Path, parameters: dict) -> Path:
    """Execute a notebook; the executed copy appears whole or not at all, and names no folder of this machine."""
    with paths.whole(target) as scratch:
        done = papermill.execute_notebook(notebook, scratch, parameters, kernel_name="python3", config=ENCRYPTED)
        done.metadata["papermill"] |= {"input_path": notebook.name, "output_path": target.name}
        for cell in done.cells:
            if cell.cell_type == "code":
                cell.outputs = _unplaced(cell.outputs)
        papermill.iorw.write_ipynb(done, str(scratch))
    return target


def _unplaced(output):
    """The same outputs, where texts name the project, its environment and the home folder by a word."""
    if isinstance(output, dict):
        return NotebookNode({key: value if key.startswith("image/") else _unplaced(value)
                             for key, value in output.items()})
    if isinstance(output, list):
        return [_unplaced(one) for one in output]
    if isinstance(output, str):
        for folder, word in ((str(paths.ROOT), "."), (sys.prefix, "environment"), (str(Path.home()), "~"),
                             (tempfile.gettempdir(), "tmp")):
            output = output.replace(folder, word) if len(folder) > 1 else output
    return output


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    [name] = sys.argv[1:]
    given = paths.ROOT / "notebooks" / "profiles" / paths.profile() / f"{name}.yml"
    execute(paths.ROOT / "notebooks" / f"{name}.ipynb", paths.build() / f"{name}.ipynb",
            yaml.safe_load(given.read_text()) or {})
