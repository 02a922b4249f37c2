"""Pictures arrive as a viewer shows them, whether as files, bytes, open files, data URIs or PIL images."""

from __future__ import annotations

import base64
import hashlib
import io
import pickle
import random
import threading
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest
from PIL import Image as Pillow
from PIL import ImageCms

from kling_async import ConfigurationError, InvalidJobError, Job, KlingSession
from kling_async._core.content import Identity, content_of, recalled
from kling_async._core.images import EncodedImage
from kling_async._core.media import RECALLED_SUFFIXES
from kling_async._core.picture_facts import facts_of_bytes
from kling_async._core.pixels import as_shown, is_srgb
from kling_async._images.convert import convert, needs_conversion, verify
from kling_async._images.preflight import preflight
from kling_async._images.prepare import Preparation
from kling_async._session.session import engine_of
from kling_async.manifest import read_rows
from kling_async.testing import ScriptedTransport, json_response
from support.looks import SIZE, Look, bars, cut_out, encoded, exif, halves, ramp, swapped_profile, worst

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kling_async import HttpRequest, HttpResponse

pytestmark = pytest.mark.anyio

WORST = worst()


def check(content: bytes, look: Look) -> None:
    """Check that a picture that was sent is opaque, upright, of 8 bits and in sRGB, and looks as it should."""
    with Pillow.open(io.BytesIO(content)) as picture:
        assert picture.mode in {"RGB", "L"}
        assert picture.size == look.size
        assert is_srgb(picture.info.get("icc_profile", SRGB))
        assert picture.getexif().get(0x0112, 1) == 1
        plain = picture.convert("RGB")
    for place, colour in look.shown.items():
        assert plain.getpixel(place) == pytest.approx(colour, abs=8), place


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", WORST)
def test_converted_picture_looks_as_in_a_viewer(name: str) -> None:
    look = WORST[name]
    facts = preflight(look.content, fit=True)
    assert facts.unfit or needs_conversion(look.content)
    check(convert(look.content), look)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", [name for name in WORST if "HEIC" not in name])
def test_pil_image_looks_as_in_a_viewer(name: str) -> None:
    look = WORST[name]
    with Pillow.open(io.BytesIO(look.content)) as picture:
        check(cast("bytes", Job(prompt="x", image=picture).image), look)


