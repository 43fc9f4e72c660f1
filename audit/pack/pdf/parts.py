"""What pages are built of: headings that the contents know, tables, facts, bars. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal
from xml.sax.saxutils import escape

from reportlab.graphics.shapes import Drawing, Line, Rect, String
from reportlab.lib.colors import Color
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.platypus import Flowable, KeepTogether, Paragraph, Table

from audit.pack.pdf import look
from audit.pack.texts import one_line

# of one long table in the PDF; a longer one is in its CSV, and the PDF has the first ones and the CSV's SHA-256
MOST_ROWS = 5_000
FIRST_ROWS = 100
# the sign for what is not known or is none
DASH = "\N{EN DASH}"


class Heading(Paragraph):
    """A section's title: it is in the contents, in the outline of the PDF, and can be linked to."""

    def __init__(self, title: str, number: int) -> None:
        super().__init__(f"{number}&nbsp;&nbsp;{title}", look.SECTION)
        self.title, self.key = title, f"section-{number}"
        self.number = number

    def draw(self) -> None:
        self.canv.bookmarkPage(self.key)
        self.canv.addOutlineEntry(f"{self.number} {self.title}", self.key, 0, 0)
        super().draw()


def part(title: str) -> Paragraph:
    return look.text(title, look.PART)


def utc(at: datetime | None, *, seconds: bool = True) -> str:
    """A time as a person reads it; a dash where it is not known."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M") if at else DASH


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:,}"


def count(number_: int, what: str) -> str:
    """As in "1 gap" and "2 gaps"."""
    return f"{number_:,} {what}{'' if number_ == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """In the unit that a person would choose; a dash where it is not known."""
    if seconds is None:
        return DASH
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds:.3g} s"


def facts(rows: Sequence[tuple[str, object]], *, first: float = 90) -> Table:
    """Names and values; one in a list of one is an id, set in a monospaced face."""
    cells = [
        [
            look.text(name, look.SMALL),
            look.text(value[0], look.CELL_MONO) if isinstance(value, list) else look.text(value, look.CELL),
        ]
        for name, value in rows
    ]
    return Table(
        cells,
        colWidths=[first, look.width_of() - first],
        style=look.table_style(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        ),
        hAlign="LEFT",
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    widths: Sequence[float],
    *,
    numbers: Sequence[int] = (),
    mono: Sequence[int] = (),
    page: str = look.PORTRAIT,
) -> Flowable:
    """A short table whose cells wrap; one of a few rows stays on one page. `widths`: shares of the page's width; `numbers`, `mono`: columns set so."""
    total = sum(widths)
    styles = [look.NUMBER if i in numbers else look.CELL_MONO if i in mono else look.CELL for i in range(len(header))]
    heads = [look.text(name, look.HEAD_NUMBER if i in numbers else look.HEAD_CELL) for i, name in enumerate(header)]
    cells = [[look.text(value, style) for value, style in zip(row, styles, strict=True)] for row in rows]
    made = Table(
        [heads, *cells],
        colWidths=[look.width_of(page) * width / total for width in widths],
        repeatRows=1,
        style=look.table_style(
            [
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LINEBELOW", (0, 0), (-1, 0), 0.8, look.DIM),
                ("LINEBELOW", (0, 1), (-1, -1), 0.3, look.LINE),
                ("LEFTPADDING", (0, 0), (-1, -1), 3),
                ("RIGHTPADDING", (0, 0), (-1, -1), 3),
                ("TOPPADDING", (0, 0), (-1, -1), 2.5),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
            ]
        ),
        spaceAfter=8,
    )
    return KeepTogether([made]) if len(rows) <= 8 else made


