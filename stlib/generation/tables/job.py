"""What is asked of a table's model and what comes back: `TableJob` and `TableResult`."""

from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
from pydantic import BeforeValidator, Field

from stlib.generation.early_exit import EarlyExit
from stlib.generation.quantization import PRECISIONS
from stlib.settings import FieldError, Fields, one_of, whole

MOST_ROWS, ROW_BYTES, MOST_TOGETHER = 200_000, 8_000, 1_000  # of a job; of its memory; of a batch
METHODS = ("sequential", "parallel")


def _fits(rows):
    """Refuses a table that would not fit into memory, with what it would need."""
    if isinstance(rows, int) and rows > MOST_ROWS:
        raise FieldError(f"rows = {rows}: they would take {rows * ROW_BYTES / 2**30:.0f} GiB of memory in one batch; "
                         f"give 1 to {MOST_ROWS}, or several jobs", "rows")
    return rows


class TableJob(Fields):
    """One job: rows of a table to be drawn. None is as if left out.

    rows: 1 to MOST_ROWS. steps: denoising steps of each row, 1 to 200.
    method: parallel draws MOST_TOGETHER rows in one batch, more would leave the processor's cache; sequential batches
        of batch_rows. The rows are the same.
    conditions: a value for any of the columns, which all rows will have.
    precision: of the network. early_exit: an `EarlyExit`, for each batch as a whole, or its fields.
    seed: fixes the rows, 0 to 2**32 - 1.

    Raises FieldError, a ValueError with the value, what is allowed and the remedy.
    """

    rows: Annotated[int, BeforeValidator(_fits), Field(ge=1, description=f"a whole number from 1 to {MOST_ROWS}")]
    steps: whole(1, 200) = 40
    batch_rows: whole(1, MOST_ROWS) = 256
    method: one_of("method", METHODS) = "sequential"
    conditions: Annotated[dict[str, Any], Field(description="a value by column", examples=[{}])] = Field(
        default_factory=dict)
    precision: one_of("precision", PRECISIONS) = "fp32"
    early_exit: Annotated[EarlyExit | None, BeforeValidator(lambda given: None if given is False else given)] = None
    seed: whole(0, 2**32 - 1) = 0

    @property
    def batch(self) -> int:
        """Rows that are drawn together."""
        return min(MOST_TOGETHER if self.method == "parallel" else self.batch_rows, self.rows)


@dataclass(frozen=True)
class TableResult:
    """A drawn table. timings: seconds by stage: `preparing`, `denoising`, `decoding`.

    steps_run: calls of the network; row_steps_run: denoising steps of all rows, each counted by itself.
    """

    table: pd.DataFrame
    timings: dict[str, float]
    steps_run: int
    row_steps_run: int
    job: TableJob
