"""The page as a file: its content, and hostile text in it."""

from __future__ import annotations

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from kling_async import Job, KlingSession
from kling_async._core.text import one_line
from kling_async.emulator import Emulator, faults
from kling_async.emulator.tiny import TINY_MP4
from kling_async.errors import LedgerError
from kling_async.gallery import Gallery, gallery_of_ledger
from kling_async.gallery.cards import Deck
from kling_async.gallery.page import freeze, relative_to, render
from kling_async.ledger import Content, Entry, SQLiteLedger, State
from support.gallery import Script
from support.pictures import png

CONTENT = Content('{"duration":5,"image":"https://x.example/a.png","model":"kwaivgi/kling-v2.1-i2v-pro","prompt":"p"}')
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&\u2028\u202e\x00"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def frozen(deck: Deck, folder: Path) -> dict[str, Any]:
    return data_of(freeze(deck, deck.cards, folder).read_text("utf-8"))


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    plain, hostile = Deck("x"), Deck(HOSTILE)
    Script(plain.observer("wavespeed")).failed("a", "b", prompt="c", labels={"d": "e"})
    script = Script(hostile.observer("wavespeed"), batch=HOSTILE)
    script.failed(HOSTILE, HOSTILE, prompt=HOSTILE, labels={HOSTILE: HOSTILE})
    link = relative_to(tmp_path)
    tags = []
    for deck in (plain, hostile):
        reader = Tags()
        reader.feed(render(deck, deck.cards, link=link))
        tags.append(reader.found)
    assert tags[0] == tags[1], "hostile text adds no elements or attributes"
    (card,) = data_of(render(hostile, hostile.cards, link=link))["cards"]
    assert card["key"] == card["prompt"] == card["batch"] == HOSTILE
    assert card["labels"] == [[HOSTILE, HOSTILE]]
    assert one_line(HOSTILE) in card["trouble"]["message"]


def test_labels_are_text_in_their_order(tmp_path: Path) -> None:
    deck = Deck("x")
    script = Script(deck.observer("wavespeed"))
    given = {"sku": 2**60 + 1, "2": "blue", "1": 0.5, "none": None, "empty": "", "sold": False, "sizes": ["ü", 7]}
    script.admitted("a", labels=given | {"about": "long " * 200})
    script.admitted("b")
    labelled, bare = frozen(deck, tmp_path)["cards"]
    *short, (about, text) = labelled["labels"]
    assert short == [["sku", str(2**60 + 1)], ["2", "blue"], ["1", "0.5"], ["sold", "false"], ["sizes", '["ü", 7]']]
    assert (about, text[:10], len(text)) == ("about", "long long ", 501)
    assert "labels" not in bare


def test_page_omits_url_signatures(tmp_path: Path) -> None:
    deck = Deck("x")
    script = Script(deck.observer("wavespeed"))
    script.admitted("a")
    script.accepted("a")
    script.ended("a")
    folder = tmp_path / "gallery"
    page = freeze(deck, deck.cards, folder).read_text("utf-8")
    assert "signature" not in page
    assert "outputs.example" not in page


@pytest.mark.parametrize("name", ["a b#c?.mp4", "javascript:alert(1).mp4", "100%.mp4", "é\u202e.mp4", '"<>.mp4'])
def test_links_resolve_unusual_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    link = relative_to(tmp_path / "out" / "gallery")(path)
    assert re.fullmatch(r"[\w./~%-]+", link)
    assert (tmp_path / "out" / "gallery" / unquote(link)).resolve() == path.resolve()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only decodable file names")