class Storage:
    """A service that stores uploads, and accepts no job."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method == "PUT":
            self.stored.append(request.body or b"")
            return json_response({}, headers={"etag": '"1"'})
        number = len(self.stored)
        upload = {"method": "PUT", "url": f"https://storage.example/{number}", "headers": {}}
        data = {"download_url": f"https://cdn.example/{number}.png", "upload": upload}
        return json_response({"code": 200, "message": "success", "data": data})


def as_uri(content: bytes, _: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def as_path(content: bytes, folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(content)
    return path


WAYS: dict[str, Callable[[bytes, Path], Any]] = {
    "path": as_path,
    "bytes": lambda content, _: content,
    "file": lambda content, _: io.BytesIO(content),
    "data URI": as_uri,
    "PIL image": lambda content, _: Pillow.open(io.BytesIO(content)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fit", [True, False])
async def test_every_way_sends_the_same_look(way: str, fit: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- parameter
    """Without `fit`, PIL images alone are encoded, and all others are sent as they are."""
    look, storage = WORST["hidden colours"], Storage()
    source = WAYS[way](look.content, tmp_path)
    async with KlingSession("-", transport=ScriptedTransport(storage), fit=fit) as kling:
        url = await kling.upload(source)
    sent = base64.b64decode(url.partition(",")[2]) if way == "data URI" else storage.stored[0]
    if fit or way == "PIL image":
        check(sent, look)
    else:
        assert sent == look.content


@pytest.mark.parametrize("way", ["bytes", "file", "data URI", "path"])
async def test_other_formats_are_taken_from_everywhere(way: str, tmp_path: Path) -> None:
    source = WAYS[way](encoded(halves(), "WEBP"), tmp_path)
    storage = Storage()
    async with KlingSession("-", transport=ScriptedTransport(storage), fit=True) as kling:
        url = await kling.upload(source)
    assert url.startswith("data:image/jpeg") if way == "data URI" else preflight(storage.stored[0]).type == "image/jpeg"
    async with KlingSession("-", transport=ScriptedTransport(storage)) as kling:
        with pytest.raises(InvalidJobError, match="got WebP; the option fit converts it"):
            await kling.upload(WAYS[way](encoded(halves(), "WEBP"), tmp_path))


async def test_background_is_a_setting() -> None:
    look, storage = WORST["hidden colours"], Storage()
    async with KlingSession("-", transport=ScriptedTransport(storage), fit=True, background="#00ff00") as kling:
        await kling.upload(look.content)
    check(storage.stored[0], attrs.evolve(look, shown={(100, 160): (0, 255, 0), (400, 160): (0, 127, 0)}))
    with pytest.raises(ConfigurationError, match="expected the name of a colour or \"#rrggbb\", got 'nowhere'"):
        KlingSession("-", fit=True, background="nowhere")
    with pytest.raises(ConfigurationError, match="background: needs fit=True"):
        KlingSession("-", background="black")


async def test_pil_images_are_encoded_off_the_event_loop() -> None:
    threads: set[int] = set()

    class Watched(Pillow.Image):
        def getexif(self) -> Pillow.Exif:
            threads.add(threading.get_ident())
            return super().getexif()

    def picture() -> Pillow.Image:
        made = halves()
        made.__class__ = Watched
        return made

    async with KlingSession("-", transport=ScriptedTransport(Storage())) as kling:
        await kling.upload(picture())
        assert len(threads) == 1
        threads.clear()
        await kling._job(None, {"prompt": "x", "image": picture()})
    assert threads
    assert threading.get_ident() not in threads


async def test_upload_on_another_ground_is_found_by_the_digest_alone(tmp_path: Path) -> None:
    """As jobs in a ledger know images that were given as bytes; a session with white takes no part in it."""
    look, storage = WORST["hidden colours"], Storage()
    digest = hashlib.sha256(look.content).hexdigest()
    for background, uploads in (("black", 1), ("white", 2), ("black", 2)):
        transport = ScriptedTransport(storage)
        async with KlingSession(
            "-", transport=transport, fit=True, background=background, ledger=tmp_path / "run.db"
        ) as kling:
            url = await kling.upload(look.content)
            recorded = [await engine_of(kling).ledger.uploaded(digest + suffix, 0.0) for suffix in RECALLED_SUFFIXES]
        assert url in recorded
        assert len(storage.stored) == uploads


def test_graphics_are_sent_without_loss_and_photographs_as_jpeg() -> None:
    noise = Pillow.merge("RGB", [Pillow.effect_noise((400, 400), 90) for _ in "RGB"])
    dithered = noise.quantize(4).convert("RGB")
    exact = convert(encoded(dithered, "GIF"))
    assert preflight(exact).type == "image/png"
    with Pillow.open(io.BytesIO(exact)) as picture:
        assert picture.convert("RGB").tobytes() == dithered.tobytes()
    photograph = Pillow.linear_gradient("L").resize((400, 400))
    assert preflight(convert(encoded(photograph, "TIFF"))).type == "image/jpeg"


@pytest.mark.parametrize(
    ("mode", "levels", "shades"),
    [("F", (-10.0, 0.0, 10.0), (0, 127, 255)), ("I", (0, 500_000, 1_000_000), (0, 127, 255))],
)
def test_levels_without_a_scale_are_stretched(
    mode: str, levels: tuple[float, float, float], shades: tuple[int, ...]
) -> None:
    check(cast("bytes", Job(prompt="x", image=ramp(mode, levels)).image), bars(b"", *shades))


def test_levels_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InvalidJobError, match="expected finite levels"):
        Job(prompt="x", image=ramp("F", (float("inf"), 0.0, 1.0)))


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa"])
def test_rare_transparent_modes_lie_on_white(mode: str) -> None:
    picture = cut_out() if mode == "RGBa" else cut_out().convert("LA")
    shown = as_shown(picture.convert(mode)).convert("RGB")
    assert [shown.getpixel(place) for place in ((100, 160), (400, 160))] == [(255,) * 3, (127,) * 3]


def test_lab_is_shown_without_a_profile() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(halves(), to_lab)
    assert lab is not None
    shown = as_shown(lab)
    assert shown.getpixel((100, 160)) == pytest.approx((200, 40, 40), abs=4)


def test_caller_keeps_the_picture_as_it_was() -> None:
    picture = halves()
    picture.info["icc_profile"] = b"no profile"
    Job(prompt="x", image=picture)
    assert (picture.mode, picture.info) == ("RGB", {"icc_profile": b"no profile"})


def test_profile_is_not_lost_where_a_picture_becomes_a_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async._core.pixels.MAX_IMAGE_BYTES", 150_000)
    noise = Pillow.merge("RGB", [Pillow.effect_noise(SIZE, 20)] * 3)
    noise.paste((200, 60, 60), (0, 0, 100, 100))
    noise.info["icc_profile"] = swapped_profile()
    content = cast("bytes", Job(prompt="x", image=noise).image)
    assert content.startswith(b"\xff\xd8")
    check(content, Look(content, SIZE, {(50, 50): (60, 200, 60)}))


# Large pictures.


def test_pictures_of_phones_are_decoded_at_a_smaller_size() -> None:
    """As a JPEG of 108 million pixels: Pillow refuses it, and whole it would take 324 MB."""
    large = encoded(Pillow.new("L", (12_000, 9_000), 77), "JPEG", exif=b"Exif\0\0" + exif(6, 3))
    assert preflight(large, fit=True).turned
    with Pillow.open(io.BytesIO(convert(large))) as picture:
        assert picture.size == (3072, 4096)
        assert picture.getpixel((9, 9)) == pytest.approx(77, abs=2)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("JPEG", (20_000, 13_000), "at most 250 million pixels, got 20000x13000"),
        ("PNG", (12_000, 11_000), "at most 120 million pixels, got 12000x11000"),
    ],
)
def test_more_pixels_than_any_phone_has_are_refused(kind: str, size: tuple[int, int], said: str) -> None:
    content = encoded(Pillow.new("L" if kind == "JPEG" else "LA", (320, 320)), kind)
    if kind == "JPEG":
        place = content.index(b"\xff\xc0") + 5
        content = content[:place] + size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big") + content[place + 4 :]
    else:
        content = content[:16] + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big") + content[24:]
    with pytest.raises(InvalidJobError, match=said):
        convert(content) if kind == "JPEG" else preflight(content, fit=True)


# Damaged pictures.


def damaged(kind: str) -> bytes:
    """Return a picture whose pixels end in the middle, though its end is there."""
    noise = random.Random(0).randbytes(400 * 400)
    content = bytearray(encoded(Pillow.frombytes("L", (400, 400), noise), kind))
    middle = len(content) // 2
    content[middle : middle + 2000] = random.Random(1).randbytes(2000)
    return bytes(content)


@pytest.mark.parametrize("small_pixels", [400 * 400, 400 * 400 - 1])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
async def test_damaged_picture_is_found_before_it_is_sent(
    kind: str, small_pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Find it where it is read, and among the few large ones that are decoded at once."""
    monkeypatch.setattr("kling_async._images.prepare.SMALL_PIXELS", small_pixels)
    content, storage = damaged(kind), Storage()
    preflight(content)
    path = tmp_path / "a"
    path.write_bytes(content)
    for source in (content, path):
        async with KlingSession("-", transport=ScriptedTransport(storage)) as kling:
            with pytest.raises(InvalidJobError, match="is damaged: it cannot be decoded to its end"):
                await kling.upload(source)
        assert not storage.stored
    async with KlingSession("-", transport=ScriptedTransport(storage), verify=False) as kling:
        await kling.upload(content)
    assert storage.stored == [content]


