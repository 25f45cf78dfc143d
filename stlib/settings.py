"""Fields that people give (YAML files, jobs, requests) are checked in one way, `Fields`; `read_yaml` reads the files.

What is wrong is refused in one line, by its place, its value, what is allowed and the remedy, before anything is done.
"""

import reprlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


class FieldError(ValueError):
    """A field is refused; the message says its value, what is allowed and the remedy."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.field = field


class Fields(BaseModel):
    """Frozen fields of strict types: nothing is converted ("2" and 2.0 are no whole numbers, True is no number).

    None is as if left out; numpy's scalars and arrays are plain values. Raises FieldError, a ValueError. A field's
    description says what to give: it completes the message.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")

    def __init__(self, /, *values, **fields):
        given = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in
                 [*zip(self._names(), values, strict=False), *fields.items()] if value is not None}
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refusal(type(self), given, error.errors()[0]) from None

    @classmethod
    def _names(cls) -> list[str]:
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, given, handler):
        if isinstance(given, dict) and cls.model_config["extra"] == "forbid":
            for name in given:
                if name not in cls._names():
                    raise FieldError(f"unknown field {name!r}: use {', '.join(cls._names())}", name)
        return handler(given)

    def but(self, **changes) -> Self:
        """The same fields but for these; all are checked again."""
        return type(self)(**{name: value for name, value in self if name in self.model_fields_set} | changes)


def known(field: str, value, allowed):
    """`value`, if it is one of those allowed; else FieldError."""
    if value not in allowed:
        raise FieldError(f"unknown {field} {value!r}: use one of {', '.join(map(str, allowed)) or 'none'}", field)
    return value


def whole(low: int, high: int):
    """The type of a whole number from `low` to `high`."""
    return Annotated[int | None, Field(ge=low, le=high, description=f"a whole number from {low} to {high}")]


def one_of(field: str, allowed):
    """The type of a name of those allowed."""
    return Annotated[str | None, AfterValidator(partial(known, field, allowed=allowed)),
                     Field(description=f"one of {', '.join(allowed)}")]


def many(item):
    """The type of a list of one or more, in which one alone may be given as itself."""
    several = BeforeValidator(lambda given: tuple(given) if isinstance(given, list | tuple) else (given,))
    return Annotated[tuple[item, ...], several, Field(min_length=1)]


def _refusal(model: type[Fields], given: dict, problem: dict) -> FieldError:
    cause, (name, *path) = problem.get("ctx", {}).get("error"), problem["loc"] or (None,)
    place, value = "", given.get(name)
    for part in path:  # but for the types that pydantic tells too, and the place of one that is given alone
        if part in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ()):
            place, value = f"{place}[{part!r}]", value[part]
    if name is None or isinstance(cause, FieldError):  # of all fields together, or it names the field itself
        return FieldError(f"{name}{place}: {cause}" if path else str(cause), getattr(cause, "field", name))
    wanted = {field.alias or own: field.description for own, field in model.model_fields.items()}.get(name)
    if problem["type"] == "missing":
        return FieldError(f"{name} is missing: give {wanted or 'it'}", name)
    remedy = cause or (f"give {wanted}" if wanted else problem["msg"].replace("Input should", "it must"))
    return FieldError(f"{name}{place} = {reprlib.repr(problem['input'])}: {remedy}", name)


class _Loader(yaml.CSafeLoader):
    """Refuses a field given twice, of which PyYAML keeps the last, and a value left empty."""

    def construct_mapping(self, node, deep=False):
        seen = []
        for name, _ in node.value:
            key = name.value if name.value == "<<" else self.construct_object(name)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=name.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)

    def refuse_empty(self, node):
        raise yaml.MarkedYAMLError(problem="a value is empty", problem_mark=node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:null", _Loader.refuse_empty)


def read_yaml(path: str | Path, kind: Callable = dict) -> Any:
    """`kind(**fields)` of a YAML file, such as a model of `Fields`; left out, the fields as a dict.

    Raises ValueError, with the line where there is one, for a file that cannot be read, is no YAML, gives a field
    twice or empty, or holds anything but fields, and for what `kind` refuses.
    """
    path = Path(path)
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise ValueError(f"{path.name}{f', line {mark.line + 1}' if mark else ''}: {' '.join(str(problem).split())}; "
                         "give UTF-8 text of `field: value`, indented by spaces") from None
    fields = mapping(path.name, given)
    with within(path.name):
        return kind(**fields)


def mapping(where: str, given) -> dict:
    """What is given, if it is named fields, one or more."""
    if not isinstance(given, dict) or not given or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{where} holds {reprlib.repr(given)}: give fields, each as `name: value`")
    return given


@contextmanager
def within(where: str):
    """Put the place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
