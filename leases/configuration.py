"""leasehold.toml: its shape, strictly checked, and how vaults, clusters and databases get from it into the tables.

Streams and databases' logs stand in the same file and are applied by `audit.configuration`.
"""

import re
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from django.db import transaction

from leases import databases, health
from leases.identity import KUBERNETES_CLAIMS, identify_again
from leases.models import AuthMount, Cluster, Database, Policy, Session, Vault
from leases.models.sessions import Place as SessionPlace
from leases.models.sources import SourceKind

# nothing of the last 30 days can be dropped: the database's own functions refuse it (audit/migrations/0005)
FEWEST_DAYS, MOST_DAYS = 31, 36_500
# no part of the prefix may be empty, "." or ".."
S3_PLACE = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,254}(/(?!\.{1,2}(/|$))[^/\s]+)*/?")


class ConfigurationError(Exception):
    """leasehold.toml cannot be used; the message says where and what to write instead."""


class Reference(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    env: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        if bool(self.env) == bool(self.file):
            raise ValueError('a secret is named by { env = "NAME" } or by { file = "PATH" }')


class LoginConfig(msgspec.Struct, forbid_unknown_fields=True):
    method: Literal["kubernetes", "approle", "token"]
    secret: Reference
    mount: str = ""
    role: str = ""


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    path: str = ""
    push: bool = False


class DeviceConfig(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    nodes: list[NodeConfig] = []


class VaultConfig(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: str
    observe: LoginConfig
    respond: LoginConfig | None = None
    ca_file: str = ""
    namespace: str = ""
    lease_mounts: list[str] = msgspec.field(default_factory=lambda: ["database"])
    reconcile_seconds: int = 600
    lookups_per_second: int = 600
    revocations_per_second: int = 20
    audit_bytes_per_hour: int = 64_000_000
    namespaces: list[str] = []
    follow_leader: bool = True
    devices: list[DeviceConfig] = []


class LogConfig(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    format: Literal["jsonlog", "csvlog"]


class AuthMountConfig(msgspec.Struct, forbid_unknown_fields=True):
    vault: str
    path: str
    claims: dict[str, str] = {}


class ClusterConfig(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    address: str
    token: Reference
    ca_file: str = ""
    auth_mounts: list[AuthMountConfig] = []
    fetchers: list[str] = []


class AccountConfig(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """An account in a database: an address by reference, or Vault's own credential for an address without user and password."""

    env: str = ""
    file: str = ""
    static_role: str = ""
    role: str = ""
    address: str = ""
    mount: str = ""

    def __post_init__(self) -> None:
        if [self.env, self.file, self.static_role, self.role].count("") != 3:
            raise ValueError(
                'an account is named by { file = "PATH" }, { env = "NAME" }, { static_role = "NAME", address = "…" } or '
                '{ role = "NAME", address = "…" }'
            )
        from_vault = bool(self.static_role or self.role)
        if from_vault != bool(self.address) or (self.mount and not from_vault):
            raise ValueError("`address` goes with `static_role` or `role`, and `mount` with them alone")


class DatabaseConfig(msgspec.Struct, forbid_unknown_fields=True):
    vault: str
    mount: str
    name: str
    kind: str
    monitor: AccountConfig | None = None
    respond: AccountConfig | None = None
    max_lease_ttl_seconds: int | None = None
    sample_seconds: float = 5.0
    nat: list[str] = []
    poolers: list[str] = []
    log: LogConfig | None = None


class Policies(msgspec.Struct, forbid_unknown_fields=True):
    clock_skew_seconds: float = 2.0
    stale_after_seconds: float = 15.0
    max_lease_ttl_seconds: int = 0
    max_live_leases: int = 0
    confirm_above: int = 5
    approval_above: int = 0
    event_days: int = 400
    raw_days: int = 0
    archive: str = ""
    archive_endpoint: str = ""
    archive_region: str = ""
    archive_ca_file: str = ""
    archive_access_key: Reference | None = None
    archive_secret_key: Reference | None = None


class HeadsConfig(msgspec.Struct, forbid_unknown_fields=True):
    key: Reference
    deliver_to: list[str]


class SiteConfig(msgspec.Struct, forbid_unknown_fields=True):
    url: str


class NoticeConfig(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    url: str | Reference
    form: Literal["json", "slack"]
    secret: Reference | None = None
    severity: Literal["high", "medium", "low"] = "high"
    group_seconds: float = 10.0
    ca_file: str = ""
    insecure: bool = False


class Configuration(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file."""

    vaults: list[VaultConfig] = []
    clusters: list[ClusterConfig] = []
    databases: list[DatabaseConfig] = []
    policies: Policies = msgspec.field(default_factory=Policies)
    heads: HeadsConfig | None = None
    site: SiteConfig | None = None
    notices: list[NoticeConfig] = []


def load(path: Path) -> Configuration:
    """The checked content of `path`; raises ConfigurationError with the place and the reason."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error.strerror}). Copy leasehold.example.toml, or set LEASEHOLD_CONFIG."
        ) from error
    try:
        configuration = msgspec.convert(tomllib.loads(text.decode()), Configuration)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {error}. docs/configuration.md lists every key.") from error
    for problem in problems(configuration):
        raise ConfigurationError(f"{path}: {problem}")
    return configuration


def problems(configuration: Configuration) -> list[str]:
    """What a shape cannot express: names used twice, names that nothing bears, addresses without a scheme."""
    found = []
    for what, names in {
        "vault": [vault.name for vault in configuration.vaults],
        "cluster": [cluster.name for cluster in configuration.clusters],
        "auth mount": [f"{m.vault}/{m.path.strip('/')}" for c in configuration.clusters for m in c.auth_mounts],
        "database": [f"{d.vault}/{d.mount.strip('/')}/{d.name}" for d in configuration.databases],
        "receiver of notices": [notice.name for notice in configuration.notices],
        "stream": [f"{v.name}/{d.name}/{n.name}" for v in configuration.vaults for d in v.devices for n in d.nodes],
    }.items():
        found += [f"{what} {name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    vaults = {vault.name for vault in configuration.vaults}
    for used in [m.vault for c in configuration.clusters for m in c.auth_mounts] + [
        d.vault for d in configuration.databases
    ]:
        if used not in vaults:
            found.append(f"no vault is named {used!r}; [[vaults]] has {', '.join(sorted(vaults)) or 'none'}")
    if any(m.path.strip("/") == "token" for c in configuration.clusters for m in c.auth_mounts):
        found.append(
            "auth/token/ cannot be an auth mount of a cluster: whoever makes a token may write any metadata into it"
        )
    for address in [v.address for v in configuration.vaults] + [c.address for c in configuration.clusters]:
        if urlsplit(address).scheme not in {"http", "https"} or not urlsplit(address).hostname:
            found.append(f"{address!r} is no address; write https://HOST:PORT")
        elif urlsplit(address).username or urlsplit(address).password:
            found.append("an address may not hold a user or a password; name secrets by reference")
    for database in configuration.databases:
        try:
            databases.get(database.kind)
        except databases.UnknownKind as error:
            found.append(f"database {database.name}: {error}")
    for cluster in configuration.clusters:
        for account in cluster.fetchers:
            if len([part for part in account.split("/") if part]) != 2 or account.count("/") != 1:
                found.append(f"cluster {cluster.name}: fetchers has {account!r}; write NAMESPACE/SERVICEACCOUNT")
    found += unpushable(configuration)
    for vault in configuration.vaults:
        for name, login in [("observe", vault.observe), ("respond", vault.respond)]:
            if login and login.method != "token" and not (login.role and login.mount):
                found.append(f"vault {vault.name}: [vaults.{name}] with method {login.method} needs mount and role")
        if vault.reconcile_seconds < 5:
            found.append(f"vault {vault.name}: reconcile_seconds must be 5 or more")
        if not 1 <= vault.lookups_per_second <= 10_000:
            found.append(f"vault {vault.name}: lookups_per_second must be 1 to 10000")
        if not 1 <= vault.revocations_per_second <= 1000:
            found.append(f"vault {vault.name}: revocations_per_second must be 1 to 1000")
        if vault.audit_bytes_per_hour < 1_000_000:
            found.append(f"vault {vault.name}: audit_bytes_per_hour must be 1000000 or more")
        own = f"{vault.namespace.strip('/')}/".lstrip("/")
        found += [
            f"vault {vault.name}: namespace {namespace!r} is none below {own or 'the root'}; write its whole path, as in team-a/child"
            for namespace in vault.namespaces
            if not namespace.strip("/") or not namespace.strip("/").startswith(own)
        ]
    return (
        found
        + limit_problems(configuration)
        + session_problems(configuration.databases)
        + account_problems(configuration.databases)
        + retention_problems(configuration.policies)
        + heads_problems(configuration)
        + notice_problems(configuration)
        + log_problems(configuration.databases)
    )


def limit_problems(configuration: Configuration) -> list[str]:
    limits: dict[str, int | None] = {
        f"policies.{name}": getattr(configuration.policies, name)
        for name in ("max_lease_ttl_seconds", "max_live_leases", "confirm_above", "approval_above")
    }
    limits |= {f"database {d.name}: max_lease_ttl_seconds": d.max_lease_ttl_seconds for d in configuration.databases}
    return [
        f"{name} is {limit}; write 0 (no limit) or more"
        for name, limit in limits.items()
        if limit is not None and not 0 <= limit < 2**31
    ]


def session_problems(configured: list[DatabaseConfig]) -> list[str]:
    """What is wrong with how sessions are sampled and where they may come from."""
    found = []
    for database in configured:
        if database.sample_seconds != 0 and not 1 <= database.sample_seconds <= 3600:
            found.append(f"database {database.name}: sample_seconds must be 0 (never) or 1 to 3600")
        found += [
            f"database {database.name}: {name} has {place!r}; write an address (10.0.0.7) or a network (10.0.0.0/24)"
            for name, places in (("nat", database.nat), ("poolers", database.poolers))
            for place in places
            if not (name == "poolers" and place == "local") and not _is_network(place)
        ]
    return found


def account_problems(configured: list[DatabaseConfig]) -> list[str]:
    """What is wrong with accounts that Vault has: their address, and names that would lead elsewhere in Vault. And with who is who."""
    found = []
    for database in configured:
        if database.respond and database.respond == database.monitor:
            found.append(
                f"database {database.name}: respond names the account that monitors. What looks may not end anything: make "
                "another account to respond with (docs/databases.md)"
            )
        for name, account in (("monitor", database.monitor), ("respond", database.respond)):
            if account is None or not account.address:
                continue
            what, parts = f"database {database.name}: {name}", urlsplit(account.address)
            if not parts.scheme or not parts.hostname:
                # not repeated: somebody may have written a password into it
                found.append(f"{what}.address is none; write postgresql://HOST:5432/NAME")
            elif parts.username is not None or "@" in parts.netloc:
                found.append(f"{what}.address may not hold a user or a password: Vault gives both")
            if not re.fullmatch(r"\w[\w.-]*", account.static_role or account.role):
                found.append(f"{what} names the role {account.static_role or account.role!r}, which Vault cannot have")
            if any(part in {"", ".", ".."} for part in account.mount.strip("/").split("/")) and account.mount:
                found.append(f"{what}.mount is {account.mount!r}; write the path of a database mount")
    return found


def _is_network(text: str) -> bool:
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def retention_problems(policies: Policies) -> list[str]:
    """What is wrong with how long things are kept, and with where they are moved to."""
    found = []
    for name, days in [("event_days", policies.event_days), ("raw_days", policies.raw_days)]:
        if days != 0 and not FEWEST_DAYS <= days <= MOST_DAYS:
            found.append(f"policies.{name} is {days}; write 0 (for ever) or {FEWEST_DAYS} to {MOST_DAYS}")
    archive = policies.archive
    bucket = archive.startswith("s3://")
    if bucket and not S3_PLACE.fullmatch(archive):
        found.append(f"policies.archive is {archive!r}; write s3://BUCKET or s3://BUCKET/PREFIX")
    elif archive and not bucket and not _is_folder(archive):
        found.append(f"policies.archive is {archive!r}; write the whole path of a folder, /…, or s3://BUCKET/PREFIX")
    if not bucket:
        found += [
            f"policies.archive_{name} is for a bucket; archive must then be s3://BUCKET/PREFIX"
            for name in ("endpoint", "region", "ca_file", "access_key", "secret_key")
            if getattr(policies, f"archive_{name}")
        ]
    if bool(policies.archive_access_key) != bool(policies.archive_secret_key):
        found.append("policies.archive_access_key and policies.archive_secret_key go together")
    if endpoint := policies.archive_endpoint:
        parts = urlsplit(endpoint)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
            found.append(f"policies.archive_endpoint is {endpoint!r}; write https://HOST or https://HOST:PORT")
        elif parts.username or parts.password:
            found.append("policies.archive_endpoint may not hold a user or a password; name secrets by reference")
    return found


def heads_problems(configuration: Configuration) -> list[str]:
    """What is wrong with the places that signed heads are delivered to."""
    if configuration.heads is None:
        return []
    found, places = [], configuration.heads.deliver_to
    if not places:
        found.append('heads.deliver_to names no place; write whole paths of folders, or "archive"')
    for place in places:
        if place == "archive" and not configuration.policies.archive:
            found.append("heads.deliver_to names the archive, but policies.archive is empty")
        elif place != "archive" and not _is_folder(place):
            found.append(f'heads.deliver_to has {place!r}; write the whole path of a folder, /…, or "archive"')
    if len({place.rstrip("/") for place in places}) < len(places):
        found.append("heads.deliver_to names a place twice")
    return found


def notice_problems(configuration: Configuration) -> list[str]:
    """What is wrong with who is told of findings. An address is never quoted: it may be a secret itself."""
    found = []
    site = configuration.site
    if site and (problem := address_problem(site.url, insecure=True)):
        found.append(f"site.url {problem}")
    elif site and (
        len(site.url) > 200 or urlsplit(site.url).query or not site.url.isprintable() or set(site.url) & set(" <>|\"'")
    ):
        found.append("site.url is what links begin with; write https://HOST or https://HOST/PATH")
    for notice in configuration.notices:
        where = f"notice {notice.name}"
        if not notice.name.strip() or not notice.name.isprintable() or len(notice.name) > 60:
            found.append("notices.name must be 1 to 60 printable characters")
        if notice.form == "json" and notice.secret is None:
            found.append(f'{where}: form "json" is signed and needs secret = {{ file = "PATH" }} (docs/notices.md)')
        if notice.form == "slack" and notice.secret is not None:
            found.append(f'{where}: form "slack" is not signed; its address is the secret. Take `secret` out')
        if notice.form == "slack" and isinstance(notice.url, str):
            found.append(f'{where}: the address of form "slack" is a secret; write url = {{ file = "PATH" }}')
        elif isinstance(notice.url, str) and (problem := address_problem(notice.url, insecure=notice.insecure)):
            found.append(f"{where}: url {problem}")
        if not 0 <= notice.group_seconds <= 3600:
            found.append(f"{where}: group_seconds must be 0 to 3600")
        if notice.ca_file and not notice.ca_file.startswith("/"):
            found.append(f"{where}: ca_file must be the whole path of a file, /…")
    return found


def address_problem(url: str, *, insecure: bool) -> str:
    """What is wrong with an address that messages go to, without a word of it; empty where nothing is. Pure."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "holds characters that no address may hold; write https://HOST/PATH"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is no address; write https://HOST/PATH"
    if parts.scheme not in {"http", "https"} or not host:
        return "is no address; write https://HOST/PATH"
    if "@" in parts.netloc:
        return "may not hold a user or a password"
    if parts.fragment:
        return "may not hold a fragment (#…)"
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        return "must begin with https:// unless it is on this machine (or insecure = true)"
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def log_problems(configured: list[DatabaseConfig]) -> list[str]:
    """What is wrong with the logs that databases name; audit.configuration applies them."""
    found: list[str] = []
    formats: dict[str, str] = {}
    for database in configured:
        if (log := database.log) is None:
            continue
        name = f"database {database.name}: log"
        folder, _, file = log.path.rpartition("/")
        if database.kind != "postgresql":
            found.append(f"{name} is for kind postgresql only")
        if not log.path.startswith("/") or not file or ".." in log.path.split("/"):
            found.append(f"{name}.path is {log.path!r}; write the whole path of a file, /…")
        elif any(mark in folder for mark in "*?[%"):
            found.append(f"{name}.path is {log.path!r}; only the file's name may be a pattern, not its folder")
        if formats.setdefault(log.path, log.format) != log.format:
            found.append(f"{name}.path is {log.path!r}, which another database names with another format")
    return found


def unpushable(configuration: Configuration) -> list[str]:
    """Nodes with `push = true` that have a file as well, or names that no address can carry."""
    found = []
    for vault, device, node in [(v, d, n) for v in configuration.vaults for d in v.devices for n in d.nodes if n.push]:
        stream = f"stream {vault.name}/{device.name}/{node.name}"
        if node.path:
            found.append(f"{stream} has path and push = true: a stream is followed or pushed, never both")
        for what, name in (("vault", vault.name), ("device", device.name), ("node", node.name)):
            # /ingest/VAULT/DEVICE/NODE: a device's path in Vault may hold slashes, so the others must not
            parts = name.split("/") if what == "device" else [name]
            if not name.isprintable() or any(part in {"", ".", ".."} or "/" in part for part in parts):
                found.append(f"{stream}: a pushed stream's {what} cannot be named {name!r}")
    return found


def _is_folder(archive: str) -> bool:
    return archive.startswith("/") and archive.strip("/") != "" and ".." not in archive.split("/")


@transaction.atomic
def apply(configuration: Configuration) -> None:
    """Writes vaults, clusters, auth mounts and databases; what is gone from the file is retired, never deleted."""
    heads = configuration.heads
    Policy.objects.update_or_create(
        pk=1,
        defaults={
            "clock_skew_seconds": configuration.policies.clock_skew_seconds,
            "stale_after_seconds": configuration.policies.stale_after_seconds,
            "max_lease_ttl_seconds": configuration.policies.max_lease_ttl_seconds,
            "max_live_leases": configuration.policies.max_live_leases,
            "confirm_above": configuration.policies.confirm_above,
            "approval_above": configuration.policies.approval_above,
            "event_days": configuration.policies.event_days,
            "raw_days": configuration.policies.raw_days,
            "archive": configuration.policies.archive.rstrip("/"),
            "archive_endpoint": configuration.policies.archive_endpoint.rstrip("/"),
            "archive_region": configuration.policies.archive_region,
            "archive_ca_file": configuration.policies.archive_ca_file,
            "archive_access_key": _reference(configuration.policies.archive_access_key),
            "archive_secret_key": _reference(configuration.policies.archive_secret_key),
            "heads_key": _reference(heads.key) if heads else None,
            "heads_deliver_to": [place.rstrip("/") for place in heads.deliver_to] if heads else [],
        },
    )
    Vault.objects.update(retired=True)
    Cluster.objects.update(retired=True)
    vaults = {}
    for item in configuration.vaults:
        vaults[item.name], _ = Vault.objects.update_or_create(
            name=item.name,
            defaults={
                "address": item.address.rstrip("/"),
                "namespace": item.namespace,
                "ca_file": item.ca_file,
                "lease_mounts": [mount.strip("/") for mount in item.lease_mounts],
                "reconcile_seconds": item.reconcile_seconds,
                "lookups_per_second": item.lookups_per_second,
                "revocations_per_second": item.revocations_per_second,
                "audit_bytes_per_hour": item.audit_bytes_per_hour,
                "namespaces": [namespace.strip("/") for namespace in item.namespaces],
                "follow_leader": item.follow_leader,
                "observe": msgspec.to_builtins(item.observe),
                "respond": msgspec.to_builtins(item.respond),
                "retired": False,
            },
        )
    kept_mounts = []
    for cluster_config in configuration.clusters:
        cluster, _ = Cluster.objects.update_or_create(
            name=cluster_config.name,
            defaults={
                "address": cluster_config.address.rstrip("/"),
                "ca_file": cluster_config.ca_file,
                "token": msgspec.to_builtins(cluster_config.token),
                "fetchers": sorted(set(cluster_config.fetchers)),
                "retired": False,
            },
        )
        for mount in cluster_config.auth_mounts:
            row, _ = AuthMount.objects.update_or_create(
                vault=vaults[mount.vault],
                path=mount.path.strip("/"),
                defaults={"cluster": cluster, "claims": mount.claims or KUBERNETES_CLAIMS},
            )
            kept_mounts.append(row.pk)
            identify_again(row)
    # a mount that is registered no more must not lend identity to later logins
    AuthMount.objects.exclude(pk__in=kept_mounts).delete()
    monitored, named = [], []
    allowed = {row.pk: (row.nat, row.poolers) for row in Database.objects.all()}
    for database_config in configuration.databases:
        row_, _ = Database.objects.update_or_create(
            vault=vaults[database_config.vault],
            mount=database_config.mount.strip("/"),
            name=database_config.name,
            defaults={
                "kind": database_config.kind,
                "monitor": _reference(database_config.monitor),
                "respond": _reference(database_config.respond),
                "max_lease_ttl_seconds": database_config.max_lease_ttl_seconds,
                "sample_seconds": database_config.sample_seconds,
                "nat": sorted(set(database_config.nat)),
                "poolers": sorted(set(database_config.poolers)),
            },
        )
        named.append(row_.pk)
        if (row_.nat, row_.poolers) != allowed.get(row_.pk, ([], [])):
            # what is allowed now was perhaps a finding, and the other way round
            places = [SessionPlace.ELSEWHERE, SessionPlace.NAT, SessionPlace.POOLER]
            Session.objects.filter(database=row_, place__in=places).update(place_open=True)
        if row_.monitor:
            monitored.append(row_.pk)
    Database.objects.exclude(pk__in=monitored).update(monitor=None)
    Database.objects.exclude(pk__in=named).update(max_lease_ttl_seconds=None, respond=None)
    health.forget(SourceKind.VAULT, list(vaults))
    health.forget(SourceKind.CLUSTER, [c.name for c in configuration.clusters])
    health.forget(SourceKind.DATABASE, [f"{d.vault}/{d.mount.strip('/')}/{d.name}" for d in configuration.databases])


def _reference(reference: Reference | AccountConfig | None) -> dict[str, str] | None:
    return msgspec.to_builtins(reference) if reference else None
