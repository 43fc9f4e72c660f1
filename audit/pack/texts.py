"""README.txt and VERIFY.txt of a pack: what it says, in words, and how anybody can check it. Pure."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from textwrap import fill

from audit.pack.values import Certainties, Completeness, Figures, Manifest

WIDTH = 100
# the rest is in the manifest
MOST_ACCOUNTS = 50

ABOUT = {
    "accesses.csv": "each read of database credentials: who, when, from where, how surely that is known",
    "sample.csv": "accesses drawn at random, for a check by hand; VERIFY.txt says how to draw them again",
    "leases.csv": "each lease that was issued, with its times and its end",
    "actions.csv": "what people did in Leasehold, and each step's outcome",
    "findings.csv": "what Leasehold's rules say that a person should look at, open at some time in the period",
    "sessions.csv": "connections to databases under the users of these leases",
    "events.csv": "each request to a vault",
    "workloads.csv": "accesses by service account and database",
    "report.pdf": "the report for a person who reads and signs",
    "coverage.csv": "each hour of each audit stream: what became of its lines, and whether it is complete",
    "gaps.csv": "lines that are known to be missing, and those that came later",
    "manifest.json": "all of this with its checksums: what is signed",
    "manifest.sig": "the signature of manifest.json",
    "verify.py": "a program that checks all of it. Take it from elsewhere: see VERIFY.txt",
    "README.txt": "this text",
    "VERIFY.txt": "how to check the pack",
}


def readme(manifest: Manifest) -> str:
    return "\n".join(
        [
            "EVIDENCE OF ACCESS TO DATABASES",
            "",
            f"Period    {utc(manifest.from_at)} to {utc(manifest.to_at)}, the end not included",
            f"Made      {utc(manifest.made_at)} by {one_line(manifest.made_by)}",
            f"Reason    {one_line(manifest.reason)}",
            f"Report    {manifest.report_id}, Leasehold {manifest.software}",
            f"Signed    {manifest.fingerprint or 'NOT SIGNED. Anybody can have made or altered this pack: it proves nothing by itself.'}",
            "",
            *completeness(manifest.completeness),
            *certainty(manifest.certainty),
            *figures(manifest.figures),
            "WHAT NO PACK COVERS",
            "",
            *bullets(manifest.completeness.not_covered),
            *files(manifest),
            "Times are RFC 3339 in UTC. An empty cell means that it is not known. A cell that a spreadsheet would run as a",
            "formula begins with an apostrophe that does not belong to it.",
            "",
        ]
    )


def completeness(told: Completeness) -> Iterator[str]:
    yield from ("HOW COMPLETE IT IS", "", *fill(told.word, WIDTH).splitlines(), "")
    if told.reasons:
        more = [f"{told.more_reasons} more; coverage.csv and gaps.csv have all."] if told.more_reasons else []
        yield from bullets([*told.reasons, *more])
    for one in told.streams:
        if one.counts:
            n = one.lines
            yield (
                f"  {one_line(one.stream)} ({one.way}): {n.lines} lines, {n.pairs} pairs, {n.unpaired} unpaired, {n.rejected} "
                f"rejected, {n.conflicts} contradicting, {n.redacted} redacted, {n.expired} expired; "
                f"gaps: {len(one.gaps) + one.more_gaps}; a line waited for {one.longest_wait_seconds:.1f} s at most; "
                f"read until {utc(one.read_until) or 'never'}"
            )
            if one.blocks_dropped:
                yield (
                    f"    raw lines of {one.blocks_dropped} blocks were dropped as the policy says, "
                    f"{one.blocks_archived} of them are in the archive"
                )
    if given_up := sum(not one.counts for one in told.streams):
        yield f"  Not counted, since nothing of them is of this period and nobody reads them any more: {given_up}"
    yield ""
    for pod in told.pods:
        gaps = len(pod.gaps) + pod.more_gaps
        yield f"  Pods of cluster {one_line(pod.cluster)}: " + (
            f"not watched without a gap ({gaps}: {pod.gap_seconds:g} s in all)" if gaps else "watched without a gap"
        )
    for database in told.sessions:
        yield (
            f"  Sessions of {one_line(database.database)}: sampled for {database.sampled_seconds:g} s, its log read for "
            f"{database.logged_seconds:g} s of the period"
            + (
                ""
                if database.sampled_seconds or database.logged_seconds
                else "; nothing is known of the use of credentials"
            )
        )
    yield ""


def certainty(told: Certainties) -> Iterator[str]:
    yield from ("HOW SURELY THE POD IS KNOWN", "", *fill(told.word, WIDTH).splitlines(), "")
    for share in told.shares:
        yield f"  {share.certainty:<16}{share.accesses:>10}  {share.percent:>6.2f} %  {share.meaning}"
        for reason in share.reasons:
            yield f"    {reason.accesses:>24}  {reason.reason}"
    yield ""


def figures(told: Figures) -> Iterator[str]:
    yield from ("FIGURES", "", f"  {told.accesses} accesses, {told.leases} leases issued", "")
    for one in told.databases:
        yield f"  {one_line(one.database)}: {one.accesses} accesses by {one.service_accounts} service accounts, {one.pods} pods"
        limit = (
            f"{one.over_limit} longer than the limit of {one.limit_seconds} s"
            if one.limit_seconds
            else "no limit is set"
        )
        longest = (
            f"the longest lived {one.longest_seconds:g} s"
            if one.longest_seconds is not None
            else "no lifetime is known"
        )
        unknown = f", {one.lifetime_unknown} of unknown lifetime" if one.lifetime_unknown else ""
        yield f"    {one.issued} leases issued: {longest}; {limit}{unknown}"
    yield ""
    for account in told.accounts[:MOST_ACCOUNTS]:
        name = (
            f"{account.cluster} {account.namespace}/{account.service_account}"
            if account.service_account
            else "nobody known"
        )
        yield f"  {account.accesses:>10}  {one_line(name)}: {one_line(', '.join(account.databases))}"
    if more := len(told.accounts[MOST_ACCOUNTS:]) + told.more_accounts:
        yield f"              and {more} more service accounts"
    revoked = told.revocations
    yield from ("", f"  {revoked.requested} leases were to be revoked here, {revoked.verified} of them were seen gone")
    if revoked.verified:
        yield (
            f"    time to contain: {revoked.fastest_seconds:g} s the fastest, {revoked.median_seconds:g} s the median, "
            f"{revoked.slowest_seconds:g} s the slowest"
        )
    out = told.exceptions
    yield from ("", "  Exceptions")
    for finding in out.findings:
        yield f"  {finding.findings:>10}  findings: {finding.kind} ({finding.severity}), {finding.still_open} of them still open"
    yield f"  {out.denials:>10}  requests that a policy denied"
    yield f"  {out.unknown_holders:>10}  accesses by nobody known"
    yield f"  {out.leases_without_read:>10}  leases first seen or issued then, of which no read is in the log"
    yield f"  {out.static_reads:>10}  reads of static roles' credentials, which have no lease and are in no table of accesses"
    yield ""


def files(manifest: Manifest) -> Iterator[str]:
    """This text stands among them and is written before the last ones, so these are not listed yet."""
    yield from ("FILES", "")
    rows = {file.name: file.rows for file in manifest.files}
    for name, about in ABOUT.items():
        if name in rows:
            yield f"  {name:<16}{about} ({rows[name]} rows)"
        elif not name.endswith((".csv", ".sig")) or (name == "manifest.sig" and manifest.fingerprint):
            yield f"  {name:<16}{about}"
    yield ""


def bullets(sentences: Sequence[str]) -> Iterator[str]:
    for sentence in sentences:
        yield from fill(one_line(sentence), WIDTH, initial_indent="- ", subsequent_indent="  ").splitlines()
    yield ""


def one_line(text: str) -> str:
    """Of names that come from outside: what would break out of its line is shown as what it is."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def utc(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else ""


