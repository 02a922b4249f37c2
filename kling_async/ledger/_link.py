"""A connection to PostgreSQL that comes back: one piece of work at a time, each in a transaction of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kling_async.errors import ConfigurationError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

log = logging.getLogger("kling_async")

T = TypeVar("T")

_FIRST, _CAP = 0.05, 2.0
"""Seconds between two attempts to connect, at first and at most."""
_SECRETS = ("password", "sslpassword", "passfile", "sslkey", "oauth_client_secret")


class Address:
    """Where the database is. Its password does not show.

    Args:
        url: A URL, `postgresql://user:password@host/database`, or anything else that libpq takes.

    Attributes:
        secret: Whether it has a password.

    Raises:
        ConfigurationError: It is none.
    """

    def __init__(self, url: str) -> None:
        try:
            known = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        except psycopg.Error:
            # What the parser says quotes the URL, hence the password.
            raise ConfigurationError(
                "ledger: the URL of the database cannot be read",
                advice="write it as postgresql://user:password@host/database, with special signs as %40",
            ) from None
        self._known = known
        secrets = {known[name] for name in _SECRETS if known.get(name)}
        self.secret = bool(secrets)
        # As they are, and as they stand in a URL.
        hidden = sorted({*secrets, *(quote(secret, safe="") for secret in secrets), url}, key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, hidden)))

    def parameters(self, **more: object) -> str:
        """For libpq, with the password."""
        return make_conninfo("", **{**self._known, **{k: str(v) for k, v in more.items() if k not in self._known}})

    def redact(self, text: object) -> str:
        """What somebody said, on one line and without the password."""
        return " ".join(self._hidden.sub("***", str(text)).split())

    def __str__(self) -> str:
        known = self._known
        user = f"{known['user']}@" if "user" in known else ""
        port = f":{known['port']}" if "port" in known else ""
        return f"postgresql://{user}{known.get('host', '')}{port}/{known.get('dbname', '')}"

    def __repr__(self) -> str:
        return f"Address('{self}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and other._known == self._known

    def __hash__(self) -> int:
        return hash(str(self))


class Link:
    """A connection that is made again when it breaks.

    Args:
        address: The database.
        name: How the connection is called in the server's lists.
        answer_within: Seconds after which a server that does not answer is taken for gone.
    """

    def __init__(self, address: Address, *, name: str, answer_within: float) -> None:
        self._address = address
        self._name = name
        self._within = answer_within
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """The connection, made now if there is none.

        Raises:
            psycopg.Error: There is no way.
        """
        if self._connection is None or self._connection.closed:
            seconds = max(1, round(self._within))
            self._connection = connection = await psycopg.AsyncConnection.connect(
                self._address.parameters(
                    application_name=self._name,
                    connect_timeout=max(2, seconds),
                    tcp_user_timeout=1000 * seconds,
                    keepalives_idle=seconds,
                    keepalives_interval=seconds,
                    keepalives_count=3,
                ),
                autocommit=True,
            )
            with self._guarded(connection, self._within):
                # What a worker that is cut off in a transaction has locked must not outlive it.
                await ask(connection, f"SET idle_in_transaction_session_timeout = {1000 * seconds}")
        return self._connection

    async def run(
        self,
        work: Callable[[psycopg.AsyncConnection[tuple[Any, ...]]], Awaitable[T]],
        *,
        patience: float,
        answer_within: float | None = None,
    ) -> T:
        """Do a piece of work in a transaction; all of it again when the connection breaks.

        Args:
            work: It may be done several times; what it changes besides the database must be done afterwards.
            patience: Seconds after which a database that cannot be reached is given up.
            answer_within: Seconds that the work may take, where that is more than the connection allows otherwise.

        Raises:
            LedgerError: The database cannot be reached, or refused.
            psycopg.DataError: The work gave it what it cannot hold.
            psycopg.IntegrityError: The work gave it what must not be.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        delay = _FIRST
        while True:
            try:
                connection = await self.connect()
                with self._guarded(connection, answer_within or self._within):
                    async with connection.transaction():
                        return await work(connection)
            except (psycopg.DataError, psycopg.IntegrityError):
                raise
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as trouble:
                # It went away, or sends us away: deadlock, shutdown, too many connections.
                if loop.time() + delay > until:
                    raise self.error("cannot be reached", trouble) from None
                log.info("the ledger %s is asked again: %s", self._address, self._address.redact(trouble))
            except psycopg.Error as trouble:
                raise self.error("refused", trouble) from None
            await self.aclose()
            await asyncio.sleep(delay)
            delay = min(2 * delay, _CAP)

    def error(self, what: str, trouble: Exception) -> LedgerError:
        """The trouble in our words."""
        return LedgerError(
            f"the ledger {self._address} {what}: {self._address.redact(trouble)}",
            advice="look whether the database runs and takes this user; nothing is lost: run the same again",
        )

    @contextlib.contextmanager
    def _guarded(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], seconds: float) -> Any:
        """Hang up on a server that does not answer: a query cannot be cancelled over a dead line."""
        timer = asyncio.get_running_loop().call_later(seconds, _hang_up, connection)
        try:
            yield
        finally:
            timer.cancel()

    async def aclose(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _hang_up(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    with contextlib.suppress(OSError, psycopg.Error), socket.fromfd(connection.fileno(), 0, socket.SOCK_STREAM) as line:
        line.shutdown(socket.SHUT_RDWR)


async def ask(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], query: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> list[tuple[Any, ...]]:
    """The rows that a statement of ours gives, or none."""
    cursor = await connection.execute(query.encode(), values)
    return await cursor.fetchall() if cursor.description else []
