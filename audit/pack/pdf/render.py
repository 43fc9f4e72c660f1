"""Lays a pack's content out as a PDF: cover, contents, sections, each page "x of y". Pure but for the file that it writes to."""

import io
from collections.abc import Callable, Iterator
from typing import IO, Any

from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, NextPageTemplate, PageBreak, Paragraph, Spacer, Table

from audit.pack.pdf import look, parts, sections
from audit.pack.pdf.content import Content

TITLE = "Evidence of access to databases"
Progress = Callable[[float], object]


def render(content: Content, to: IO[bytes], *, progress: Progress | None = None) -> int:
    """Writes the PDF; returns its pages. The same content gives the same bytes. `progress` is told shares from 0 to 1.

    It is laid out twice: how many pages there are, and on which one a section begins, is known after the first time.
    """
    tell = progress or (lambda _: None)
    first = _Layout(content, pages=0, begins={}, progress=lambda share: tell(share / 2))
    first.build(io.BytesIO(), canvas=look.Draft)
    second = _Layout(content, pages=first.page, begins=first.begun, progress=lambda share: tell(0.5 + share / 2))
    second.build(to)
    return second.page


class _Layout:
    """One laying out. `begun`: title -> page, of this one; `begins`: of the one before."""

    def __init__(self, content: Content, *, pages: int, begins: dict[str, int], progress: Progress) -> None:
        self.content, self.pages, self.begins, self.progress = content, pages, begins, progress
        self.begun: dict[str, int] = {}
        self.page = 0

    def build(self, to: IO[bytes], *, canvas: type[Canvas] = Canvas) -> None:
        told = self.content.manifest
        made = look.document(
            to,
            title=f"{TITLE}, {parts.utc(told.from_at)} to {parts.utc(told.to_at)} UTC",
            author=told.made_by,
            furnish=self._furnish,
            placed=self._after,
        )
        made.build([*self._cover(), *self._contents(), *sections.body(self.content)], canvasmaker=canvas)

    def _after(self, flowable: Flowable) -> None:
        if isinstance(flowable, parts.Heading):
            self.begun[flowable.title] = self.page
            self.progress(len(self.begun) / len(sections.ALL))

    def _furnish(self, canvas: Any, document: Any) -> None:
        self.page = canvas.getPageNumber()
        told = self.content.manifest
        left = f"{TITLE} · {parts.utc(told.from_at, seconds=False)} to {parts.utc(told.to_at, seconds=False)} UTC · report {told.report_id[:8]}"
        look.footer(canvas, left, f"{self.page} of {self.pages}")

    def _cover(self) -> Iterator[Flowable]:
        told = self.content.manifest
        yield Spacer(1, 70)
        yield look.text("Leasehold", look.SUBTITLE)
        yield Spacer(1, 6)
        yield look.text(TITLE, look.TITLE)
        yield look.text(f"{parts.utc(told.from_at)} to {parts.utc(told.to_at)} UTC", look.SUBTITLE)
        yield Spacer(1, 28)
        yield parts.box([look.text(told.completeness.word, look.VERDICT)], good=told.completeness.complete)
        yield Spacer(1, 4)
        yield look.text(told.certainty.word, look.VERDICT)
        yield Spacer(1, 4)
        yield parts.stacked([(share.certainty, share.accesses, share.percent) for share in told.certainty.shares])
        yield Spacer(1, 22)
        yield parts.facts(
            [
                ("Made", f"{parts.utc(told.made_at)} UTC by {told.made_by}"),
                ("Reason", told.reason),
                ("Report id", [told.report_id]),
                ("Signed by", [told.fingerprint] if told.fingerprint else "nobody: this pack is not signed"),
                ("Software", f"Leasehold {told.software}"),
            ]
        )
        yield NextPageTemplate(look.PORTRAIT)
        yield PageBreak()

    def _contents(self) -> Iterator[Flowable]:
        yield look.text("Contents", look.SECTION)
        rows = [
            [
                look.text(str(i), look.CELL),
                Paragraph(f'<a href="#section-{i}">{title}</a>', look.TEXT),
                look.text(str(self.begins.get(title, "")), look.NUMBER),
            ]
            for i, (title, _, _) in enumerate(sections.ALL, start=1)
        ]
        width = look.width_of()
        yield Table(
            rows,
            colWidths=[24, width - 70, 46],
            style=look.table_style(
                [
                    ("LINEBELOW", (0, 0), (-1, -1), 0.3, look.LINE),
                    ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
                    ("LEFTPADDING", (0, 0), (0, -1), 0),
                ]
            ),
        )
        yield PageBreak()
