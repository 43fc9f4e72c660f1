"""Lists as CSV: what a page shows, by the same filter and order and from the same row on, and what follows it. No models, no rules."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from io import StringIO
from typing import Protocol, TypeVar

from django.http import HttpResponse

from audit import exports

# a page is no place for more: manage.py export writes all of a period
MOST = 5000
# a filter without an index of its own looks through so many times its bound at most
MOST_TURNS = 20

Row = TypeVar("Row", covariant=True)
At = TypeVar("At", covariant=True)


class Page(Protocol[Row, At]):
    @property
    def rows(self) -> Iterable[Row]: ...
    @property
    def older(self) -> At | None: ...


def gather(page_of: Callable[[At | None], Page[Row, At]], first: At | None) -> tuple[list[Row], bool]:
    """Rows of one page after another, at most MOST, and whether these are all."""
    rows: list[Row] = []
    after = first
    for _ in range(MOST_TURNS):
        page = page_of(after)
        rows += page.rows
        after = page.older
        if after is None or len(rows) >= MOST:
            break
    return rows[:MOST], after is None and len(rows) <= MOST


def csv(
    name: str, header: list[str], rows: Iterable[exports.Row], *, now: datetime, whole: bool = True
) -> HttpResponse:
    """A file NAME-TIME.csv; where it is not all that fits the filter, its name says how many rows it has."""
    output = StringIO()
    count = exports.write_csv(header, rows, output)
    cut = "" if whole else f"-only-the-first-{count}"
    response = HttpResponse(output.getvalue(), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}{cut}.csv"'
    return response
