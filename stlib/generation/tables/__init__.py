"""Tables: a small diffusion model of a table's rows, numbers and categories together."""

from stlib.generation.tables.columns import Columns
from stlib.generation.tables.diffusion import TableDiffusion
from stlib.generation.tables.job import TableJob, TableResult

__all__ = ["Columns", "TableDiffusion", "TableJob", "TableResult"]
