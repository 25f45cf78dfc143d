"""What the options of the shell take: numbers within a range, names, folders; each refused in one line."""

import math
import operator
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import typer
from typer.core import TyperCommand

UsageError = typer.BadParameter.__base__  # click's, of which typer may carry a copy
BOUNDS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}


class Command(TyperCommand):
    """Its --help ends some options with the names they take, and alone pays the seconds of importing these."""

    def format_help(self, ctx, formatter) -> None:
        """Write the help."""
        from stlib.generation.loading import PRECISIONS
        from stlib.queueing.simulation import ROUTINGS
        from stlib.serving.rules import read_menu
        from stlib.serving.workloads import make_workload

        named = {"method": read_menu(), "precision": PRECISIONS, "routing": ROUTINGS,
                 "http": make_workload("story").routes}
        for param in self.params:
            if param.name in named:
                param.help += f": {', '.join(named[param.name])}"
        super().format_help(ctx, formatter)


def number(given: str) -> int | float | str:
    """The number that is written; other text stays, for the check of what takes it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(given)
    return given


def ranged(name: str, kind: type, text: str, **bounds: float):
    """An option of `kind`, float or int, that takes a finite number within the bounds, as of BOUNDS: at_least=1."""
    bounds = {bound.replace("_", " "): limit for bound, limit in bounds.items()}
    rule = " and ".join(f"{bound} {limit}" for bound, limit in bounds.items())

    def number(given: str):
        value = math.nan
        with suppress(ValueError):
            value = kind(given)
        if not (-math.inf < value < math.inf and all(BOUNDS[bound](value, limit) for bound, limit in bounds.items())):
            raise typer.BadParameter(f"{name} must be {'a whole number ' * (kind is int)}{rule}, not {given}")
        return value

    return typer.Option(parser=number, help=f"{text}; {rule}")


def check_folder(option: str, folder: Path, *, replaced: bool = False) -> None:
    """Raise ValueError unless `folder` can be written into, or, empty, `replaced` by another; tried, without trace."""
    missing = [one for one in (folder, *folder.parents) if not os.path.exists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if replaced and any(folder.iterdir()):
            raise ValueError(f"{option} {folder} is there already and not empty: name another place")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent if replaced else folder) as trial:
            if replaced:
                os.replace(folder, trial)
                os.replace(trial, folder)
    except OSError as error:
        raise ValueError(f"{option} {folder} cannot be written ({error.strerror}): name another place") from error
    finally:
        for one in missing:
            if os.path.isdir(one):
                one.rmdir()
