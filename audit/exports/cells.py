"""Rows as text: CSV that no spreadsheet runs, and times as every export writes them. Pure."""

import csv
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

Row = dict[str, object]

# https://owasp.org/www-community/attacks/CSV_Injection: the wide ones are the same to some spreadsheets
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_csv(header: list[str], rows: Iterable[Row], output: TextIO) -> int:
    writer = csv.writer(output, lineterminator="\n")
    # a carriage return ends a row for who reads it, unless it is quoted, which the writer does not do by itself
    careful = csv.writer(output, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    count = 0
    for row in rows:
        cells = [cell(row[name]) for name in header]
        (careful if "\r" in "".join(cells) else writer).writerow(cells)
        count += 1
    return count


def cell(value: object) -> str:
    """Text for a CSV cell that no spreadsheet runs as a formula."""
    text = _text(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return str(value)
