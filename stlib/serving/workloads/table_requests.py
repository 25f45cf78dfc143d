"""What is asked of the table workload over HTTP."""

import json

import pandas as pd

from stlib.generation.tables import TableJob
from stlib.serving.workloads.asked import Asked


class TableRequest(Asked, TableJob):
    """Draw rows of the table: the fields of a TableJob, and when it must start. The reply has a list by column."""

    def params(self) -> dict:
        """The fields of the TableJob that are given, but for the method."""
        return self.model_dump(exclude_none=True, exclude=set(Asked.model_fields))

    def reply(self, payload: pd.DataFrame) -> dict:
        """The columns, each a list of values, null where one is missing."""
        return {"rows": len(payload), "table": {
            str(name): json.loads(payload[name].astype(object).to_json(orient="values")) for name in payload}}
