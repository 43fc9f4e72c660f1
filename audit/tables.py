"""The SQL of ingestion: what of a batch is known, and the rows that it adds, each kind in one statement."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from django.db import connection

from audit import intern
from audit.batch import Batch, Clash, Reject, hour
from audit.merge import Content, Known
from audit.models import Conflict, RejectedLine, Stream
from audit.plan import New, Plan, Seen, key_of
from audit.rollups import Delta, target

_DAY = timedelta(days=1)
_json = msgspec.json.Encoder(order="deterministic").encode

EVENT_COLUMNS = (
    "at, request, response_at, vault_id, what_id, who_id, address_id, lease_name_id, error_text_id, stream_id,"
    " request_block, response_block, token_id, kind, has_request, own, request_text"
)
SIGHTING_COLUMNS = "at, request, stream_id, request_block, response_block, token_id"


def known(stream: Stream, keys: Collection[str], batch: Batch) -> dict[str, Known]:
    """Which of these events are stored, and how. A half also looks for its twin in the days beside its own."""
    if batch.oldest is None or batch.newest is None:
        return {}
    vault = stream.device.vault_id
    bounds = [batch.oldest - _DAY, batch.newest + _DAY]
    with connection.cursor() as cursor:
        # one text is much quicker to hand over than an array of thousands
        cursor.execute(
            "SELECT request FROM audit_event WHERE vault_id = %s AND at BETWEEN %s AND %s"
            " AND request = ANY(string_to_array(%s, ' ')::uuid[])",
            [vault, *bounds, " ".join(keys)],
        )
        found = [row[0] for row in cursor.fetchall()]
        if not found:
            return {}
        cursor.execute(
            """
            SELECT e.request, e.at, e.has_request, e.response_at, e.kind, e.own,
                   w.entry_type, w.operation, w.path, w.mount_point, w.mount_type, w.namespace_path,
                   p.display_name, p.entity_id, p.token_type, p.policies, p.metadata,
                   a.text, l.text, x.text,
                   e.stream_id = %s, e.request_block, e.response_block, s.at, s.request_block, s.response_block, k.accessor
            FROM audit_event e
            JOIN audit_what w ON w.id = e.what_id
            JOIN audit_who p ON p.id = e.who_id
            JOIN audit_text a ON a.id = e.address_id
            LEFT JOIN audit_text l ON l.id = e.lease_name_id
            LEFT JOIN audit_text x ON x.id = e.error_text_id
            LEFT JOIN audit_furthersighting s ON s.request = e.request AND s.stream_id = %s AND s.at BETWEEN %s AND %s
            LEFT JOIN audit_token k ON k.id = CASE WHEN e.stream_id = %s THEN e.token_id ELSE s.token_id END
            WHERE e.vault_id = %s AND e.at BETWEEN %s AND %s AND e.request = ANY(%s)
            """,
            [stream.pk, stream.pk, *bounds, stream.pk, vault, *bounds, found],
        )
        return {str(row[0]): _known(row) for row in cursor.fetchall()}


def _known(row: tuple[Any, ...]) -> Known:
    (_, at, has_request, response_at, kind, own, *rest) = row
    what, (display_name, entity_id, token_type, policies, metadata) = rest[:6], rest[6:11]
    (address, lease_id, error, at_home, *home, sighted_at, request_block, response_block, accessor) = rest[11:]
    if at_home:
        sighted_at, (request_block, response_block) = at, home
    return Known(
        Content(
            at,
            has_request,
            response_at,
            (what[0], what[1], what[2], what[3], what[4], what[5]),
            (display_name, entity_id, token_type, _as_read(policies), _as_read(metadata)),
            address,
            lease_id or "",
            error or "",
            kind,
            own,
        ),
        sighted_at is not None,
        at_home,
        sighted_at,
        request_block,
        response_block,
        accessor or "",
    )


@lru_cache(maxsize=10_000)
def _as_read(stored: str) -> str:
    """JSON as PostgreSQL gives it -> as lines.identity() makes it."""
    value = msgspec.json.decode(stored)
    return _json(value).decode() if value else ""


def line_digest(line: bytes) -> Any:
    return intern.digest(line.decode("latin-1"))


def only_new_rejects(
    stream: Stream, rejects: list[Reject], stored: Mapping[int, int] | None
) -> tuple[list[Reject], list[Reject]]:
    """(new, known): the same text again, in this batch or an earlier one, is a duplicate.

    `stored`: which blocks the lines came out of, where they are read again. One that was rejected at that place is so once more.
    """
    places = [((stored or {}).get(reject.block, 0), reject.number) for reject in rejects]
    new = _first_told(RejectedLine, stream, [line_digest(reject.line) for reject in rejects], places)
    return _parted(rejects, new)


def only_new_clashes(
    stream: Stream, clashes: list[Clash], stored: Mapping[int, int] | None
) -> tuple[list[Clash], list[Clash]]:
    places = [((stored or {}).get(clash.half.block, 0), clash.half.number) for clash in clashes]
    new = _first_told(Conflict, stream, [clash_digest(clash) for clash in clashes], places)
    return _parted(clashes, new)


_Odd = TypeVar("_Odd", Reject, Clash)


def _parted(items: list[_Odd], new: list[bool]) -> tuple[list[_Odd], list[_Odd]]:
    pairs = list(zip(items, new, strict=True))
    return [item for item, is_new in pairs if is_new], [item for item, is_new in pairs if not is_new]


def _first_told(model: Any, stream: Stream, digests: list[Any], places: list[tuple[int, int]]) -> list[bool]:
    """For each digest: is it told of here for the first time? `places`: block (0: not stored yet) and line."""
    if not digests:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT digest, block_sequence, line_number FROM {model._meta.db_table}"  # noqa: S608
            " WHERE stream_id = %s AND digest = ANY(string_to_array(%s, ' ')::uuid[])",
            [stream.pk, " ".join(map(str, set(digests)))],
        )
        known = {digest: (block, line) for digest, block, line in cursor.fetchall()}
    new, seen = [], set()
    for digest, place in zip(digests, places, strict=True):
        new.append(digest not in seen and known.get(digest, place) == place)
        seen.add(digest)
    return new


def clash_digest(clash: Clash) -> Any:
    """Of all that the half says, its place aside: the same line again is the same clash."""
    half = msgspec.structs.replace(clash.half, block=0, number=0)
    return intern.digest(_json(half).decode())


def add_rejects(stream: Stream, rejects: list[Reject], sequences: Mapping[int, int], *, now: datetime) -> None:
    """One statement, since a damaged file can hold nothing else."""
    if not rejects:
        return
    rows = [
        (sequences[reject.block], reject.number, str(line_digest(reject.line)), reject.reason) for reject in rejects
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO audit_rejectedline (stream_id, at, block_sequence, line_number, digest, reason)
            SELECT %s, %s, * FROM unnest(%s::int[], %s::int[], %s::uuid[], %s::text[])
            ON CONFLICT (stream_id, digest) DO NOTHING  -- one that is read again out of its block stands there
            """,
            [stream.pk, now, *[list(column) for column in zip(*rows, strict=True)]],
        )


