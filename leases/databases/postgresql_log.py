"""What PostgreSQL's own log tells of sessions: jsonlog and csvlog, as bytes. Pure: opens no file, asks no server.

Only fields that the server fills are believed. A message is read for what no field holds (how long a session was, the first
application name), and only where it begins as the server's own begins. Statements and other messages are not kept.

https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-JSONLOG
https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-CSVLOG
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import msgspec

JSONLOG, CSVLOG = "jsonlog", "csvlog"

_AUTHORIZED = ("connection authorized: user=", "replication connection authorized: user=")
_DISCONNECTED = re.compile(r"disconnection: session time: (\d+):(\d\d):(\d\d)\.(\d{3}) user=")
# what may follow the application name that a client sends
_ENCRYPTION = re.compile(r" (SSL enabled|GSS) \([^()]*\)$")
# invalid_password; invalid_authorization_specification: no such role, may not log in, no line of pg_hba.conf
_REFUSED = {"28P01", "28000"}
_SESSION_ID = re.compile(r"([0-9a-f]{1,16})\.([0-9a-f]{1,8})")
_BEGAN = re.compile(rb'^(?:\{"timestamp":")?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) ', re.MULTILINE)
# a whole second is all that the log has of a session's start
_WITHIN_A_SECOND = timedelta(milliseconds=999)
_SLACK = timedelta(seconds=2)
# no zone is farther from UTC
_FARTHEST = timedelta(hours=16)
# longer than any record that is wanted here: what a client may name itself is cut by the server at 10,000 bytes
_LONGEST_WANTED = 120_000
# of a csvlog record: up to PostgreSQL 12, of 13, since 14
_FIELDS = {23, 24, 26}
_FEWEST_FIELDS = min(_FIELDS)

_QUOTED = rb'(?:"(?:[^"\n]|"")*")?'
# The head of a csvlog record. Within a quoted field quotes stand in pairs, so no text that a client sends can look like it: its
# user, if there is one, begins with a single quote, and its message with an odd number of them.
_CSV_HEAD = re.compile(
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [^,\"\n]{1,10},"
    + rb",".join([_QUOTED, _QUOTED, rb"\d+", _QUOTED, rb"[0-9a-f]+\.[0-9a-f]+", rb"\d+", _QUOTED])
    + rb",\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [^,\"\n]{1,10},[\d/]*,\d+,[^,\"\n]*,[0-9A-Z]{5},\"(?:\"\")*[^\"]"
)
# quotes within a JSON text are escaped, so this one begins an entry wherever it stands
_JSON_HEAD = b'{"timestamp":"'


class _Line(msgspec.Struct, gc=False):
    timestamp: str
    session_id: str
    session_start: str
    user: str = ""
    dbname: str = ""
    remote_host: str = ""
    remote_port: int | str = ""
    vxid: str = ""
    error_severity: str = ""
    state_code: str = ""
    message: str = ""
    application_name: str = ""
    backend_type: str = ""


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class LoggedSession:
    """What the log tells of one session. `key` is PostgreSQL's session_id; times are UTC.

    `authorized_at`: from the line of its connection; `disconnected_at` and `seconds` (how long it was) from the one of its end.
    """

    key: str
    pid: int
    start_second: datetime
    user: str
    database: str
    # empty: a local socket
    address: str
    port: int | None
    application: str = ""
    authorized_at: datetime | None = None
    disconnected_at: datetime | None = None
    seconds: float = 0.0

    @property
    def started_at(self) -> datetime:
        """To the millisecond from its end; else within the second that the log names, as near as its connection tells."""
        if self.disconnected_at is not None:
            return max(self.disconnected_at - timedelta(seconds=self.seconds), self.start_second)
        if self.authorized_at is not None:
            return max(min(self.authorized_at, self.start_second + _WITHIN_A_SECOND), self.start_second)
        return self.start_second


@dataclass(slots=True)
class Told:
    """What a piece of the log tells: its first `size` bytes. `records` counts all of it, `invalid` those of them that are no entry."""

    size: int = 0
    records: int = 0
    invalid: int = 0
    # sessions whose client is named by its host: log_hostname
    nameless: int = 0
    first_at: datetime | None = None
    newest_at: datetime | None = None
    # of the newest connection, whoever's it was
    connected_at: datetime | None = None
    sessions: dict[str, LoggedSession] = field(default_factory=dict)
    # by key: a session that authenticated and then could not go on has no other end
    died: dict[str, datetime] = field(default_factory=dict)
    # when the server came up: what was open before is over
    started: set[datetime] = field(default_factory=set)
    # log-ins that were refused, by the user that the client named
    refused: Counter[str] = field(default_factory=Counter)


def began(first: bytes, is_all: bool, *, form: str) -> datetime | None:
    """The time of the first record in a file's first bytes, if it is whole; without more to be had (`is_all`) also of another."""
    if (at := read(first[: first.rfind(b"\n") + 1], form).first_at) is not None or not is_all:
        return at
    found = _BEGAN.search(first)
    try:
        return _clock(found[1].decode()) if found else None
    except ValueError:
        return None


