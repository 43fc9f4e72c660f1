"""The sections of the PDF, in order: each a function from the content to what stands on the pages. Pure."""

from collections.abc import Callable, Iterator

from reportlab.platypus import CondPageBreak, Flowable, KeepTogether, NextPageTemplate, PageBreak, Spacer

from audit.pack.controls import PARTS
from audit.pack.pdf import look, parts
from audit.pack.pdf.content import WORKLOADS, Content
from audit.pack.pdf.parts import DASH, box, bullets, count, duration, facts, number, part, table, utc
from audit.pack.values import StreamCoverage

Section = Callable[[Content], Iterator[Flowable]]

# of lists in the PDF; the CSVs and the manifest have more
MOST_LISTED = 40
# a cell of the sample is read, not scanned
SAMPLE_COLUMNS = {
    "accessed_at": 11.5,
    "database": 7,
    "database_role": 8,
    "pod_namespace": 7,
    "service_account": 9,
    "pod": 15,
    "certainty": 7,
    "source_ip": 8,
    "end_reason": 10,
    "lease_id": 17,
}


def scope(content: Content) -> Iterator[Flowable]:
    told = content.manifest
    yield facts(
        [
            ("Period", f"{utc(told.from_at)} to {utc(told.to_at)} UTC, the end not included"),
            ("Vaults", ", ".join(sorted({one.vault for one in told.completeness.streams})) or "none"),
            ("Databases", ", ".join(one.database for one in told.figures.databases) or "none was accessed"),
            (
                "Filters",
                ", ".join(f"{name}: {value}" for name, value in told.filters.items())
                or "none: everything that is known of the period",
            ),
            ("First event", utc(told.figures.first_event_at)),
            ("Last event", utc(told.figures.last_event_at)),
            ("Made", f"{utc(told.made_at)} UTC by {told.made_by}, with Leasehold {told.software}"),
            ("Reason", told.reason),
            ("Report id", [told.report_id]),
        ]
    )
    yield part("What the words mean")
    yield facts(
        [
            ("Access", "one read of database credentials: proof that they could be used"),
            ("Session", "one connection to a database under such a credential: proof that it was used"),
            ("Lease", "the life of one credential, from its issue to its end"),
            ("Coverage", "what share of an audit stream is known to be complete"),
            ("Certainty", "how the pod behind an access is known"),
        ]
    )
    yield part("What no pack covers")
    yield from bullets(told.completeness.not_covered)


def summary(content: Content) -> Iterator[Flowable]:
    told = content.manifest
    figures, revoked = told.figures, told.figures.revocations
    yield table(
        ["Figure", "Value", "Where"],
        [
            ["Accesses (reads of database credentials)", number(figures.accesses), "accesses.csv"],
            ["Leases issued", number(figures.leases), "leases.csv"],
            ["Databases accessed", number(sum(one.accesses > 0 for one in figures.databases)), PARTS["databases"]],
            [
                "Service accounts with accesses",
                number(len(figures.accounts) + figures.more_accounts),
                PARTS["workloads"],
            ],
            [
                "Leases that lived longer than the policy allows",
                number(sum(one.over_limit for one in figures.databases)),
                PARTS["lifetimes"],
            ],
            [
                "Leases to be revoked here / verified gone",
                f"{revoked.requested:,} / {revoked.verified:,}",
                PARTS["revocations"],
            ],
            [
                "Findings open at some time",
                number(sum(one.findings for one in figures.exceptions.findings)),
                PARTS["exceptions"],
            ],
            [
                "Holes in the audit log",
                number(len(told.completeness.reasons) + told.completeness.more_reasons),
                PARTS["completeness"],
            ],
        ],
        [5, 2, 3],
        numbers=[1],
    )
    yield part("Accesses over the period")
    if content.series.counts:
        yield parts.over_time(content.series.counts, each=content.series.each)
    else:
        yield look.text("No access in the period.")