@pytest.mark.parametrize(("small_pixels", "counted"), [(400 * 400, 0), (400 * 400 - 1, 1)])
async def test_only_few_large_pictures_are_decoded_at_once(
    small_pixels: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kling_async._images.prepare.SMALL_PIXELS", small_pixels)
    decoding: list[int] = []

    def counting(content: bytes, *, field: str) -> None:
        decoding.append(preparation._decoding.borrowed_tokens)
        verify(content, field=field)

    monkeypatch.setattr("kling_async._images.convert.verify", counting)
    preparation = Preparation()
    await preparation.read(encoded(Pillow.effect_noise((400, 400), 20), "PNG"), "image", None)
    assert decoding == [counted]


async def test_large_pictures_are_verified_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async._images.prepare.VERIFIED_PIXELS", 400 * 400 - 1)
    storage = Storage()
    async with KlingSession("-", transport=ScriptedTransport(storage)) as kling:
        await kling.upload(damaged("PNG"))
    async with KlingSession("-", transport=ScriptedTransport(storage), verify=True) as kling:
        with pytest.raises(InvalidJobError, match="is damaged"):
            await kling.upload(damaged("PNG"))


async def test_without_pillow_nothing_is_verified_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    storage = Storage()
    async with KlingSession("-", transport=ScriptedTransport(storage)) as kling:
        await kling.upload(damaged("PNG"))
    assert len(storage.stored) == 1
    with pytest.raises(ConfigurationError, match=r"verify: needs Pillow.*kling-async\[images\]"):
        KlingSession("-", verify=True)


def test_verifying_keeps_no_pixels() -> None:
    verify(encoded(Pillow.effect_noise((400, 400), 20), "JPEG"))


# Cautions.


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hidden colours", "has transparency"),
        ("transparent palette", "has transparency"),
        ("16-bit grey", "has 16 bits a channel"),
        ("colours of printing", "(CMYK)"),
        ("PNG turned at its end", "EXIF data rotates it"),
    ],
)
def test_what_may_come_out_wrong_is_told_and_settled_by_fit(name: str, said: str, tmp_path: Path) -> None:
    content = WORST[name].content
    job = Job(prompt="x", image=content)
    (caution,) = job.cautions()
    assert (caution.path, said in caution.message) == ("image", True)
    assert Job(prompt="x", image=as_uri(content, tmp_path)).cautions() == (caution,)
    assert job.cautions(fit=True) == ()
    images = [as_path(content, tmp_path), content, encoded(halves(), "PNG")]
    rows = [{"image": image} for image in images]
    assert read_rows(rows, prompt="x").cautions() == {caution: 2}
    assert read_rows(rows, prompt="x", fit=True).cautions() == {}


