"""Tables that people made: CSV, TSV and Excel, read as text with the line of each row."""

import csv
import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from somvq.errors import DataError

SUFFIXES = (".csv", ".tsv", ".xlsx")
ABSENT = {"", "n/a", "#n/a", "na", "nan", "null", "."}
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # what Excel writes above the header


@dataclass(frozen=True)
class Row:
    """One line of a table: text by column."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table with its columns in lower case; what is in its cells has no spaces around it."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """The table at `path`; empty lines and columns without a name are passed over.

    Raises:
        DataError: the file and the line where it is no table.
    """
    lines = lines_of(path)
    _, header = next(lines, (0, []))
    columns = [cell.lower() for cell in header]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: line 1: column {twice[0]} stands there twice; remove or rename one")
    rows = []
    for line, cells in lines:
        if len(cells) > len(columns):
            raise DataError(
                f"{path}: line {line} has {len(cells)} cells and the header {len(columns)}; make them equal"
            )
        cells += [""] * (len(columns) - len(cells))  # some programs drop empty cells at the end of a line
        rows.append(Row(line, {name: cell for name, cell in zip(columns, cells, strict=True) if name}))
    return Table(path, tuple(filter(None, columns)), tuple(rows))


def columns_of(path: Path) -> tuple[str, ...]:
    """The columns of the table at `path`, none if it is no table; of CSV and TSV only the first line is read."""
    try:
        if path.suffix.lower() == ".xlsx":
            return read_table(path).columns
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            text = file.readline(1 << 16)
            given = SEPARATOR.fullmatch(text.rstrip("\n"))
            text = file.readline(1 << 16) if given else text
        separator = given[1] if given else separator_of(text)
        return tuple(cell.strip().lower() for cell in next(csv.reader([text], delimiter=separator), []))
    except (OSError, csv.Error, DataError):
        return ()


def is_absent(text: str) -> bool:
    """Whether a cell is empty, or says that there is nothing in it."""
    return text.lower() in ABSENT


def value_of(text: str) -> float | str | None:
    """What a cell says: a number where it is one, none where it is empty or n/a, else text."""
    if is_absent(text):
        return None
    if "_" in text:  # which Python passes over in numbers
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def lines_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of the table at `path` that are not empty, with their numbers."""
    read = read_excel if path.suffix.lower() == ".xlsx" else read_text
    try:
        for line, cells in read(path):
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield line, stripped
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a table in CSV, TSV or Excel") from error


def read_text(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV or TSV file, whatever separates its cells and ends its lines."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8; save it as CSV UTF-8") from error
    lines = io.StringIO(text, newline=None)  # makes every end of line one of Unix
    first = lines.readline()
    given = SEPARATOR.fullmatch(first.rstrip("\n"))
    above = 1 if given else 0
    separator = given[1] if given else separator_of(first)
    lines.seek(len(first) if given else 0)
    reader = csv.reader(lines, delimiter=separator)
    try:
        for cells in reader:
            yield above + reader.line_num, [with_point(cell) for cell in cells] if separator == ";" else cells
    except csv.Error as error:
        raise DataError(
            f"{path}: line {above + reader.line_num} is no line of a table ({error}); save it as CSV UTF-8"
        ) from error


def separator_of(header: str) -> str:
    """What separates the cells of a line: most often a comma."""
    return max(",;\t", key=header.count)


def with_point(cell: str) -> str:
    """`cell` with a decimal point: programs that separate cells by ; write numbers with a comma."""
    return cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell


def read_excel(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of the first sheet of an Excel file, each as long as the first at least."""
    import openpyxl  # here, because few tables need it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            rows = [list(cells) for cells in book.worksheets[0].iter_rows(values_only=True)]
            book.close()
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, TypeError, SyntaxError) as error:
        raise DataError(f"{path}: is no Excel file; save it as .xlsx or as CSV UTF-8") from error
    width = 0
    for line, cells in enumerate(rows, 1):
        texts = ["" if cell is None else str(cell) for cell in cells]
        while len(texts) > width and not texts[-1].strip():
            texts.pop()
        width = width or len(texts)
        yield line, texts + [""] * (width - len(texts))


def is_table(path: Path) -> bool:
    """Whether `path` is a file that is called as a table."""
    return path.suffix.lower() in SUFFIXES and os.path.isfile(path)