def completeness(content: Content) -> Iterator[Flowable]:
    told = content.manifest.completeness
    verdict = [look.text(told.word, look.VERDICT)]
    if not told.complete:
        verdict.append(
            look.text(
                "What is missing is named below with its bounds. Everything else in this report is about what was read.",
                look.CELL,
            )
        )
    yield box(verdict, good=told.complete)
    if told.reasons:
        yield part("Holes and doubts")
        yield from bullets(told.reasons[:MOST_LISTED])
        if more := len(told.reasons[MOST_LISTED:]) + told.more_reasons:
            yield look.text(f"{more:,} more are in coverage.csv and gaps.csv.", look.SMALL)
    yield part("Each audit stream")
    judged = [one for one in told.streams if one.counts]
    if not judged:
        yield look.text("No audit stream was read in this period: nothing of it is known from a log.")
    for one in judged:
        yield KeepTogether(list(_stream(one, content.hours.get(one.stream, ()))))
    if judged:
        yield look.text(
            "The strip is the period from left to right; a stretch shows its worst hour. Full height: complete, or nothing was written (pale). "
            "Lower: read late, lines that could not be read, and lowest a gap.",
            look.SMALL,
        )
    if given_up := len(told.streams) - len(judged):
        yield look.text(
            f"Not counted, since nothing of them is of this period and nobody reads them any more: {given_up} streams.",
            look.SMALL,
        )
    if told.unwatched_vaults:
        yield look.text(f"Vaults without a stream: {', '.join(told.unwatched_vaults)}.")
    yield part("Pods and sessions")
    rows: list[list[object]] = [
        [
            f"pods of cluster {one.cluster}",
            "watched",
            "without a gap"
            if not one.gaps
            else f"{count(len(one.gaps) + one.more_gaps, 'gap')}, {duration(one.gap_seconds)} in all",
        ]
        for one in told.pods
    ]
    for database in told.sessions:
        known = database.sampled_seconds or database.logged_seconds
        rows.append(
            [
                f"sessions of {database.database}",
                f"sampled {duration(database.sampled_seconds)}, log read {duration(database.logged_seconds)}"
                if known
                else "not watched",
                "without a gap"
                if not database.gaps
                else count(len(database.gaps) + database.more_gaps, "gap")
                if known
                else "nothing is known of the use of credentials",
            ]
        )
    if rows:
        yield table(["What", "How", "Gaps"], rows, [4, 4, 3])
        yield look.text("Gaps here make pods and use less certain; they make accesses no fewer.", look.SMALL)
    else:
        yield look.text("No cluster and no database was watched.")


def _stream(one: StreamCoverage, states: object) -> Iterator[Flowable]:
    n = one.lines
    yield look.text(f"{one.stream} ({one.way})", look.PART)
    if isinstance(states, list | tuple) and states:
        yield parts.strip(states)
    yield facts(
        [
            (
                "Lines",
                f"{n.lines:,}: {n.pairs:,} pairs, {n.unpaired:,} unpaired, {n.duplicates:,} duplicates, {n.rejected:,} not readable, "
                f"{n.conflicts:,} contradicting, {n.expired:,} too old; {n.redacted:,} redacted",
            ),
            ("Gaps", number(len(one.gaps) + one.more_gaps) if one.gaps else "none"),
            ("Read until", f"{utc(one.read_until)}; a line waited for {duration(one.longest_wait_seconds)} at most"),
        ]
    )
    if one.blocks_dropped:
        yield look.text(
            f"Raw lines of {one.blocks_dropped:,} blocks were dropped as the policy says; {one.blocks_archived:,} of them are in the archive.",
            look.SMALL,
        )


def certainty(content: Content) -> Iterator[Flowable]:
    told = content.manifest.certainty
    named = bool(told.accesses) and all(share.accesses == 0 for share in told.shares[2:])
    yield box([look.text(told.word, look.VERDICT)], good=named or not told.accesses)
    yield parts.stacked([(share.certainty, share.accesses, share.percent) for share in told.shares])
    yield Spacer(1, 6)
    yield table(["Certainty", "Means"], [[share.certainty, share.meaning] for share in told.shares], [2, 7])
    reasons: list[list[object]] = [
        [share.certainty, reason.reason, number(reason.accesses)]
        for share in told.shares
        for reason in share.reasons[:8]
    ]
    if reasons:
        yield part("Why")
        yield table(["Certainty", "Reason", "Accesses"], reasons, [2, 8, 1.5], numbers=[2])
    yield look.text(
        "A certainty is never guessed upwards: where two pods fit, the access is ambiguous and both are named in accesses.csv.",
        look.SMALL,
    )


