"""PDFs that are whole, odd, damaged or hostile: which pages come out, how large and how soon."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pumice.types import Media, PumiceError
from pumice.vision.kinds import open_media
from pumice.vision.layout import PRESETS, Policy, layout
from pumice.vision.media import Limits
from pumice.vision.pdf import MAX_PIXELS, open_pdf, page_size, render_page
from pumice.vision.pixels import to_tiles

A4 = (595, 842)
FONT = b"/Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"


def stream(entries: bytes, data: bytes) -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (entries, len(data), data)


def document(objects: list[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of numbered objects, the first of which is the catalog."""
    data, places = b"%PDF-1.7\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


def pdf(
    sizes: Sequence[tuple[float, float]] = (A4,),
    content: bytes = b"0 0 1 rg 0 0 %d 20 re f",
    resources: bytes = FONT,
    page: bytes = b"",
    more: Sequence[bytes] = (),
    trailer: bytes = b"",
) -> bytes:
    """Pages of (width, height) points, the n-th with a blue bar of n * 10 points in its lower left corner.

    Objects of `more` are numbered from 3 + 2 * pages on; `page` are further entries of every page.
    """
    kids = b" ".join(b"%d 0 R" % (3 + 2 * i) for i in range(len(sizes)))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(sizes))]
    for i, (w, h) in enumerate(sizes):
        drawn = content % (10 * (i + 1)) if b"%d" in content else content
        box = f"[0 0 {w} {h}]".encode()
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Resources << %s >> /Contents %d 0 R %s >>"
            % (box, resources, 4 + 2 * i, page)
        )
        objects.append(stream(b"", drawn))
    return document([*objects, *more], trailer)


def bar(media: Media) -> int:
    """Length of a page's blue bar in points, with its pixels at one a point."""
    pixels = np.asarray(render_page(media, media.size)).astype(int)
    return int((pixels[-5, :, 2] - pixels[-5, :, 0] > 128).sum())


def error_of(data: bytes, pages: tuple[int, int] | None = None, **limits: Any) -> str:
    """The error of opening a PDF, or of rendering its first page."""
    bounds = dataclasses.replace(Limits(), **limits)

    def read() -> None:
        for media in open_pdf("a.pdf", data, pages, bounds):
            render_page(media, media.size, bounds)

    with pytest.raises(PumiceError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("a.pdf")
    return text


def test_a_pdf_becomes_its_pages(tmp_path):
    sizes = [A4, (200.4, 100.6), (842, 595)]
    path = tmp_path / "scan.png"  # told by its content
    path.write_bytes(pdf(sizes))
    uri = "data:application/pdf;base64," + base64.b64encode(pdf(sizes)).decode()
    for reference in (path, str(path), pdf(sizes), uri, b"\r\n" + pdf(sizes)):
        pages = open_media(reference)
        assert [(page.kind, page.size, page.page) for page in pages] == [
            ("page", A4, 0),
            ("page", (200, 101), 1),
            ("page", (842, 595), 2),
        ]
        assert [bar(page) for page in pages] == [10, 20, 30]
    assert open_media(path)[1].name == f"{path} page 2 of 3"


def test_pages_are_chosen(tmp_path):
    path = tmp_path / "report.pdf"
    path.write_bytes(pdf([A4] * 7))
    for choice, expected in (("#3-5", [30, 40, 50]), ("#2", [20]), ("#7", [70]), ("#1-1", [10])):
        assert [bar(page) for page in open_media(f"{path}{choice}")] == expected
    assert [page.page for page in open_media(Path(f"{path}#6-7"))] == [5, 6]
    for choice, words in (
        ("#8", "no page 8; it has 7"),
        ("#6-8", "no page 8"),
        ("#0", "no such pages"),
        ("#5-3", "no such pages"),
        ("#x", "no such file"),
    ):
        with pytest.raises(PumiceError, match=words):
            open_media(f"{path}{choice}")


def test_texts_that_are_no_paths():
    """Whatever is passed by mistake, in place of a path, is one line."""
    for text in (
        "A" * 5000,
        "A" * 5000 + "#1",
        "a\0b#2",
        "a\0b",
        "",
        "#1",
        "/usr/#1-2",
        "https://example.com/a.pdf#1",
    ):
        with pytest.raises(PumiceError) as caught:
            open_media(text)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(pdf([A4] * 2))))
    assert [bar(page) for page in open_media("-")] == [10, 20]


