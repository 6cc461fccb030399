"""The only code that PDFium runs in: a process of its own, which may hang, crash or run out of memory alone.

    argv (sizes PATH | render PATH INDEX WIDTH HEIGHT), PDF on stdin where PATH is - ──> one line of JSON, then pixels

It is run as a script by `pumice.vision.pdf` and imports nothing of pumice, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

MEMORY = 4 * 2**30
REASONS = {
    0: "holds no pages",
    3: "not a PDF, damaged or cut short",
    4: "needs a password; save it without one",
    5: "encrypted in a way that can't be read",
}  # PDFium's FPDF_ERR_SUCCESS (and yet no document: no pages), FPDF_ERR_FORMAT, FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY


def main(argv: list[str]) -> None:
    """Answer one request: {"error": text}, {"sizes": [[w, h] or null, ...]} in points, or {"stride": bytes a row}."""
    bound_memory()
    import pypdfium2

    task, path, *numbers = argv
    pixels = b""
    try:
        source = sys.stdin.buffer.read() if path == "-" else Path(path)
        document = pypdfium2.PdfDocument(source)
        if task == "sizes":
            answer: dict[str, Any] = {"sizes": [page_size(document, i) for i in range(len(document))]}
        else:
            index, width, height = map(int, numbers)
            stride, pixels = render(document, index, width, height)
            answer = {"stride": stride}
    except pypdfium2.PdfiumError as error:
        reason = " ".join(str(error).split())
        answer = {"error": f"damaged ({reason})" if error.err_code is None else REASONS.get(error.err_code, reason)}
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)


def bound_memory() -> None:
    """Refuse memory beyond `MEMORY`, where the system can (not on Windows)."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def page_size(document: Any, index: int) -> tuple[float, float] | None:
    """(width, height) in points as the page is shown, its /Rotate applied; None for a damaged page."""
    import pypdfium2

    with contextlib.suppress(pypdfium2.PdfiumError):
        return document.get_page_size(index)
    return None


def render(document: Any, index: int, width: int, height: int) -> tuple[int, bytes]:
    """(bytes a row, RGB pixels) of a page on white, stretched to width x height; forms and annotations are drawn."""
    import pypdfium2
    from pypdfium2 import raw

    document.init_forms()
    page = document[index]
    bitmap = pypdfium2.PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    where = (bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER)
    raw.FPDF_RenderPageBitmap(*where)
    if document.formenv:
        raw.FPDF_FFLDraw(document.formenv, *where)
    return bitmap.stride, bytes(bitmap.buffer)


if __name__ == "__main__":
    main(sys.argv[1:])
