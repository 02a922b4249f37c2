"""Senders of paid requests: provider, origin and API key, as a ledger keeps them.

The history of another account shows nothing of a job that this one sent. So absence from a history is evidence only for
jobs of the account whose history it is.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .secret import Secret

UNRECORDED = ""
"""Id that stands for the senders of jobs of versions that did not record them."""
_ID_DIGITS = 16


@attrs.frozen
class Sender:
    """A provider, the origin of its API, and an API key, which only its salted digest stands for.

    Attributes:
        id: Digest of the salt, provider, origin and key, in hex.
        provider: Name of the provider.
        origin: Base URL of its API.
        salt: Salt of the digest, in hex.
        same_as: Id of the sender that stands for the account: keys of one account, once seen to be so, have the same.
    """

    id: str
    provider: str
    origin: str
    salt: str
    same_as: str

    def is_of(self, provider: str, origin: str, key: Secret | None) -> bool:
        """Return whether the sender is this provider, origin and key."""
        return self.id == _digest(self.salt, provider, origin, key)

    @property
    def label(self) -> str:
        """Provider, origin, and the first digits of the id, for people to read."""
        return f"{self.provider} at {self.origin}, key {self.id[:6]}"


def new_sender(provider: str, origin: str, key: Secret | None) -> Sender:
    """Return a sender that no ledger has yet."""
    salt = secrets.token_hex(8)
    id_ = _digest(salt, provider, origin, key)
    return Sender(id_, provider, origin, salt, id_)


def same_account(senders: Iterable[Sender], sender: Sender) -> frozenset[str]:
    """Return the ids of all senders that are known to be of the account of one of them."""
    return frozenset(other.id for other in senders if other.same_as == sender.same_as) | {sender.id}


def _digest(salt: str, provider: str, origin: str, key: Secret | None) -> str:
    text = "\n".join((salt, provider, origin, "" if key is None else key.reveal()))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]
