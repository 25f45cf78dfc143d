"""A table's columns as numbers that Gaussian diffusion can draw, and back: each with its own dtype and values.

A number becomes its normal score, z = Phi^-1(F(x)), F the training rows' distribution; of ties each row gets a random
place among them, so that z is standard normal whatever the column looks like. A category becomes one of its values,
-1 but for a 1 ("analog bits" of a one-hot code, Chen et al. 2023); what is missing is a category of its own.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from stlib.settings import FieldError, known

KNOTS = 513  # of a number's quantiles
TIED = 0.1  # a number with fewer different values than this share of the rows only takes those
MOST_LEVELS = 256  # of a category
EDGE = 1e-4  # probability beyond which no normal score goes


@dataclass(frozen=True)
class Column:
    """One column. levels: of a category, None for missing. knots: of a number, its quantiles at equal steps.

    tied: a number that takes only the training rows' values. gaps: a number that may be missing. dtype: pandas' name;
    ordered: of a category's levels.
    """

    name: str
    dtype: str
    levels: tuple | None = None
    knots: tuple[float, ...] | None = None
    tied: bool = False
    gaps: float = 0.0
    ordered: bool = False

    @classmethod
    def of(cls, values: pd.Series) -> "Column":
        """Of a column's values. Raises FieldError, naming the column, for dates, free text and other objects."""
        name, dtype, there = str(values.name), str(values.dtype), values.dropna()
        for one in there if dtype == "object" else ():
            if not isinstance(one, str | bool | int | float | np.generic):
                raise FieldError(f"column {name!r} holds {type(one).__name__}: give numbers or text", name)
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and there.nunique() > 1:
            numbers = there.to_numpy(float)
            if not np.isfinite(numbers).all():
                raise FieldError(f"column {name!r} holds infinite numbers: replace them or leave the rows out", name)
            knots = np.quantile(numbers, np.linspace(0, 1, KNOTS), method="inverted_cdf")
            tied = there.nunique() <= max(TIED * len(there), 2)
            return cls(name, dtype, knots=tuple(knots.tolist()), tied=tied, gaps=float(values.isna().mean()))
        if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
            raise FieldError(f"column {name!r} holds dates: give numbers in their place, such as days, or leave it out",
                             name)
        ordered = dtype == "category" and values.cat.ordered
        levels = [one for one in values.cat.categories if (there == one).any()] if dtype == "category" else \
            sorted(there.unique().tolist(), key=lambda one: (str(type(one)), one))
        if len(levels) > MOST_LEVELS or (len(levels) > 50 and len(levels) > len(there) / 2):
            raise FieldError(f"column {name!r} has {len(levels)} different texts: free text, or a name of each row; "
                             "leave it out", name)
        levels = [one.item() if isinstance(one, np.generic) else one for one in levels]
        return cls(name, dtype, tuple(levels + [None] * bool(values.isna().any())), ordered=ordered)

    @property
    def width(self) -> int:
        """Numbers of its code: 0 for a constant."""
        if self.levels is not None:
            return len(self.levels) if len(self.levels) > 1 else 0
        return 1 + bool(self.gaps)

    @property
    def is_whole(self) -> bool:
        """Whether it is a number and whole."""
        return self.knots is not None and self.dtype.lower().startswith(("int", "uint"))

    def encode(self, values: pd.Series, rng: np.random.Generator) -> np.ndarray:
        """The code (n, width), float32. Raises FieldError for a category never seen."""
        missing = values.isna().to_numpy()
        if self.levels is not None:
            places = {level: i for i, level in enumerate(self.levels)}
            for one in values[~missing].unique():
                known(f"value of column {self.name!r}", one, [level for level in self.levels if level is not None])
            if missing.any():
                known(f"value of column {self.name!r}", None, self.levels)
            index = np.array([places[None if gone else one] for one, gone in zip(values, missing, strict=True)], int)
            return (2 * np.eye(len(self.levels), dtype=np.float32)[index] - 1)[:, : self.width]
        numbers, knots = values.to_numpy(float, na_value=self.knots[KNOTS // 2]), np.array(self.knots)
        low, high = (np.searchsorted(knots, numbers, side) for side in ("left", "right"))
        between = np.interp(numbers, knots, np.linspace(0, 1, KNOTS))  # of a value that is no knot
        places = np.where(high > low, (low + (high - low) * rng.random(len(numbers)) - 0.5) / (KNOTS - 1), between)
        score = ndtri(np.clip(places, EDGE, 1 - EDGE))
        flag = np.where(missing, 1.0, -1.0)
        return np.column_stack([np.where(missing, 0.0, score), flag][: self.width]).astype(np.float32)

    def decode(self, code: np.ndarray) -> pd.Series:
        """The values of a code (n, width), of the column's dtype."""
        if self.levels is not None:
            index = code.argmax(axis=1) if self.width else np.zeros(len(code), int)
            values = pd.Series(pd.Categorical.from_codes(index, range(len(self.levels)))).map(
                dict(enumerate(self.levels))).astype(object)
            return self.typed(values.where(values.notna(), None))
        places = np.clip(ndtr(code[:, 0].astype(float)), 0, 1) * (KNOTS - 1)
        knots = np.array(self.knots)
        numbers = knots[np.rint(places).astype(int)] if self.tied else np.interp(places, range(KNOTS), knots)
        if self.is_whole:
            numbers = np.rint(numbers)
        return self.typed(pd.Series(np.where(code[:, 1] > 0, np.nan, numbers) if self.gaps else numbers))

    def typed(self, values: pd.Series) -> pd.Series:
        """The values in the column's dtype, under its name."""
        if self.dtype == "category":
            levels = [one for one in self.levels if one is not None]
            return pd.Series(pd.Categorical(values, levels, ordered=self.ordered), name=self.name)
        return values.astype(self.dtype).rename(self.name)

    def check(self, value) -> None:
        """Raise FieldError for a value that this column cannot be held at, with those that it can."""
        if self.levels is not None:
            known(f"value of column {self.name!r}", value, self.levels)
        elif isinstance(value, bool) or not isinstance(value, int | float) \
                or not self.knots[0] <= value <= self.knots[-1] or (self.is_whole and value != int(value)):
            raise FieldError(f"unknown value of column {self.name!r} {value!r}: use a {'whole ' * self.is_whole}number "
                             f"from {self.knots[0]:g} to {self.knots[-1]:g}")


@dataclass(frozen=True)
class Columns:
    """The columns of a table, in their order."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Columns":
        """Of a table's rows. Raises FieldError for one without rows, with one column, or with names given twice."""
        names = [str(name) for name in table.columns]
        if len(names) < 2 or len(table) < 2:
            raise FieldError(f"a table of {len(table)} rows and {len(names)} columns: give two or more of both")
        if twice := {name for name in names if names.count(name) > 1}:
            raise FieldError(f"columns named {', '.join(sorted(twice))} twice: give each a name of its own")
        return cls(tuple(Column.of(table.iloc[:, i].rename(name)) for i, name in enumerate(names)))

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    @property
    def widths(self) -> list[int]:
        """Numbers of each column's code."""
        return [column.width for column in self.columns]

    def encode(self, table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
        """The rows' code (n, width), float32. rng: places ties. Raises FieldError for columns or categories unknown."""
        for name in self.names:
            known("column", name, [str(one) for one in table.columns])
        return np.column_stack([column.encode(table[column.name], rng) for column in self.columns])

    def decode(self, code: np.ndarray) -> pd.DataFrame:
        """The table of a code."""
        parts = np.split(code, np.cumsum(self.widths)[:-1], axis=1)
        return pd.concat([column.decode(part) for column, part in zip(self.columns, parts, strict=True)], axis=1)

    def check(self, conditions: Mapping) -> None:
        """Raise FieldError for a column or value of `conditions` that is none of these."""
        of = {column.name: column for column in self.columns}
        try:
            for name, value in conditions.items():
                of[known("column", name, of)].check(value)
        except FieldError as error:
            raise FieldError(f"conditions: {error}", "conditions") from None

    def held(self, conditions: Mapping, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The code (n, width) of `conditions`, 0 where there is none, and which columns (c,) have one."""
        self.check(conditions)
        parts = [column.encode(column.typed(pd.Series([conditions[column.name]] * n)), rng)
                 if column.name in conditions else np.zeros((n, column.width), np.float32) for column in self.columns]
        return np.column_stack(parts), np.array([name in conditions for name in self.names], np.float32)

    def put(self, conditions: Mapping, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the conditions' own values in their columns."""
        return table.assign(**{column.name: column.typed(pd.Series([conditions[column.name]] * len(table)))
                               for column in self.columns if column.name in conditions})

    def to_dict(self) -> dict:
        """As plain values, for `from_dict`."""
        return {"columns": [asdict(column) for column in self.columns]}

    @classmethod
    def from_dict(cls, given: dict) -> "Columns":
        """Of what `to_dict` gave."""
        return cls(tuple(Column(**{name: tuple(value) if isinstance(value, list) else value
                                   for name, value in one.items()}) for one in given["columns"]))
