"""A key that does not show itself."""

from __future__ import annotations

import re

from kling_async.errors import ConfigurationError


class Secret:
    """An API key. Only `reveal()` gives it; `repr`, `str`, formatting and pickling do not."""

    __slots__ = ("__quoted", "__value")

    def __init__(self, value: str) -> None:
        value = value.strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigurationError("the API key is empty or holds characters that no key has")
        self.__value = value
        # A sign of a key may stand in JSON as itself, with a backslash or by its number.
        self.__quoted = re.compile(
            "".join(
                letter if letter.isalnum() else rf"(?:(?i:\\u{ord(letter):04x})|\\{{0,2}}{re.escape(letter)})"
                for letter in value
            ).encode()
        )

    def reveal(self) -> str:
        """The key itself, for the header of a request to the provider's own origin."""
        return self.__value

    def redact(self, body: bytes) -> bytes:
        """`body` without the key, for replies that quote it."""
        return self.__quoted.sub(b"***", body)

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")
