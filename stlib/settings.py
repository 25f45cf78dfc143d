"""The one reader of YAML files: what is wrong in one is refused by file, field and value before anything is done."""

import inspect
import reprlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Scalar = bool | int | float | str


def many(item):
    """The type of a list of one or more, in which one alone may be given as itself."""
    return Annotated[tuple[item, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else (
        value,)), Field(min_length=1)]


class _Loader(yaml.SafeLoader):
    """Refuses a field given twice, of which PyYAML keeps the last."""

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), []
        for name in (name for name, _ in node.value if isinstance(name, yaml.ScalarNode)):
            key = name.value if name.value == "<<" else self.construct_object(name)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=name.start_mark)
            seen.append(key)
        return node


def read_yaml(path: str | Path) -> dict:
    """The fields of a YAML file.

    Raises ValueError, with the line where there is one, for a file that cannot be read, is no YAML, gives a field
    twice, or holds anything but fields.
    """
    path = Path(path)
    try:
        return mapping(path.name, yaml.load(path.read_text(encoding="utf-8"), _Loader))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise ValueError(f"{path.name}{f', line {mark.line + 1}' if mark else ''}: {' '.join(str(problem).split())}; "
                         "give UTF-8 text of `field: value`, indented by spaces") from None


def mapping(where: str, value) -> dict:
    """`value`, if it is a mapping with something in it."""
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where} holds {reprlib.repr(value)}: give fields, each as `name: value`")
    return value


@contextmanager
def within(where: str):
    """Put the place before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def build(where: str, kind: Callable, given) -> Any:
    """`kind(**given)`, a function or a dataclass whose annotations say what its fields take.

    Raises ValueError for an unknown or missing field, None, or a value that is not of the field's type: nothing is
    converted ("2" and 2.0 are no whole numbers, True is no number).
    """
    known = {name: one for name, one in inspect.signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD}
    if not isinstance(given, dict):
        raise ValueError(f"{where} holds {reprlib.repr(given)}: give fields, each as `name: value`")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}; there may be {', '.join(known)}")
        if value is None:
            raise ValueError(f"{where}: {name} is empty: give a value, or leave it out")
    for name, one in known.items():
        if one.default is one.empty and name not in given:
            raise ValueError(f"{where}: {name} is missing: give it as `{name}: value`")
    values = {name: checked(f"{where}: {name}", known[name].annotation, value) for name, value in given.items()}
    with within(where):
        return kind(**values)


def checked(where: str, kind, value) -> Any:
    """The value, which must be of that type. Raises ValueError for the first that is wrong in it."""
    try:
        return TypeAdapter(kind, config=STRICT).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part!r}]" for part in first["loc"] if part != "[key]")
        problem = str(first.get("ctx", {}).get("error") or first["msg"]).replace("Input should", "it must")
        raise ValueError(f"{where}{place} = {reprlib.repr(first['input'])}: {problem}") from None