class Rows(Flowable):
    """A long table, one line a row, with its header on each page; a text that is too long for its column ends with an ellipsis.

    Platypus' own table makes each row of objects and copies what is left at each page: with thousands of rows that is most of the time.
    """

    HEIGHT, SIZE, PAD = 11.0, 7.0, 2.5

    def __init__(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        widths: Sequence[float],
        *,
        numbers: frozenset[int] = frozenset(),
        begin: int = 0,
        end: int | None = None,
        page: str = look.LANDSCAPE,
    ) -> None:
        super().__init__()
        self.header, self.rows, self.widths, self.numbers, self.page = header, rows, widths, numbers, page
        self.begin, self.end = begin, len(rows) if end is None else end

    def wrap(self, available_width: float, available_height: float) -> tuple[float, float]:
        return available_width, (self.end - self.begin + 1) * self.HEIGHT + 4

    def split(self, available_width: float, available_height: float) -> list[Flowable]:
        fits = int((available_height - 4) // self.HEIGHT) - 1
        # a header with one row under it reads like a mistake
        if fits < 2:
            return []
        cut = self.begin + fits
        return [self._piece(self.begin, cut), self._piece(cut, self.end)]

    def _piece(self, begin: int, end: int) -> "Rows":
        return Rows(self.header, self.rows, self.widths, numbers=self.numbers, begin=begin, end=end, page=self.page)

    def draw(self) -> None:
        # the first laying out only counts pages
        if isinstance(self.canv, look.Draft):
            return
        canvas, width = self.canv, look.width_of(self.page)
        unit = width / sum(self.widths)
        edges = [0.0]
        for share in self.widths:
            edges.append(edges[-1] + share * unit)
        y = (self.end - self.begin) * self.HEIGHT + 3
        canvas.setFillColor(look.DIM)
        self._row(self.header, edges, y, look.BOLD)
        canvas.setStrokeColor(look.DIM)
        canvas.setLineWidth(0.8)
        canvas.line(0, y - 3, width, y - 3)
        canvas.setFillColor(look.INK)
        canvas.setStrokeColor(look.LINE)
        canvas.setLineWidth(0.3)
        for row in self.rows[self.begin : self.end]:
            y -= self.HEIGHT
            self._row(row, edges, y, look.SANS)
            canvas.line(0, y - 3, width, y - 3)

    def _row(self, cells: Sequence[str], edges: Sequence[float], y: float, font: str) -> None:
        line = self.canv.beginText()
        line.setFont(font, self.SIZE)
        for i, value in enumerate(cells):
            shown, width = fit(value, font, self.SIZE, edges[i + 1] - edges[i] - 2 * self.PAD)
            line.setTextOrigin(edges[i + 1] - self.PAD - width if i in self.numbers else edges[i] + self.PAD, y)
            line.textOut(shown)
        self.canv.drawText(line)


@lru_cache(maxsize=20_000)
def fit(value: str, font: str, size: float, room: float) -> tuple[str, float]:
    """The text, or as much of its beginning as there is room for, and its width. Cells of a long table repeat themselves."""
    value = one_line(value)
    width = stringWidth(value, font, size)
    if width <= room:
        return value, width
    low, high = 0, len(value)
    while low < high:
        middle = (low + high + 1) // 2
        if stringWidth(value[:middle] + "…", font, size) <= room:
            low = middle
        else:
            high = middle - 1
    value = value[:low] + "…"
    return value, stringWidth(value, font, size)


def _rect(x: float, y: float, width: float, height: float, colour: Any, *, edge: Any = None) -> Rect:
    look_: Any = {"fillColor": colour, "strokeColor": edge, "strokeWidth": 0.5 if edge else 0}
    return Rect(x, y, width, height, **look_)


def _label(
    x: float,
    y: float,
    value: str,
    *,
    size: float = 7.5,
    colour: Color = look.DIM,
    anchor: Literal["start", "middle", "end"] = "start",
    font: str = look.SANS,
) -> String:
    return String(x, y, value, fontName=font, fontSize=size, fillColor=colour, textAnchor=anchor)


def stacked(shares: Sequence[tuple[str, int, float]]) -> Drawing:
    """One bar of all certainties with a legend that has every word and number: (word, count, percent)."""
    width = look.width_of()
    drawing = Drawing(width, 16 + 12 * len(shares) + 6)
    top = drawing.height - 16
    x, total = 0.0, sum(count for _, count, _ in shares)
    for (_, count, _), colour in zip(shares, look.SCALE, strict=False):
        part_ = width * count / total if total else 0
        drawing.add(_rect(x, top, part_, 14, colour))
        x += part_
    if not total:
        drawing.add(_rect(0, top, width, 14, look.SHADE, edge=look.LINE))
    for i, ((word, count, percent), colour) in enumerate(zip(shares, look.SCALE, strict=False)):
        y = top - 13 - 12 * i
        drawing.add(_rect(0, y, 8, 8, colour))
        drawing.add(_label(13, y + 0.5, word, size=8, colour=look.INK))
        drawing.add(_label(150, y + 0.5, f"{count:,}", size=8, colour=look.INK, anchor="end"))
        drawing.add(_label(200, y + 0.5, f"{percent:.2f} %", size=8, anchor="end"))
    return drawing


def bars(rows: Sequence[tuple[str, int]]) -> Drawing:
    """Horizontal bars, each with its name and number."""
    width, name_width = look.width_of(), 170.0
    drawing = Drawing(width, 15 * len(rows) + 2)
    most = max((count for _, count in rows), default=0)
    for i, (name, count) in enumerate(rows):
        y = drawing.height - 13 - 15 * i
        room = width - name_width - 60
        length = room * count / most if most else 0
        drawing.add(_label(0, y + 2, fit(name, look.SANS, 8, name_width - 6)[0], size=8, colour=look.INK))
        drawing.add(_rect(name_width, y, max(length, 0.6), 10, look.BLUE))
        drawing.add(_label(name_width + length + 4, y + 2, f"{count:,}", size=8, colour=look.INK))
    return drawing


def over_time(counts: Sequence[tuple[datetime, int]], *, each: str) -> Drawing:
    """Columns of equal stretches of time. `each`: of what length one is, in words."""
    width, height, left = look.width_of(), 110.0, 34.0
    drawing = Drawing(width, height)
    base, top = 18.0, height - 14
    most = max((count for _, count in counts), default=0)
    step = (width - left) / max(len(counts), 1)
    for share in (0.5, 1.0):
        y = base + (top - base) * share
        drawing.add(Line(left, y, width, y, strokeColor=look.LINE, strokeWidth=0.4))
        drawing.add(_label(left - 4, y - 2.5, f"{most * share:,.4g}", anchor="end"))
    drawing.add(Line(left, base, width, base, strokeColor=look.DIM, strokeWidth=0.6))
    for i, (_, count) in enumerate(counts):
        tall = (top - base) * count / most if most else 0
        if count:
            gap = min(1.0, step * 0.15)
            drawing.add(_rect(left + i * step + gap / 2, base, max(step - gap, 0.3), tall, look.BLUE))
    if counts:
        drawing.add(_label(left, 5, utc(counts[0][0], seconds=False)))
        drawing.add(_label(width, 5, utc(counts[-1][0], seconds=False), anchor="end"))
        drawing.add(_label((left + width) / 2, 5, f"accesses, each column {each}", anchor="middle"))
    return drawing


# of an hour's states: its colour, and how tall its mark is, which says it in grey too
MARKS: dict[str, tuple[Any, float]] = {
    "complete": (look.GOOD, 1.0),
    "no lines": (look.LINE, 1.0),
    "before the first line": (look.SHADE, 1.0),
    "lag": (look.WARN, 0.65),
    "rejected": (look.WARN, 0.45),
    "gap": (look.BAD, 0.25),
}


def strip(states: Sequence[str]) -> Drawing:
    """Stretches of a stream side by side, each as its worst hour."""
    width, height = look.width_of(), 12.0
    drawing = Drawing(width, height + 2)
    step = width / max(len(states), 1)
    for i, state in enumerate(states):
        colour, share = MARKS.get(state, (look.BAD, 0.25))
        drawing.add(_rect(i * step, 1, step, height, look.SHADE))
        drawing.add(_rect(i * step, 1, max(step - 0.4, 0.2), height * share, colour))
    return drawing


def box(content: Sequence[Flowable], *, good: bool) -> Table:
    """A verdict: set apart by a thick edge, whatever its colour."""
    return Table(
        [[list(content)]],
        colWidths=[look.width_of()],
        style=look.table_style(
            [
                ("BACKGROUND", (0, 0), (-1, -1), look.GOOD_BACK if good else look.WARN_BACK),
                ("LINEBEFORE", (0, 0), (0, -1), 4, look.GOOD if good else look.WARN),
                ("LEFTPADDING", (0, 0), (-1, -1), 12),
                ("RIGHTPADDING", (0, 0), (-1, -1), 10),
                ("TOPPADDING", (0, 0), (-1, -1), 8),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 8),
            ]
        ),
        spaceAfter=8,
    )


def form(names: Sequence[str]) -> Table:
    """Names with a line each to write on by hand."""
    return Table(
        [[look.text(name, look.SMALL), ""] for name in names],
        colWidths=[90, look.width_of() - 90],
        rowHeights=[34] * len(names),
        style=look.table_style(
            [
                ("VALIGN", (0, 0), (-1, -1), "BOTTOM"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("LINEBELOW", (1, 0), (1, -1), 0.6, look.DIM),
            ]
        ),
    )


def bullets(sentences: Sequence[str]) -> list[Paragraph]:
    return [Paragraph(escape(one_line(one)), look.LIST, bulletText=DASH) for one in sentences]
