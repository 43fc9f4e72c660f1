"""The PDF of a pack: what it says and refuses to say, its pages and contents, how long tables go in."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader

from audit.pack import controls
from audit.pack.gather import step_for, stretches
from audit.pack.pdf import parts, sections
from audit.pack.pdf.content import Content
from audit.pack.pdf.render import render
from tests import pdfs

# a process of its own: prints how many kB it took at most, and the pages. getrusage() would also tell what its parent took
ALONE = """
import io, re, django
django.setup()
from tests import pdfs
from audit.pack.pdf.render import render
pages = render(pdfs.content(rows=5000), io.BytesIO())
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1], pages)
"""


def made(content: Content) -> PdfReader:
    file = io.BytesIO()
    render(content, file)
    return PdfReader(file)


def words(reader: PdfReader) -> str:
    return " ".join(" ".join(page.extract_text().split()) for page in reader.pages)


def test_each_page_says_which_of_how_many_it_is() -> None:
    reader = made(pdfs.content())
    count = len(reader.pages)
    assert count > 10
    for i, page in enumerate(reader.pages, start=1):
        assert f"{i} of {count}" in page.extract_text()


def test_the_contents_name_the_page_on_which_each_section_begins() -> None:
    reader = made(pdfs.content())
    contents = " ".join(reader.pages[1].extract_text().split())
    entries = [entry for entry in reader.outline if not isinstance(entry, list)]
    assert [str(entry.title) for entry in entries] == [
        f"{i} {title}" for i, (title, _, _) in enumerate(sections.ALL, start=1)
    ]
    for entry in entries:
        begins = reader.get_destination_page_number(entry)
        assert begins is not None
        assert f"{entry.title} {begins + 1}" in contents
        title = str(entry.title).partition(" ")[2]
        assert title in reader.pages[begins].extract_text()


def test_it_never_calls_itself_complete_when_there_is_a_hole_and_says_which() -> None:
    said = words(made(pdfs.content()))
    assert "does not call itself complete, for 1 reason" in said
    assert "a file was rotated away before it was read" in said
    assert "Complete: every hour" not in said
    assert "Complete: every hour of each of 2 streams was read." in words(made(pdfs.content(complete=True)))


def test_an_unsigned_report_says_so_on_its_first_page() -> None:
    reader = made(pdfs.content(signed=False))
    assert "this pack is not signed" in reader.pages[0].extract_text()
    assert "anybody can have made or altered it" in words(reader)


def test_every_font_is_embedded() -> None:
    fonts = {}
    for page in made(pdfs.content()).pages:
        for font in page["/Resources"]["/Font"].values():  # type: ignore[index]
            fonts[font.get_object()["/BaseFont"]] = font.get_object()
    assert len(fonts) >= 3
    for name, font in fonts.items():
        assert "/FontFile2" in font["/FontDescriptor"], name


def test_the_same_content_gives_the_same_bytes() -> None:
    first, second = io.BytesIO(), io.BytesIO()
    render(pdfs.content(), first)
    render(pdfs.content(), second)
    assert hashlib.sha256(first.getvalue()).digest() == hashlib.sha256(second.getvalue()).digest()


def test_a_long_table_has_every_row_and_its_header_on_each_page() -> None:
    reader = made(pdfs.content(rows=400))
    said = words(reader)
    for i in (0, 199, 399):
        assert f"team-{i % 41}" in said
    tables = [page.extract_text() for page in reader.pages if "service-with-a-long" in page.extract_text()]
    assert len(tables) > 5
    assert all("service account" in page for page in tables)
    assert sum(page.count("service-with-a-long") for page in tables) == 400


def test_a_table_that_is_too_long_for_pages_names_its_file_and_the_checksum() -> None:
    said = words(made(pdfs.content(rows=50_000)))
    assert "50,000 rows are more than a page is good for" in said
    assert said.count("service-with-a-long") == parts.FIRST_ROWS
    assert pdfs.HASH in said


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[float] = []
    render(pdfs.content(), io.BytesIO(), progress=told.append)
    assert told == sorted(told)
    assert (told[0] < 0.1, told[-1]) == (True, 1.0)


def test_five_thousand_rows_take_less_than_150_megabytes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    kilobytes, pages = map(int, done.stdout.split())
    assert pages > 100
    assert kilobytes < 150 * 1024


def test_what_comes_from_outside_is_no_markup() -> None:
    content = pdfs.content()
    odd = '<b>bold</b> & <font color="red">red</font>\x1b[31m'
    decisions = [["db", odd, "keep", "Ann", "2026-11-28 09:00", "note"]]
    said = words(made(Content(manifest=content.manifest, decisions=decisions))).replace(" ", "")
    assert '<b>bold</b>&<fontcolor="red">red</font>\\x1b[31m' in said


def test_an_empty_period_is_a_report_too() -> None:
    content = Content(manifest=pdfs.manifest(accesses=0))
    assert "No workload accessed a database in the period." in words(made(content))


def test_each_shipped_control_names_parts_of_the_pack_and_what_it_does_not_show() -> None:
    found = {
        framework.name: [control.id for control in framework.controls]
        for framework in controls.read([controls.SHIPPED])
    }
    assert found["SOC 2"] == ["CC6.1", "CC6.2", "CC6.3", "CC6.6", "CC7.2", "CC7.3"]
    assert found["HIPAA Security Rule"] == ["164.312(a)", "164.312(b)", "164.312(d)"]
    assert found["GDPR"] == ["Art. 30", "Art. 32"]


def test_a_team_adds_a_framework_or_puts_its_own_in_the_place_of_one(tmp_path: Path) -> None:
    (tmp_path / "iso27001.toml").write_text(
        'name = "ISO 27001"\nedition = "2022"\n[[controls]]\nid = "A.8.5"\ntitle = "Secure authentication"\n'
        'parts = ["certainty"]\nshows = "a"\ndoes_not_show = "b"\n'
    )
    (tmp_path / "gdpr.toml").write_text('name = "GDPR of ours"\nedition = "2016"\ncontrols = []\n')
    names = [framework.name for framework in controls.read([controls.SHIPPED, tmp_path])]
    assert names == ["GDPR of ours", "HIPAA Security Rule", "ISO 27001", "SOC 2"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            'name = "X"\nedition = ""\n[[controls]]\nid = "1"\ntitle = ""\nparts = ["weather"]\nshows = ""\ndoes_not_show = ""\n',
            "'weather' is no part",
        ),
        ("name = 3\n", "is no framework"),
        ("not toml", "is no framework"),
    ],
)
def test_a_framework_that_cannot_be_used_says_why(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(controls.UnusableFramework, match=why):
        controls.read([tmp_path])


def test_a_chart_has_columns_that_a_person_can_count() -> None:
    day = pdfs.DAY
    assert step_for(day / 12)[1] == "a minute"
    assert step_for(day)[1] == "15 minutes"
    assert step_for(30 * day)[1] == "6 hours"
    assert step_for(365 * day)[1] == "a week"


def test_a_stretch_of_a_stream_is_its_worst_hour() -> None:
    hours = ["complete"] * 719 + ["gap"]
    found = stretches(hours)
    assert (len(found), found[-1], set(found[:-1])) == (120, "gap", {"complete"})
    assert stretches([]) == []
