"""The log that `make bench` reads: an audit log of any length, as one OpenBao node of a busy cluster writes it.

The lines are real ones (tests/data/session.ndjson, a pod's session through the agent, and tests/data/requests.ndjson, other
requests of such a pod) with names, ids, hashes, addresses and times put in. The mix, and why:

- 200 service accounts in 40 namespaces, 10 pods each, every pod with an address of its own: few identities and many
  tokens are what interning, login keys and attribution meet in a cluster.
- Pods begin in groups of 10 within 30 ms, one service account each: a Deployment rolls out, and its pods' timers then
  beat together for the hour. So requests overlap, and a response stands next to its request or a few lines after it.
- A session lasts an hour: login, ui/mounts, one credential read, 12 lease renewals and 12 of the token (an agent renews
  long before the end), 20 reads of 4 secrets. About 2 % of the requests issue a lease.
- Beside them what an auditor looks for: lookup-self (every 4th session), a denied read (every 5th; in every 50th of a
  credential), an unknown role (every 97th), a lease revoked in the URL form (every 20th).
- Sessions begin over 26 hours from 05:00, so that the log crosses midnight, and "24 hours" leaves out lines at both ends.
- Times have mostly 26 to 30 characters; 1 line in 100 is written up to 60 ms late, as measured on a real server; no
  response stands before its request.
- Hashes are one for each token, accessor, lease and database user; a renewal carries the same hash of its lease each time.

The same `lines`, `run`, `seed` and `begin` give the same bytes; another `run` is the same cluster with other ids.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import count
from pathlib import Path
from random import Random

from tests.bench.cluster import GROUP, MILLISECOND, SERVICE_ACCOUNTS, Account, Request, accounts, lease_id, session
from tests.bench.shapes import shapes

SECOND = 1000 * MILLISECOND
BEGINS_OVER = 26 * 3600 * SECOND
_SLICE = 60 * SECOND
# a whole hour at both ends is outside of the 24 hours that are asked for
WINDOW = (timedelta(hours=1), timedelta(hours=25))
_LATE = 60 * MILLISECOND

# a line that waits for its turn: order in the file, tie-break, time, template, request id
_Line = tuple[int, int, int, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Log:
    """A written log and what is true of it.

    `accesses`: (namespace/service account, path, how many credential reads issued a lease in `window`), sorted.
    """

    path: Path
    lines: int
    requests: int
    leases: int
    window: tuple[datetime, datetime]
    accesses: list[tuple[str, str, int]]


def write(path: Path, *, lines: int, begin: datetime, run: int = 0, seed: int = 1) -> Log:
    """Writes `lines` lines (one more if odd). `begin` is UTC."""
    requests = (lines + 1) // 2
    origin = int(begin.timestamp()) * SECOND
    edges = [origin + int(edge.total_seconds()) * SECOND for edge in WINDOW]
    # seeded with text: the same on every machine and in every version of Python
    random = Random(f"{seed}/{run}")  # noqa: S311 (no secret is made of it)
    accesses: Counter[tuple[str, str]] = Counter()
    leases = 0
    waiting: dict[int, list[_Line]] = {}
    written = origin // _SLICE
    number = count()
    with path.open("wb") as file:
        for at, account, plan, values in _sessions(requests, origin=origin, edges=edges, run=run, random=random):
            # groups may begin a little out of order, and nothing is written that could still get a line
            while written < (at - SECOND) // _SLICE:
                _write(file.write, waiting.pop(written, []))
                written += 1
            for line in _lines(at, plan, values, number=number, random=random):
                waiting.setdefault(line[0] // _SLICE, []).append(line)
            for offset, _, shape, credentials in plan:
                if shape == "credential":
                    leases += 1
                    if edges[0] <= at + offset < edges[1]:
                        accesses[f"{account.namespace}/{account.name}", credentials] += 1
        for turn in sorted(waiting):
            _write(file.write, waiting[turn])
    return Log(
        path=path,
        lines=2 * requests,
        requests=requests,
        leases=leases,
        window=(begin + WINDOW[0], begin + WINDOW[1]),
        accesses=[(*key, times) for key, times in sorted(accesses.items())],
    )


def _sessions(
    requests: int, *, origin: int, edges: list[int], run: int, random: Random
) -> Iterator[tuple[int, Account, list[Request], dict[bytes, bytes]]]:
    """Sessions in order of their groups' begin, as many as give that many requests; the last one is cut short."""
    everyone = accounts()
    groups = requests // (GROUP * 47) + 1
    for group in range(groups):
        begins = origin + int((group + random.random()) / groups * BEGINS_OVER)
        for edge in edges:
            if abs(begins - edge) < 5 * SECOND:
                # a credential read has both its lines on one side: a reader of either finds the same answer
                begins = edge + 5 * SECOND
        # 77 shares no divisor with 200: every account has its turn before one comes again
        account = everyone[group * 77 % SERVICE_ACCOUNTS]
        for pod in range(GROUP):
            number = group * GROUP + pod
            lease = _hash(run, number, "lease")[:24]
            at = begins + int((pod + random.random()) * 3 * MILLISECOND)
            plan = session(number, account, lease=lease, random=random)[:requests]
            requests -= len(plan)
            yield at, account, plan, _values(run, number, account, at=at, lease=lease)
            if not requests:
                return