def test_a_file_whose_name_ends_like_a_choice(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([A4] * 5))
    (tmp_path / "a.pdf#2").write_bytes(pdf([A4] * 3))
    assert len(open_media(tmp_path / "a.pdf#2")) == 3
    (tmp_path / "p.gif").write_bytes(b"GIF89a")
    with pytest.raises(PumiceError, match=r"p\.gif is a picture; only of a PDF"):
        open_media(tmp_path / "p.gif#2")


def test_rotated_pages_stand_upright():
    (page,) = open_media(pdf(page=b"/Rotate 90"))
    assert page.size == A4[::-1]
    pixels = np.asarray(render_page(page, page.size)).astype(int)
    assert pixels[5, 5, 2] - pixels[5, 5, 0] > 128  # turned clockwise, the lower left is the upper left
    assert pixels[-5, 5, 0] == 255


def test_rendering_is_exact_in_size_and_colour():
    (page,) = open_media(pdf([(100, 50)], content=b"1 0 0 rg 0 25 50 25 re f 0 1 0 rg 50 0 50 25 re f"))
    for size in ((100, 50), (417, 208), (33, 71), (1, 1), (7, 900)):
        assert render_page(page, size).size == size
    pixels = np.asarray(render_page(page, (200, 100)))
    for (x, y), colour in {(50, 25): (255, 0, 0), (150, 75): (0, 255, 0), (150, 25): (255, 255, 255)}.items():
        assert tuple(pixels[y, x].tolist()) == colour


def test_forms_are_drawn_filled_in():
    """What somebody typed into a form is an annotation's appearance, which PDFium draws only on request."""
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (b) /Rect [10 10 60 40] /F 4 /P 3 0 R "
        b"/AP << /N 6 0 R >> >>"
    )
    look = stream(b"/Type /XObject /Subtype /Form /BBox [0 0 50 30]", b"0 0 1 rg 0 0 50 30 re f")
    data = pdf([(100, 50)], content=b" ", page=b"/Annots [5 0 R]", more=[field, look])
    data = data.replace(b"/Catalog /Pages 2 0 R", b"/Catalog /Pages 2 0 R /AcroForm << /Fields [5 0 R] >>")
    (page,) = open_media(data)  # the table of places is off now: PDFium repairs it
    pixels = np.asarray(render_page(page, (100, 50))).astype(int)
    assert pixels[25, 35, 2] - pixels[25, 35, 0] > 50


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("points", [A4, A4[::-1], (612, 792), (2384, 3370), (400, 3000), (3000, 150)])
def test_pages_fill_the_largest_canvas(name, points):
    """Rendered pages aren't resized again where the layout doesn't squash: text is as sharp as it can be."""
    policy = PRESETS[name]
    w, h = size = page_size(points, policy)
    placed = layout(size, policy)
    canvas = (placed.cols * placed.tile, placed.rows * placed.tile)
    assert w in range(canvas[0] - 1, canvas[0] + 1) or h in range(canvas[1] - 1, canvas[1] + 1)
    assert w <= canvas[0]
    assert h <= canvas[1]
    scale = max(size) / max(points)
    assert abs(w - points[0] * scale) <= 1
    assert abs(h - points[1] * scale) <= 1
    for cols, rows in policy.grids or ((1, 1),):
        assert min(cols * policy.tile / points[0], rows * policy.tile / points[1]) <= scale * 1.002
    assert max(abs(a - b) for a, b in zip(placed.resized, size, strict=True)) <= 1


def test_page_sizes_of_an_a4_sheet():
    assert page_size(A4, PRESETS["ONEVISION"]) == (1628, 2304)
    assert page_size(A4, PRESETS["ONEVISION_MULTI"]) == (271, 384)
    assert page_size(A4, PRESETS["NEXT_CLIP"]) == (475, 672)
    assert page_size(A4, PRESETS["ELVA"]) == (633, 896)
    assert page_size(A4, Policy("square", tile=384, side=27)) == (384, 543)
    hw = Policy("anyres", tile=100, side=4, grids=((1, 3),), grid_order="hw")
    assert page_size((300, 100), hw) == (300, 100)


def test_small_pages_stay_small_and_thin_ones_cheap():
    assert page_size((72, 36), PRESETS["ONEVISION"]) == (300, 150)  # 300 dpi
    for policy in (PRESETS["ONEVISION"], PRESETS["LLAVA_15"], Policy("crop", tile=336, side=24)):
        w, h = page_size((1, 14_400), policy)
        assert 1 <= w * h <= MAX_PIXELS
        assert min(w, h) >= 1


