"""Exports: rows of a period as CSV or NDJSON. Times are RFC 3339 UTC; unknown is empty, and never means none.

`write` and `stream` let the database make the text (statements.py says of what); rows.py has tables that their pages hold already.
"""

from audit.exports.cells import FORMULAS, Row, cell, write_csv
from audit.exports.copying import UnknownFilter, Written, chosen, filters, header, stream, write
from audit.exports.rows import COULD_READ, REVIEW, USES, access_review, could_read, of_uses
from audit.exports.statements import ACCESSES, LEASES, STATEMENTS

KINDS = tuple(STATEMENTS)

__all__ = [
    "ACCESSES",
    "COULD_READ",
    "FORMULAS",
    "KINDS",
    "LEASES",
    "REVIEW",
    "STATEMENTS",
    "USES",
    "Row",
    "UnknownFilter",
    "Written",
    "access_review",
    "cell",
    "chosen",
    "could_read",
    "filters",
    "header",
    "of_uses",
    "stream",
    "write",
    "write_csv",
]
