"""Tokens in webhook URLs: they correlate a webhook with its job and authenticate nothing."""

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
"""Query parameter that holds the token.

In the query, not in the path: there is one route, many log formats omit queries, and tools that redact secrets look for
names with `token`.
"""

_TOKEN_IN_TEXT = re.compile(rf"({TOKEN_PARAMETER}=)[^&\s\"']*")


def new_token() -> str:
    """Return a random token of 256 bits, in characters that need no quoting in a URL."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Return the SHA-256 of a token in lower-case hex, the only form in which it is stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def url_with(base: str, token: str) -> str:
    """Return the webhook URL for one submit.

    Args:
        base: Public URL of the receiver; it may have a query of its own.
        token: Token made by `new_token`.

    Raises:
        ConfigurationError: `base` is not an https URL (http is allowed on loopback only), or has a fragment.
    """
    try:
        parts = urlsplit(base)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        raise ConfigurationError("webhook URL: expected https://host/path that the service can reach")
    if parts.fragment:
        raise ConfigurationError("webhook URL: expected no #fragment, which is never sent")
    parameter = f"{TOKEN_PARAMETER}={quote(token, safe='')}"
    return urlunsplit(parts._replace(query=f"{parts.query}&{parameter}" if parts.query else parameter))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HideTokens(logging.Filter):
    """Logging filter that redacts tokens in requested URLs.

    `aiohttp_handler` and `asgi_app` add it to the access logs of the usual servers. Add it to others by
    `logging.getLogger("my.access").addFilter(HideTokens())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record and keep it."""
        for name, value in vars(record).items():
            if isinstance(value, str):
                setattr(record, name, _redacted(value))
        if isinstance(record.args, tuple):
            # The arguments stay a tuple: formatters of servers unpack them.
            record.args = tuple(_redacted(part) if isinstance(part, str) else part for part in record.args)
        return True

    def __eq__(self, other: object) -> bool:
        # A logger does not add a filter that equals one it has.
        return isinstance(other, HideTokens)

    def __hash__(self) -> int:
        return hash(HideTokens)


def _redacted(text: str) -> str:
    return _TOKEN_IN_TEXT.sub(r"\1***", text)
