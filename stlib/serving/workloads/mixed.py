"""Stories and tables in one queue: a replica that does both, each job by its `kind`."""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import pandas as pd

from stlib.serving.workloads.protocol import Part, Progress
from stlib.serving.workloads.story import StoryWorkload
from stlib.serving.workloads.table import TableWorkload
from stlib.settings import known

KINDS = {kind.name: kind for kind in (StoryWorkload, TableWorkload)}


class MixedWorkload:
    """Both workloads in one replica. A job has the fields of its own and `kind`, whose it is; the other's are None.

    table: the table's model. options: of the StoryWorkload.
    """

    name = "mixed"
    shared = tuple(f"{name} {term}" for name, kind in KINDS.items() for term in kind.shared)
    counts: ClassVar = {count: fields for kind in KINDS.values() for count, fields in kind.counts.items()}
    fields: ClassVar = {"kind": ...} | dict.fromkeys(field for kind in KINDS.values() for field in kind.fields)

    def __init__(self, table=None, **options):
        self.parts = {"story": StoryWorkload(**options), "table": TableWorkload(*[table] * (table is not None))}

    def load(self) -> None:
        """Load both."""
        for part in self.parts.values():
            part.load()

    def check(self, params: dict):
        """The job of these parameters. Raises ValueError for those that are none, whatever the models."""
        return self._part(params).check(_own(params))

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that the workload of their kind refuses."""
        self._part(params).validate(_own(params))

    def run(self, params: dict, on_progress: Progress | None = None, on_part: Part | None = None) -> tuple:
        """Do one job; of what the other kind counts there is none."""
        payload, products = self._part(params).run(_own(params), on_progress, on_part)
        return payload, dict.fromkeys(self.counts, 0) | products

    def probe(self) -> float:
        """A denoising step of a picture, and a table's probe."""
        return self.parts["story"].step.repeat() + self.parts["table"].probe()

    @cached_property
    def routes(self) -> dict:
        """By path, what is asked for there over HTTP."""
        return {path: _of_kind(request, name) for name, part in self.parts.items()
                for path, request in part.routes.items()}

    def resolve(self, params: dict) -> dict:
        """The job's fields, those left out as these models will do it."""
        return self._part(params).resolve(_own(params)) | {"kind": params["kind"]}

    @staticmethod
    def terms(job: Mapping) -> dict:
        """The terms of both kinds by their names, "story tokens" and "table rows", each 0 for the other's jobs."""
        return _by_kind(job, lambda name, kind, own: {
            f"{name} {term}": value for term, value in kind.terms(own).items()})

    @staticmethod
    def known(job: Mapping) -> dict:
        """The counts of both kinds, 0 for the other's jobs."""
        return _by_kind(job, lambda name, kind, own: kind.known(own))

    @staticmethod
    def ranged(job: Mapping) -> dict:
        """What is not extrapolated of those kinds that are there; for the other's jobs as their first."""
        kinds, found = np.atleast_1d(np.asarray(job["kind"], object)), {}
        for name, kind in KINDS.items():
            if (mine := kinds == name).any():
                found |= {field: np.where(mine, _spread(values, mine), values[0])
                          for field, values in kind.ranged(_taken(job, mine, kind)).items()}
        return found

    def weights_hash(self, options: Mapping = MappingProxyType({})) -> str:
        """Of both models."""
        return " ".join(part.weights_hash(options) for part in self.parts.values())

    def _part(self, params: Mapping):
        return self.parts[known("kind", params.get("kind"), self.parts)]


def _own(params: Mapping) -> dict:
    """A job's parameters but for `kind` and those left out, None or NaN."""
    return {name: value for name, value in params.items()
            if name != "kind" and value is not None and not (isinstance(value, float) and np.isnan(value))}


def _of_kind(request: type, name: str) -> type:
    """The request, whose job says its kind."""
    return type(request.__name__, (request,), {
        "__doc__": request.__doc__, "__module__": request.__module__,
        "params": lambda self: request.params(self) | {"kind": name}})


def _by_kind(job: Mapping, of) -> dict:
    """Numbers by name, of each job from its own kind and 0 for the others': scalars for one job, else arrays.

    of(name, kind, fields of its jobs) -> numbers by name. The fields are (n,) or (n, 1), counts (n, draws).
    """
    kinds = np.asarray(job["kind"], object)
    found = {}
    for name, kind in KINDS.items():
        mine = np.atleast_1d(kinds).reshape(len(np.atleast_1d(kinds))) == name
        found |= {what: _spread(values, mine) for what, values in of(name, kind, _taken(job, mine, kind)).items()}
    return {what: values.item() for what, values in found.items()} if kinds.ndim == 0 else found


def _taken(job: Mapping, mine: np.ndarray, kind) -> dict:
    """The fields of the jobs that are `mine` (n,): numbers as such, of a kind that has none here empty."""
    fields = {name: np.array([None] * len(mine), object) for name in kind.fields} | {
        name: np.atleast_1d(_array(values)) for name, values in job.items()}
    own = {name: values[mine] for name, values in fields.items()}
    return {name: values.astype(float) if values.dtype == object and all(
        one is None or isinstance(one, int | float | np.number) for one in values.ravel()) else values
        for name, values in own.items()}


def _array(values) -> np.ndarray:
    if isinstance(values, np.ndarray | pd.Series):
        return np.asarray(values)
    one = np.empty((), object)  # a text, a list of captions, a number: one job's
    one[()] = values
    return one


def _spread(values, mine: np.ndarray) -> np.ndarray:
    """Values of the jobs that are `mine` in their places, 0 elsewhere."""
    values = np.asarray(values, float)
    out = np.zeros((len(mine), *values.shape[1:]))
    out[mine] = values
    return out
