"""Pictures that are whole, odd, damaged or hostile."""

import base64
import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pumice.types import Media, PumiceError
from pumice.vision.media import Limits, decode, open_image, read_data_uri


def photo(size=(60, 40)):
    w, h = size
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(0).integers(0, 30, (h, w))
    return Image.fromarray(np.stack([x * 4 % 256, y * 5 % 256, noise], -1).astype("u1"))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(reference, **limits):
    return decode(open_image(reference, Limits(**limits)))


def color(picture, x, y):
    return tuple(np.asarray(picture)[y, x].tolist())


def error_of(reference, **limits):
    with pytest.raises(PumiceError) as caught:
        read(reference, **limits)
    text = str(caught.value)
    assert "\n" not in text
    return text


def png_header(w, h):
    """A PNG that claims a size and has one row of data at most."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_formats_from_every_kind_of_reference(kind, tmp_path, monkeypatch):
    data = encoded(photo(), kind)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(data)
    expected = np.asarray(Image.open(path).convert("RGB"))
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    for reference in (str(path), path, data, bytearray(data), uri, Image.open(path)):
        media = open_image(reference)
        assert media.size == (60, 40)
        assert media.kind == "image"
        picture = decode(media)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), expected)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert np.array_equal(np.asarray(read("-")), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, kind):
    upright = Image.new("RGB", (60, 40), "white")
    upright.paste("black", (0, 0, 20, 10))  # a mark in the upper left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the stored picture that this orientation turns upright
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    media = open_image(data)
    assert media.size == (60, 40)
    picture = decode(media)
    assert color(picture, 4, 4)[0] < 60
    for corner in ((55, 4), (4, 35), (55, 35)):
        assert color(picture, *corner)[0] > 200


def test_header_only(monkeypatch):
    """Opening doesn't decode, not even in search of EXIF: a PNG without pixels has a size, and fails in decode."""
    loads = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(1) or real(image))
    media = open_image(png_header(3000, 2000))
    assert media.size == (3000, 2000)
    assert not loads
    with pytest.raises(PumiceError, match="cut short"):
        decode(media)
    assert loads


def test_alpha_lies_on_white():
    for image in (
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)),
        Image.new("LA", (4, 4), (0, 0)),
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).quantize(),
    ):
        assert read(encoded(image, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    half = read(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")).getpixel((0, 0))
    assert half == pytest.approx((255, 127, 127), abs=1)
    keyed = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert read(keyed).getpixel((0, 0)) == (255, 255, 255)
    grey_keyed = encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)
    assert read(grey_keyed).getpixel((0, 0)) == (255, 255, 255)


def test_palette_one_bit_and_cmyk():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert read(encoded(palette, "PNG")).getpixel((0, 0)) == (10, 200, 30)
    assert read(encoded(Image.new("1", (9, 9), 1), "PNG")).getpixel((8, 8)) == (255, 255, 255)
    assert read(encoded(Image.new("1", (9, 9), 1), "TIFF")).getpixel((8, 8)) == (255, 255, 255)
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert read(encoded(cmyk, kind)).getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind):
    values = np.array([[0, 1000, 32896, 40_000, 65535]], np.uint16)
    picture = read(encoded(Image.fromarray(values), kind))
    assert [color(picture, x, 0)[0] for x in range(5)] == [0, 4, 128, 156, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0.0, 32896.0, 65535.0]], np.float32), [0, 128, 255]),
        (np.array([[-5.0, 0.0, 5.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 500_100, 1_000_000]], np.int32), [0, 128, 255]),
        (np.array([[7_000_000, 7_000_000]], np.int32), [0, 0]),
    ],
)
def test_wide_grey_is_scaled(values, expected):
    picture = read(encoded(Image.fromarray(values), "TIFF"))
    assert [color(picture, x, 0)[0] for x in range(values.shape[1])] == expected


