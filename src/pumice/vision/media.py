"""Opens pictures from anywhere, trusts none of them.

    path | bytes | PIL image | "-" | data: URI ──open_image──> Media (size, from the header) ──decode──> PIL RGB

Only PNG, JPEG, WebP, GIF, TIFF and BMP are tried. A picture is turned as its EXIF says, the first frame stands for an
animation, alpha is laid on white, 16-bit grey is scaled. What can't be read raises a PumiceError of one line that names
the file, what was wrong and what was expected. No global state of PIL is changed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from pumice.types import Media, PumiceError

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
READABLE = "PNG, JPEG, WebP, GIF, TIFF or BMP"

_OTHERS = {
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"<!DOC": "an HTML page",
    b"<html": "an HTML page",
    b"PK\x03\x04": "a ZIP archive",
}
SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """What a file may cost. Pillow's own bound of 179 M pixels stays on top of `max_pixels`.

    max_pixels, max_side  of a picture or of a frame
    max_bytes             of a picture, a PDF, and whatever is held in memory
    max_video_bytes       of a video file on disk
    max_pages             that are asked about at once
    max_frames, max_seconds   of a whole video, sampled or not
    patience              seconds of work on one file, or on one page, before it is given up
    """

    max_pixels: int = 64_000_000
    max_side: int = 32_768
    max_bytes: int = 128 * 2**20
    max_video_bytes: int = 8 * 2**30
    max_pages: int = 50
    max_frames: int = 2_000_000
    max_seconds: int = 6 * 3600
    patience: float = 120.0


def open_image(reference: Any, limits: Limits | None = None) -> Media:
    """Media of a picture, from its header alone: no pixel is decoded, so a file cut short passes until `decode`.

    `reference` is a path (str or Path), bytes of an encoded file, a PIL image, "-" (standard input) or a `data:` URI.
    `Media.size` is (width, height) after EXIF rotation; the name of an animation or a file of several pages ends in
    " (first frame)". Raises PumiceError for anything that isn't a readable picture within the limits, and for URLs.
    Any other text is taken for a path: a server must pass the bytes from `read_data_uri` and never a client's text.
    """
    limits = limits or Limits()
    name, reference = locate(reference, limits)
    return open_located(name, reference, limits)


def open_located(name: str, reference: Any, limits: Limits) -> Media:
    """Media of a picture that `locate` has found. Raises PumiceError as `open_image` does."""
    with _opened(reference, name, limits) as image:
        size = _turned_size(image)
        if getattr(image, "is_animated", False):
            name += " (first frame)"
    return Media(reference=reference, size=size, name=name)


def decode(media: Media) -> Image.Image:
    """The picture's pixels: mode RGB, of `media.size`, EXIF rotation applied.

    Raises PumiceError when the file is cut short or damaged, can't be converted, or isn't of `media.size` any more.
    """
    reference = media.reference
    name = media.name or (str(reference) if isinstance(reference, str | Path) else type(reference).__name__)
    with _opened(reference, name, None) as image:
        if _turned_size(image) != media.size:
            w, h = _turned_size(image)
            raise PumiceError(f"{name}: {w}x{h} pixels now, {media.size[0]}x{media.size[1]} when it was opened")
        turn = _TURNS.get(_orientation(image))
        image.load()
        rgb = _to_rgb(image)
        rgb = rgb.transpose(turn) if turn is not None else rgb
    if rgb.size != media.size:
        raise PumiceError(
            f"{name}: {rgb.width}x{rgb.height} pixels, but its header says {media.size[0]}x{media.size[1]}"
        )
    return rgb


def read_data_uri(uri: str, limits: Limits | None = None) -> bytes:
    """Bytes of a `data:[type][;base64],...` URI. Raises PumiceError when it is malformed or too large."""
    limits = limits or Limits()
    head, comma, body = uri.partition(",")
    if not head.startswith("data:") or not comma:
        raise PumiceError("data URI: no comma after the media type; expected data:image/png;base64,...")
    about = len(body) * 3 // 4 - 2  # less its padding
    if about > limits.max_bytes:
        raise PumiceError(f"data URI: about {about:,} bytes; at most {limits.max_bytes:,} are read")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PumiceError(f"data URI: not valid base64 ({error}); it may be cut short") from None


def locate(reference: Any, limits: Limits) -> tuple[str, Any]:
    """(name for messages, path | bytes | PIL image) of anything that may hold a picture, a PDF or a video.

    Standard input and `data:` URIs are read here. Raises PumiceError for a URL and for more bytes than `limits` allow.
    """
    if isinstance(reference, Image.Image):
        return "PIL image", reference
    if isinstance(reference, bytes | bytearray | memoryview):
        return "bytes", _bounded("bytes", bytes(reference), limits)
    if isinstance(reference, Path):
        return str(reference), str(reference)
    if not isinstance(reference, str):
        raise PumiceError(f"{type(reference).__name__}: not a picture; expected a path, bytes, PIL image or data: URI")
    if reference == "-":
        # One byte more than allowed tells "too large" without reading all of an endless pipe.
        return "standard input", _bounded("standard input", sys.stdin.buffer.read(limits.max_bytes + 1), limits)
    if reference.startswith("data:"):
        return "data URI", _bounded("data URI", read_data_uri(reference, limits), limits)
    scheme, found, _ = reference.partition("://")
    if found and scheme.isalnum():
        raise PumiceError(f"{reference[:80]}: {scheme} addresses aren't fetched; download it and pass the file's path")
    # Base64 passed by mistake as a path would fill the screen.
    return (reference if len(reference) <= 200 else f"{reference[:80]}..."), reference


def _bounded(name: str, data: bytes, limits: Limits) -> bytes:
    if not data:
        raise PumiceError(f"{name}: empty; expected a {READABLE} picture")
    if len(data) > limits.max_bytes:
        raise PumiceError(f"{name}: more than {limits.max_bytes:,} bytes; no larger file is read")
    return data


def check_file(reference: str, name: str, max_bytes: int | None) -> None:
    """Raises PumiceError unless a path is a regular file that isn't empty and has at most `max_bytes`."""
    path = Path(reference)
    if not path.exists():
        raise PumiceError(f"{name}: no such file")
    if not path.is_file():  # a directory, or a device or pipe that could hand out bytes for ever
        raise PumiceError(f"{name}: not a regular file; expected a {READABLE} picture")
    size = path.stat().st_size
    if not size:
        raise PumiceError(f"{name}: empty (0 bytes); expected a {READABLE} picture")
    if max_bytes is not None and size > max_bytes:
        raise PumiceError(f"{name}: {size:,} bytes; at most {max_bytes:,} are read")


