"""Reading tables: text files, Excel workbooks, Parquet files, data frames and dicts of columns."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from torchivp.checks import did_you_mean
from torchivp.fitting.reading.delimited import read_text
from torchivp.fitting.reading.table import DataError, Table, any_cell, import_package, read_cell

_SHEET = re.compile(r"(.+\.xls[xm])#(.+)", re.IGNORECASE)
_OTHER_FORMATS = (".xls", ".xlsb", ".ods")


def import_pandas() -> ModuleType:
    """The module pandas.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    return import_package("pandas", "showing results as tables", "fit")


def read_table(source: Any, what: str = "data") -> Table:
    """Read a table.

    Args:
        source: the path of a text file with a header, of an Excel workbook (.xlsx, .xlsm; "book.xlsx#Sheet" for another
            sheet than the first) or of a Parquet file (.parquet); a pandas or Polars DataFrame, or any other that
            narwhals takes; or a dict from column to a sequence, an array [n] or a tensor [n].
        what: what messages call the argument.

    Raises:
        DataError: there is no such file or sheet, it cannot be read, or it holds no rows.
        TypeError: `source` is nothing of that kind.
        ImportError: a package that the format needs is not installed.
    """
    if isinstance(source, str | os.PathLike):
        return _file_table(os.fspath(source))
    of = "" if what == "data" else f" of {what}"
    if isinstance(source, Mapping):
        return _dict_table(source, f"the dict{of}")
    name = f"the {type(source).__name__}{of}"
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        cells = [source.iloc[:, i].tolist() for i in range(source.shape[1])]
        return _table(source.columns, cells, name, [f"row {label}" for label in source.index])
    if hasattr(type(source), "columns") or hasattr(source, "__narwhals_dataframe__"):
        return _narwhals_table(source, what, name)
    raise _no_table(source, what)


def _table(columns: Sequence[Any], cells: Sequence[Sequence[Any]], name: str, rows: list[str] | str) -> Table:
    """A table of cells that are not text alone; `rows` names each row, or is the place that their numbers follow."""
    count = len(cells[0]) if cells else 0
    if not count:
        raise DataError(f"{name} holds no rows")
    rows = [f"row {i}{rows}" for i in range(count)] if isinstance(rows, str) else rows
    return Table(
        [str(column) for column in columns], [[read_cell(each) for each in column] for column in cells], name, rows
    )


def _no_table(source: Any, what: str) -> TypeError:
    collect = ": collect it first" if hasattr(source, "collect") else ""
    return TypeError(
        f"{what} must be the path of a table, a DataFrame or a dict of columns, got {type(source).__name__}{collect}"
    )


def _narwhals_table(source: Any, what: str, name: str) -> Table:
    narwhals = import_package("narwhals.stable.v1", f"reading a {type(source).__name__}", "fit")
    try:
        frame = narwhals.from_native(source, eager_only=True)
    except TypeError:
        raise _no_table(source, what) from None
    return _table(frame.columns, [frame[column].to_list() for column in frame.columns], name, "")


def _dict_table(source: Mapping[Any, Any], name: str) -> Table:
    columns = {str(column): _listed(column, values) for column, values in source.items()}
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{column!r} {length}" for column, length in lengths.items())
        raise DataError(f"the columns of {name} must have one length, but have {listed}")
    return _table(list(columns), list(columns.values()), name, "")


def _listed(column: Any, values: Any) -> list[Any]:
    """The cells of a sequence, an array or a tensor."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    if isinstance(values, list | tuple):
        return list(values)
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"column {str(column)!r} must hold one cell for each row, [n], got shape {array.shape}")
    if array.dtype.kind in "mM":
        array = array.astype(f"{array.dtype.kind}8[us]")  # finer ones are whole numbers in a list
    return array.tolist()


def _file_table(source: str) -> Table:
    named_sheet = None if Path(source).exists() else _SHEET.fullmatch(source)
    path, sheet = (Path(named_sheet[1]), named_sheet[2]) if named_sheet else (Path(source), None)
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise DataError(f"{path} is a {suffix} workbook, which is not read: save it as .xlsx or as CSV")
    if suffix in (".xlsx", ".xlsm"):
        return _excel_table(path, sheet)
    if suffix in (".parquet", ".pq"):
        return _parquet_table(path)
    return read_text(path)


def _parquet_table(path: Path) -> Table:
    place = f" of {path.name}"
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        polars = import_package("polars", "reading Parquet files", "tables")
        try:
            frame = polars.read_parquet(path)
        except polars.exceptions.PolarsError as error:
            raise DataError(f"{path} is not a Parquet file: {error}") from None
        return _table(frame.columns, [column.to_list() for column in frame.get_columns()], path.name, place)
    try:
        table = parquet.read_table(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from None
    return _table(table.column_names, [column.to_pylist() for column in table.columns], path.name, place)


def _excel_table(path: Path, sheet: str | None) -> Table:
    openpyxl = import_package("openpyxl", "reading Excel workbooks", "tables")
    try:
        book = openpyxl.load_workbook(path, data_only=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path} is not an Excel workbook: {error}") from None
    sheets = {each.title: each for each in book.worksheets}
    if sheet is not None and sheet not in sheets:
        raise DataError(
            f"{path} has no sheet {sheet!r}.{did_you_mean(sheet, sheets)} Its sheets are {', '.join(sheets)}"
        )
    chosen = sheets[sheet] if sheet is not None else book.worksheets[0]
    name = path.name if sheet is None else f"{path.name}#{sheet}"
    rows = {i: row for i, row in enumerate(chosen.iter_rows(values_only=True), 1) if any_cell(row)}
    if not rows:
        raise DataError(f"{name} is empty")
    (_, header), *below = rows.items()
    if not below:
        raise DataError(f"{name} holds no rows below its header")
    names = ["" if cell is None else str(cell).strip() for cell in header]
    columns = [(column, [row[j] for _, row in below]) for j, column in enumerate(names)]
    columns = [(column, cells) for column, cells in columns if column or any_cell(cells)]
    places = [f"row {i} of {name}" for i, _ in below]
    return _table([column for column, _ in columns], [cells for _, cells in columns], name, places)
