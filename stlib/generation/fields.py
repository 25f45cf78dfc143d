"""`Fields`: frozen, strictly checked fields of a job or a request, refused in one readable line."""

import reprlib
import unicodedata
from functools import partial
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

MAX_CHARS = 1000


class FieldError(ValueError):
    """A field is refused; the message says its value, what is allowed and the remedy."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class Fields(BaseModel):
    """Frozen fields of strict types. None is as if left out; numpy's scalars and arrays are plain values.

    Raises FieldError, a ValueError. A field's description says what to give: it completes the message.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")

    def __init__(self, /, *values, **fields):
        names = [field.alias or name for name, field in type(self).model_fields.items()]
        given = dict(zip(names, values, strict=False)) | fields
        if self.model_config["extra"] == "forbid" and (odd := [name for name in given if name not in names]):
            raise FieldError(f"there is no parameter {odd[0]!r}: use {', '.join(names)}", odd[0])
        try:
            super().__init__(**{name: _plain(given[name]) for name in names if given.get(name) is not None})
        except ValidationError as error:
            raise _one_line(type(self), error.errors()[0]) from None


def known(field: str, value: str, allowed) -> str:
    """`value`, if it is one of those allowed; else FieldError."""
    if value not in allowed:
        raise FieldError(f"unknown {field} {value!r}: use one of {', '.join(allowed)}", field)
    return value


def whole(low: int, high: int):
    """The type of a whole number from `low` to `high`."""
    return Annotated[int | None, Field(ge=low, le=high, description=f"a whole number from {low} to {high}")]


def one_of(field: str, allowed):
    """The type of a name of those allowed."""
    return Annotated[str | None, AfterValidator(partial(known, field, allowed=allowed)),
                     Field(description=f"one of {', '.join(allowed)}")]


def _one_line(model: type[Fields], problem: dict) -> FieldError:
    cause, (name, *place) = problem.get("ctx", {}).get("error"), problem["loc"] or (None,)
    if isinstance(cause, FieldError):
        return cause
    remedy = cause or next(f"give {field.description}" for own, field in model.model_fields.items()
                           if name in (own, field.alias))
    if problem["type"] == "missing":
        return FieldError(f"{name} is missing: {remedy}", name)
    item = "".join(f"[{index}]" for index in place if isinstance(index, int))
    return FieldError(f"{name}{item} = {reprlib.repr(problem['input'])}: {remedy}", name)


def _plain(value):
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _readable(text):
    """Refuses what a tokenizer or a UTF-8 file cannot hold: half a surrogate pair, NUL and its like."""
    for i, char in enumerate(text if isinstance(text, str) else ""):
        if unicodedata.category(char) in ("Cs", "Cc") and not char.isspace():
            kind = "half of a surrogate pair" if "\ud800" <= char <= "\udfff" else "a control character"
            raise ValueError(f"its character {i} is {char!r}, {kind}: take it out, or give the whole character")
    if isinstance(text, str) and len(text) > MAX_CHARS:
        raise ValueError(f"{len(text)} characters, at most {MAX_CHARS} are allowed: shorten it")
    return text


def _says_something(text: str) -> str:
    if not visible(text):
        raise ValueError("it is empty: give text")
    return text


def visible(text: str) -> bool:
    """Whether there is anything to read in it: not spaces and invisible characters alone."""
    return any(unicodedata.category(char)[0] not in "CZ" for char in text)


Text = Annotated[str, BeforeValidator(_readable),
                 Field(max_length=MAX_CHARS, description=f"text of at most {MAX_CHARS} characters")]
FullText = Annotated[Text, AfterValidator(_says_something), Field(min_length=1)]
