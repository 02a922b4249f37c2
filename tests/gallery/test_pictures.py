"""Input images: small copies, and hostile files."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from kling_async.gallery.cards import Picture
from kling_async.gallery.pictures import Pictures, label_of
from support.pictures import jpeg, png


def made(folder: Path, image: str | Path | bytes) -> Picture:
    picture = Picture(image)
    Pictures(folder).make_files(picture)
    assert picture.source is None, "the bytes are released"
    return picture


def test_file_gets_poster(tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg(1600, 900))
    picture = made(tmp_path / "gallery", path)
    assert (picture.path, picture.label) == (path, "face.jpg")
    assert picture.poster is not None
    assert picture.poster.parent == tmp_path / "gallery" / "posters"
    with Image.open(picture.poster) as small:
        assert (small.format, small.size) == ("WEBP", (480, 270))


def test_poster_is_upright_and_has_no_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010F] = "Maker of cameras"
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (1600, 900), "red").save(path, exif=exif)
    picture = made(tmp_path, path)
    assert picture.poster is not None
    with Image.open(picture.poster) as small:
        assert small.size == (270, 480)
        assert not small.getexif()
    assert b"Maker" not in picture.poster.read_bytes()


@pytest.mark.parametrize("content", [png(), jpeg()])
def test_bytes_are_written_once(tmp_path: Path, content: bytes) -> None:
    first, second = made(tmp_path, content), made(tmp_path, content)
    inline = made(tmp_path, "data:image/png;base64," + base64.b64encode(content).decode())
    assert first.path == second.path == inline.path
    assert first.path is not None
    assert first.path.read_bytes() == content
    assert first.poster is not None
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def bomb() -> bytes:
    """Return a PNG of a few hundred bytes that declares more than a thousand million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [bomb(), b"", b"no image", png()[:60], jpeg()[:300], b"\x89PNG\r\n\x1a\n" * 9])
def test_hostile_image_has_no_poster(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert made(tmp_path / "gallery", path).poster is None
    assert made(tmp_path / "gallery", content).poster is None


def test_missing_file_has_only_a_name(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path, tmp_path / ("x" * 300)):
        picture = made(tmp_path / "gallery", path)
        assert (picture.path, picture.poster, picture.label) == (None, None, path.name)


def test_poster_supports_image_modes(tmp_path: Path) -> None:
    for mode in ("RGBA", "LA", "P", "L", "CMYK", "I;16", "1"):
        out = io.BytesIO()
        Image.new(mode, (400, 300)).save(out, "JPEG" if mode == "CMYK" else "PNG")
        assert made(tmp_path, out.getvalue()).poster is not None, mode


def test_missing_pillow_makes_no_poster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = tmp_path / "face.png"
    path.write_bytes(png())
    picture = made(tmp_path / "gallery", path)
    assert (picture.path, picture.poster) == (path, None)


def test_name_of_url_omits_query_and_password() -> None:
    assert label_of("https://user:secret@pictures.example/a.png?signature=secret#x") == "https://pictures.example/a.png"


def test_picture_that_is_no_url_has_no_name(tmp_path: Path) -> None:
    assert made(tmp_path / "gallery", "http://[bad/x.png").label == ""


@pytest.mark.parametrize(("kind", "has"), [("PNG", False), ("JPEG", True)])
def test_large_picture_has_a_poster_only_where_it_is_decoded_small(kind: str, tmp_path: Path, *, has: bool) -> None:
    out = io.BytesIO()
    Image.new("L", (5100, 5000)).save(out, kind)
    assert (made(tmp_path, out.getvalue()).poster is not None) is has


def test_picture_that_browsers_do_not_show_is_its_copy(tmp_path: Path) -> None:
    """Whatever it is called: phones write HEIC, and people call it JPEG."""
    heif = pytest.importorskip("pillow_heif")
    for name in ("phone.heic", "phone.jpg"):
        path = tmp_path / name
        heif.from_pillow(Image.new("RGB", (640, 480), "red")).save(path)
        picture = made(tmp_path / "gallery", path)
        assert picture.poster is not None
        assert (picture.path, picture.label) == (picture.poster, name)
        with Image.open(picture.poster) as small:
            assert (small.format, small.size) == ("WEBP", (480, 360))
