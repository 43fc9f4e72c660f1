"""Reasons of a certainty without the names and addresses in them, so that thousands of them become a few. Pure."""

import re

# in the order in which they are tried; the words are those of audit.attribute
_KINDS = [
    (r"^read wrapped at .* unwrapped at", "read wrapped at one address and unwrapped at another: either can hold it"),
    (r"fetched it for others", "an operator fetched it for others"),
    (
        r"^read with a token that another token made",
        "read elsewhere than its login, with a token that another one made",
    ),
    (r"carries the pod's name and uid", "the login response of a registered auth mount carries the pod's name and uid"),
    (
        r"^only this pod of the service account had ",
        "only one pod of the service account had the address, without a gap",
    ),
    (r"^\d+ pods of this service account fit", "several pods of the service account fit the address"),
    (r"is the address of node .* no pod of this service account", "a node's address, and no pod of the account on it"),
    (r"is the address of node ", "a node's address, which several pods share"),
    (r"which had just started, is not known yet", "the address of a pod that had just started was not known"),
    (r"but the pod watch had a gap then", "the pod watch had a gap then"),
    (r"but the pod watch has not come that far yet", "the pod watch had not come that far"),
    (
        r"a proxy, or its token was used elsewhere",
        "the address of another service account's pod: a proxy, or a token used elsewhere",
    ),
    (r"fit no single pod", "login and read came from different addresses, which fit no single pod"),
    (r"was then the address of no pod", "the address of no pod: NAT or a proxy stands between"),
    (r"shows no address for the read", "the audit log shows no address for the read"),
    (r"^the login whose token read it was not seen", "the login whose token read it was not seen"),
    (r"^its token was made by another token", "its token was made by another one, whose own login was not seen"),
    (
        r"which is not registered with a cluster",
        "its login came through an auth mount that is not registered with a cluster",
    ),
    (r"named no service account", "its login named no service account"),
]
_COMPILED = [(re.compile(pattern), kind) for pattern, kind in _KINDS]
OTHER = "other reasons"


def kind_of(reason: str) -> str:
    return next((kind for pattern, kind in _COMPILED if pattern.search(reason)), OTHER)