def read(data: bytes, form: str, *, ends: bool = False) -> Told:
    """What these whole lines tell. A last record that goes on beyond them is left (`size`), unless nothing more comes: `ends`."""
    told = Told()
    shifts: dict[tuple[str, str], timedelta | None] = {}
    last: tuple[_Line, timedelta] | None = None
    for line in _json_lines(data, told) if form == JSONLOG else _csv_lines(data, told, ends=ends):
        told.records += 1
        begun = (line.session_id, line.session_start)
        if begun not in shifts:
            shifts[begun] = _shift(*begun)
        shift = shifts[begun]
        try:
            if shift is None:
                raise ValueError(line.session_id)
            if last is None:
                told.first_at = _clock(line.timestamp) - shift
            _take(line, shift, told)
            last = line, shift
        except ValueError:
            told.invalid += 1
    if last is not None:
        with suppress(ValueError):
            told.newest_at = _clock(last[0].timestamp) - last[1]
    return told


def _take(line: _Line, shift: timedelta, told: Told) -> None:
    message = line.message
    if line.user and line.error_severity == "LOG":
        if message.startswith(_AUTHORIZED):
            told.connected_at = _clock(line.timestamp) - shift
            if (session := _session(line, told)) is not None:
                session.authorized_at = told.connected_at
                session.application = session.application or _named_first(line)
        # a session that logs such a text itself is still there, and has a virtual transaction id then
        elif (
            not line.vxid and (found := _DISCONNECTED.match(message)) and (session := _session(line, told)) is not None
        ):
            hours, minutes, seconds, milliseconds = (int(part) for part in found.groups())
            session.seconds = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
            session.disconnected_at = _end(line, shift, session)
            session.application = line.application_name or session.application
    elif line.error_severity == "FATAL" and line.user:
        if line.state_code in _REFUSED:
            told.refused[line.user] += 1
        # a role that may not log in is refused after its password was taken, which the log calls authorized
        told.died[line.session_id] = _clock(line.timestamp) - shift
    elif line.backend_type == "startup" and message.startswith("database system was "):
        told.started.add(_clock(line.timestamp) - shift)


def _session(line: _Line, told: Told) -> LoggedSession | None:
    if (known := told.sessions.get(line.session_id)) is not None:
        return known
    address = "" if line.remote_host == "[local]" else line.remote_host
    if address:
        try:
            ip_address(address)
        except ValueError:
            told.nameless += 1
            return None
    port = int(line.remote_port) if address and str(line.remote_port).isdecimal() else None
    session = told.sessions[line.session_id] = LoggedSession(
        key=line.session_id,
        pid=int(line.session_id.partition(".")[2], 16),
        start_second=_start(line.session_id),
        user=line.user,
        database=line.dbname,
        address=address,
        port=port,
    )
    return session


def _named_first(line: _Line) -> str:
    """The application name of a connection line: what stands behind user and database, which have fields of their own."""
    for begin in _AUTHORIZED:
        for known in (f"{begin}{line.user} database={line.dbname}", f"{begin}{line.user}"):
            if line.message.startswith(known + " application_name="):
                return _ENCRYPTION.sub("", line.message[len(known) + len(" application_name=") :])
    return ""