def databases(content: Content) -> Iterator[Flowable]:
    rows = content.manifest.figures.databases
    used = [(one.database, one.accesses) for one in rows if one.accesses]
    if not used:
        yield look.text("No database was accessed in the period.")
        return
    yield parts.bars(used[:20])
    yield Spacer(1, 6)
    yield table(
        ["Database", "Accesses", "Service accounts", "Pods", "By nobody known"],
        [
            [
                one.database,
                number(one.accesses),
                number(one.service_accounts),
                number(one.pods),
                number(one.unknown_holders),
            ]
            for one in rows
            if one.accesses
        ],
        [5, 2, 2.4, 2, 2.4],
        numbers=[1, 2, 3, 4],
    )


def workloads(content: Content) -> Iterator[Flowable]:
    found = content.workloads
    if not found.total:
        yield look.text("No workload accessed a database in the period.")
        return
    file = next((one for one in content.manifest.files if one.name == "workloads.csv"), None)
    shown = found.rows
    if found.total > parts.MOST_ROWS:
        shown = found.rows[: parts.FIRST_ROWS]
        yield look.text(
            f"{found.total:,} rows are more than a page is good for: here are the {len(shown)} with the most accesses, all of them are in workloads.csv."
        )
    if file:
        yield facts([("workloads.csv", f"{file.rows:,} rows, {file.bytes:,} bytes"), ("SHA-256", [file.sha256])])
        yield Spacer(1, 6)
    header = [name.replace("_", " ") for name in WORKLOADS]
    yield parts.Rows(header, shown, [7, 8, 12, 14, 6, 4.5, 5, 6, 7, 9, 6.5, 12], numbers=frozenset(range(4, 11)))


def lifetimes(content: Content) -> Iterator[Flowable]:
    rows = content.manifest.figures.databases
    if not rows:
        yield look.text("No credential was issued in the period.")
        return
    yield table(
        ["Database", "Issued", "Longest life", "Limit", "Longer than the limit", "Life not known", "The longest one"],
        [
            [
                one.database,
                number(one.issued),
                duration(one.longest_seconds),
                duration(one.limit_seconds) if one.limit_seconds else "none set",
                number(one.over_limit) if one.limit_seconds else DASH,
                number(one.lifetime_unknown),
                one.longest_lease or DASH,
            ]
            for one in rows
        ],
        [5.2, 1.6, 2, 1.8, 2.2, 1.8, 5],
        numbers=[1, 2, 3, 4, 5],
        mono=[6],
    )
    over = sum(one.over_limit for one in rows)
    unlimited = [one.database for one in rows if not one.limit_seconds]
    if over:
        yield look.text(f"{over:,} leases lived longer than their limit. leases.csv has each with its times.")
    if unlimited:
        yield look.text(
            f"No limit is configured for {', '.join(unlimited)}: whether these lives are right is not judged.",
            look.SMALL,
        )
    yield look.text(
        "A life is from issue to end; of what lives still, to its expiry as known when this was made. Limits are as configured then.",
        look.SMALL,
    )


def revocations(content: Content) -> Iterator[Flowable]:
    told = content.manifest.figures.revocations
    if not told.requested:
        yield look.text(
            "Nobody asked Leasehold to revoke a lease in the period. Revocations in Vault itself are ends in leases.csv."
        )
        return
    yield facts(
        [
            ("Asked for", f"{told.requested:,} leases"),
            ("Verified", f"{told.verified:,}: lease and database user were seen gone"),
            (
                "Time to contain",
                f"fastest {duration(told.fastest_seconds)}, median {duration(told.median_seconds)}, slowest {duration(told.slowest_seconds)}"
                if told.verified
                else DASH,
            ),
        ]
    )
    yield Spacer(1, 6)
    shown = told.rows[:MOST_LISTED]
    yield table(
        ["Asked at", "By", "Reason", "Lease", "Outcome", "Contained in"],
        [[utc(row.requested_at), row.by, row.reason, row.lease_id, row.state, duration(row.seconds)] for row in shown],
        [3.2, 2, 4, 5, 2, 2],
        numbers=[5],
        mono=[3],
    )
    if more := told.requested - len(shown):
        yield look.text(f"{more:,} more are in actions.csv.", look.SMALL)


