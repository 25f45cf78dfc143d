"""What every request may say beside its job."""

from typing import Annotated

from pydantic import Field

from stlib.settings import Fields


class Asked(Fields):
    """A request: by which method, and by when the job must start."""

    method: Annotated[str | None, Field(description="a method's name; left out: the server's choice")] = None
    deadline_s: Annotated[float | None, Field(
        ge=0, description="the seconds, 0 or more, in which the job must start")] = None

    @classmethod
    def body(cls, params: dict, method: str | None, deadline_s: float | None) -> dict:
        """What a client sends for a job of these parameters."""
        job = params | {"method": method, "deadline_s": deadline_s}
        return {field.alias or name: job[name] for name, field in cls.model_fields.items() if job.get(name) is not None}
