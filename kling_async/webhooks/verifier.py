"""Whether a webhook is the service's, of now, and new (docs: verify-webhooks)."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from kling_async._clock import SystemClock
from kling_async._core.secret import Secret
from kling_async.errors import ConfigurationError, WebhookRefusal, WebhookRefusedError

if TYPE_CHECKING:
    from kling_async._core.clock import Clock

Secrets: TypeAlias = str | Secret | Iterable[str | Secret]
"""One secret of webhooks, or several that are accepted at once."""

TOLERANCE = 300.0
"""Seconds that a delivery's time may be off, either way: the vendor's own window."""

_PREFIX = "whsec_"
# The signed text is `{id}.{time}.{body}`: with a dot in the id it could be read in two ways.
_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIME = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"v3,([0-9a-f]{64})")


@attrs.frozen
class Verified:
    """What the signature vouches for, besides the body.

    Attributes:
        webhook_id: The delivery's id; in the vendor's sample, the prediction's.
        sent_at: When it was sent; seconds since the epoch, by the service's clock.
        digest: Of the id and the body, the same when a delivery is sent again.
    """

    webhook_id: str
    sent_at: int
    digest: bytes = attrs.field(repr=False)


@attrs.frozen
class _Claim:
    """What the headers say, believed of nobody yet."""

    webhook_id: str
    time: str
    signatures: tuple[str, ...]


def verify(
    headers: Mapping[str, str], body: bytes, secrets: Secrets, *, now: float, tolerance: float = TOLERANCE
) -> Verified:
    """Authenticate one delivery, without a memory: a replay within the window passes. See `WebhookVerifier`.

    Args:
        headers: Of the request; their names in any case.
        body: The bytes as they came.
        secrets: Those accepted, with or without `whsec_`.
        now: Seconds since the epoch.
        tolerance: Seconds that the delivery's time may be off, either way.

    Raises:
        WebhookRefusedError: It is not to be believed; `reason` says why.
        ConfigurationError: There is no secret, or one that cannot be.
    """
    return _authenticated(_claim(headers, now, tolerance), body, _keys(secrets))


class WebhookVerifier:
    """Tells the service's deliveries from all others, and new ones from those taken before.

    The memory is bounded: `remember` deliveries, the latest, for twice `tolerance` seconds. After that an exact replay
    is refused for its age; the service's own repetition, with a time of its own, is then taken once more. A new process
    remembers nothing: whoever is given deliveries takes old news for what it is.

    Args:
        secrets: One, or several that are accepted at once while one replaces another; text (`whsec_...`) or what
            `KlingSession.webhook_secret` gave.
        tolerance: Seconds that a delivery's time may be off, either way.
        remember: How many deliveries are remembered; about 150 bytes each.
        clock: Now; the system's by default.

    Raises:
        ConfigurationError: There is no secret, one that cannot be, or a number that cannot be.
    """

    def __init__(
        self, secrets: Secrets, *, tolerance: float = TOLERANCE, remember: int = 100_000, clock: Clock | None = None
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise ConfigurationError(f"tolerance is to be more than 0 seconds, not {tolerance}")
        if remember < 1:
            raise ConfigurationError(f"remember is to be at least 1, not {remember}")
        self._tolerance = tolerance
        self._remember = remember
        self._clock: Clock = clock or SystemClock()
        self._keys = _keys(secrets)
        self._taken: dict[bytes, float] = {}

    def rotate(self, secrets: Secrets) -> None:
        """Accept these from now on, and no others; what was taken stays remembered.

        Raises:
            ConfigurationError: There is no secret, or one that cannot be; nothing changes.
        """
        self._keys = _keys(secrets)

    def screen(self, headers: Mapping[str, str]) -> None:
        """Refuse by the headers alone what no body can save, before one is read.

        Raises:
            WebhookRefusedError: They are missing, malformed or stale.
        """
        _claim(headers, self._clock.now(), self._tolerance)

    def authenticate(self, headers: Mapping[str, str], body: bytes) -> Verified:
        """What `verify` gives, whether or not it was taken before.

        Raises:
            WebhookRefusedError: It is not the service's, or not of now.
        """
        return _authenticated(_claim(headers, self._clock.now(), self._tolerance), body, self._keys)

    def verify(self, headers: Mapping[str, str], body: bytes) -> Verified:
        """Authenticate one delivery and remember it.

        Args:
            headers: Of the request; their names in any case.
            body: The bytes as they came.

        Raises:
            WebhookRefusedError: It is not to be believed, or was taken before; `reason` says why.
        """
        verified = self.authenticate(headers, body)
        if not self.remember(verified):
            raise WebhookRefusedError("the webhook was taken before", reason=WebhookRefusal.REPLAYED)
        return verified

    def remember(self, verified: Verified) -> bool:
        """Remember a delivery as taken; False when it is so already."""
        now = self._clock.now()
        # Oldest first: each is kept equally long.
        while self._taken and next(iter(self._taken.values())) < now:
            del self._taken[next(iter(self._taken))]
        if verified.digest in self._taken:
            return False
        # Its time may lie `tolerance` ahead, and is good for as long after.
        self._taken[verified.digest] = now + 2 * self._tolerance
        if len(self._taken) > self._remember:
            del self._taken[next(iter(self._taken))]
        return True

    def forget(self, verified: Verified) -> None:
        """Let the same delivery come again: it could not be taken."""
        self._taken.pop(verified.digest, None)

    def __repr__(self) -> str:
        count = len(self._keys)
        return f"<WebhookVerifier with {count} secret{'s' if count > 1 else ''}, tolerance={self._tolerance:g}>"


def _keys(secrets: Secrets) -> tuple[Secret, ...]:
    given = (secrets,) if isinstance(secrets, (str, Secret)) else tuple(secrets)
    if not given:
        raise ConfigurationError("no secret of webhooks is given", advice="ask for it: await kling.webhook_secret()")
    return tuple(map(_key, given))


def _key(given: str | Secret) -> Secret:
    """The text after the prefix: it is not base64-decoded."""
    try:
        return Secret((given.reveal() if isinstance(given, Secret) else given).strip().removeprefix(_PREFIX))
    except ConfigurationError:
        # An empty one above all: anybody could sign with it.
        raise ConfigurationError("a secret of webhooks is empty or holds characters that no secret has") from None


def _claim(headers: Mapping[str, str], now: float, tolerance: float) -> _Claim:
    """The headers of a signature that is not stale."""
    folded = {name.lower(): value for name, value in headers.items()}
    try:
        claim = _Claim(folded["webhook-id"], folded["webhook-timestamp"], tuple(folded["webhook-signature"].split()))
    except KeyError as missing:
        raise WebhookRefusedError(f"the header {missing.args[0]} is missing", reason=WebhookRefusal.UNSIGNED) from None
    if not _ID.fullmatch(claim.webhook_id) or not _TIME.fullmatch(claim.time):
        raise WebhookRefusedError("the id or the time is not in its form", reason=WebhookRefusal.MALFORMED)
    signatures = tuple(match[1] for entry in claim.signatures if (match := _SIGNATURE.fullmatch(entry)))
    if not signatures:
        raise WebhookRefusedError("there is no signature in the form v3,<hex>", reason=WebhookRefusal.MALFORMED)
    off = now - int(claim.time)
    if not abs(off) <= tolerance:
        raise WebhookRefusedError(
            f"the webhook is of {abs(off):.0f} s {'ago' if off > 0 else 'ahead'}, and {tolerance:g} s are allowed",
            reason=WebhookRefusal.STALE,
            advice="if it is the service's, set this machine's clock",
        )
    return attrs.evolve(claim, signatures=signatures)


def _authenticated(claim: _Claim, body: bytes, keys: tuple[Secret, ...]) -> Verified:
    signed = f"{claim.webhook_id}.{claim.time}.".encode()
    genuine = False
    # All of them, always: how long it takes says nothing about which one was near.
    for key in keys:
        mac = hmac.new(key.reveal().encode(), signed, hashlib.sha256)
        mac.update(body)
        expected = mac.hexdigest()
        for signature in claim.signatures:
            genuine |= hmac.compare_digest(expected, signature)
    if not genuine:
        raise WebhookRefusedError(
            "no signature is of an accepted secret",
            reason=WebhookRefusal.FORGED,
            advice="if it is the service's, look whether its secret has changed: await kling.webhook_secret()",
        )
    digest = hashlib.sha256(f"{claim.webhook_id}.".encode())
    digest.update(body)
    return Verified(claim.webhook_id, int(claim.time), digest.digest())
