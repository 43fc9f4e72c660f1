"""Exports straight from the database: it makes the rows' text and sends them as it reads them, so that memory does not grow with them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any, Literal

from django.db import connection, transaction
from django.utils import timezone

from audit.exports.cells import FORMULAS
from audit.exports.statements import AT, STATEMENTS, Column, Statement

Form = Literal["csv", "ndjson"]

_FORMULAS = ", ".join(f"U&'\\{ord(sign):04x}'" for sign in FORMULAS)
# bytes that go on at once
_CHUNK = 256 * 1024


class UnknownFilter(ValueError):
    """This export cannot be narrowed so; the message says by what it can."""


@dataclass(slots=True)
class Written:
    """What went out so far, header included in bytes and SHA-256, not in rows."""

    rows: int = 0
    bytes: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        return str(self.hash.hexdigest())


def header(kind: str) -> list[str]:
    return STATEMENTS[kind].header


def filters(kind: str) -> list[str]:
    """Names that an export of this kind can be narrowed by."""
    return sorted(STATEMENTS[kind].filters)


def write(
    kind: str,
    output: IO[bytes],
    *,
    from_at: datetime,
    to_at: datetime,
    form: Form = "csv",
    where: Mapping[str, str] | None = None,
    now: datetime | None = None,
    written: Written | None = None,
) -> Written:
    """Writes the rows of `kind` in [from, to); `where`: filter -> value. `written` is brought up to date while it goes on.

    Raises UnknownFilter. Outside of a transaction it opens one, so that all rows are of one moment.
    """
    told = written or Written()
    for chunk in stream(kind, from_at=from_at, to_at=to_at, form=form, where=where, now=now, written=told):
        output.write(chunk)
    return told


def stream(
    kind: str,
    *,
    from_at: datetime,
    to_at: datetime,
    form: Form = "csv",
    where: Mapping[str, str] | None = None,
    now: datetime | None = None,
    written: Written | None = None,
) -> Iterator[bytes]:
    """The same as chunks of whole rows, for who sends them on."""
    statement = STATEMENTS[kind]
    conditions = _conditions(kind, statement, where or {})
    parameters = {**(where or {}), "from": from_at, "to": to_at, "now": now or timezone.now()}
    end = f"{conditions} ORDER BY {statement.order}"
    yield from _copied(statement, end, parameters, form=form, ordered=statement.ordered, told=written or Written())


def chosen(
    kind: str, keys: Sequence[object], *, from_at: datetime, to_at: datetime, now: datetime, form: Form = "csv"
) -> Iterator[bytes]:
    """Rows of these primary keys (of events their request), in their order. They lie in [from, to)."""
    statement = STATEMENTS[kind]
    parameters = {"keys": list(keys), "from": from_at, "to": to_at, "now": now}
    end = f"AND {statement.key} = ANY(%(keys)s) ORDER BY array_position(%(keys)s, {statement.key}), {statement.order}"
    yield from _copied(statement, end, parameters, form=form, ordered=False, told=Written())


def _copied(
    statement: Statement, end: str, parameters: Mapping[str, object], *, form: Form, ordered: bool, told: Written
) -> Iterator[bytes]:
    query = f"{statement.beforehand} SELECT {_selected(statement, form)} {statement.source} {end}"
    head = (",".join(statement.header) + "\n").encode() if form == "csv" else b""
    # JSON has no control characters in it, so nothing is quoted or escaped a second time
    as_it_is = "(FORMAT csv)" if form == "csv" else "(FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02')"
    with transaction.atomic(), connection.cursor() as cursor:
        if ordered:
            # other joins lose the order that the index gives, and then everything is sorted before the first row goes out
            cursor.execute("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
        buffer = bytearray(head)
        # Django's wrapper that counts queries takes no parameters here
        with cursor.cursor.copy(f"COPY ({query}) TO STDOUT {as_it_is}", parameters) as copy:
            for row in copy:
                buffer += row
                told.rows += 1
                if len(buffer) >= _CHUNK:
                    yield _counted(buffer, told)
                    buffer = bytearray()
        if buffer:
            yield _counted(buffer, told)
        if ordered:
            cursor.execute("SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on")


def _counted(chunk: bytearray, told: Written) -> bytes:
    told.bytes += len(chunk)
    told.hash.update(chunk)
    return bytes(chunk)


def _conditions(kind: str, statement: Statement, where: Mapping[str, str]) -> str:
    found = []
    for name in where:
        if name not in statement.filters:
            raise UnknownFilter(f"{kind} cannot be narrowed by {name!r}, only by {', '.join(filters(kind))}.")
        found.append(f"AND {statement.filters[name]}")
    return " ".join(found)


def _selected(statement: Statement, form: Form) -> str:
    if form == "csv":
        return ", ".join(_cell(column) for column in statement.columns)
    pairs = ", ".join(f"{_value(column)} AS {connection.ops.quote_name(column.name)}" for column in statement.columns)
    # json_build_object puts spaces around its colons
    return f"(SELECT row_to_json(o) FROM (SELECT {pairs}) o)::text"  # noqa: S608


def _cell(column: Column) -> str:
    """A cell of a CSV: unknown is empty, and no spreadsheet runs it."""
    sql = f"({column.sql})"
    match column.kind:
        case "text":
            return f"CASE WHEN left({sql}, 1) IN ({_FORMULAS}) THEN '''' || {sql} ELSE NULLIF({sql}, '') END"
        case "fixed":
            return f"NULLIF({sql}, '')"
        case "time":
            return AT.format(sql)
        case "bool":
            return f"CASE {sql} WHEN true THEN 'True' WHEN false THEN 'False' END"
        case "number":
            return sql


def _value(column: Column) -> str:
    """A value in JSON: text as it is, numbers and truth values as such."""
    sql = f"({column.sql})"
    match column.kind:
        case "text" | "fixed":
            return f"COALESCE({sql}, '')"
        case "time":
            return AT.format(sql)
        case "bool" | "number":
            return sql
