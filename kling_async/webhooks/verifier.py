"""Verification of webhooks: signature, age and novelty (docs: verify-webhooks)."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import attrs

from kling_async._clock import SystemClock
from kling_async._core.frames import hides_arguments
from kling_async._core.secret import Secret
from kling_async.errors import ConfigurationError, WebhookRefusal, WebhookRefusedError

if TYPE_CHECKING:
    from kling_async._core.clock import Clock

Secrets: TypeAlias = str | Secret | Iterable[str | Secret]
"""Webhook secret, or several that are accepted at once."""

TOLERANCE_S = 300.0
"""Default difference in seconds allowed between a delivery's time and now, either way: the vendor's own window."""

_PREFIX = "whsec_"
# No dot in the id: the signed text is `{id}.{time}.{body}`, which would be ambiguous.
_ID = re.compile(r"[!-\-/-~]{1,256}")
_TIME = re.compile(r"[0-9]{1,12}")
_SIGNATURE = re.compile(r"v3,([0-9a-f]{64})")


@attrs.frozen
class Verified:
    """Data that the signature covers, apart from the body.

    Attributes:
        webhook_id: The delivery's id; in the vendor's sample, the prediction's.
        sent_at: Time of sending by the service's clock; seconds since the epoch.
        digest: SHA-256 of id and body; the same when a delivery is sent again.
    """

    webhook_id: str
    sent_at: int
    digest: bytes = attrs.field(repr=False)


@attrs.frozen
class _SignedHeaders:
    """Parsed headers of a signature, not verified yet."""

    webhook_id: str
    time: str
    signatures: tuple[str, ...]


@hides_arguments
def verify(
    headers: Mapping[str, str], body: bytes, secrets: Secrets, *, now: float, tolerance: float = TOLERANCE_S
) -> Verified:
    """Verify signature and age of one delivery. Duplicates are not detected; `WebhookVerifier` does that.

    Args:
        headers: Headers of the request; names in any case.
        body: The received bytes.
        secrets: Accepted secrets, with or without `whsec_`.
        now: Seconds since the epoch.
        tolerance: Seconds by which the delivery's time may differ from `now`, either way.

    Raises:
        WebhookRefusedError: Verification failed; `reason` says why.
        ConfigurationError: There is no secret, or an invalid one.
    """
    return _authenticated(_signed_headers(headers, now, tolerance), body, _keys(secrets))


class WebhookVerifier:
    """Verifies signature and age of deliveries and detects duplicates.

    The latest `remember` deliveries are remembered, each for twice `tolerance` seconds. Later, an exact replay is
    refused for its age, but the service's own retry, which has a new time, would be accepted once more. A new process
    remembers nothing, so consumers must tolerate outdated deliveries.

    Args:
        secrets: One secret, or several while one replaces another; text (`whsec_...`) or the result of
            `KlingSession.webhook_secret`.
        tolerance: Seconds by which a delivery's time may differ from now, either way.
        remember: Number of deliveries to remember; about 150 bytes each.
        clock: Clock for the present time; by default the system's.

    Raises:
        ConfigurationError: There is no secret, or an invalid one, or a number is out of range.
    """

    @hides_arguments
    def __init__(
        self, secrets: Secrets, *, tolerance: float = TOLERANCE_S, remember: int = 100_000, clock: Clock | None = None
    ) -> None:
        if not 0 < tolerance < math.inf:
            raise ConfigurationError(f"tolerance: expected more than 0 seconds, got {tolerance}")
        if remember < 1:
            raise ConfigurationError(f"remember: expected at least 1, got {remember}")
        self._tolerance = tolerance
        self._remember = remember
        self._clock: Clock = clock or SystemClock()
        self._keys = _keys(secrets)
        self._expiry_by_digest: dict[bytes, float] = {}

    @hides_arguments
    def rotate(self, secrets: Secrets) -> None:
        """Replace the accepted secrets; remembered deliveries are kept.

        Raises:
            ConfigurationError: There is no secret, or an invalid one; nothing changes.
        """
        self._keys = _keys(secrets)

    def screen(self, headers: Mapping[str, str]) -> None:
        """Check the headers alone, before the body is read.

        Raises:
            WebhookRefusedError: They are missing, malformed or stale.
        """
        _signed_headers(headers, self._clock.now(), self._tolerance)

    def authenticate(self, headers: Mapping[str, str], body: bytes) -> Verified:
        """Verify signature and age of one delivery, without remembering it or checking for a duplicate.

        Raises:
            WebhookRefusedError: The signature is invalid, or the delivery too old.
        """
        return _authenticated(_signed_headers(headers, self._clock.now(), self._tolerance), body, self._keys)

    def verify(self, headers: Mapping[str, str], body: bytes) -> Verified:
        """Verify one delivery and remember it.

        Args:
            headers: Headers of the request; names in any case.
            body: The received bytes.

        Raises:
            WebhookRefusedError: Verification failed, or it is a duplicate; `reason` says why.
        """
        verified = self.authenticate(headers, body)
        if not self.remember(verified):
            raise WebhookRefusedError("the webhook was received before", reason=WebhookRefusal.REPLAYED)
        return verified

    def remember(self, verified: Verified) -> bool:
        """Remember a delivery; return False if it is a duplicate."""
        now = self._clock.now()
        # All are kept equally long, so the first in the dictionary expires first.
        while self._expiry_by_digest and next(iter(self._expiry_by_digest.values())) < now:
            del self._expiry_by_digest[next(iter(self._expiry_by_digest))]
        if verified.digest in self._expiry_by_digest:
            return False
        # Its time may be `tolerance` ahead of now and is accepted until `tolerance` after it.
        self._expiry_by_digest[verified.digest] = now + 2 * self._tolerance
        if len(self._expiry_by_digest) > self._remember:
            del self._expiry_by_digest[next(iter(self._expiry_by_digest))]
        return True

    def forget(self, verified: Verified) -> None:
        """Accept the same delivery when it comes again, after it could not be processed."""
        self._expiry_by_digest.pop(verified.digest, None)

    def __repr__(self) -> str:
        count = len(self._keys)
        return f"<WebhookVerifier with {count} secret{'s' if count > 1 else ''}, tolerance={self._tolerance:g}>"


def _keys(secrets: Secrets) -> tuple[Secret, ...]:
    given = (secrets,) if isinstance(secrets, (str, Secret)) else tuple(secrets)
    if not given:
        raise ConfigurationError("no webhook secret given", advice="request it: await kling.webhook_secret()")
    return tuple(map(_key, given))


def _key(given: str | Secret) -> Secret:
    """Return the key of the HMAC: the text after the prefix, which is not base64-decoded."""
    try:
        return Secret((given.reveal() if isinstance(given, Secret) else given).strip().removeprefix(_PREFIX))
    except ConfigurationError:
        # An empty secret would let anyone sign.
        raise ConfigurationError("webhook secret: empty, or contains characters that no secret has") from None


def _signed_headers(headers: Mapping[str, str], now: float, tolerance: float) -> _SignedHeaders:
    """Parse the headers of a signature and check its age.

    Raises:
        WebhookRefusedError: A header is missing or malformed, or the time is outside the tolerance.
    """
    folded = {name.lower(): value for name, value in headers.items()}
    try:
        signed = _SignedHeaders(
            folded["webhook-id"], folded["webhook-timestamp"], tuple(folded["webhook-signature"].split())
        )
    except KeyError as missing:
        raise WebhookRefusedError(f"header {missing.args[0]} is missing", reason=WebhookRefusal.UNSIGNED) from None
    if not _ID.fullmatch(signed.webhook_id) or not _TIME.fullmatch(signed.time):
        raise WebhookRefusedError("webhook-id or webhook-timestamp is malformed", reason=WebhookRefusal.MALFORMED)
    signatures = tuple(match[1] for entry in signed.signatures if (match := _SIGNATURE.fullmatch(entry)))
    if not signatures:
        raise WebhookRefusedError("webhook-signature: expected v3,<64 hex digits>", reason=WebhookRefusal.MALFORMED)
    age = now - int(signed.time)
    if not abs(age) <= tolerance:
        raise WebhookRefusedError(
            f"sent {abs(age):.0f} s {'ago' if age > 0 else 'ahead of now'}, at most {tolerance:g} s allowed",
            reason=WebhookRefusal.STALE,
            advice="if it comes from the service, set this machine's clock",
        )
    return attrs.evolve(signed, signatures=signatures)


def _authenticated(headers: _SignedHeaders, body: bytes, keys: tuple[Secret, ...]) -> Verified:
    if not _is_genuine(headers, body, keys):
        raise WebhookRefusedError(
            "no signature matches an accepted secret",
            reason=WebhookRefusal.FORGED,
            advice="if it comes from the service, its secret may have changed: await kling.webhook_secret()",
        )
    digest = hashlib.sha256(f"{headers.webhook_id}.".encode())
    digest.update(body)
    return Verified(headers.webhook_id, int(headers.time), digest.digest())


def _is_genuine(headers: _SignedHeaders, body: bytes, keys: tuple[Secret, ...]) -> bool:
    """Return whether a signature matches. Raises nothing: tracebacks would show the signature that was expected."""
    prefix = f"{headers.webhook_id}.{headers.time}.".encode()
    genuine = False
    # All combinations are compared, so that timing does not reveal which one nearly matched.
    for key in keys:
        mac = hmac.new(key.reveal().encode(), prefix, hashlib.sha256)
        mac.update(body)
        expected = mac.hexdigest()
        for signature in headers.signatures:
            genuine |= hmac.compare_digest(expected, signature)
    return genuine
