"""Events -> logins and leases, inside the transaction that stores the events, in whatever order they come."""

from collections.abc import Callable, Iterable
from datetime import datetime
from urllib.parse import unquote

from django.db import connection
from django.db.models import Q

from audit import attribute
from audit.lines import HMAC, Half
from audit.models import LoginKey, Sighting, Stream
from leases import lookups
from leases.identity import identity
from leases.models import AuthMount, DatabaseRole, EndReason, Lease, LeaseState, Login, Revocation, Vault
from leases.models.actions import Outcome, RevocationState
from leases.revoke import AUDIT_SEEN, note

RENEW_PATHS = ("sys/leases/renew", "sys/renew")
REVOKE_PATHS = ("sys/leases/revoke/", "sys/revoke/")
PREFIX_PATHS = ("sys/leases/revoke-prefix/", "sys/revoke-prefix/")
FORCE_PATHS = ("sys/leases/revoke-force/", "sys/revoke-force/")


def apply(stream: Stream, halves: list[Half], *, now: datetime) -> None:
    """Brings the ledger up to these new halves. Only successful responses change it."""
    answers = [half for half in halves if half.kind == "response" and not half.error]
    take_logins(stream, [half for half in answers if is_login(half)])
    touched = take_reads(stream, [half for half in answers if is_credential_read(half)], now=now)
    take_renewals(stream, [half for half in answers if is_renewal(half)], now=now)
    touched |= link_leases(
        stream,
        request_ids=[half.request_id for half in halves if half.lease_id],
        accessors=[half.new_accessor for half in answers if half.new_accessor],
    )
    # after the links: the end of a token is the end of the leases that are known to be its
    for half in answers:
        if reader := ending(half):
            reader(stream, half, now)
    attribute.attribute(sorted(touched), now=now)


def is_login(half: Half) -> bool:
    """A new token from an auth method. `auth/token/…` makes and renews tokens too, but identifies nobody."""
    return bool(half.new_accessor) and half.path.startswith("auth/") and not half.path.startswith("auth/token/")


def is_credential_read(half: Half) -> bool:
    return bool(half.lease_id) and "/creds/" in f"/{half.path}" and not half.path.startswith("sys/")


def is_renewal(half: Half) -> bool:
    return bool(half.lease_id) and half.path.startswith(RENEW_PATHS)


def take_logins(stream: Stream, halves: list[Half]) -> None:
    """The logins that these responses created, and how their tokens show on this device."""
    if not halves:
        return
    vault = stream.device.vault
    mounts = {mount.path: mount for mount in AuthMount.objects.filter(vault=vault)}
    rows = []
    for half in halves:
        mount_path = (half.mount_point or half.path.rsplit("/", 1)[0]).removeprefix("auth/").strip("/")
        mount = mounts.get(mount_path)
        rows.append(
            Login(
                vault=vault,
                request_id=half.request_id,
                logged_in_at=half.at,
                mount_path=mount_path,
                auth_mount=mount,
                address=half.address,
                display_name=half.new_display_name,
                entity_id=half.new_entity_id,
                policies=half.new_policies,
                token_type=half.new_token_type,
                metadata=half.new_metadata,
                own=is_own(vault, mount_path, half),
                **identity(mount, half.new_metadata),
            )
        )
    # the other devices of this vault tell of the same logins
    Login.objects.bulk_create(sorted(rows, key=lambda login: login.request_id), ignore_conflicts=True)
    keys = dict(
        Login.objects.filter(vault=vault, request_id__in=[half.request_id for half in halves]).values_list(
            "request_id", "id"
        )
    )
    LoginKey.objects.bulk_create(
        [
            LoginKey(
                device=stream.device,
                salt_epoch=stream.device.salt_epoch,
                accessor=half.new_accessor,
                login_id=keys[half.request_id],
            )
            for half in halves
        ],
        ignore_conflicts=True,
    )
    if own := [half.new_accessor for half, login in zip(halves, rows, strict=True) if login.own]:
        mark_own(stream, own)


def is_own(vault: Vault, mount_path: str, half: Half) -> bool:
    """Whether this product's own accounts logged in: by the role that the login response itself names."""
    own = {(account["mount"].strip("/"), account["role"]) for account in (vault.observe, vault.respond) if account}
    role = half.new_metadata.get("role") or half.new_metadata.get("role_name") or ""
    return bool(role) and (mount_path, role) in own


def own_accessors(stream: Stream, accessors: Iterable[str]) -> set[str]:
    """Which of these accessor HMACs are of this product's own tokens."""
    return set(
        LoginKey.objects.filter(
            device=stream.device, salt_epoch=stream.device.salt_epoch, accessor__in=set(accessors), login__own=True
        ).values_list("accessor", flat=True)
    )