def test_animation_gives_its_first_frame_and_says_so(tmp_path):
    frames = [Image.new("RGB", (20, 10), name) for name in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        path = tmp_path / f"moving.{kind.lower()}"
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        media = open_image(path)
        assert media.name == f"{path} (first frame)"
        assert decode(media).getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_truncated(kind, part, tmp_path):
    data = encoded(photo((200, 150)), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * part)])
    text = error_of(path)
    assert str(path) in text
    assert "cut short" in text
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damage_never_shows_pillows_errors(kind):
    """Random bytes overwritten: an RGB picture of the size promised, or a PumiceError, nothing else."""
    whole = encoded(photo(), kind)
    random = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 6):
            data[place] = random.integers(0, 256)
        with contextlib.suppress(PumiceError):
            media = open_image(bytes(data), Limits(max_pixels=1_000_000))
            assert decode(media).size == media.size


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.png", b"", ["empty", "0 bytes", "PNG, JPEG"]),
        ("notes.png", b"Dear diary, this isn't a picture.", ["not a picture", "Dear diary", "expected a PNG"]),
        ("page.jpg", b"%PDF-1.7 ...", ["a PDF"]),
        ("photo.jpg", b"\0\0\0\x20ftypheic0000", ["HEIC"]),
        ("draw.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ["SVG"]),
        ("short.png", b"\x89PNG\r\n\x1a\n", ["PNG", "cut short"]),
        ("huge.png", png_header(50_000, 50_000), ["2500000000 pixels", "64,000,000"]),
        ("large.png", png_header(9_000, 9_000), ["9000x9000", "64,000,000"]),
        ("long.png", png_header(40_000, 10), ["40000x10", "32,768"]),
        ("none.png", png_header(0, 10), []),
    ],
)
def test_bad_files(name, data, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    text = error_of(path)
    assert text.startswith(str(path))
    assert all(word in text for word in words), text
    error_of(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_between_pillows_warning_and_its_error():
    assert "10000x10000" in error_of(png_header(10_000, 10_000))


def test_compressed_bomb():
    """A file of some kilobytes that holds 100 million pixels is refused by its header."""
    data = encoded(Image.new("1", (10_000, 8_000)), "PNG")
    assert len(data) < 50_000
    assert "10000x8000" in error_of(data)


def test_places_that_are_not_files(tmp_path):
    assert "no such file" in error_of(tmp_path / "gone.png")
    assert "regular file" in error_of(tmp_path)
    assert "expected a PNG" in error_of(encoded(photo(), "PPM"))  # Pillow could, but only six formats are let in
    assert "regular file" in error_of("/dev/zero")
    assert "https addresses" in error_of("https://example.com/a.png")
    assert "http addresses" in error_of("http://example.com/a.png")
    assert "NoneType" in error_of(None)
    assert len(error_of(base64.b64encode(encoded(photo(), "PNG")).decode())) < 300
    assert error_of("a\0b.png")


def test_limits(tmp_path, monkeypatch):
    data = encoded(photo(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for reference in (data, path, uri):
        assert "at most" in error_of(reference, max_pixels=60 * 40 - 1)
        assert "at most" in error_of(reference, max_side=59)
        assert "bytes" in error_of(reference, max_bytes=len(data) - 1)
        assert read(reference, max_pixels=60 * 40, max_side=60, max_bytes=len(data)).size == (60, 40)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert "standard input" in error_of("-", max_bytes=len(data) - 1)
    assert "at most" in error_of(photo(), max_side=59)


@pytest.mark.parametrize("uri", ["data:;base64", "data:;base64,a", "data:;base64,é", "data:,"])
def test_bad_data_uris(uri):
    assert error_of(uri).startswith("data URI")


def test_data_uri_forms():
    assert read_data_uri("data:text/plain,a%20b") == b"a b"
    assert read_data_uri("data:;base64,YWJj\nZGVm") == b"abcdef"
    with pytest.raises(PumiceError, match="at most"):
        read_data_uri("data:;base64," + "A" * 4000, Limits(max_bytes=100))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_pictures_are_right(size):
    picture = read(encoded(Image.new("RGB", size, (7, 8, 9)), "PNG"))
    assert picture.size == size
    assert picture.getpixel((size[0] - 1, size[1] - 1)) == (7, 8, 9)


def test_file_changed_since_it_was_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo(), "PNG"))
    media = open_image(path)
    path.write_bytes(encoded(photo((61, 40)), "PNG"))
    with pytest.raises(PumiceError, match="61x40 pixels now, 60x40"):
        decode(media)
    with pytest.raises(PumiceError, match="bytes: "):
        decode(Media(reference=b"nonsense", size=(1, 1)))


def test_result_is_the_callers_own():
    mine = photo()
    before = mine.tobytes()
    read(mine).paste("red", (0, 0, 60, 40))
    assert mine.tobytes() == before
