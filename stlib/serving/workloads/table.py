"""The second workload: rows of a table drawn by a diffusion model of its columns."""

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from stlib import paths
from stlib.serving.workloads.protocol import Part, Progress

PROBE = {"rows": 250, "steps": 2}  # a small job: calls of the network alone follow the machine worse
EMBEDDED = paths.MODELS / "table"


class TableWorkload:
    """Tables drawn by the model in `table`, a folder; the parameters are the fields of a TableJob."""

    name = "table"
    shared: ClassVar = ()
    counts: ClassVar = {"row_steps_run": ("rows", "steps")}
    fields: ClassVar = {"rows": ..., "steps": ..., "batch_rows": 256, "conditions": None, "seed": None}

    def __init__(self, table: str | Path = EMBEDDED):
        self.folder = Path(table)

    @cached_property
    def model(self):
        """The model, loaded at first use."""
        from stlib.generation.tables import TableDiffusion  # imported late: it takes seconds

        return TableDiffusion.from_pretrained(self.folder)

    def load(self) -> None:
        """Load the model and do one job."""
        self.run({"rows": 1000, "steps": 2, "method": "parallel"})

    @staticmethod
    def check(params: dict):
        """The TableJob of these parameters. Raises ValueError for those that are none, whatever the table."""
        from stlib.generation.tables import TableJob

        return TableJob(**params)

    def validate(self, params: dict) -> None:
        """Raise ValueError for parameters that are no TableJob, or conditions that the table does not know."""
        self.model.check(self.check(params))

    def run(self, params: dict, on_progress: Progress | None = None, on_part: Part | None = None) -> tuple:
        """Draw one table, all at once. Payload: a DataFrame. Products: steps_run, row_steps_run, seconds by stage."""
        told = (lambda done, total: on_progress("denoising", done, total)) if on_progress else (lambda *_: None)
        result = self.model.draw(self.check(params), told)
        stages = {f"{stage}_s": seconds for stage, seconds in result.timings.items()}
        return result.table, {"steps_run": result.steps_run, "row_steps_run": result.row_steps_run} | stages

    def probe(self) -> float:
        """A small job, PROBE."""
        began = time.monotonic()
        self.run(PROBE)
        return time.monotonic() - began

    @property
    def routes(self) -> dict:
        """By path, what is asked for there over HTTP."""
        from stlib.serving.workloads.table_requests import TableRequest

        return {"/tables": TableRequest}

    @staticmethod
    def terms(job: Mapping) -> dict:
        """What a job costs, numbers or arrays (n,): a constant, rows, calls of the network, denoising steps of rows.

        A batch is drawn by as many calls as it has steps; each call costs for itself and by its rows.
        """
        from stlib.generation.tables.job import MOST_TOGETHER

        rows, steps = job["rows"] * 1.0, job["row_steps_run"] / job["rows"]
        return {"table": np.ones_like(rows), "rows": rows, "row steps": rows * steps,
                "large batch steps": np.ceil(rows / MOST_TOGETHER) * steps,
                "small batch steps": np.ceil(rows / job["batch_rows"]) * steps}

    @staticmethod
    def known(job: Mapping) -> dict:
        """All steps of all rows; a method with an early exit has a law of its own."""
        return {"row_steps_run": np.asarray(job["rows"], float) * np.asarray(job["steps"], float)}

    @staticmethod
    def ranged(job: Mapping) -> dict:
        """Batches of a size that was not measured are not extrapolated."""
        return {"batch_rows": np.asarray(job["batch_rows"], float)}

    def resolve(self, params: dict) -> dict:
        """The job's fields, those left out as they will be."""
        return self.check(params).model_dump()

    def weights_hash(self, options: Mapping = MappingProxyType({})) -> str:
        """Of the model's files."""
        from stlib.generation.models import folder_hash

        return folder_hash(self.folder)

