"""Tables for notebooks: lists of dictionaries that print themselves and convert to a data frame."""

from html import escape
from typing import Any

from scalar_sae.errors import UserError

_ESCAPES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
SHOWN = 20
"""Maximum number of rows that are printed. The list always holds all rows."""


class Table(list[dict[str, Any]]):
    """Rows with the same columns. `pandas.DataFrame(table)` and `pyarrow.Table.from_pylist` accept them."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns; empty without rows."""
        return list(self[0]) if self else []

    def to_frame(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise UserError("to_frame needs pandas; install it with pip install 'scalar-sae[notebook]'") from error
        return pd.DataFrame(list(self), columns=self.columns)

    def __repr__(self) -> str:
        if not self:
            return "no rows"
        shown = self[:SHOWN]
        cells = [self.columns, *([_shown(row[name]) for name in self.columns] for row in shown)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        numbers = [all(_is_number(row[name]) for row in shown) for name in self.columns]
        lines = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, numbers, strict=True)
            ).rstrip()
            for line in cells
        ]
        return "\n".join([*lines, *self._rest()])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        rows = ["".join(f"<td>{escape(_shown(row[name]))}</td>" for name in self.columns) for row in self[:SHOWN]]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        rest = "".join(f"<p>{line}</p>" for line in self._rest())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"

    def _rest(self) -> list[str]:
        """The line about the rows that are not printed."""
        return [f"... {len(self) - SHOWN:,} more rows"] if len(self) > SHOWN else []


def _shown(value: Any) -> str:
    """A value as a cell shows it: numbers with four digits, lists of strings separated by bars."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " | ".join(map(_shown, value))
    return "" if value is None else str(value).translate(_ESCAPES)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
