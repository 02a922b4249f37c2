"""Errors about arguments show none of the secrets among them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kling_async import ConfigurationError, KlingError, KlingSession, Secret, WebhookRefusal, WebhookRefusedError
from kling_async._http.transport import AiohttpTransport
from kling_async.cli.ledgers import LedgerName
from kling_async.ledger import is_url, open_ledger, read_batches, read_identity, read_ledger, read_steps
from kling_async.ledger.postgres import PostgresLedger
from kling_async.limits.shared import SharedStartsPerWindow
from kling_async.providers.gptproto import GPTProto
from kling_async.providers.wavespeed import WaveSpeed
from kling_async.testing import ScriptedTransport, VirtualClock, json_response
from kling_async.webhooks import WebhookVerifier, verify
from support.leaks import error_of, leaks, raised_by

KEY = "wsk_key_of_this_test"
MALFORMED = f"{KEY} with spaces"
SECRETS = (KEY,)
PROXY = f"http://user:{KEY}@proxy.example:3128"
DATABASE = f"postgresql://user:{KEY}@db.example/jobs"
AWAY = f"postgresql://user:{KEY}@127.0.0.1:1/jobs"
SIGNED = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": f"v3,{'0' * 64}"}

REFUSED: dict[str, Callable[[], object]] = {
    "key": lambda: Secret(MALFORMED),
    "key of a session": lambda: KlingSession(MALFORMED),
    "key beside another option": lambda: KlingSession(KEY, level="none"),
    "key beside a wrong type": lambda: KlingSession(KEY, max_in_flight="many"),  # type: ignore[arg-type]  # on purpose
    "key of a WaveSpeed": lambda: WaveSpeed(api_key=MALFORMED),
    "key of a GPTProto": lambda: GPTProto(api_key=MALFORMED),
    "proxy": lambda: AiohttpTransport(proxy=PROXY, ca="no-such.pem"),
    "proxy and ledger of a session": lambda: KlingSession("-", proxy=PROXY, ledger=DATABASE, retry_failed=-1),
    "webhook secret": lambda: WebhookVerifier(MALFORMED),
    "webhook secret beside another option": lambda: WebhookVerifier(KEY, tolerance=0),
    "new webhook secret": lambda: WebhookVerifier("-").rotate(MALFORMED),
    "webhook secret of a forged webhook": lambda: verify(SIGNED, b"", KEY, now=1.0),
    "database": lambda: PostgresLedger(f"{DATABASE}%zz"),
    "database beside another option": lambda: PostgresLedger(DATABASE, lease=0),
    "ledger": lambda: open_ledger(f"{DATABASE}?no=1"),
    "ledger to read": lambda: read_ledger(f"{DATABASE}?no=1"),
    "ledger whose steps to read": lambda: read_steps(f"{DATABASE}?no=1"),
    "ledger whose batches to read": lambda: read_batches(f"{DATABASE}?no=1"),
    "ledger with the identity of a batch": lambda: read_identity(f"{DATABASE}?no=1", "b"),
    "ledger that is away, to read": lambda: next(read_ledger(AWAY)),
    "ledger that is away, with steps": lambda: next(read_steps(AWAY)),
    "ledger that is away, with batches": lambda: read_batches(AWAY),
    "ledger that is away, with identities": lambda: read_identity(AWAY, "b"),
    "Redis": lambda: SharedStartsPerWindow(f"redis://:{KEY}@redis.example", 0),
    "Redis that cannot be parsed": lambda: SharedStartsPerWindow(f"redish://:{KEY}@redis.example", 1),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.promise(8)
def test_refusal_shows_no_secret(name: str) -> None:
    error = raised_by(REFUSED[name])
    assert isinstance(error, (KlingError, TypeError))
    assert not leaks(error, SECRETS)


@pytest.mark.promise(8)
def test_forged_webhook_does_not_show_the_signature_of_its_body() -> None:
    signature = hmac.new(KEY.encode(), b"msg_1.1.", hashlib.sha256).hexdigest()
    verifier = WebhookVerifier(KEY, clock=VirtualClock(epoch=1.0))
    error = raised_by(lambda: verifier.authenticate(SIGNED, b""))
    assert isinstance(error, WebhookRefusedError)
    assert error.reason is WebhookRefusal.FORGED
    assert not leaks(error, [signature])


@pytest.mark.anyio
@pytest.mark.promise(8)
async def test_receiver_shows_no_malformed_secret() -> None:
    async with KlingSession("-", transport=ScriptedTransport(lambda _: json_response({}))) as kling:
        error = await error_of(kling.webhook_receiver(MALFORMED))
    assert isinstance(error, ConfigurationError)
    assert not leaks(error, SECRETS)


@pytest.mark.anyio
@pytest.mark.parametrize("ledger", ["no-such-file/", f"{DATABASE}?no=1"], ids=["file", "database"])
@pytest.mark.promise(8)
async def test_session_that_cannot_be_opened_shows_no_password(ledger: str, tmp_path: Path) -> None:
    where = ledger if "://" in ledger else tmp_path
    error = await error_of(KlingSession("-", proxy=PROXY, ledger=where).__aenter__())
    assert isinstance(error, KlingError)
    assert not leaks(error, SECRETS)


MISSPELT = [
    f"postgres:/user:{KEY}@db.example/jobs",
    f"postgresql:user:{KEY}@db.example/jobs",
    f"postgresql//user:{KEY}@db.example/jobs",
    f"postgresql;//user:{KEY}/more@db.example/jobs",
    f"postgrsql://user:{KEY}@db.example/jobs",
    f"postgresq l://user:{KEY}@db.example/jobs",
    f"user:{KEY}@db.example/jobs",
    f"host=db.example password={KEY}",
    f"sqlite:/{KEY}.db",
]
"""Addresses of databases with mistakes."""


@pytest.mark.parametrize("number", range(len(MISSPELT)))
@pytest.mark.parametrize(
    "use",
    [open_ledger, read_ledger, read_steps, read_batches, partial(read_identity, batch="b"), is_url, LedgerName.parse],
)
@pytest.mark.promise(8)
def test_misspelt_url_is_refused_and_not_shown(
    use: Callable[[str], object], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = raised_by(lambda: use(MISSPELT[number]))
    if use is is_url and "://" in MISSPELT[number]:
        assert error is None
        return
    assert isinstance(error, ConfigurationError)
    assert not leaks(error, SECRETS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["run.db", "a:b.db", "out/postgres.db", "C:\\me@work\\run.db", "me@work/run.db", "p=1.db"]
)
def test_path_is_no_misspelt_url(name: str) -> None:
    assert not is_url(name)
    assert not is_url(Path("postgres:/user:password@host/db"))