def add_clashes(stream: Stream, clashes: list[Clash], sequences: Mapping[int, int], *, now: datetime) -> None:
    Conflict.objects.bulk_create(
        [
            Conflict(
                stream=stream,
                block_sequence=sequences[clash.half.block],
                line_number=clash.half.number,
                digest=clash_digest(clash),
                request_id=clash.half.request_id,
                fields=clash.fields,
                at=now,
            )
            for clash in clashes
        ],
        ignore_conflicts=True,
    )


def own_keys(stream: Stream, plan: Plan) -> set[str]:
    """Which of these events were made with this product's own tokens, as far as their logins are known."""
    device, epoch = stream.device_id, stream.device.salt_epoch
    ids = intern.memory().tokens
    accessors = {half.accessor for half in plan.fresh if half.accessor}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT t.accessor FROM audit_token t JOIN leases_login l ON l.id = t.login_id AND l.own WHERE t.id = ANY(%s)",
            [[ids[device, epoch, accessor] for accessor in accessors]],
        )
        own = {row[0] for row in cursor.fetchall()}
    if not own:
        return set()
    return {key_of(half.request_id) for half in plan.fresh if half.accessor in own}


def add_events(stream: Stream, plan: Plan, sequences: Mapping[int, int]) -> None:
    """New events with this stream's sighting of them, and what known events gain."""
    with connection.cursor() as cursor:
        if plan.new:
            _copy(cursor, f"audit_event ({EVENT_COLUMNS})", "".join(_event_rows(stream, plan.new, sequences)))
        if plan.changed:
            _change_events(stream.device.vault_id, plan.changed, cursor)
        if plan.seen:
            _add_sightings(stream, plan.seen, sequences, cursor)


