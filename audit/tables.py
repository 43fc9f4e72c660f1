"""The SQL of ingestion: what of a batch is known, and the rows that it adds, each kind in one statement."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from django.db import connection

from audit import intern
from audit.batch import Batch, Clash, Reject
from audit.merge import Content, Known
from audit.models import Conflict, RejectedLine, Stream
from audit.plan import Plan, key_of
from audit.rollups import Delta, target

_DAY = timedelta(days=1)
_json = msgspec.json.Encoder(order="deterministic").encode

EVENT_COLUMNS = (
    "at, request, response_at, vault_id, what_id, who_id, address_id, lease_name_id, error_text_id, kind, has_request, own,"
    " request_text"
)
SIGHTING_COLUMNS = "at, request, stream_id, request_block, response_block, token_id"


def known(stream: Stream, keys: Collection[str], batch: Batch) -> dict[str, Known]:
    """Which of these events are stored, and how. A half also looks for its twin in the days beside its own."""
    if not keys:
        return {}
    vault = stream.device.vault_id
    times = [half.at for half in batch.halves()]
    bounds = [min(times) - _DAY, max(times) + _DAY]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT request FROM audit_event WHERE vault_id = %s AND at BETWEEN %s AND %s AND request = ANY(%s::uuid[])",
            [vault, *bounds, list(keys)],
        )
        found = [row[0] for row in cursor.fetchall()]
        if not found:
            return {}
        cursor.execute(
            """
            SELECT e.request, e.at, e.has_request, e.response_at, e.kind, e.own,
                   w.entry_type, w.operation, w.path, w.mount_point, w.mount_type, w.namespace_path,
                   p.display_name, p.entity_id, p.token_type, p.policies, p.metadata,
                   a.text, l.text, x.text, s.at, s.request_block, s.response_block, s.stream_id IS NOT NULL,
                   k.accessor
            FROM audit_event e
            JOIN audit_what w ON w.id = e.what_id
            JOIN audit_who p ON p.id = e.who_id
            JOIN audit_text a ON a.id = e.address_id
            LEFT JOIN audit_text l ON l.id = e.lease_name_id
            LEFT JOIN audit_text x ON x.id = e.error_text_id
            LEFT JOIN audit_sighting s ON s.request = e.request AND s.stream_id = %s AND s.at BETWEEN %s AND %s
            LEFT JOIN audit_token k ON k.id = s.token_id
            WHERE e.vault_id = %s AND e.at BETWEEN %s AND %s AND e.request = ANY(%s)
            """,
            [stream.pk, *bounds, vault, *bounds, found],
        )
        return {str(row[0]): _known(row) for row in cursor.fetchall()}


def _known(row: tuple[Any, ...]) -> Known:
    (_, at, has_request, response_at, kind, own, *rest) = row
    what, who = rest[:6], rest[6:11]
    address, lease_id, error, sighted_at, request_block, response_block, sighted, accessor = rest[11:]
    policies, metadata = msgspec.json.decode(who[3]), msgspec.json.decode(who[4])
    return Known(
        Content(
            at,
            has_request,
            response_at,
            (what[0], what[1], what[2], what[3], what[4], what[5]),
            (
                who[0],
                who[1],
                who[2],
                _json(policies).decode() if policies else "",
                _json(metadata).decode() if metadata else "",
            ),
            address,
            lease_id or "",
            error or "",
            kind,
            own,
        ),
        request_block,
        response_block,
        sighted,
        sighted_at,
        accessor or "",
    )


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
    rows = model.objects.filter(stream=stream, digest__in=set(digests))
    known = {
        digest: (block, line) for digest, block, line in rows.values_list("digest", "block_sequence", "line_number")
    }
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
    RejectedLine.objects.bulk_create(
        [
            RejectedLine(
                stream=stream,
                block_sequence=sequences[reject.block],
                line_number=reject.number,
                digest=line_digest(reject.line),
                reason=reject.reason,
                at=now,
            )
            for reject in rejects
        ],
        # one that is read again out of its block stands there
        ignore_conflicts=True,
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
    return {key_of(half.request_id)[0] for half in plan.fresh if half.accessor in own}


def add_events(stream: Stream, plan: Plan) -> None:
    with connection.cursor() as cursor:
        if plan.new:
            with cursor.copy(f"COPY audit_event ({EVENT_COLUMNS}) FROM STDIN") as copy:
                copy.write("".join(_event_rows(stream.device.vault_id, plan.new)))
        if plan.changed:
            _change_events(stream.device.vault_id, plan.changed, cursor)


def _event_rows(vault: int, new: Mapping[str, tuple[str, Content]]) -> Iterator[str]:
    memory = intern.memory()
    whats, whos, texts = memory.whats, memory.whos, memory.texts
    for key, (request_id, content) in new.items():
        yield (
            f"{content.at}\t{key}\t{content.response_at or _NULL}\t{vault}\t{whats[content.what]}\t{whos[content.who]}"
            f"\t{texts[content.address]}\t{texts[content.lease_id] if content.lease_id else _NULL}"
            f"\t{texts[content.error] if content.error else _NULL}\t{content.kind:d}\t{content.has_request:d}"
            f"\t{content.own:d}\t{_NULL if request_id == key else escaped(request_id)}\n"
        )


_NULL = r"\N"


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


def add_sightings(stream: Stream, plan: Plan, sequences: Mapping[int, int]) -> None:
    device, epoch, tokens = stream.device_id, stream.device.salt_epoch, intern.memory().tokens
    new, more = [], []
    for key, seen in plan.sighted.items():
        request, response = seen.request, seen.response
        accessor = (response.accessor if response else "") or (request.accessor if request else "")
        token = tokens[device, epoch, accessor] if accessor else None
        request_block = sequences[request.block] if request else None
        response_block = sequences[response.block] if response else None
        if seen.known is not None and seen.known.sighted:
            more.append((key, seen.known.sighted_at, seen.at, request_block, response_block, token))
        else:
            new.append(
                f"{seen.at}\t{key}\t{stream.pk}\t{_or_null(request_block)}\t{_or_null(response_block)}\t{_or_null(token)}\n"
            )
    with connection.cursor() as cursor:
        if new:
            with cursor.copy(f"COPY audit_sighting ({SIGHTING_COLUMNS}) FROM STDIN") as copy:
                copy.write("".join(new))
        if more:
            columns: list[Any] = [list(column) for column in zip(*more, strict=True)]
            cursor.execute(
                """
                UPDATE audit_sighting s SET
                  at = u.at,
                  request_block = COALESCE(s.request_block, u.request_block),
                  response_block = COALESCE(s.response_block, u.response_block),
                  token_id = CASE WHEN u.response_block IS NULL THEN COALESCE(s.token_id, u.token)
                                  ELSE COALESCE(u.token, s.token_id) END
                FROM unnest(%s::uuid[], %s::timestamptz[], %s::timestamptz[], %s::int[], %s::int[], %s::int[])
                  AS u (request, was_at, at, request_block, response_block, token)
                WHERE s.stream_id = %s AND s.request = u.request AND s.at = u.was_at AND s.at BETWEEN %s AND %s
                """,
                [*columns, stream.pk, min(columns[1]), max(columns[1])],
            )


def _or_null(value: int | None) -> int | str:
    return _NULL if value is None else value


def deltas(plan: Plan) -> Iterable[Delta]:
    """What the hourly counts gain and lose."""
    memory = intern.memory()
    for _, content in plan.new.values():
        yield _delta(memory, content, 1)
    for before, after in plan.changed.values():
        yield _delta(memory, before, -1)
        yield _delta(memory, after, 1)


def _delta(memory: intern.Memory, content: Content, sign: int) -> Delta:
    return Delta(
        content.at,
        content.kind,
        memory.texts[target(content.what, content.kind)],
        memory.whos[content.who],
        sign,
        sign if content.error else 0,
        sign if content.own else 0,
    )
