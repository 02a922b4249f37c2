"""The links of README.md and docs/, the coverage of the API reference, and the hook that keeps the site to itself."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import kling_async
from support.pages import DOCS, ROOT, pages

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2|`[^`\n]+`", re.MULTILINE | re.DOTALL)
REFERENCE = DOCS / "reference"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Return the links of a page to files, or places in them, that are not there."""
    found = []
    for link in LINK.finditer(CODE.sub("", page.read_text())):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if anchor in {"only-light", "only-dark"}:  # the theme of a picture
            anchor = ""
        if not path.is_file() or (anchor and anchor not in anchors(path)):
            found.append(link["target"])
    return found


def test_every_link_leads_somewhere() -> None:
    assert {page.name: links for page in pages() if (links := broken(page))} == {}


def test_a_link_to_a_missing_file_or_anchor_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[a](page.md#one-two) [b](other.md) [c](#three) [d](https://example.com) `[e](f)`\n")
    assert broken(page) == ["other.md", "#three"]


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(page.relative_to(DOCS).as_posix() for page in pages() if DOCS in page.parents)


def identifiers() -> list[str]:
    """Return the names that the pages of the API reference describe."""
    return [
        name for page in REFERENCE.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]


def resolve(name: str) -> object:
    """Import a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), attribute)


def exported(module: ModuleType) -> list[str]:
    return getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]


def test_api_reference_describes_every_public_name_once() -> None:
    names = identifiers()
    assert len(names) == len(set(names))
    described = []
    for name in names:
        what = resolve(name)
        described += [getattr(what, one) for one in exported(what)] if isinstance(what, ModuleType) else [what]
    modules = [what for what in map(resolve, names) if isinstance(what, ModuleType)]
    missing = [
        name
        for name in kling_async.__all__
        if not any(getattr(kling_async, name) is what for what in [*described, *modules])
    ]
    assert missing == []


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """Load what MkDocs loads."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ('<script src="https://unpkg.example/x.js"></script>', 1),
        ('<link rel="stylesheet" href="//fonts.example/css">', 1),
        ('<img src="https://badge.example/x.svg">', 1),
        ('<pre class="mermaid"><code>graph</code></pre>', 1),
        ("<style>@import 'https://fonts.example/x.css';</style>", 1),
        ('<p style="background: url(https://x.example/y.png)"></p>', 1),
        ('<a href="https://example.com">a link</a>', 0),
        ('<link rel="canonical" href="https://docs.example/">', 0),
        ('<script src="assets/x.js"></script><img src="x.svg"><code>src="https://x"</code>', 0),
    ],
)
def test_hook_finds_what_comes_from_other_hosts(hooks: ModuleType, page: str, count: int) -> None:
    assert len(hooks.foreign(page)) == count


def test_hook_fails_the_build_of_such_a_site(hooks: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<img src="x.svg">')
    (tmp_path / "main.css").write_text("a { color: red }")
    hooks.on_post_build({"site_dir": str(tmp_path)})
    (tmp_path / "main.css").write_text("a { background: url(https://x.example/y.png) }")
    with pytest.raises(RuntimeError, match=r"main\.css"):
        hooks.on_post_build({"site_dir": str(tmp_path)})
