"""A made-up report of any size, for tests of its PDF alone."""

from datetime import UTC, datetime, timedelta

from audit.pack import controls
from audit.pack.pdf.content import Content, Series, Workloads
from audit.pack.values import (
    AccountFigures,
    BlockAt,
    Certainties,
    Chain,
    Completeness,
    DatabaseFigures,
    Exceptions,
    Figures,
    File,
    FindingFigures,
    GapTold,
    Hole,
    Lines,
    Manifest,
    PodWatch,
    Reason,
    RevocationFigures,
    Revocations,
    Sample,
    SampledDatabase,
    Share,
    SignedHeads,
    StreamCoverage,
    Stretch,
)

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)
DAY = timedelta(days=1)
HASH = "8685116dfbcfa639621631c4af0ad62e52ddeb9979acbec0007ccef2e4801a27"
LEASE = "database/creds/orders-rw/h7sYpQ2mX9aVd1KfLr3TzBn8"
ACCESSES = [
    "accessed_at",
    "database",
    "database_role",
    "pod_namespace",
    "service_account",
    "pod",
    "certainty",
    "source_ip",
    "end_reason",
    "lease_id",
]


def stream(device: str, *, holes: list[Hole]) -> StreamCoverage:
    return StreamCoverage(
        stream=f"production / {device} / openbao-0",
        vault="production",
        device=device,
        node="openbao-0",
        way="followed",
        counts=True,
        retired=False,
        refused="",
        first_line_at=START - DAY,
        last_line_at=END,
        read_until=END,
        lag_seconds=0.0,
        unread_bytes=0,
        longest_wait_seconds=2.4,
        hours={"complete": 718, "gap": 2},
        lines=Lines(2_481_002, 1_240_488, 26, 0, 3, 0, 0, 12),
        gaps=[GapTold("rotation", "a file was rotated away unread", START + DAY, START + DAY / 2, 4711)]
        if holes
        else [],
        more_gaps=0,
        holes=holes,
        more_holes=0,
        blocks_dropped=0,
        blocks_archived=0,
    )


