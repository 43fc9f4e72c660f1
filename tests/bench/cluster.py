"""Who calls the vault and when: service accounts, their pods, and the requests of one session. See log.py for the mix."""

from dataclasses import dataclass
from random import Random

SERVICE_ACCOUNTS, NAMESPACES, GROUP = 200, 40, 10
MILLISECOND = 10**6
MINUTE = 60_000 * MILLISECOND
_TEAMS = ("shop", "billing", "search", "ledger", "mail", "risk", "media", "stock")
_STAGES = ("live", "batch", "edge", "internal", "partners")
_APPLICATIONS = ("api", "worker", "storefront", "scheduler", "gateway")
_SECRETS = ("smtp", "stripe", "session-key", "feature-flags")


@dataclass(frozen=True, slots=True)
class Account:
    """A service account, and the database that its pods use."""

    number: int
    namespace: str
    name: str
    mount: str
    database: str

    @property
    def secrets(self) -> list[str]:
        return [f"secret/data/{self.namespace}/{self.name}/{secret}" for secret in _SECRETS]


def accounts() -> list[Account]:
    """All service accounts; five in a namespace."""
    return [_account(number) for number in range(SERVICE_ACCOUNTS)]


def _account(number: int) -> Account:
    place, application = divmod(number, SERVICE_ACCOUNTS // NAMESPACES)
    team = _TEAMS[place // len(_STAGES)]
    return Account(
        number=number,
        namespace=f"{team}-{_STAGES[place % len(_STAGES)]}",
        name=_APPLICATIONS[application],
        # one account in six works on the second database mount
        mount="warehouse" if number % 6 == 5 else "database",
        database=f"{team}-{_APPLICATIONS[application]}",
    )


# a request to come: nanoseconds after the session's begin, how long it takes, its shape, its path
Request = tuple[int, int, str, str]


def session(number: int, account: Account, *, lease: str, random: Random) -> list[Request]:
    """The requests of one pod's hour, in order of time. `lease` is the id that its credential read will get."""
    role = f"{account.database}-{'ro' if number % GROUP >= 7 else 'rw'}"
    credentials = f"{account.mount}/creds/{role}"
    secrets = account.secrets

    def at(milliseconds: float, takes: float, shape: str, path: str) -> Request:
        # the pods of a group beat together, each with a scheduler's delay of its own
        late = random.random() * 8 if milliseconds > 1000 else 0
        return (
            int((milliseconds + late) * MILLISECOND),
            int(takes * (0.6 + random.random()) * MILLISECOND),
            shape,
            path,
        )

    plan = [
        at(0, 14, "login", "auth/kubernetes/login"),
        at(32, 1.2, "ui-mounts", f"sys/internal/ui/mounts/{credentials}"),
        at(38, 15, "credential", credentials),
    ]
    plan += [at(tick * 300_000 + 63, 4, "renew", "sys/leases/renew") for tick in range(12)]
    plan += [at(tick * 300_000 + 22, 9, "renew-self", "auth/token/renew-self") for tick in range(12)]
    plan += [at(85 + read * 2, 0.6, "secret", secrets[read]) for read in range(4)]
    plan += [at(read * 210_000 + 120, 0.6, "secret", secrets[read % 4]) for read in range(1, 17)]
    if number % 4 == 1:
        plan.append(at(28, 0.5, "lookup-self", "auth/token/lookup-self"))
    if number % 50 == 7:
        plan.append(at(96, 0.2, "denied-credential", f"{account.mount}/creds/admin"))
    elif number % 5 == 2:
        plan.append(at(96, 0.2, "denied", "secret/data/platform/root-ca/key"))
    if number % 97 == 3:
        plan.append(at(37, 0.3, "unknown-role", f"{account.mount}/creds/{role}-old"))
    if number % 20 == 9:
        plan.append(at(59 * 60_000, 5, "revoke", f"sys/leases/revoke/{lease_id(credentials, lease)}"))
    return sorted(plan)


def lease_id(credentials: str, lease: str) -> str:
    """Vault's own form: the path that was read, and a random part."""
    return f"{credentials}/{lease}"