def _end(line: _Line, shift: timedelta, session: LoggedSession) -> datetime:
    at = _clock(line.timestamp) - shift
    # the clocks may have been changed (summer time) since it began; how long it was does not depend on them
    expected = session.start_second + timedelta(seconds=session.seconds)
    return at if abs(at - expected) <= _SLACK else expected + _WITHIN_A_SECOND / 2


def _shift(session_id: str, session_start: str) -> timedelta | None:
    """How far the log's clock is ahead of UTC: a session's id holds its start as a number, beside it stands the same as text.

    None for what is no record of the server's.
    """
    if not _SESSION_ID.fullmatch(session_id):
        return None
    try:
        shift = _clock(session_start) - _start(session_id)
    except (ValueError, OverflowError, OSError):
        return None
    return shift if abs(shift) < _FARTHEST else None


def _start(session_id: str) -> datetime:
    return datetime.fromtimestamp(int(session_id.partition(".")[0], 16), UTC)


def _clock(written: str) -> datetime:
    """What the log's clock showed, without its zone (whose abbreviations mean different things), as if it were UTC."""
    return datetime.fromisoformat(written.rpartition(" ")[0] if written.count(" ") > 1 else written).replace(tzinfo=UTC)


# --- jsonlog -----------------------------------------------------------------------------------------------------


def _json_lines(data: bytes, told: Told) -> Iterator[_Line]:
    told.size = len(data)
    for text in data.split(b"\n"):
        if not text:
            continue
        try:
            yield _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            yield from _mended(text, told)


def _mended(text: bytes, told: Told) -> Iterator[_Line]:
    """Bytes of another encoding than UTF-8 are replaced; of a torn entry only the one that is glued to it counts."""
    while True:
        try:
            yield _decoder.decode(text.decode(errors="replace"))
            return
        except (msgspec.MsgspecError, RecursionError):
            told.records += 1
            told.invalid += 1
        if (begin := text.find(_JSON_HEAD, 1)) < 0:
            return
        text = text[begin:]


# --- csvlog ------------------------------------------------------------------------------------------------------


def _csv_lines(data: bytes, told: Told, *, ends: bool) -> Iterator[_Line]:
    """A record may span lines: quoted newlines. Where one was torn, the next one counts again, be it glued to what is left of it."""
    begin = 0
    while begin < len(data):
        end, whole = _record_end(data, begin)
        if not whole and end == len(data) and not ends:
            break
        line = None
        if end - begin > _LONGEST_WANTED and whole:
            # nothing that is wanted here
            told.records += 1
        else:
            line = _csv_line(data[begin:end]) if whole else None
            if line is None and (glued := _CSV_HEAD.search(data, begin + 1, end)):
                end = glued.start()
            if line is None:
                told.records += 1
                told.invalid += 1
        begin = told.size = end
        if line is not None:
            yield line


def _record_end(data: bytes, begin: int) -> tuple[int, bool]:
    """Where the record ends, and whether it is whole: its quotes stand in pairs, and no other one begins within it."""
    end, odd = begin, False
    while end < len(data):
        if end > begin and _CSV_HEAD.match(data, end):
            return end, False
        line, end = end, data.find(b"\n", end) + 1 or len(data)
        odd ^= data.count(b'"', line, end) % 2 == 1
        if not odd:
            return end, True
    return end, False


def _csv_line(record: bytes) -> _Line | None:
    """None for what is no record."""
    try:
        row = next(csv.reader((record.decode(errors="replace"),), strict=True))
    except (csv.Error, StopIteration):
        return None
    # a torn one with the next one glued to it can have as many fields as a server of the future writes
    if len(row) < _FEWEST_FIELDS or (len(row) not in _FIELDS and _CSV_HEAD.search(record, 1)):
        return None
    local = row[4].startswith("[local]")
    host, _, port = ("[local]", "", "") if local else row[4].rpartition(":")
    return _Line(
        timestamp=row[0],
        user=row[1],
        dbname=row[2],
        remote_host=host,
        remote_port=port,
        session_id=row[5],
        session_start=row[8],
        vxid=row[9],
        error_severity=row[11],
        state_code=row[12],
        message=row[13],
        application_name=row[22],
        backend_type=row[23] if len(row) > _FEWEST_FIELDS else "",
    )