def head_of(name: str, source: str | bytes) -> bytes:
    """The first 1 KB of a file (path) or of its bytes. Raises PumiceError when there is nothing to read."""
    if isinstance(source, bytes):
        return source[:1024]
    try:
        check_file(source, name, None)
        with Path(source).open("rb") as file:
            return file.read(1024)
    except (OSError, ValueError) as error:  # such as a name too long, or with a NUL
        raise PumiceError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


@contextlib.contextmanager
def _opened(reference: Any, name: str, limits: Limits | None) -> Iterator[Image.Image]:
    """The PIL image, header read and within the limits; any error of Pillow's inside becomes a PumiceError."""
    given: Any = reference
    try:
        if isinstance(reference, Image.Image):
            _check_size(reference, name, limits)
            yield reference
            return
        if not isinstance(reference, bytes):
            check_file(reference, name, limits.max_bytes if limits else None)
        source = io.BytesIO(reference) if isinstance(reference, bytes) else reference
        with Image.open(source, formats=FORMATS) as image:
            _check_size(image, name, limits)
            yield image
    except PumiceError:
        raise
    except Image.UnidentifiedImageError:
        raise PumiceError(f"{name}: {_describe(head_of(name, given))}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).split(",")[0]
        raise PumiceError(f"{name}: too many pixels ({reason}); {_expected(limits)}") from None
    except OSError as error:
        if error.strerror:  # the system's own, such as "Permission denied"; Pillow's carry none
            raise PumiceError(f"{name}: {error.strerror}; expected a {READABLE} file") from None
        raise _damaged(name, error) from None
    except Exception as error:  # Pillow's plugins raise nearly every type on damaged data
        raise _damaged(name, error) from None


def _damaged(name: str, error: Exception) -> PumiceError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return PumiceError(f"{name}: damaged or cut short ({reason}); expected a whole {READABLE} file")


def _expected(limits: Limits | None) -> str:
    limits = limits or Limits()
    return f"at most {limits.max_pixels:,} pixels and {limits.max_side:,} a side are read"


def _check_size(image: Image.Image, name: str, limits: Limits | None) -> None:
    w, h = image.size
    if min(w, h) < 1:
        raise PumiceError(f"{name}: {w}x{h} pixels; expected at least 1x1")
    if limits and (w * h > limits.max_pixels or max(w, h) > limits.max_side):
        raise PumiceError(f"{name}: {w}x{h} pixels; {_expected(limits)}")


def _describe(head: bytes) -> str:
    """What a file is that Pillow didn't take for a picture."""
    for start, kind in SIGNATURES.items():
        if head.startswith(start):
            return f"damaged or cut short: starts like a {kind} but has no readable header; expected a whole file"
    if head[4:8] == b"ftyp":
        what = "a HEIC, AVIF or MP4 file"
    else:
        what = next(
            (kind for start, kind in _OTHERS.items() if head.startswith(start)), f"not a picture ({head[:16]!r}...)"
        )
    return f"{what}; expected a {READABLE} picture"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied, 1 to 8, from what the header gave.

    Pillow turns TIFF itself. For PNG its own getexif would decode all pixels in search of a late chunk: the base
    class's looks only at what has been read.
    """
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block doesn't make the picture unreadable
        return 1


def _turned_size(image: Image.Image) -> tuple[int, int]:
    w, h = image.size
    return (h, w) if _orientation(image) in (5, 6, 7, 8) else (w, h)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any mode; transparent parts on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_grey8(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    # A copy, because a PIL image given as reference stays its owner's.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _to_grey8(image: Image.Image) -> Image.Image:
    """8-bit grey of 16-bit, 32-bit and float grey, where Pillow's own conversion clips at 255.

    16-bit modes are divided by 257. Wider ones don't say their range: taken are 0..1 (float only), 0..255 or 0..65535,
    whichever is the first to hold all values, or else the values' own range.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        tops = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
        fitting = [top for top in tops if low >= 0 and high <= top]
        if fitting:
            low, high = 0.0, fitting[0]
    scaled = (values - low) * (255.0 / max(high - low, 1e-30))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
