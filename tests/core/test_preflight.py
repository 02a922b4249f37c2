"""Image preflight without decoding, and conversion of images that the service would refuse."""

from __future__ import annotations

import io
import re
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageCms, ImageOps

from kling_async import InvalidJobError
from kling_async._core.media import MAX_CONVERTED_BYTES, MAX_IMAGE_BYTES
from kling_async._images.convert import convert
from kling_async._images.preflight import MAX_CONVERTED_PIXELS, preflight


def encoded(picture: Pillow.Image, kind: str, orientation: int = 1, **options: object) -> bytes:
    buffer = io.BytesIO()
    if orientation > 1:
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Pillow.effect_noise((500, 400), 60)
JPEG = encoded(NOISE, "JPEG")
PNG = encoded(NOISE, "PNG")


def with_preview(content: bytes) -> bytes:
    """Return a JPEG with a preview JPEG in its EXIF data, as phones write them."""
    preview = b"Exif\0\0" + encoded(NOISE.resize((160, 120)), "JPEG")
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    return content[:2] + segment + content[2:]


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_detected_by_content_and_accepted_for_fit(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mislabelled.png"
    path.write_bytes(encoded(NOISE, kind))
    with pytest.raises(InvalidJobError, match=rf"(?i)expected a JPEG or PNG, got {kind}; the option fit converts it"):
        preflight(path)
    facts = preflight(path, fit=True)
    assert (facts.width, facts.height, facts.bytes, facts.unfit) == (500, 400, path.stat().st_size, True)


def test_heic_error_names_the_extra_that_converts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(100)
    with pytest.raises(InvalidJobError, match="got HEIC; the option fit converts it"):
        preflight(heic)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for fit in (False, True):
        with pytest.raises(InvalidJobError, match=r"got HEIC; install kling-async\[heic\], with which the option fit"):
            preflight(heic, fit=fit)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_detected(orientation: int) -> None:
    facts = preflight(encoded(NOISE, "JPEG", orientation))
    assert (facts.width, facts.height) == ((400, 500) if orientation > 4 else (500, 400))
    assert facts.turned is (orientation > 1)
    assert ("EXIF" in "".join(facts.cautions)) is facts.turned


@pytest.mark.parametrize(("size", "warned"), [((750, 300), False), ((760, 300), True), ((300, 760), True)])
def test_long_images_give_a_warning(size: tuple[int, int], warned: object) -> None:
    assert ("2.5:1" in "".join(preflight(encoded(Pillow.new("L", size), "PNG")).warnings)) is warned


@pytest.mark.parametrize("content", [JPEG, PNG, with_preview(JPEG)])
def test_truncated_image_is_refused_at_any_length(content: bytes) -> None:
    assert preflight(content).width == 500
    assert preflight(content + bytes(100_000)).width == 500, "phones append videos to their images"
    for end in range(0, len(content) - 12, 997):
        with pytest.raises(InvalidJobError, match=r"truncated|damaged|is empty"):
            preflight(content[:end])


@settings(max_examples=200)
@given(st.sampled_from([JPEG, PNG, with_preview(JPEG), encoded(NOISE, "WEBP"), encoded(NOISE, "TIFF")]), st.data())
def test_hostile_images_are_measured_or_refused(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, min(len(content), 2000)))
    hostile = content[:place] + data.draw(st.binary(max_size=40)) + content[place + data.draw(st.integers(0, 40)) :]
    with suppress(InvalidJobError):
        facts = preflight(hostile, fit=True)
        assert facts.width * facts.height <= MAX_CONVERTED_PIXELS or not facts.unfit
        # Larger ones take seconds.
        if facts.unfit and facts.width * facts.height < 5_000_000:
            assert preflight(convert(hostile)).type in {"image/jpeg", "image/png"}


def test_preflight_reads_little_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(Pillow.effect_noise((4000, 3000), 60), "JPEG", quality=80))
    content = path.read_bytes()
    asked: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            piece = super().read(size)
            asked.append(len(piece))
            return piece

    monkeypatch.setattr(Path, "open", lambda *_: Counted(content))
    assert preflight(path).width == 4000
    assert sum(asked) < 40_000 < len(content)


# Conversion.


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF", "AVIF", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_fit_makes_jpeg_of_same_size(kind: str, mode: str) -> None:
    # Colours of the palette.
    content = encoded(Pillow.new("RGB", (500, 400), (204, 51, 51)).convert(mode), kind)
    fit = convert(content)
    facts = preflight(fit)
    assert (facts.type, facts.width, facts.height) == ("image/jpeg", 500, 400)
    pixel = Pillow.open(io.BytesIO(fit)).convert("RGB").getpixel((250, 200))
    assert pixel == pytest.approx((97, 97, 97) if mode == "L" else (204, 51, 51), abs=8)


def test_fit_makes_transparency_white() -> None:
    clear = Pillow.new("RGBA", (400, 400), (0, 0, 0, 0))
    for kind in ("PNG", "WEBP"):
        picture = Pillow.open(io.BytesIO(convert(encoded(clear, kind))))
        assert picture.getpixel((200, 200)) == (255, 255, 255)