def manifest(*, complete: bool = False, signed: bool = True, accesses: int = 48_213) -> Manifest:
    holes = (
        []
        if complete
        else [Hole("lines were lost: a file was rotated away before it was read", START + DAY / 2, START + DAY)]
    )
    reasons = [
        "production / file-a / openbao-0, 2026-11-01T12:00:00Z to 2026-11-02T00:00:00Z: lines were lost: a file was rotated away before it was read."
    ]
    shares = {"exact": 31_240, "inferred": 14_001, "ambiguous": 1_870, "service account": 1_100, "unknown": 2}
    factor = accesses / 48_213
    return Manifest(
        format="leasehold evidence 1",
        report_id="0d6c2a52-5a1b-4a4c-9c0c-8b1d1f5b6a11",
        from_at=START,
        to_at=END,
        filters={},
        made_at=END + timedelta(hours=3),
        made_by="Ann Lee",
        reason="SOC 2, November",
        software="0.7.0",
        files=[
            File("accesses.csv", HASH, 22_481_223, accesses),
            File("sample.csv", HASH, 12_480, 25),
            File("leases.csv", HASH, 21_002_118, accesses),
            File("workloads.csv", HASH, 812_004, 5_000),
        ],
        chains=[
            Chain(
                "production",
                "file-a",
                "openbao-0",
                BlockAt(1200, HASH, 9_000_000),
                BlockAt(1840, HASH, 11_481_002),
                BlockAt(1851, HASH, 11_490_000),
            )
        ],
        signed_heads=SignedHeads(700, 1419, 720, 1420),
        completeness=Completeness(
            complete=complete,
            word="Complete: every hour of each of 2 streams was read."
            if complete
            else "This pack does not call itself complete, for 1 reason that it names.",
            reasons=[] if complete else reasons,
            more_reasons=0,
            judged_until=END,
            streams=[stream("file-a", holes=holes), stream("file-b", holes=[])],
            unwatched_vaults=[],
            unanswered_reads=0,
            events_dropped=[],
            pods=[PodWatch("prod-eu", [Stretch(START, START + DAY / 24)], 0, 3600.0)],
            sessions=[
                SampledDatabase("production/database/orders", 2_591_000.0, 2_592_000.0, [], 0),
                SampledDatabase("production/database/billing", 0.0, 0.0, [], 0),
            ],
            not_covered=[
                "What a holder did with its credentials: statements in a database are not recorded here.",
                "What Vault does not log.",
            ],
        ),
        certainty=Certainties(
            f"Of {accesses} accesses {int(45_241 * factor)} are tied to exactly one pod, {accesses - int(45_241 * factor)} are not.",
            accesses,
            [
                Share(
                    name,
                    f"what {name} means",
                    int(count * factor),
                    round(100 * count / 48_213, 2),
                    [Reason("the address is shared by NODES pods", int(count * factor))],
                )
                for name, count in shares.items()
            ],
        ),
        figures=Figures(
            accesses=accesses,
            leases=accesses,
            databases=[
                DatabaseFigures(
                    "production/database/orders", 40_213, 41, 812, 2, 40_213, 86_400.0, LEASE, 43_200, 12, 0
                ),
                DatabaseFigures("production/database/billing", 8_000, 9, 120, 0, 8_000, 3_600.0, LEASE, None, 0, 3),
            ],
            accounts=[AccountFigures("prod-eu", "shop", "storefront", 12_002, ["production/database/orders"], 40, END)],
            more_accounts=41,
            revocations=Revocations(
                2,
                1,
                0.31,
                0.31,
                0.31,
                [
                    RevocationFigures(
                        LEASE, "otto", "INC-2291: credential seen outside", START + DAY, "verified", START + DAY, 0.31
                    ),
                    RevocationFigures(LEASE, "otto", "clean-up", START + 2 * DAY, "failed", None, None),
                ],
                0,
            ),
            exceptions=Exceptions(
                [
                    FindingFigures("credential used from elsewhere", "high", 1, 0),
                    FindingFigures("lease lives too long", "medium", 12, 3),
                ],
                212,
                2,
                0,
                14,
            ),
            first_event_at=START,
            last_event_at=END,
            first_access_at=START,
            last_access_at=END,
        ),
        sample=Sample(25, HASH, list(range(17, 17 + 25 * 1900, 1900))),
        public_key=HASH if signed else "",
        fingerprint=HASH if signed else "",
    )


def content(*, rows: int = 240, **changes: bool) -> Content:
    """A report whose long table has so many rows."""
    told = manifest(**changes)
    return Content(
        manifest=told,
        series=Series(
            [(START + i * DAY / 4, (i * 37) % 113 + (180 if i % 28 < 20 else 10)) for i in range(120)], "6 hours"
        ),
        hours={
            "production / file-a / openbao-0": ["complete"] * 60
            + ["gap"] * 2
            + ["complete"] * 50
            + ["rejected", "lag"] * 4,
            "production / file-b / openbao-0": ["complete"] * 120,
        },
        workloads=Workloads([workload(i) for i in range(min(rows, 5_000))], rows),
        sample=[
            ACCESSES,
            *(
                [
                    f"2026-11-{i % 28 + 1:02}T10:00:00.000000Z",
                    "orders",
                    "orders-rw",
                    "shop",
                    "storefront",
                    f"storefront-7d9f8b6c5-{i:05}",
                    "inferred",
                    f"10.1.2.{i}",
                    "expired (inferred)",
                    LEASE,
                ]
                for i in range(25)
            ),
        ],
        frameworks=controls.read([controls.SHIPPED]),
        decisions=[
            [
                "production/database/orders",
                "shop/storefront",
                "keep",
                "Ann Lee",
                "2026-11-28 09:00",
                "needed by checkout",
            ]
        ],
    )


def workload(i: int) -> list[str]:
    return [
        "prod-eu",
        f"team-{i % 41}",
        f"service-with-a-long-name-{i}",
        "production/database/orders",
        f"{48_000 // (i + 1):,}",
        str(i % 40),
        str(i),
        str(i * 2),
        "0",
        "1",
        "0",
        "2026-11-30 23:59:12",
    ]