def _values(run: int, number: int, account: Account, *, at: int, lease: str) -> dict[bytes, bytes]:
    """What the templates' names mean in this session."""
    pod = account.number * GROUP + number % GROUP
    entity = _hash("entity", account.number)
    text = {
        "token": f"hmac-sha256:{_hash(run, number, 'token')}",
        "accessor": f"hmac-sha256:{_hash(run, number, 'accessor')}",
        "jwt": _hash(run, number, "jwt"),
        "username": _hash(run, number, "username"),
        "password": _hash(run, number, "password"),
        "host": _hash("host", account.number),
        "user": _hash("user", account.number),
        "secret": _hash("secret", account.number),
        "lease": lease,
        "lease_hash": _hash(run, number, "lease"),
        "entity": _uuid(entity),
        "uid": _uuid(entity[32:]),
        "namespace": account.namespace,
        "service_account": account.name,
        "mount": account.mount,
        "address": f"10.42.{pod // 250}.{1 + pod % 250}",
        "port": str(32768 + number * 7919 % 28000),
        "issued": _stamp(at // SECOND * SECOND).decode(),
        "expires": _stamp(at + 3600 * SECOND).decode(),
        "issued_epoch": str(at // SECOND),
    }
    return {name.encode(): value.encode() for name, value in text.items()}


_SHAPES = shapes()


def _lines(
    at: int, plan: list[Request], values: dict[bytes, bytes], *, number: "count[int]", random: Random
) -> Iterator[_Line]:
    """Both lines of each request, with their place in the file."""
    made: dict[tuple[str, str], tuple[bytes, bytes]] = {}
    lease = values[b"lease"].decode()
    for offset, takes, shape, path in plan:
        templates = made.get((shape, path))
        if templates is None:
            if shape == "credential":
                values[b"lease"] = lease_id(path, lease).encode()
            values[b"path"] = path.encode()
            templates = made[shape, path] = (_SHAPES[shape][0] % values, _SHAPES[shape][1] % values)
        asked = at + offset
        answered = asked + takes
        digits = b"%032x" % random.getrandbits(128)
        identity = b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        place = asked + _late(random)
        yield place, next(number), asked, templates[0], identity
        yield max(answered + _late(random), place), next(number), answered, templates[1], identity


def _late(random: Random) -> int:
    """How much later than its time a line is written."""
    chance = random.random()
    return int(chance * 100 * _LATE) if chance < 0.01 else 0


def _write(write: Callable[[bytes], object], lines: list[_Line]) -> None:
    lines.sort()
    write(b"".join([template % (_stamp(at), identity) + b"\n" for _, _, at, template, identity in lines]))


_seconds: dict[int, bytes] = {}


def _stamp(at: int) -> bytes:
    """RFC 3339 with as many of nine digits as it needs, as Go writes it."""
    second, fraction = divmod(at, SECOND)
    text = _seconds.get(second)
    if text is None:
        if len(_seconds) > 10_000:
            _seconds.clear()
        text = _seconds[second] = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
    return (b"%s.%09d" % (text, fraction)).rstrip(b"0") + b"Z" if fraction else text + b"Z"


def _hash(*what: object) -> str:
    """64 hexadecimal digits that stand for this and nothing else."""
    return blake2b(repr(what).encode(), digest_size=32).hexdigest()


def _uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
