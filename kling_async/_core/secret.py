"""API keys that do not appear in logs, reprs and pickles."""

from __future__ import annotations

import re

from kling_async.errors import ConfigurationError


class Secret:
    """An API key. Only `reveal()` returns it; `repr`, `str` and formatting hide it, and pickling is refused."""

    __slots__ = ("__quoted", "__value")

    def __init__(self, value: str) -> None:
        value = value.strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigurationError(
                "API key: expected printable ASCII characters without spaces, got other or no characters"
            )
        self.__value = value
        # JSON may contain a character of the key as it is, with a backslash, or as a \u escape.
        self.__quoted = re.compile(
            "".join(
                letter if letter.isalnum() else rf"(?:(?i:\\u{ord(letter):04x})|\\{{0,2}}{re.escape(letter)})"
                for letter in value
            ).encode()
        )

    def reveal(self) -> str:
        """Return the key, for requests to the provider's own origin."""
        return self.__value

    def redact(self, body: bytes) -> bytes:
        """Return a body with every quoted key replaced by `***`."""
        return self.__quoted.sub(b"***", body)

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("Secret cannot be pickled or copied")
