"""The search box: what one identifier is, in all that is known (search_reads.py).

What is typed may be anything, a secret too: text that looks like one is refused before anything is asked, and nothing of what
is typed is logged or stored.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from audit import hashes
from audit import search_reads as reads
from audit.models import Device
from audit.search_reads import MOST, Hit
from audit.secrets import looks_like_a_secret

LONGEST = 1000
# of a lease id's last part: lists show its first eight characters
SHORTEST_LAST_PART = 6

_HMAC = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


class Refused(Exception):
    """Nothing was searched for; the message says why, without what was typed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Hits of one kind. `more`: there are further ones."""

    title: str
    hits: Sequence[Hit]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """`taken_for`: what the text looks like, in words. `answers`: how each device writes it, where they were asked."""

    taken_for: str
    groups: Sequence[Group]
    answers: Sequence[hashes.Answer] = ()

    @property
    def only(self) -> Hit | None:
        """The one that all hits are, unless a device that did not answer may know of others."""
        if any(answer.cause for answer in self.answers):
            return None
        pages = {(hit.of, hit.key): hit for group in self.groups for hit in group.hits}
        return next(iter(pages.values())) if len(pages) == 1 else None


def find(typed: str, *, send: hashes.Send, seconds: float | None = None) -> Found:
    """What is known of it. Raises Refused for a secret, for too much, and for nothing."""
    if looks_like_a_secret(typed):
        raise Refused(
            "This looks like a token, a JWT or another secret, so it was not searched for: it was not logged, not stored"
            " and not sent anywhere. Search for the token's accessor instead. If somebody else can have seen it, revoke it."
        )
    text = tidy(typed)
    if not text:
        raise Refused("Type or paste an identifier.")
    if len(text) > LONGEST:
        raise Refused(f"This is longer than {LONGEST:,} characters: paste one identifier.")
    taken_for, groups, hashed = _in_plain(text)
    if not hashed:
        return Found(taken_for, groups)
    answers = hashes.ask(text, send=send, seconds=seconds)
    known = [(answer.device, answer.hash) for answer in answers if answer.hash]
    return Found(taken_for, [*groups, *_under(known)], answers)


def tidy(text: str) -> str:
    """Without what comes along when something is copied: spaces, quotes, an ellipsis, what does not print."""
    shown = "".join(c for c in text.strip() if c.isprintable())
    return shown.strip("\"'`,; ").removesuffix("…").removesuffix("...").strip()


def _in_plain(text: str) -> tuple[str, list[Group], bool]:
    """(what it looks like, what is known of it, whether devices are to be asked for its hash)."""
    if _HMAC.fullmatch(text):
        return (
            "a hash that an audit device wrote",
            _under([(device, text) for device in Device.objects.order_by("id")]),
            False,
        )
    if _UUID.fullmatch(text):
        return "a request, pod, entity or action id", _of_uuid(text.lower()), False
    if address := address_of(text):
        return "an address", _of_address(address), False
    exact = _groups(("Leases", reads.leases_by_id(text)), ("Leases of this database user", reads.leases_of_user(text)))
    if exact:
        return "a lease id or a database user", exact, False
    if "/" in text:
        groups = _of_path(text)
        return "a path, a lease id or a name in its namespace", groups, not _named(text, groups)
    groups = _of_word(text)
    return "a name or an identifier", groups, not _named(text, groups)


def _named(text: str, groups: Iterable[Group]) -> bool:
    """Whether it is the name of something: nothing is logged as the hash of that."""
    return any(f"/{hit.name}".endswith(f"/{text}") for group in groups for hit in group.hits)


def address_of(text: str) -> str:
    """The address as devices write it, without a port; empty where it is none."""
    bare = text.removeprefix("[").partition("]")[0] if text.startswith("[") else text
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        return str(ip_address(bare))
    except ValueError:
        return ""


def _groups(*titled: tuple[str, list[Hit]]) -> list[Group]:
    return [Group(title, hits[:MOST], len(hits) > MOST) for title, hits in titled if hits]


def _under(known: Iterable[tuple[Device, str]]) -> list[Group]:
    return _groups(*reads.under_hashes(list(known)))


def _of_uuid(text: str) -> list[Group]:
    return _groups(
        ("Requests", reads.events_by_id(text)),
        ("Pods", reads.pods_by_uid(text)),
        ("Logins of this entity", reads.logins_of_entity(text)),
        ("Service accounts", reads.accounts_by_uid(text)),
        ("Actions", reads.actions_by_id(text)),
    )


def _of_address(address: str) -> list[Group]:
    return _groups(
        ("Pods that had this address", reads.pods_that_had(address)),
        ("Leases that were read from it", reads.leases_from(address)),
        ("Sessions from it", reads.sessions_from(address)),
        ("Requests", reads.requests_from(address)),
    )


def _of_path(text: str) -> list[Group]:
    path = text.removeprefix("/").removeprefix("v1/")
    namespace, _, name = text.partition("/")
    return _groups(
        ("Pods", reads.pods_named(name, namespace=namespace) if name else []),
        ("Service accounts", reads.accounts_named(name, namespace=namespace) if name else []),
        ("Databases", reads.databases_called(text)),
        ("Leases whose id begins so", reads.leases_beginning(path)),
        ("Paths", reads.paths_beginning(path)),
        ("Logins of this name", reads.logins_named(text)),
        ("Identities in the log", reads.identities_named(text)),
    )


def _of_word(text: str) -> list[Group]:
    return _groups(
        ("Pods", reads.pods_named(text)),
        ("Service accounts", reads.accounts_named(text)),
        ("Databases", reads.databases_called(text)),
        ("Leases by the end of their id", reads.leases_ending(text) if len(text) >= SHORTEST_LAST_PART else []),
        ("Sessions under this database user", reads.sessions_of_user(text)),
        ("Logins of this token's accessor", reads.tokens_of(text)),
        ("Logins of this name", reads.logins_named(text)),
        ("Logins of this entity", reads.logins_of_entity(text)),
        ("Identities in the log", reads.identities_named(text)),
        ("Identities with this policy", reads.identities_with_policy(text)),
        ("Paths", reads.paths_beginning(text)),
    )
