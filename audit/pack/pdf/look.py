"""Fonts, colours, sizes and the furniture of a page. Colours have names and print well in grey: no meaning is in a colour alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from reportlab.graphics.shapes import STATE_DEFAULTS
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_LEFT
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph, TableStyle

from audit.pack.texts import one_line

FONTS = Path(__file__).resolve().parent.parent / "fonts"
SANS, BOLD, MONO = "Plex", "Plex-SemiBold", "PlexMono"

INK, DIM, LINE, SHADE = HexColor("#14191f"), HexColor("#55616e"), HexColor("#c9d1d9"), HexColor("#f1f4f6")
BLUE = HexColor("#0a5594")
GOOD, WARN, BAD = HexColor("#12693f"), HexColor("#b87a00"), HexColor("#a81e17")
GOOD_BACK, WARN_BACK = HexColor("#e8f3ec"), HexColor("#fff3d6")
# of the certainties, from the surest on: dark to light, so that they differ in grey, too
SCALE = [HexColor(colour) for colour in ("#0a3a66", "#2f76b0", "#8ab6db", "#d9b25c", "#a81e17")]

MARGIN, FOOT = 18 * mm, 14 * mm
PORTRAIT, LANDSCAPE = "portrait", "landscape"
SIZES: dict[str, tuple[float, float]] = {PORTRAIT: A4, LANDSCAPE: landscape(A4)}


@cache
def register_fonts() -> None:
    """Once a process; embedding them takes only the glyphs that are used."""
    for name, file in ((SANS, "IBMPlexSans-Regular"), (BOLD, "IBMPlexSans-SemiBold"), (MONO, "IBMPlexMono-Regular")):
        pdfmetrics.registerFont(TTFont(name, str(FONTS / f"{file}.ttf")))
    # a drawing begins with this one, whatever it holds
    STATE_DEFAULTS["fontName"] = SANS
    pdfmetrics.registerFontFamily(SANS, normal=SANS, bold=BOLD, italic=SANS, boldItalic=BOLD)


def _style(name: str, size: float, leading: float, **more: Any) -> ParagraphStyle:
    return ParagraphStyle(
        name,
        **{
            "fontName": SANS,
            "bulletFontName": SANS,
            "fontSize": size,
            "leading": leading,
            "textColor": INK,
            "alignment": TA_LEFT,
            **more,
        },
    )


TEXT = _style("text", 9.5, 13.5, spaceAfter=5)
SMALL = _style("small", 8, 10.5, textColor=DIM)
CELL = _style("cell", 8, 10.5)
CELL_MONO = _style("cell mono", 7.2, 10.5, fontName=MONO, splitLongWords=True)
HEAD_CELL = _style("head cell", 7.5, 10, fontName=BOLD, textColor=DIM)
NUMBER = _style("number", 8, 10.5, alignment=2)
HEAD_NUMBER = _style("head number", 7.5, 10, fontName=BOLD, textColor=DIM, alignment=2)
LIST = _style("list", 9, 12.5, leftIndent=10, bulletIndent=0, spaceAfter=2)
TITLE = _style("title", 26, 31, fontName=BOLD, spaceAfter=4)
SUBTITLE = _style("subtitle", 12, 16, textColor=DIM)
SECTION = _style("section", 16, 20, fontName=BOLD, spaceBefore=4, spaceAfter=8, keepWithNext=1)
PART = _style("part", 11, 15, fontName=BOLD, spaceBefore=10, spaceAfter=4, keepWithNext=1)
VERDICT = _style("verdict", 11.5, 16, fontName=BOLD)


def text(of: object, style: ParagraphStyle = TEXT) -> Paragraph:
    """A paragraph of plain text: what comes from outside is no markup here, and does not leave its line unseen."""
    return Paragraph(escape(one_line(str(of))), style)


def table_style(commands: list[Any]) -> TableStyle:
    """With our own font: each cell, even one of paragraphs, asks for one, and the default one would not be embedded."""
    return TableStyle([("FONTNAME", (0, 0), (-1, -1), SANS), *commands])


class Draft(Canvas):
    """Of a document that is laid out only to see on which pages things come to stand; long tables draw nothing on it."""


class Document(BaseDocTemplate):
    """Tells `placed` of each thing that was laid on a page."""

    placed: Callable[[Flowable], object]

    def afterFlowable(self, flowable: Flowable) -> None:
        self.placed(flowable)


def document(
    to: Any, *, title: str, author: str, furnish: Callable[[Any, Any], None], placed: Callable[[Flowable], object]
) -> Document:
    """A document with a portrait and a landscape page. The same content gives the same bytes."""
    register_fonts()
    made = Document(
        to,
        title=title,
        author=author,
        subject=title,
        creator="Leasehold",
        lang="en",
        initialFontName=SANS,
        invariant=1,
        pageCompression=1,
    )
    made.placed = placed
    for name, (width, height) in SIZES.items():
        frame = Frame(MARGIN, FOOT + 8 * mm, width - 2 * MARGIN, height - MARGIN - FOOT - 8 * mm, 0, 0, 0, 0, id=name)
        made.addPageTemplates(PageTemplate(name, [frame], onPage=furnish, pagesize=(width, height)))
    return made


def footer(canvas: Any, left: str, right: str) -> None:
    """The line at the foot of each page."""
    width = canvas._pagesize[0]
    canvas.saveState()
    canvas.setStrokeColor(LINE)
    canvas.setLineWidth(0.5)
    canvas.line(MARGIN, FOOT + 3 * mm, width - MARGIN, FOOT + 3 * mm)
    canvas.setFont(SANS, 7.5)
    canvas.setFillColor(DIM)
    canvas.drawString(MARGIN, FOOT - 1 * mm, left)
    canvas.drawRightString(width - MARGIN, FOOT - 1 * mm, right)
    canvas.restoreState()


def width_of(page: str = PORTRAIT) -> float:
    """Points between the margins."""
    return SIZES[page][0] - 2 * MARGIN