def test_links_resolve_undecodable_names(tmp_path: Path) -> None:
    link = relative_to(tmp_path / "gallery")(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")))
    assert link == "../%FF.mp4"


def test_unencodable_text_is_written(tmp_path: Path) -> None:
    deck = Deck("a\udcff")
    script = Script(deck.observer("wavespeed"))
    script.failed("\udcfe", "\ud800")
    (card,) = frozen(deck, tmp_path)["cards"]
    assert card["key"] == "\udcfe"


def test_policy_has_digests_of_style_and_script() -> None:
    import base64  # noqa: PLC0415 -- used only here
    import hashlib  # noqa: PLC0415 -- see above

    page = render(Deck("x"), link=relative_to(Path()))
    digests = re.findall(r"'sha256-([^']+)'", page.replace("&#39;", "'"))
    for tag in (r"<style>(.*?)</style>", r'<script type="module">(.*?)</script>'):
        (content,) = re.findall(tag, page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in digests
    assert len(digests) == 2
    assert re.findall(r"\s(?:src|srcset|action|on\w+)=", page.partition("<script")[0]) == []
    script = page.partition('<script type="module">')[2]
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


pytestmark = pytest.mark.anyio


async def test_page_is_written_after_exception(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path / "gallery", title="spring", live=False)
    with pytest.raises(ZeroDivisionError):
        async with gallery:
            Script(gallery.observer()).admitted("a", image=png())
            raise ZeroDivisionError
    (card,) = data_of(gallery.index.read_text())["cards"]
    assert (tmp_path / "gallery" / card["image"]["poster"]).is_file()
    assert (tmp_path / "gallery" / card["image"]["full"]).read_bytes() == png()
    assert gallery.url is None


async def test_gallery_of_ledger_shows_batch(tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(png())
    images: dict[str, Path | bytes] = {"a": tmp_path / "face.png", "b": tmp_path / "face.png", "c": png()}
    jobs = {key: Job(prompt=f"Prompt {key}", image=image) for key, image in images.items()}
    async with Emulator(profile="tiny", level="gold", timing=0.0, speed=50) as emulator:
        failure = faults.FailTask(1405, "no")
        emulator.faults.add("submit", failure, when=lambda exchange: exchange.body.get("prompt") == "Prompt b")
        session = KlingSession(
            emulator.api_key, base_url=emulator.base_url, level="gold", ledger=tmp_path / "run.db", clock=emulator.clock
        )
        async with session as kling, kling.batch(jobs, name="spring") as batch:
            assert [outcome.ok async for outcome in batch].count(False) == 1
    page = gallery_of_ledger(tmp_path / "run.db", tmp_path / "one", batch="spring")
    cards = data_of(page.read_text())["cards"]
    assert {(card["key"], card["state"], card["prompt"], card["image"] is None) for card in cards} == {
        ("a", "unsaved", "Prompt a", False),
        ("b", "failed", "Prompt b", False),
        ("c", "unsaved", "Prompt c", True),
    }


async def test_page_of_several_batches_has_name_of_ledger(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "autumn.db")
    await ledger.open()
    for batch in ("b", "c"):
        await ledger.claim(batch, "here", content=CONTENT, model="kwaivgi/kling-v2.1-i2v-pro", at=1.0)
    await ledger.aclose()
    titles = {
        batch: data_of(gallery_of_ledger(tmp_path / "autumn.db", tmp_path / "gallery", batch=batch).read_text())[
            "title"
        ]
        for batch in (None, "b")
    }
    assert titles == {None: "autumn", "b": "b"}


async def test_video_moved_with_ledger_is_found(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    places = {"here": str(tmp_path / "gone" / "here.mp4"), "there": "s3://bucket/there.mp4"}
    for key, path in places.items():
        await ledger.claim("b", key, content=CONTENT, model="kwaivgi/kling-v2.1-i2v-pro", at=1.0)
        for state, at in ((State.INTENT, 2.0), (State.SUBMITTED, 2.0), (State.COMPLETED, 2.5)):
            await ledger.record(Entry(batch="b", key=key, state=state, at=at, prediction_id=key))
        await ledger.record(Entry(batch="b", key=key, state=State.DOWNLOADED, at=3.0, path=path, bytes=7))
    await ledger.aclose()
    (tmp_path / "here.mp4").write_bytes(TINY_MP4)
    data = data_of(gallery_of_ledger(tmp_path / "run.db", tmp_path / "gallery").read_text())
    cards = data["cards"]
    assert data["title"] == "b"
    assert {card["key"]: card["times"] for card in cards}["here"] == [2.0, 2.0, 2.5, 3.0]
    assert [(card["key"], card["video"], card["file"]) for card in cards] == [
        ("here", "../here.mp4", "here.mp4"),
        ("there", None, "s3://bucket/there.mp4"),
    ]


def test_missing_ledger_raises(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        gallery_of_ledger(tmp_path / "none.db", tmp_path)