VERIFY = """\
HOW TO CHECK THIS PACK

You need Python 3.9 or newer, its package `cryptography`, this zip as you got it, and two things that you must NOT take from it:

1. the verifier. A verifier that comes in a pack says whatever the maker of the pack wants. Take `audit/pack/verifier.py` from
   Leasehold's source; it is one file and is the same as `verify.py` here, which is only for convenience.
2. the fingerprint of the key that signs, from those who run Leasehold, and not over the way on which the pack came.

    python3 -m venv checker
    checker/bin/pip install cryptography
    checker/bin/python -I verifier.py --fingerprint FINGERPRINT PACK.zip

With several keys (they are changed from time to time; old packs keep theirs) write one fingerprint on each line of a file and
give that as --keys FILE. What it says, and its exit code:

    0  intact, signed by FINGERPRINT (pinned)   as it was made, by the holder of that key
    0  intact, signer unverified                no fingerprint was given: anybody with a key of their own could have made it
    1  NOT INTACT                               each file that was altered, removed, renamed or added is named
    2  intact, not signed                       nobody vouches for it
    2  Nothing was proven                       it is no pack, or cannot be read

Without any program: `sha256sum` of each file must be what manifest.json lists, and manifest.sig must be the Ed25519 signature, in
hex, of the bytes of manifest.json, by the key whose 32 bytes manifest.json gives in hex as `public_key`. The SHA-256 of those 32
bytes is the fingerprint.

Those who run Leasehold can also hold the pack to their database: `manage.py verify PACK.zip --database` recomputes the chain of
the raw audit lines, and says which accesses have changed since.

THE SAMPLE

Nobody can choose which accesses are in sample.csv. The seed is the SHA-256, in hex, of these four lines, each with a line feed:
the words `leasehold sample 1`, the manifest's `from`, its `to`, and the SHA-256 of accesses.csv in hex. Number the rows of
accesses.csv from 1 on (the header is not counted; a cell may hold line feeds). For each take the SHA-256 of the text SEED:NUMBER.
The sample are the rows with the smallest of these, as many as the manifest's `sample.size`. The verifier draws them again.
"""