@pytest.mark.parametrize("name", PRESETS)
def test_pages_become_tiles(name):
    policy = PRESETS[name]
    (page,) = open_media(pdf())
    placed = layout(page_size(page.size, policy), policy)
    tiles = to_tiles(render_page(page, placed.size), placed, policy, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert tiles.shape == (placed.views, 3, policy.tile, policy.tile)


ENCRYPTED = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<00> <00>]" % (
    b"41" * 32,
    b"42" * 32,
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pdf([]), "no pages"),
        (pdf(trailer=ENCRYPTED), "password"),
        (pdf()[:300], "cut short"),
        (b"%PDF-1.7\n", "cut short"),
        (b"%PDF-1.4 " + b"x" * 1000, "not a PDF, damaged"),
        (pdf([(1e6, 1e6)]), "1e+06x1e+06 points"),
        (pdf([(14_401, 10)]), "14401x10 points"),
        (pdf([(0.1, 800)]), "0.1x800 points"),
        (pdf().replace(b"/Count 1", b"/Count 9"), "page 2 of 9: damaged"),
        (pdf().replace(b"/Kids [3 0 R]", b"/Kids [2 0 R]"), "page 1 of 1: damaged"),
    ],
)
def test_bad_files(data, words):
    assert words in error_of(data)


def test_a_good_page_of_a_damaged_file_can_be_read():
    (page,) = open_pdf("a.pdf", pdf().replace(b"/Count 1", b"/Count 9"), (1, 1), Limits())
    assert bar(page) == 10


def test_limits(tmp_path):
    data = pdf([A4] * 6)
    text = error_of(data, max_pages=5)
    assert "6 pages; at most 5" in text
    assert "a.pdf#1-5" in text
    assert len(open_pdf("a.pdf", data, (2, 6), Limits(max_pages=5))) == 5
    path = tmp_path / "a.pdf"
    path.write_bytes(data)
    with pytest.raises(PumiceError, match="bytes; at most 100"):
        open_media(path, Limits(max_bytes=100))
    assert "takes more than 0.001 seconds" in error_of(data, patience=0.001)


def test_a_page_that_would_never_end():
    """Ten levels of forms, each drawn ten times by the one above: 10 billion rectangles in 3 KB."""
    forms = [
        stream(
            b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X %d 0 R >> >>" % (6 + level),
            b"/X Do " * 10 if level < 9 else b"0 0 5 5 re f",
        )
        for level in range(10)
    ]
    data = pdf([(100, 100)], b"/X Do", b"/XObject << /X 5 0 R >>", more=forms)
    before = time.monotonic()
    assert "takes more than 1 seconds" in error_of(data, patience=1.0)
    assert time.monotonic() - before < 10


def test_a_picture_of_gigabytes_in_a_small_file():
    """60,000 x 60,000 bits in 500 KB: rendered or refused, but never at the price of all memory."""
    packed = zlib.compress(b"\0" * (60_000 // 8 * 60_000), 1)
    image = stream(
        b"/Type /XObject /Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceGray /BitsPerComponent 1 "
        b"/Filter /FlateDecode",
        packed,
    )
    data = pdf([(100, 100)], b"q 100 0 0 100 0 0 cm /I Do Q", b"/XObject << /I 5 0 R >>", more=[image])
    assert len(data) < 3_000_000
    (page,) = open_media(data)
    try:
        assert render_page(page, (50, 50)).getpixel((25, 25)) == (0, 0, 0)
    except PumiceError as error:
        assert "memory" in str(error) or "seconds" in str(error)  # noqa: PT017 (both are right)


def test_noise_in_a_file_is_an_error_or_a_page():
    whole = pdf([A4] * 2, content=b"BT /F 24 Tf 20 20 Td (Total 12.50) Tj ET")
    random = np.random.default_rng(5)
    for _ in range(12):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(0, 256)
        try:
            (page, *_) = open_pdf("a.pdf", bytes(data), None, Limits(patience=10.0))
            assert render_page(page, (20, 30)).size == (20, 30)
        except PumiceError as error:
            assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)


def test_a_file_that_is_gone_since_it_was_opened(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf())
    (page,) = open_media(path)
    path.unlink()
    with pytest.raises(PumiceError, match=r"a\.pdf page 1 of 1: no such file"):
        render_page(page, (10, 10))
