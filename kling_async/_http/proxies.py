"""Proxies: which one a URL has, and connections through SOCKS."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from kling_async.errors import ConfigurationError

if TYPE_CHECKING:
    import aiohttp

_HTTP = frozenset({"http", "https"})
_SOCKS = frozenset({"socks", "socks4", "socks4a", "socks5", "socks5h"})
_RESOLVING_SOCKS = frozenset({"socks4a", "socks5h"})
"""Schemes by which the proxy looks up the host names, as for curl."""


class Proxies:
    """Finds the proxy of a URL.

    aiohttp's `trust_env` is not used: it also reads `.netrc`, and then sends those credentials to output hosts or
    refuses requests that have an Authorization header; and it passes over `ALL_PROXY` and SOCKS without a word.

    Args:
        proxy: Proxy of every URL.
        trust_env: Use the proxies of the environment (`HTTPS_PROXY`, `ALL_PROXY`, ...) if there is no `proxy`.

    Raises:
        ConfigurationError: `proxy` is no URL of a proxy that can be used.
    """

    def __init__(self, proxy: str | None, *, trust_env: bool) -> None:
        self._proxy = None if proxy is None else _usable(proxy, "proxy=")
        self._trust_env = trust_env
        self._by_origin: dict[tuple[str, str], str | None] = {}

    def of(self, url: str) -> str | None:
        """Return the proxy of a URL; None without one.

        Raises:
            ConfigurationError: The environment's proxy cannot be used.
        """
        if self._proxy is not None or not self._trust_env:
            return self._proxy
        try:
            parts = urlsplit(url)
            origin = scheme, host = parts.scheme, parts.hostname or ""
        except ValueError:
            return None
        if origin not in self._by_origin:
            proxies = {} if proxy_bypass(host) else getproxies()
            name = scheme if proxies.get(scheme) else "all"
            found = proxies.get(name)
            self._by_origin[origin] = _usable(found, f"{name.upper()}_PROXY") if found else None
        return self._by_origin[origin]


def is_socks(proxy: str) -> bool:
    """Return whether a proxy is a SOCKS proxy."""
    return urlsplit(proxy).scheme in _SOCKS


def socks_connector(proxy: str, *, limit_per_host: int, keepalive_timeout: float) -> aiohttp.BaseConnector:
    """Return a connector that connects through a SOCKS proxy."""
    # In the extra `socks`; `_usable` has looked for it.
    from aiohttp_socks import ProxyConnector, ProxyType  # noqa: PLC0415 -- see above

    parts = urlsplit(proxy)
    four = parts.scheme in {"socks4", "socks4a"}
    return ProxyConnector(
        host=parts.hostname or "",
        port=parts.port or 1080,
        proxy_type=ProxyType.SOCKS4 if four else ProxyType.SOCKS5,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        rdns=parts.scheme in _RESOLVING_SOCKS,
        limit=0,
        limit_per_host=limit_per_host,
        keepalive_timeout=keepalive_timeout,
    )


def _usable(proxy: str, source: str) -> str:
    """Return a proxy as a URL.

    Raises:
        ConfigurationError: It is none, or SOCKS, and aiohttp-socks is not installed. The text has no password.
    """
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(url)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host = "", None
    if not host or scheme not in _HTTP | _SOCKS:
        raise ConfigurationError(
            f"{source}: expected a URL such as http://host:3128 or socks5h://host:1080, got "
            f"{scheme}:// {'with' if host else 'without'} a host; nothing was sent",
            advice="correct it, or exempt the host with NO_PROXY",
        )
    if scheme in _SOCKS and find_spec("aiohttp_socks") is None:
        raise ConfigurationError(
            f"{source}: {scheme}:// needs aiohttp-socks, which is not installed; nothing was sent",
            advice="pip install 'kling-async[socks]', or exempt the host with NO_PROXY",
        )
    return url
