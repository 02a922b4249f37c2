"""The token in a webhook's URL: it tells which job the webhook is about, and proves nothing."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import re
import secrets
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from kling_async.errors import ConfigurationError

TOKEN_PARAMETER: Final = "kling_token"  # noqa: S105 -- its name, not a secret
"""The query parameter that holds the token.

A query and not a path: the route stays one, much that logs URLs leaves queries out, and what hides secrets in them
looks for names with `token`.
"""

_SHOWN = re.compile(rf"({TOKEN_PARAMETER}=)[^&\s\"']*")


def new_token() -> str:
    """A token that nobody guesses: 256 bits, in signs that a URL holds as they are."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is kept of a token: SHA-256, lower-case hex."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def url_with(base: str, token: str) -> str:
    """The URL to give with one submit.

    Args:
        base: Where the receiver is reached from outside; it may have a query of its own.
        token: Of `new_token`.

    Raises:
        ConfigurationError: `base` is no https URL (http is taken for this machine alone), or has a fragment.
    """
    try:
        parts = urlsplit(base)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_this_machine(host))):
        raise ConfigurationError("the URL for webhooks is to be an https URL that the service can reach")
    if parts.fragment:
        raise ConfigurationError("the URL for webhooks has a fragment, which is never sent")
    said = f"{TOKEN_PARAMETER}={quote(token, safe='')}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{said}" if parts.query else said))


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HideTokens(logging.Filter):
    """Blanks tokens in the log of a web server, which writes down the URLs that were asked for.

    `aiohttp_handler` and `asgi_app` add it to the access logs of the usual servers; add it to others:
    `logging.getLogger("my.access").addFilter(HideTokens())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Blank what the record says; let it pass."""
        for name, value in vars(record).items():
            if isinstance(value, str):
                setattr(record, name, _blanked(value))
        if isinstance(record.args, tuple):
            # As a tuple and part by part: formatters of servers take it apart.
            record.args = tuple(_blanked(part) if isinstance(part, str) else part for part in record.args)
        return True

    def __eq__(self, other: object) -> bool:
        # A logger takes an equal filter once.
        return isinstance(other, HideTokens)

    def __hash__(self) -> int:
        return hash(HideTokens)


def _blanked(text: str) -> str:
    return _SHOWN.sub(r"\1***", text)