def exceptions(content: Content) -> Iterator[Flowable]:
    told = content.manifest.figures.exceptions
    if told.findings:
        yield table(
            ["Finding", "Severity", "In the period", "Still open"],
            [[one.kind, one.severity, number(one.findings), number(one.still_open)] for one in told.findings],
            [6, 2, 2, 2],
            numbers=[2, 3],
        )
    else:
        yield look.text("No finding was open in the period.")
    yield table(
        ["Also counted", "Number"],
        [
            ["Requests that a policy denied", number(told.denials)],
            ["Accesses of which neither pod nor service account is known", number(told.unknown_holders)],
            [
                "Leases issued or first seen in the period of which no read is in the log",
                number(told.leases_without_read),
            ],
            [
                "Reads of static roles' credentials, which have no lease and stand in no table of accesses",
                number(told.static_reads),
            ],
        ],
        [8, 2],
        numbers=[1],
    )


def sample(content: Content) -> Iterator[Flowable]:
    told = content.manifest
    file = next((one for one in told.files if one.name == "accesses.csv"), None)
    rows = content.sample[1:]
    yield facts(
        [
            ("Population", f"{told.figures.accesses:,} accesses: every row of accesses.csv"),
            ("SHA-256", [file.sha256 if file else DASH]),
            ("Sample", f"{len(rows)} rows, numbers {', '.join(map(str, told.sample.rows)) or DASH}"),
            ("Seed", [told.sample.seed]),
        ]
    )
    yield look.text(
        "Nobody can choose the sample: its seed is the SHA-256 of the period and of accesses.csv. The verifier draws it again, and VERIFY.txt has the recipe.",
        look.SMALL,
    )
    if not rows:
        yield look.text("There is no access to draw from.")
        return
    header = list(content.sample[0])
    columns = [header.index(name) for name in SAMPLE_COLUMNS]
    cells = [[str(told.sample.rows[i]), *(_second(row[column]) for column in columns)] for i, row in enumerate(rows)]
    yield Spacer(1, 4)
    yield parts.Rows(
        ["row", *(name.replace("_", " ") for name in SAMPLE_COLUMNS)],
        cells,
        [4, *SAMPLE_COLUMNS.values()],
        numbers=frozenset({0}),
    )
    yield look.text("All columns of these rows are in sample.csv.", look.SMALL)


def _second(value: str) -> str:
    """A time of a CSV without its fraction; anything else as it is."""
    return f"{value[:10]} {value[11:19]}" if len(value) == 27 and value[10] == "T" and value[-1] == "Z" else value


def review(content: Content) -> Iterator[Flowable]:
    if not content.decisions:
        yield look.text("No access review was decided in the period.")
        return
    yield table(
        ["Database", "Service account", "Decision", "By", "At (UTC)", "Note"],
        [list(row) for row in content.decisions[: 5 * MOST_LISTED]],
        [4.6, 4, 1.8, 2.2, 3, 4],
    )
    if more := len(content.decisions[5 * MOST_LISTED :]):
        yield look.text(f"{more:,} more are in decisions.csv.", look.SMALL)


def controls(content: Content) -> Iterator[Flowable]:
    if not content.frameworks:
        yield look.text("No framework is configured.")
    for framework in content.frameworks:
        yield CondPageBreak(90)
        yield part(f"{framework.name} {DASH} {framework.edition}")
        yield table(
            ["Control", "Supported by", "What this pack shows", "What it does not show"],
            [
                [f"{one.id} {one.title}", ", ".join(PARTS[name] for name in one.parts), one.shows, one.does_not_show]
                for one in framework.controls
            ],
            [3, 2.6, 4.6, 4.2],
        )
    yield look.text("The words are Leasehold's own. Whether a control is met is for the auditor to say.", look.SMALL)