def _copy(cursor: Any, table: str, rows: str) -> None:
    # Django passes copy() on to psycopg as it is, errors included
    with connection.wrap_database_errors, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        copy.write(rows)


_NULL = r"\N"


def _event_rows(stream: Stream, new: Mapping[str, New], sequences: Mapping[int, int]) -> Iterator[str]:
    memory = intern.memory()
    whats, whos, texts, tokens = memory.whats, memory.whos, memory.texts, memory.tokens
    vault, stream_id, device, epoch = stream.device.vault_id, stream.pk, stream.device_id, stream.device.salt_epoch
    for key, event in new.items():
        content, request, response = event.content, event.request, event.response
        request_block: int | str
        response_block: int | str
        accessor = ""
        if response is not None:
            response_at, response_block, accessor = response.time, sequences[response.block], response.accessor
            if content.response_at is not response.at and content.response_at != response.at:
                # told again, at another time: the earliest counts
                response_at = str(content.response_at)
        else:
            response_at, response_block = _NULL, _NULL
        if request is not None:
            at, request_block = request.time, sequences[request.block]
            if content.at is not request.at and content.at != request.at:
                at = str(content.at)
            accessor = accessor or request.accessor
        else:
            at, request_block = response_at, _NULL
        yield (
            f"{at}\t{key}\t{response_at}\t{vault}\t{whats[content.what]}"
            f"\t{whos[content.who]}\t{texts[content.address]}\t{texts[content.lease_id] if content.lease_id else _NULL}"
            f"\t{texts[content.error] if content.error else _NULL}\t{stream_id}\t{request_block}\t{response_block}"
            f"\t{tokens[device, epoch, accessor] if accessor else _NULL}\t{content.kind:d}"
            f"\t{'t' if request is not None else 'f'}\t{'t' if content.own else 'f'}"
            f"\t{_NULL if event.request_id == key else escaped(event.request_id)}\n"
        )


def escaped(text: str) -> str:
    """For COPY's text format."""
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def _change_events(vault: int, changed: Mapping[str, tuple[Content, Content]], cursor: Any) -> None:
    memory = intern.memory()
    rows = [
        (
            key,
            before.at,
            after.at,
            after.has_request,
            after.response_at,
            memory.whats[after.what],
            memory.whos[after.who],
            memory.texts[after.address],
            memory.texts[after.lease_id] if after.lease_id else None,
            memory.texts[after.error] if after.error else None,
            int(after.kind),
            after.own,
        )
        for key, (before, after) in sorted(changed.items())
    ]
    cursor.execute(
        """
        UPDATE audit_event e SET
          at = u.at, has_request = u.has_request, response_at = u.response_at, what_id = u.what, who_id = u.who,
          address_id = u.address, lease_name_id = u.lease, error_text_id = u.error, kind = u.kind, own = u.own
        FROM unnest(%s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::bool[], %s::timestamptz[], %s::int[], %s::int[],
                    %s::int[], %s::int[], %s::int[], %s::smallint[], %s::bool[])
          AS u (request, was_at, at, has_request, response_at, what, who, address, lease, error, kind, own)
        WHERE e.vault_id = %s AND e.request = u.request AND e.at = u.was_at
          AND e.at BETWEEN %s AND %s
        """,
        [
            *[list(column) for column in zip(*rows, strict=True)],
            vault,
            min(row[1] for row in rows),
            max(row[1] for row in rows),
        ],
    )
    if cursor.rowcount != len(rows):
        raise RuntimeError(f"{len(rows)} events were to change, {cursor.rowcount} did")


