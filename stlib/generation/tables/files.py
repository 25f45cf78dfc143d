"""Tables from people's files and command lines."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stlib.generation.tables.columns import Columns
from stlib.settings import known


def read_table(path: str | Path) -> pd.DataFrame:
    """A CSV file's rows. Raises ValueError, naming the file and the remedy, for one that is none, and dates."""
    try:
        rows = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no CSV file ({str(error).splitlines()[0]}): give UTF-8 text with the "
                         "columns' names in its first line") from None
    for name in rows.select_dtypes(exclude="number"):
        there = rows[name].dropna().astype(str)
        looks = there.str.contains(r"[0-9]{1,4}[-/.:][0-9]{1,2}", regex=True)
        if len(there) and looks.all() and pd.to_datetime(there, errors="coerce", format="mixed").notna().all():
            rows[name] = pd.to_datetime(there, format="mixed")  # which `Columns` refuses by name
    return rows


def read_conditions(given: Sequence[str], columns: Columns) -> dict:
    """Of texts such as "occupation=student" a value by column, as the column has it. Raises ValueError for others."""
    conditions, of = {}, {column.name: column for column in columns.columns}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is no condition: give column=value")
        column = of[known("column", name, of)]
        if column.knots is None:
            by_text = {str(level): level for level in column.levels if level is not None}
            conditions[name] = by_text[known(f"value of column {name!r}", value, by_text)]
            continue
        try:
            conditions[name] = float(value)
        except ValueError:
            raise ValueError(f"value of column {name!r} {value!r}: it is a number, give one") from None
    return conditions