def mark_own(stream: Stream, accessors: list[str]) -> None:
    """Requests of an own token that came in with, or before, its login."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE audit_event e SET own = true
            FROM audit_sighting s
            JOIN audit_loginkey k USING (device_id, salt_epoch, accessor)
            JOIN leases_login l ON l.id = k.login_id AND l.own
            WHERE s.event_id = e.id AND NOT e.own AND s.device_id = %s AND s.accessor = ANY(%s)
            """,
            [stream.device_id, accessors],
        )


def take_reads(stream: Stream, halves: list[Half], *, now: datetime) -> set[int]:
    """The leases that these credential reads issued; completes those that a LIST had shown before. Returns their keys."""
    if not halves:
        return set()
    vault = stream.device.vault
    roles = {(role.mount, role.name): role.database_id for role in DatabaseRole.objects.filter(vault=vault)}
    rows = {half.lease_id: _lease(vault, half, roles, now=now) for half in halves}
    Lease.objects.bulk_create([rows[lease_id] for lease_id in sorted(rows)], ignore_conflicts=True)
    found = Lease.objects.filter(vault=vault, lease_id__in=rows)
    for listed in found.filter(request_id=""):
        row = rows[listed.lease_id]
        Lease.objects.filter(pk=listed.pk, request_id="").update(
            request_id=row.request_id,
            accessed_at=row.accessed_at,
            source_ip=row.source_ip,
            issued_at=listed.issued_at or row.issued_at,
            database_user=listed.database_user or row.database_user,
            attribution_open=True,
            updated_at=now,
        )
    return set(found.values_list("id", flat=True))


def _lease(vault: Vault, half: Half, roles: dict[tuple[str, str], int], *, now: datetime) -> Lease:
    mount = half.mount_point.strip("/") or half.path.partition("/creds/")[0]
    role = half.path.partition("/creds/")[2].strip("/")
    return Lease(
        vault=vault,
        lease_id=half.lease_id,
        vault_namespace=half.namespace_path,
        mount=mount,
        role=role,
        database_id=roles.get((mount, role)),
        # plain only where the mount is tuned so
        database_user="" if half.username.startswith(HMAC) else half.username,
        request_id=half.request_id,
        accessed_at=half.at,
        issued_at=half.at,
        source_ip=half.address,
        lookup_due_at=now,
        first_seen_at=now,
        updated_at=now,
    )


def take_renewals(stream: Stream, halves: list[Half], *, now: datetime) -> None:
    """Counts renewals of leases from their events, so that two devices count one, and asks Vault for the new times."""
    if not halves:
        return
    last = {half.lease_id: half.at for half in sorted(halves, key=lambda half: half.at)}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE leases_lease l SET
              renewals = (SELECT count(*) FROM audit_event e WHERE e.vault_id = l.vault_id AND e.lease_id = l.lease_id
                            AND e.lease_id <> '' AND e.error = ''
                            AND (starts_with(e.path, 'sys/leases/renew') OR starts_with(e.path, 'sys/renew'))),
              last_renewal_at = GREATEST(l.last_renewal_at, renewed.at),
              lookup_due_at = CASE WHEN l.state = 'ended' THEN NULL ELSE %s END,
              updated_at = %s
            FROM unnest(%s::text[], %s::timestamptz[]) AS renewed (lease_id, at)
            WHERE l.vault_id = %s AND l.lease_id = renewed.lease_id
            """,
            [now, now, list(last), list(last.values()), stream.device.vault_id],
        )


Reader = Callable[[Stream, Half, datetime], None]


def ending(half: Half) -> Reader | None:
    """Which reader understands a request that ends leases; None for every other request."""
    if half.path.startswith(REVOKE_PATHS):
        return take_revoke_by_path
    if half.path in {"sys/leases/revoke", "sys/revoke"}:
        return take_revoke_by_body
    if half.path.startswith(PREFIX_PATHS) or half.path.startswith(FORCE_PATHS):
        return take_revoke_by_prefix
    if half.path in {"auth/token/revoke-self", "auth/token/revoke-accessor"}:
        return take_token_revoke
    return None


def take_revoke_by_path(stream: Stream, half: Half, now: datetime) -> None:
    lease_id = unquote(half.path).partition("/revoke/")[2]
    expect_end(
        Lease.objects.filter(vault=stream.device.vault_id, lease_id=lease_id).values_list("id", flat=True),
        EndReason.REVOKED_IN_VAULT,
        half,
        now,
    )
    respond = stream.device.vault.respond or {}
    # a token that was given has no login to know it by
    if respond.get("method") == "token" or own_accessors(stream, [half.accessor]):
        confirm_revocation(stream, lease_id, half, now)


def take_revoke_by_body(stream: Stream, half: Half, now: datetime) -> None:
    """The lease id is HMAC'd here; a renewal of the same lease on the same device is the dictionary."""
    data = half.data_lease_id
    if not data.startswith(HMAC):
        lease_ids = [data]
    else:
        lease_ids = list(
            Sighting.objects.filter(device=stream.device, salt_epoch=stream.device.salt_epoch, data_lease_id=data)
            .exclude(event__lease_id="")
            .values_list("event__lease_id", flat=True)
            .distinct()
        )
    expect_end(
        Lease.objects.filter(vault=stream.device.vault_id, lease_id__in=lease_ids).values_list("id", flat=True),
        EndReason.REVOKED_IN_VAULT,
        half,
        now,
    )
    if not lease_ids:
        # which lease it was is not known: a list will show what is missing
        Vault.objects.filter(pk=stream.device.vault_id).update(reconciled_at=None)


