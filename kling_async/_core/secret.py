"""API keys that do not appear in logs, reprs, tracebacks and pickles."""

from __future__ import annotations

import re

from kling_async.errors import ConfigurationError

from .frames import hides_arguments

MIN_REDACTED_LENGTH = 8
"""Least length in characters of a key that is redacted: a shorter one is a placeholder, and part of other words."""


class Secret:
    """An API key. Only `reveal()` returns it; `repr`, `str` and formatting hide it, and pickling is refused."""

    __slots__ = ("__quoted", "__value")

    @hides_arguments
    def __init__(self, value: str) -> None:
        value = value.strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigurationError(
                "API key: expected printable ASCII characters without spaces, got other or no characters"
            )
        self.__value = value
        self.__quoted = re.compile("".join(map(_in_json, value)).encode())

    def reveal(self) -> str:
        """Return the key, for requests to the provider's own origin."""
        return self.__value

    def redact(self, body: bytes) -> bytes:
        """Return a body with every quoted key replaced by `***`."""
        return self.__quoted.sub(b"***", body) if self._may_be_in(body) else body

    def redact_json(self, body: bytes, value: object) -> object:
        """Return a decoded body with every quoted key replaced by `***`.

        Args:
            body: The body.
            value: What it was decoded to.
        """
        return self._redacted(value) if self._may_be_in(body) else value

    def _may_be_in(self, body: bytes) -> bool:
        """Return whether a body may quote the key. Nearly all do not, which is seen without the slow pattern."""
        long = len(self.__value) >= MIN_REDACTED_LENGTH
        return long and (self.__value.encode() in body or b"\\" in body)

    def _redacted(self, value: object) -> object:
        if isinstance(value, str):
            return self.redact(value.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
        if isinstance(value, list):
            return [self._redacted(item) for item in value]
        if isinstance(value, dict):
            return {self._redacted(name): self._redacted(item) for name, item in value.items()}
        return value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __reduce__(self) -> str:
        raise TypeError("Secret cannot be pickled or copied")


def _in_json(letter: str) -> str:
    """Return a pattern of a letter in JSON: as it is, escaped by its number, or, if it is a sign, with backslashes."""
    backslashes = "" if letter.isalnum() else r"\\{0,2}"
    return rf"(?:(?i:\\u{ord(letter):04x})|{backslashes}{re.escape(letter)})"
