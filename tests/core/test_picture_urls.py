"""Cautions about picture URLs that the service gets no picture from."""

from __future__ import annotations

import pytest

from kling_async import Job
from kling_async._core.picture_urls import url_caution
from kling_async.manifest import read_rows
from kling_async.providers._v3 import is_local


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost:8000/a.jpg", "on this machine (localhost)"),
        ("http://127.0.0.1/a.jpg", "on this machine (127.0.0.1)"),
        ("http://[::1]:8000/a.jpg", "on this machine (::1)"),
        ("http://0.0.0.0/a.jpg", "on this machine (0.0.0.0)"),
        ("http://192.168.1.20/a.jpg", "in a private network (192.168.1.20)"),
        ("https://user:word@10.0.0.4:8443/a.jpg?token=secret", "in a private network (10.0.0.4)"),
        ("http://169.254.169.254/a.jpg", "in a private network (169.254.169.254)"),
        ("http://[fd00::1]/a.jpg", "in a private network (fd00::1)"),
        ("http://NAS.local/a.jpg", "in a private network (nas.local)"),
        ("http://nas/a.jpg", "in a private network (nas)"),
        ("https://pictures.internal/a.jpg", "in a private network (pictures.internal)"),
        ("https://drive.google.com/file/d/1a2b/view?usp=sharing", "a page of Google Drive"),
        ("https://drive.google.com/open?id=1a2b", "a page of Google Drive"),
        ("https://www.dropbox.com/s/1a2b/a.jpg?dl=0", "a page of Dropbox"),
        ("https://imgur.com/a1b2c3d", "a page of Imgur"),
        ("https://imgur.com/gallery/a1b2c3d", "a page of Imgur"),
        ("https://photos.app.goo.gl/a1b2", "a page of Google Photos"),
        ("https://1drv.ms/i/s!a1b2", "a page of OneDrive"),
        ("https://github.com/owner/name/blob/main/a.png", "a page of GitHub"),
        ("https://en.wikipedia.org/wiki/File:A.jpg", "a page of Wikipedia"),
        ("https://pictures.example/a.webp?width=600", "no JPEG or PNG by its name (.webp)"),
        ("https://pictures.example/A.HEIC", "no JPEG or PNG by its name (.heic)"),
        ("https://pictures.example/a.svg", "no JPEG or PNG by its name (.svg)"),
    ],
)
def test_what_the_service_cannot_reach_is_told(url: str, said: str) -> None:
    caution = url_caution(url)
    assert said in caution
    assert "secret" not in caution
    assert "word" not in caution


@pytest.mark.parametrize(
    "url",
    [
        "https://pictures.example/a.jpg",
        "https://pictures.example",
        "https://pictures.example?name=a.webp",
        "https://pictures.example/a.jpg?format=.webp#b.gif",
        "https://pictures.example:8443/photos/a",
        "https://8.8.8.8/a.jpg",
        "https://[2606:4700::1111]/a.jpg",
        "https://drive.google.com/uc?export=download&id=1a2b",
        "https://www.dropbox.com/s/1a2b/a.jpg?raw=1",
        "https://dl.dropboxusercontent.com/s/1a2b/a.jpg",
        "https://i.imgur.com/a1b2c3d.jpg",
        "https://imgur.com/a1b2c3d.png",
        "https://raw.githubusercontent.com/owner/name/main/a.png",
        "https://github.com/owner/name/blob/main/a.png?raw=true",
        "https://upload.wikimedia.org/wikipedia/commons/a/a9/A.jpg",
        "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/a.jpg",
        "https://pictures.xn--p1ai/a.jpg",
    ],
)
def test_usual_addresses_have_no_caution(url: str) -> None:
    assert url_caution(url) == ""


def test_emulator_on_this_machine_reaches_what_this_machine_reaches() -> None:
    near = "http://localhost:8000/a.jpg"
    assert url_caution(near, local=True) == ""
    assert "is no JPEG or PNG by its name" in url_caution("http://192.168.1.20/a.webp", local=True)
    manifest = read_rows([{"image": near, "prompt": "x"}])
    assert len(manifest.cautions()) == 1
    assert manifest.cautions(local=True) == {}
    for url, local in {
        "http://127.0.0.1:8000": True,
        "http://localhost:8000/x": True,
        "https://api.wavespeed.ai": False,
        "http://192.168.1.20": False,
    }.items():
        assert is_local(url) is local


def test_cautions_are_grouped_by_field_and_cause() -> None:
    near, far = "http://192.168.1.20/{}.jpg", "https://pictures.example/{}.jpg"
    rows = [{"image": (near if number < 3 else far).format(number)} for number in range(5)]
    rows.append({"image": far.format(9), "end_image": near.format(9), "model": "kling-v2.1-pro-start-end-frame"})
    manifest = read_rows(rows, prompt="x")
    said = {caution.path: count for caution, count in manifest.cautions().items()}
    assert said == {"image": 3, "end_image": 1}
    assert read_rows(rows, prompt="x", fit=True).cautions() == manifest.cautions(), "fit converts files alone"
    job = Job(prompt="x", model="kling-v4.0", image=far.format(1), keyframes=[far.format(2), near.format(3)])
    assert [caution.path for caution in job.cautions() if "network" in caution.message] == ["keyframes"]