def take_revoke_by_prefix(stream: Stream, half: Half, now: datetime) -> None:
    forced = half.path.startswith(FORCE_PATHS)
    prefix = unquote(half.path).partition("/revoke-force/" if forced else "/revoke-prefix/")[2].rstrip("/")
    if prefix:
        expect_end(
            Lease.objects.filter(vault=stream.device.vault_id, lease_id__startswith=prefix + "/").values_list(
                "id", flat=True
            ),
            EndReason.FORCED if forced else EndReason.BY_PREFIX,
            half,
            now,
        )


def take_token_revoke(stream: Stream, half: Half, now: datetime) -> None:
    accessor = half.accessor if half.path == "auth/token/revoke-self" else half.data_accessor
    key = LoginKey.objects.filter(device=stream.device, salt_epoch=stream.device.salt_epoch, accessor=accessor).first()
    if key:
        Login.objects.filter(pk=key.login_id, ended_at=None).update(ended_at=half.at, end_reason="revoked")
        expect_end(
            Lease.objects.filter(login=key.login_id).values_list("id", flat=True), EndReason.TOKEN_REVOKED, half, now
        )


def expect_end(keys: Iterable[int], reason: EndReason, half: Half, now: datetime) -> None:
    """These leases should be over: the event is kept as their evidence, and a lookup decides."""
    keys = list(keys)
    evidence = f"{half.path} by {half.display_name or 'somebody'}, request {half.request_id}"
    live = Lease.objects.filter(pk__in=keys).exclude(state=LeaseState.ENDED)
    live.filter(end_seen_at=None).update(end_seen_at=half.at, end_seen_reason=reason, end_seen_evidence=evidence)
    lookups.ask_again(list(live.values_list("id", flat=True)), at=now)
    # a lookup may have found a lease gone before the line that says why was read
    guessed = Lease.objects.filter(pk__in=keys, state=LeaseState.ENDED, end_seen_at=None)
    guessed.filter(
        Q(end_reason=EndReason.UNKNOWN) | Q(end_reason=EndReason.EXPIRED, ended_at__gt=half.at),
        issued_at__lte=half.at,
    ).update(
        ended_at=half.at,
        end_reason=reason,
        end_evidence=f"{evidence}; a lookup finds no such lease",
        end_seen_at=half.at,
        end_seen_reason=reason,
        end_seen_evidence=evidence,
        updated_at=now,
    )


def confirm_revocation(stream: Stream, lease_id: str, half: Half, now: datetime) -> None:
    """Vault's own audit line of a revocation that was asked for here, as the last step of its receipt."""
    revocation = (
        Revocation.objects.filter(
            lease__vault=stream.device.vault_id,
            lease__lease_id=lease_id,
            audit_request_id="",
        )
        .exclude(state__in=[RevocationState.REQUESTED, RevocationState.FAILED])
        .select_related("lease")
        .order_by("-id")
        .first()
    )
    if revocation is None:
        return
    updated = Revocation.objects.filter(pk=revocation.pk, audit_request_id="").update(
        audit_request_id=half.request_id, updated_at=now
    )
    if updated:
        note(
            revocation,
            AUDIT_SEEN,
            Outcome.OK,
            f"request {half.request_id} by {half.display_name} on {stream}",
            now=now,
        )


def link_leases(stream: Stream, *, request_ids: list[str], accessors: list[str]) -> set[int]:
    """Ties leases to the login whose token read them, whichever of the two came first. Returns the leases' keys."""
    link = """
        UPDATE leases_lease l SET login_id = k.login_id, attribution_open = true
        FROM audit_event e
        JOIN audit_sighting s ON s.event_id = e.id
        JOIN audit_loginkey k USING (device_id, salt_epoch, accessor)
        WHERE l.vault_id = e.vault_id AND l.request_id = e.request_id AND l.request_id <> '' AND l.login_id IS NULL
          AND s.accessor <> '' AND e.vault_id = %s AND {which}
        RETURNING l.id
    """
    keys: set[int] = set()
    with connection.cursor() as cursor:
        for which, values in (
            ("e.request_id = ANY(%s)", [request_ids]),
            ("s.device_id = %s AND s.salt_epoch = %s AND s.accessor = ANY(%s)", _key(stream, accessors)),
        ):
            if values[-1]:
                cursor.execute(link.format(which=which), [stream.device.vault_id, *values])
                keys |= {row[0] for row in cursor.fetchall()}
    return keys


def _key(stream: Stream, accessors: list[str]) -> list[object]:
    return [stream.device_id, stream.device.salt_epoch, accessors]
