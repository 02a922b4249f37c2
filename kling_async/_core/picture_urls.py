"""Cautions about picture URLs that the service will probably not get a picture from, by the URL alone."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

_LOCAL_NAMES: Final = frozenset({"localhost", "host.docker.internal"})
_PRIVATE_SUFFIXES: Final = frozenset(
    {"local", "localdomain", "localhost", "internal", "intranet", "lan", "home", "corp"}
)
"""Last labels of names that no public server has (RFC 6762, RFC 8375 and common use)."""
_PAGES: Final = (
    (r"drive\.google\.com/(file/d/|open\b)", "Google Drive"),
    (r"docs\.google\.com/", "Google Docs"),
    (r"photos\.(google\.com|app\.goo\.gl)/", "Google Photos"),
    (r"(?:www\.)?dropbox\.com/(?!.*[?&](dl|raw)=1\b)", "Dropbox"),
    (r"(?:www\.|m\.)?imgur\.com/(?!.*\.(png|jpe?g)$)", "Imgur"),
    (r"(1drv\.ms|onedrive\.live\.com|[^/]+\.sharepoint\.com)/", "OneDrive"),
    (r"(?:www\.)?icloud\.com/|share\.icloud\.com/", "iCloud"),
    (r"github\.com/[^/]+/[^/]+/blob/(?!.*[?&]raw=(1|true)\b)", "GitHub"),
    (r"(?:www\.)?instagram\.com/", "Instagram"),
    (r"(?:www\.)?pinterest\.[a-z.]+/|pin\.it/", "Pinterest"),
    (r"(?:www\.)?flickr\.com/photos/", "Flickr"),
    (r"[a-z-]+\.wikipedia\.org/wiki/|commons\.wikimedia\.org/wiki/", "Wikipedia"),
    (r"(?:www\.)?unsplash\.com/photos/(?!.*/download\b)", "Unsplash"),
    (r"(?:www\.)?pexels\.com/photo/", "Pexels"),
    (r"ibb\.co/", "ImgBB"),
)
"""Addresses of pages that show a picture, and the names of their sites."""
_PAGE: Final = re.compile("|".join(f"(?P<p{number}>{pattern})" for number, (pattern, _) in enumerate(_PAGES)))
_SITES: Final = re.compile(
    r"\b(google|goo|dropbox|imgur|1drv|live|sharepoint|icloud|github|instagram|pinterest|pin|flickr|wikipedia|wikimedia"
    r"|unsplash|pexels|ibb)\.[a-z.]+$"
)
"""Names of all hosts in `_PAGES`."""
_OTHER_FORMAT: Final = re.compile(
    r"\.(webp|gif|bmp|tiff?|avif|hei[cf]|svg|psd|pdf|ico|jp2|jxl|raw|dng|cr2|nef|arw|html?|mp4|mov)$"
)
_ACCEPTED_SUFFIXES: Final = ("jpg", "jpeg", "png")


def url_caution(url: str, *, local: bool = False) -> str:
    """Return why the service will probably get no picture from an http(s) URL; empty if nothing is wrong by its looks.

    The text has no query and no user info, which may be credentials.

    Args:
        url: The URL.
        local: The service is an emulator on this machine, which reaches what this machine reaches.
    """
    # Manifests have millions of them, most from a few hosts.
    caution, is_page = _of_authority(url.split("/", 3)[2])
    if caution and not local:
        return caution
    if not is_page and url.endswith(_ACCEPTED_SUFFIXES):
        return ""
    authority, _, rest = url.partition("://")[2].partition("#")[0].partition("/")
    if is_page and (found := _PAGE.match(f"{_host(authority)}/{rest.lower()}")):
        site = _PAGES[int((found.lastgroup or "p0")[1:])][1]
        return f"is a page of {site} by its address, and no picture: give the address of the picture itself, or a file"
    if suffix := _OTHER_FORMAT.search(rest.partition("?")[0].lower()):
        return f"is no JPEG or PNG by its name ({suffix[0]}), and the service may refuse it: fit converts files alone"
    return ""


def _host(authority: str) -> str:
    """Return the host and the port of a URL's authority, behind which a query or a fragment may stand."""
    return re.split("[?#]", authority, maxsplit=1)[0].rpartition("@")[2].lower()


@lru_cache(1024)
def _of_authority(authority: str) -> tuple[str, bool]:
    """Return the caution about a host, and whether it may have pages that show a picture."""
    host = _host(authority)
    name = host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
    return _host_caution(name), _SITES.search(name) is not None


def _host_caution(name: str) -> str:
    """Return why the service cannot reach a host; empty if it probably can."""
    label = name.rpartition(".")[2]
    here, near = name in _LOCAL_NAMES, label in _PRIVATE_SUFFIXES or label == name
    if near or not label.isalpha():
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            here, near = address.is_loopback or address.is_unspecified, not address.is_global
    if not here and not near:
        return ""
    where = "on this machine" if here else "in a private network"
    return f"is {where} ({name}), where the service cannot fetch it: give it as a file, which is uploaded"
