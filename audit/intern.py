"""What repeats in the log stands once in the database: texts in, integers out, with a memory of what was asked before.

Rows are made outside of the batch's transaction (they never change and are harmless if nothing comes to refer to them), so that
what is remembered here is always there.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from django.db import connection

from audit.secrets import HMAC

# entry_type, operation, path, mount_point, mount_type, namespace_path
What = tuple[str, str, str, str, str, str]
# display_name, entity_id, token_type, policies and metadata (both as JSON text)
Who = tuple[str, str, str, str, str]

_K = TypeVar("_K", bound=Hashable)
_MOST = 100_000


class Memory(threading.local):
    """The ids that this thread knows, whose connection is its own. Bounded: beyond _MOST entries of a kind the next batch begins anew."""

    def __init__(self) -> None:
        self.whats: dict[What, int] = {}
        self.whos: dict[Who, int] = {}
        self.texts: dict[str, int] = {}
        self.tokens: dict[tuple[int, int, str], int] = {}
        self.server: object = None


_memory = Memory()


def memory() -> Memory:
    """What is known. Forgotten with the connection: whatever happened to the server meanwhile, ids are asked for again."""
    connection.ensure_connection()
    server = (connection.settings_dict["NAME"], connection.connection.info.backend_pid)
    if _memory.server != server:
        forget()
        _memory.server = server
    return _memory


def check() -> None:
    """For the beginning of a batch: forgets what has become too much, and everything if the tables were emptied, or restored
    from a backup, under this process."""
    for much in (memory().whats, _memory.whos, _memory.texts, _memory.tokens):
        if len(much) > _MOST:
            much.clear()
    known = _memory.whats
    if known:
        what, number = next(iter(known.items()))
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM audit_what WHERE id = %s AND digest = %s)", [number, digest(*what)]
            )
            if not cursor.fetchone()[0]:
                forget()


def forget() -> None:
    """For a process that is given another database (tests)."""
    for known in (_memory.whats, _memory.whos, _memory.texts, _memory.tokens):
        known.clear()
    _memory.server = None


def digest(*parts: str) -> UUID:
    """128 bits of the SHA-256 of these texts, told apart by their lengths."""
    return UUID(bytes=hashlib.sha256(msgspec.msgpack.encode(parts)).digest()[:16])


def whats(keys: Collection[What]) -> dict[What, int]:
    """The ids of these keys (and of others)."""
    return _intern(memory().whats, keys, _insert_whats)


def whos(keys: Collection[Who]) -> dict[Who, int]:
    return _intern(memory().whos, keys, _insert_whos)


def texts(keys: Collection[str]) -> dict[str, int]:
    return _intern(memory().texts, keys, _insert_texts)


def tokens(keys: Collection[tuple[int, int, str]]) -> dict[tuple[int, int, str], int]:
    """Keys are (device id, salt epoch, accessor or its HMAC)."""
    return _intern(memory().tokens, keys, _insert_tokens)


def _intern(known: dict[_K, int], keys: Collection[_K], insert: Callable[[list[_K]], dict[_K, int]]) -> dict[_K, int]:
    missing = [key for key in keys if key not in known]
    if missing:
        known.update(insert(missing))
    return known


def _insert_whats(keys: list[What]) -> dict[What, int]:
    rows = {digest(*key): key for key in keys}
    found = _insert(
        "audit_what",
        ("digest", "entry_type", "operation", "path", "mount_point", "mount_type", "namespace_path"),
        ("uuid", "text", "text", "text", "text", "text", "text"),
        [(key, *rows[key]) for key in sorted(rows)],
    )
    return {rows[key]: number for key, number in found}


def _insert_whos(keys: list[Who]) -> dict[Who, int]:
    rows = {digest(*key): key for key in keys}
    found = _insert(
        "audit_who",
        ("digest", "display_name", "entity_id", "token_type", "policies", "metadata"),
        ("uuid", "text", "text", "text", "jsonb", "jsonb"),
        [(key, *rows[key][:3], rows[key][3] or "[]", rows[key][4] or "{}") for key in sorted(rows)],
    )
    return {rows[key]: number for key, number in found}


def _insert_texts(keys: list[str]) -> dict[str, int]:
    rows = {digest(key): key for key in keys}
    found = _insert("audit_text", ("digest", "text"), ("uuid", "text"), [(key, rows[key]) for key in sorted(rows)])
    return {rows[key]: number for key, number in found}


def _insert(table: str, columns: tuple[str, ...], types: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Any:
    """Sorted rows, so that two writers never wait for each other in a ring. Only what is missing is inserted: each try uses an id up."""
    with connection.cursor() as cursor:
        find = f"SELECT digest, id FROM {table} WHERE digest = ANY(%s)"  # noqa: S608
        cursor.execute(find, [[row[0] for row in rows]])
        found = cursor.fetchall()
        known = {key for key, _ in found}
        rows = [row for row in rows if row[0] not in known]
        if rows:
            names = ", ".join(columns)
            arrays = ", ".join(f"%s::{name}[]" for name in types)
            cursor.execute(
                f"INSERT INTO {table} ({names}) SELECT * FROM unnest({arrays}) ON CONFLICT (digest) DO NOTHING",  # noqa: S608
                [list(column) for column in zip(*rows, strict=True)],
            )
            cursor.execute(find, [[row[0] for row in rows]])
            found += cursor.fetchall()
        return found


def near(epoch: int) -> list[int]:
    """The salt epochs that a line of this one may be of: a device's salt is asked for once a minute, so lines of the new salt may
    have been counted to the old one, and a backlog of the old one to the new. Hashes of different salts never match."""
    return [epoch - 1, epoch, epoch + 1]


def are_near(one: str, other: str) -> str:
    """The same in SQL, of two tables; of the first an index can be used."""
    return f"{one}.salt_epoch = ANY(ARRAY[{other}.salt_epoch - 1, {other}.salt_epoch, {other}.salt_epoch + 1])"


def epoch_of(shown: str, epoch: int) -> int:
    """The salt epoch of what a device shows of a token: an accessor in plain text (hmac_accessor=false) has no salt."""
    return epoch if shown.startswith(HMAC) else 0


def _insert_tokens(keys: list[tuple[int, int, str]]) -> dict[tuple[int, int, str], int]:
    """What is known of the epochs beside is the same token."""
    rows = sorted(keys)
    found = _find_tokens(rows)
    new = sorted(
        {
            (device, epoch_of(accessor, epoch), accessor)
            for device, epoch, accessor in rows
            if (device, epoch, accessor) not in found
        }
    )
    if new:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO audit_token (device_id, salt_epoch, accessor)"
                " SELECT * FROM unnest(%s::bigint[], %s::int[], %s::text[])"
                " ON CONFLICT (device_id, salt_epoch, accessor) DO NOTHING",
                [list(column) for column in zip(*new, strict=True)],
            )
        found |= _find_tokens([key for key in rows if key not in found])
    return found


def _find_tokens(keys: list[tuple[int, int, str]]) -> dict[tuple[int, int, str], int]:
    epochs = [epoch_of(accessor, epoch) for _, epoch, accessor in keys]
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT k.place, (
              -- neither min() nor LIMIT 1: for those the planner may walk along another index
              SELECT (array_agg(t.id ORDER BY t.salt_epoch, t.id))[1] FROM audit_token t
              WHERE t.device_id = k.device_id AND t.accessor = k.accessor AND {are_near("t", "k")}
            )
            FROM unnest(%s::bigint[], %s::int[], %s::text[]) WITH ORDINALITY AS k (device_id, salt_epoch, accessor, place)
            """,  # noqa: S608 (the names above)
            [[device for device, _, _ in keys], epochs, [accessor for _, _, accessor in keys]],
        )
        return {keys[place - 1]: number for place, number in cursor.fetchall() if number is not None}


def known_texts(keys: Collection[str]) -> dict[str, int]:
    """The ids of texts that are stored for certain; for use inside a transaction."""
    rows = {digest(key): key for key in keys}
    with connection.cursor() as cursor:
        cursor.execute("SELECT digest, id FROM audit_text WHERE digest = ANY(%s)", [list(rows)])
        return {rows[key]: number for key, number in cursor.fetchall()}
