"""Text files that hold a table: their encoding, separators and decimal commas are found out."""

from __future__ import annotations

import codecs
import csv
import re
from pathlib import Path
from typing import Any

from torchivp.fitting.reading.table import DataError, Table, any_cell, read_cell

_COMMA = re.compile(r"(?:[<>]=?\s*)?[-+]?\d*,\d+(?:[eE][-+]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"(?:[<>]=?\s*)?[-+]?\d{1,3},\d{3}", re.ASCII)


def read_text(path: Path) -> Table:
    """Read a text file with a header.

    The cells are separated by what its header holds most of: commas, semicolons or tabs, or else spaces.

    Raises:
        DataError: the file is empty, or no text, or a line has more cells than the header.
    """
    text, notes = _decoded(path)
    lines = re.split(r"\r\n|\r|\n", text)
    lines = ["" if not line.strip() or line.lstrip().startswith("#") else line for line in lines]
    header = next(filter(None, lines), None)
    if header is None:
        raise DataError(f"{path} is empty")
    separator = _separator(header)
    if separator == " ":
        lines, separator = ["\t".join(line.split()) for line in lines], "\t"
    (_, names), *below = _split(path, lines, separator)
    records = [(i, [read_cell(cell) for cell in cells]) for i, cells in below]
    records = [(i, cells) for i, cells in records if any_cell(cells)]
    if not records:
        raise DataError(f"{path} holds no rows below its header")
    cells = [list(column) for column in zip(*(cells for _, cells in records), strict=True)]
    rows = [f"line {i} of {path.name}" for i, _ in records]
    return Table([name.strip() for name in names], cells, path.name, rows, _has_decimal_commas(cells, separator), notes)


def _decoded(path: Path) -> tuple[str, list[str]]:
    """The text of a file, and what there is to say of its encoding."""
    raw, notes = path.read_bytes(), []
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(f"{path} is not a CSV file: {error}: save it as UTF-8") from None
        notes = [f"{path.name} is not in UTF-8, and was read as Windows-1252"]
    if "\0" in text:
        raise DataError(f"{path} is not a CSV file: it holds null characters, which text does not")
    return text, notes


def _separator(header: str) -> str:
    """What stands between the names of the header: a comma, semicolon or tab, or else a space."""
    bare = re.sub(r'"[^"]*"', "", header)
    separator = max(",;\t", key=bare.count)
    return separator if separator in bare or len(bare.split()) < 2 else " "


def _split(path: Path, lines: list[str], separator: str) -> list[tuple[int, list[str]]]:
    """The cells of each line that is not blank, as many as in the header, with the number of the line."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, skipinitialspace=True, strict=True)
    records, last = [], 0
    try:
        for cells in reader:
            if cells:
                records.append((last + 1, cells))
            last = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error} in line {last + 1}") from None
    width = len(records[0][1])
    for i, cells in records:
        if len(cells) > width:
            raise DataError(
                f"{path} is not a CSV file: Expected {width} fields in line {i}, saw {len(cells)}: a line has more "
                "cells than the header; decimal commas need semicolons or tabs between cells"
            )
    return [(i, cells + [""] * (width - len(cells))) for i, cells in records]


def _has_decimal_commas(cells: list[list[Any]], separator: str) -> bool:
    """Whether numbers are written with decimal commas, by those that hold a comma.

    Between tabs, 1,234 may be a number with a separator of thousands: there a number such as 1,5 must tell.
    """
    if separator == ",":
        return False
    numbers = (cell for column in cells for cell in column if cell is not None and _COMMA.fullmatch(cell))
    return any(separator == ";" or not _THOUSANDS.fullmatch(number) for number in numbers)