def verification(content: Content) -> Iterator[Flowable]:
    told = content.manifest
    if told.fingerprint:
        yield look.text(
            "The zip that this report came in is signed. Compare the fingerprint with the one that those who run Leasehold gave you on another way."
        )
        yield facts([("Signed by", [told.fingerprint])])
    else:
        yield box(
            [look.text("This pack is not signed: anybody can have made or altered it.", look.VERDICT)], good=False
        )
    yield part("Checking it")
    yield from bullets(
        [
            "Take the verifier (audit/pack/verifier.py of Leasehold's source) and the fingerprint from elsewhere, not from the pack.",
            "Run: python3 -I verifier.py --fingerprint FINGERPRINT PACK.zip. It names each file that was altered, removed or added.",
            "Without any program: the SHA-256 of each file is in manifest.json, and manifest.sig is the signature of that file.",
            "Those who run Leasehold can hold the pack to the raw audit log: manage.py verify PACK.zip --database.",
        ]
    )
    yield part("Files of the pack so far")
    yield table(
        ["File", "Rows", "Bytes", "SHA-256"],
        [[one.name, number(one.rows), number(one.bytes), one.sha256] for one in told.files],
        [3, 1.3, 1.8, 8.4],
        numbers=[1, 2],
        mono=[3],
    )
    yield look.text(
        "This report, the texts and the manifest are written after this page; the manifest lists them all.", look.SMALL
    )
    if told.chains:
        yield part("Heads of the chains")
        yield table(
            ["Stream", "Blocks of the period", "Lines", "Head when this was made (SHA-256)"],
            [
                [
                    f"{one.vault} / {one.device} / {one.node}",
                    f"{one.start.sequence + 1:,} to {one.end.sequence:,}"
                    if one.end.sequence > one.start.sequence
                    else "none",
                    number(one.end.lines - one.start.lines),
                    one.made.sha256 or DASH,
                ]
                for one in told.chains
            ],
            [2.8, 2, 1.5, 8.6],
            numbers=[2],
            mono=[3],
        )


def sign_off(content: Content) -> Iterator[Flowable]:
    yield look.text("I have read this report, and looked at the sample and at each hole and exception that it names.")
    yield Spacer(1, 10)
    yield parts.form(["Conclusion", "Open points", "Name and role", "Date", "Signature"])


# title, function, and the page that it wants
ALL: list[tuple[str, Section, str]] = [
    ("Scope and period", scope, look.PORTRAIT),
    ("Summary", summary, look.PORTRAIT),
    (PARTS["completeness"], completeness, look.PORTRAIT),
    (PARTS["certainty"], certainty, look.PORTRAIT),
    (PARTS["databases"], databases, look.PORTRAIT),
    (PARTS["workloads"], workloads, look.LANDSCAPE),
    (PARTS["lifetimes"], lifetimes, look.PORTRAIT),
    (PARTS["revocations"], revocations, look.PORTRAIT),
    (PARTS["exceptions"], exceptions, look.PORTRAIT),
    (PARTS["sample"], sample, look.LANDSCAPE),
    (PARTS["review"], review, look.PORTRAIT),
    ("Controls", controls, look.PORTRAIT),
    (PARTS["verification"], verification, look.PORTRAIT),
    ("Reviewer's sign-off", sign_off, look.PORTRAIT),
]


def body(content: Content) -> Iterator[Flowable]:
    """All sections, numbered. A change of the page's direction begins a new page."""
    page = look.PORTRAIT
    for i, (title, section, wants) in enumerate(ALL, start=1):
        if wants != page:
            page = wants
            yield NextPageTemplate(page)
            yield PageBreak()
        elif i > 1:
            # a section begins low on a page only where something of it fits there
            yield Spacer(1, 12)
            yield CondPageBreak(150)
        yield parts.Heading(title, i)
        yield from section(content)