def test_fit_keeps_16_bit_grey_levels() -> None:
    picture = Pillow.new("I;16", (400, 400), 128 * 256)
    assert Pillow.open(io.BytesIO(convert(encoded(picture, "PNG")))).getpixel((9, 9)) == pytest.approx(128, abs=2)


@pytest.mark.parametrize(
    ("mode", "levels", "shown"),
    [
        ("F", (0.0, 0.5, 1.0), (0, 127, 255)),
        ("F", (0.0, 100.0, 255.0), (0, 100, 255)),
        ("F", (-10.0, 0.0, 10.0), (0, 127, 255)),
        ("I", (0, 100, 200), (0, 100, 200)),
        ("I", (0, 32_768, 65_535), (0, 127, 255)),
        ("I", (0, 500_000, 1_000_000), (0, 127, 255)),
        ("I", (7_000_000,) * 3, (0, 0, 0)),
    ],
)
def test_fit_scales_the_levels_of_deep_pictures(mode: str, levels: tuple[float, ...], shown: tuple[float, ...]) -> None:
    picture = Pillow.new(mode, (480, 320))
    for number, level in enumerate(levels):
        picture.paste(level, (160 * number, 0, 160 * number + 160, 320))
    fit = Pillow.open(io.BytesIO(convert(encoded(picture, "TIFF")))).convert("L")
    assert [fit.getpixel((160 * number + 80, 160)) for number in range(3)] == pytest.approx(list(shown), abs=2)


def swapped() -> bytes:
    """Return a profile under which red is shown as green, and green as red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_fit_shows_the_colours_of_the_profile(mode: str) -> None:
    picture = Pillow.new("RGB", (400, 400), (200, 60, 60)).convert(mode)
    if mode == "RGBA":
        picture.putpixel((0, 0), (0, 0, 0, 0))
    fit = Pillow.open(io.BytesIO(convert(encoded(picture, "PNG", icc_profile=swapped()))))
    assert fit.getpixel((200, 200)) == pytest.approx((51, 204, 51) if mode == "P" else (60, 200, 60), abs=8)
    assert "icc_profile" not in fit.info


@pytest.mark.parametrize("profile", [swapped(), b"no profile"], ids=["of another space", "broken"])
def test_fit_ignores_a_profile_that_does_not_fit(profile: bytes) -> None:
    picture = Pillow.new("CMYK", (400, 400), (0, 200, 200, 0))
    plain = Pillow.open(io.BytesIO(convert(encoded(picture, "TIFF"))))
    fit = Pillow.open(io.BytesIO(convert(encoded(picture, "TIFF", icc_profile=profile))))
    assert fit.getpixel((200, 200)) == plain.getpixel((200, 200)) == pytest.approx((255, 55, 55), abs=8)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_fit_rotates_pixels_by_exif_orientation(orientation: int) -> None:
    picture = Pillow.linear_gradient("L").resize((500, 400))
    content = encoded(picture, "JPEG", orientation)
    fit = convert(content)
    wanted = ImageOps.exif_transpose(Pillow.open(io.BytesIO(content)))
    got = Pillow.open(io.BytesIO(fit))
    assert got.size == wanted.size
    assert not preflight(fit).turned
    for x, y in ((10, 10), (10, wanted.height - 10), (wanted.width - 10, 10)):
        assert got.getpixel((x, y)) == pytest.approx(wanted.getpixel((x, y)), abs=6)


def test_fit_shrinks_oversized_files() -> None:
    content = encoded(Pillow.effect_noise((5200, 2600), 90), "PNG")
    assert MAX_IMAGE_BYTES < len(content) < MAX_CONVERTED_BYTES
    assert preflight(content, fit=True).unfit
    facts = preflight(convert(content))
    assert facts.bytes <= MAX_IMAGE_BYTES
    assert facts.width / facts.height == pytest.approx(2, rel=0.01)
    assert 2000 < facts.width <= 4096


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    # A header that promises 60,000 x 60,000 pixels, as a PNG of a few bytes may.
    header = PNG[12:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:29]
    bomb = PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]
    with pytest.raises(InvalidJobError, match=r"cannot be converted: .* at most 120 million pixels, got 60000x60000"):
        convert(bomb)
    path = tmp_path / "bomb.webp"
    path.write_bytes(b"BM" + bytes(16) + (11_000).to_bytes(4, "little") * 2 + bytes(30))
    with pytest.raises(InvalidJobError, match=re.escape("expected at most 120 million pixels, got 11000x11000")):
        preflight(path, fit=True)


def test_fit_makes_pictures_of_many_pixels_smaller() -> None:
    """Before their copies are made, which took gigabytes."""
    with Pillow.open(io.BytesIO(convert(encoded(Pillow.new("RGBA", (6000, 5000)), "PNG")))) as picture:
        assert picture.size == (4096, 3413)