def _add_sightings(stream: Stream, seen: Mapping[str, Seen], sequences: Mapping[int, int], cursor: Any) -> None:
    """Of events that were known before: a row of its own for a further stream, or the half that was missing."""
    device, epoch, tokens = stream.device_id, stream.device.salt_epoch, intern.memory().tokens
    further, missing, missing_at_home = [], [], []
    for key, item in sorted(seen.items()):
        request, response, before = item.request, item.response, item.known
        accessor = (response.accessor if response else "") or (request.accessor if request else "")
        gained = (
            sequences[request.block] if request else None,
            sequences[response.block] if response else None,
            tokens[device, epoch, accessor] if accessor else None,
        )
        if before.at_home:
            missing_at_home.append((key, *gained))
        elif before.sighted:
            missing.append((key, *gained, before.sighted_at, item.at))
        else:
            ends = "\t".join(_NULL if value is None else str(value) for value in gained)
            further.append(f"{item.at}\t{key}\t{stream.pk}\t{ends}\n")
    if further:
        _copy(cursor, f"audit_furthersighting ({SIGHTING_COLUMNS})", "".join(further))
    if missing:
        columns: list[Any] = [list(column) for column in zip(*missing, strict=True)]
        cursor.execute(
            f"""
            UPDATE audit_furthersighting s SET {_GAINED}, at = u.at
            FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::int[], %s::timestamptz[], %s::timestamptz[])
              AS u (request, request_block, response_block, token, was_at, at)
            WHERE s.stream_id = %s AND s.request = u.request AND s.at = u.was_at AND s.at BETWEEN %s AND %s
            """,  # noqa: S608 (the constant below)
            [*columns, stream.pk, min(columns[4]), max(columns[4])],
        )
    if missing_at_home:
        columns = [list(column) for column in zip(*missing_at_home, strict=True)]
        # its time is the event's, which may just have changed
        times = [item.at for item in seen.values()] + [item.known.content.at for item in seen.values()]
        cursor.execute(
            f"""
            UPDATE audit_event s SET {_GAINED}
            FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::int[]) AS u (request, request_block, response_block, token)
            WHERE s.stream_id = %s AND s.request = u.request AND s.at BETWEEN %s AND %s
            """,  # noqa: S608 (the constant below)
            [*columns, stream.pk, min(times), max(times)],
        )


# the token in the response's words, where it is told: only there a login has one
_GAINED = """
    request_block = COALESCE(s.request_block, u.request_block),
    response_block = COALESCE(s.response_block, u.response_block),
    token_id = CASE WHEN u.response_block IS NULL THEN COALESCE(s.token_id, u.token) ELSE COALESCE(u.token, s.token_id) END
"""


def deltas(plan: Plan) -> Iterator[Delta]:
    """What the hourly counts gain and lose."""
    memory = intern.memory()
    # most events of a batch are alike: they are counted first and spelled out then
    # (by identity: equal ones are mostly one object, and where not they come together in the counts)
    alike: Counter[tuple[str, int, int, int, bool, bool]] = Counter()
    examples: dict[tuple[str, int, int, int, bool, bool], Content] = {}
    for event in plan.new.values():
        c = event.content
        time = event.request.time if event.request is not None else event.response.time  # type: ignore[union-attr]
        if event.content.at is not (event.request or event.response).at:  # type: ignore[union-attr]
            time = event.content.at.isoformat()
        key = (time[:13], c.kind, id(c.what), id(c.who), c.error == "", c.own)
        alike[key] += 1
        examples[key] = c
    for key, number in alike.items():
        c = examples[key]
        yield Delta(
            datetime.fromisoformat(key[0] + ":00:00+00:00"),
            c.kind,
            memory.texts[target(c.what, c.kind)],
            memory.whos[c.who],
            number,
            number if c.error else 0,
            number if c.own else 0,
        )
    for before, after in plan.changed.values():
        yield _delta(memory, before, -1)
        yield _delta(memory, after, 1)


def _delta(memory: intern.Memory, content: Content, sign: int) -> Delta:
    return Delta(
        hour(content.at),
        content.kind,
        memory.texts[target(content.what, content.kind)],
        memory.whos[content.who],
        sign,
        sign if content.error else 0,
        sign if content.own else 0,
    )