def test_plain_pictures_have_no_cautions() -> None:
    for kind in ("JPEG", "PNG"):
        facts = facts_of_bytes(encoded(halves(), kind))
        assert facts is not None
        assert facts.cautions == ()
        assert not facts.unfit


# Identity: what was paid for is known again.


def former(picture: Pillow.Image) -> bytes:
    """Return the bytes that earlier versions sent of a PIL image, and knew it by."""
    return encoded(picture.convert("RGB"), "PNG")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_plain_pil_images_are_encoded_as_ever(mode: str) -> None:
    picture = halves().convert(mode)
    if mode == "RGB":
        picture.info["icc_profile"] = SRGB
    image = Job(prompt="x", image=picture).image
    assert image == encoded(picture if mode in {"RGB", "L"} else picture.convert("RGB"), "PNG")
    if mode != "CMYK":
        assert cast("EncodedImage", image).former == {}


def test_batches_of_earlier_versions_know_a_picture_by_its_former_bytes() -> None:
    job, before = Job(prompt="x", image=cut_out()), Job(prompt="x", image=former(cut_out()))
    contents = {rule: content_of(job, sha256_of, identity=Identity(rule)) for rule in (1, 2, 3)}
    for rule in (1, 2):
        assert contents[rule].digest == content_of(before, sha256_of, identity=Identity(rule)).digest
    assert contents[3].digest != contents[2].digest
    other = Job(prompt="x", image=Pillow.new("RGBA", SIZE, (255, 0, 255, 0)))
    assert content_of(other, sha256_of).digest != contents[3].digest
    assert recalled(contents[3], {sha256_of(cast("bytes", job.image)): "https://cdn/1"}).image == "https://cdn/1"


def sha256_of(image: object) -> str:
    return hashlib.sha256(cast("bytes", image)).hexdigest()


def test_former_digests_outlive_copies_of_a_job() -> None:
    job = Job(prompt="x", image=cut_out())
    again = Job(prompt="x", image=cast("bytes", job.image))
    copies = [attrs.evolve(job), pickle.loads(pickle.dumps(job)), again]
    digests = cast("EncodedImage", job.image).former
    assert digests == dict.fromkeys((1, 2), sha256_of(former(cut_out())))
    assert [cast("EncodedImage", copy.image).former for copy in copies] == [digests] * 3
