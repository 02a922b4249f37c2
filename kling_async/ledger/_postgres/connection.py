"""Connection to PostgreSQL that is made again when it breaks: one piece of work at a time, each in a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kling_async._core.frames import hides_arguments, without_frames
from kling_async._log import log
from kling_async.errors import ConfigurationError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

T = TypeVar("T")
Connection: TypeAlias = "psycopg.AsyncConnection[tuple[Any, ...]]"

FIRST_RETRY_S, MAX_RETRY_S = 0.05, 2.0
"""Seconds between two attempts to connect, at first and at most."""
_SECRETS = ("password", "sslpassword", "passfile", "sslkey", "oauth_client_secret")


class Address:
    """Address of a database. Its text never shows the password.

    Args:
        url: A URL, `postgresql://user:password@host/database`, or anything else that libpq takes.

    Attributes:
        secret: True if it has a password.

    Raises:
        ConfigurationError: The URL cannot be parsed.
    """

    @hides_arguments
    def __init__(self, url: str) -> None:
        try:
            known = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        except psycopg.Error:
            # The parser's message quotes the URL, hence the password.
            raise ConfigurationError(
                "ledger: the URL of the database cannot be read",
                advice="write it as postgresql://user:password@host/database, with special signs as %40",
            ) from None
        self._known = known
        secrets = {known[name] for name in _SECRETS if known.get(name)}
        self.secret = bool(secrets)
        # As they are, and as they are quoted in a URL.
        hidden = sorted({*secrets, *(quote(secret, safe="") for secret in secrets), url}, key=len, reverse=True)
        self._hidden = re.compile("|".join(map(re.escape, hidden)))

    def parameters(self, *, name: str, answer_within: int) -> str:
        """Return the connection string for libpq, with the password. Parameters of the URL take precedence.

        Args:
            name: Name of the connection in the server's lists.
            answer_within: Seconds after which a server that does not answer is given up.
        """
        ours = {
            "application_name": name,
            "connect_timeout": str(max(2, answer_within)),
            "tcp_user_timeout": str(1000 * answer_within),
            "keepalives_idle": str(answer_within),
            "keepalives_interval": str(answer_within),
            "keepalives_count": "3",
        }
        return make_conninfo("", **{**ours, **self._known})

    def redact(self, text: object) -> str:
        """Return a text on one line and without the password."""
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


class Database:
    """Connection to a database, made when it is needed and again when it breaks.

    Args:
        address: Address of the database.
        name: Name of the connection in the server's lists.
        answer_within: Seconds after which a server that does not answer is given up.
    """

    def __init__(self, address: Address, *, name: str, answer_within: float) -> None:
        self._address = address
        self._name = name
        self._within = answer_within
        self._connection: Connection | None = None

    async def connect(self) -> Connection:
        """Return the connection, made now if there is none.

        Raises:
            LedgerError: The driver cannot use the running event loop.
            psycopg.Error: The database cannot be reached.
        """
        if self._connection is None or self._connection.closed:
            self._check_loop()
            seconds = max(1, round(self._within))
            connection = await _connect(self._address.parameters(name=self._name, answer_within=seconds))
            if isinstance(connection, BaseException):
                raise without_frames(connection)
            self._connection = connection
            with self._guarded(connection, self._within):
                # The locks of a worker that is cut off within a transaction must not outlive it.
                await fetch(connection, f"SET idle_in_transaction_session_timeout = {1000 * seconds}")
        return self._connection

    def _check_loop(self) -> None:
        """Raise if the running event loop is the default one of Windows, which psycopg refuses at every attempt.

        Raises:
            LedgerError: It is.
        """
        if any(cls.__name__ == "ProactorEventLoop" for cls in type(asyncio.get_running_loop()).__mro__):
            raise LedgerError(
                f"the ledger {self._address} cannot be used in a ProactorEventLoop, the default of Windows; nothing "
                "was sent",
                advice="run asyncio.Runner(loop_factory=asyncio.SelectorEventLoop).run(main())",
            )

    async def run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        patience: float,
        answer_within: float | None = None,
    ) -> T:
        """Do work in a transaction; do all of it again when the connection breaks.

        Args:
            work: May be called several times; must not change anything but the database.
            patience: Seconds after which a database that cannot be reached is given up.
            answer_within: Seconds that the work may take; None is those of the connection.

        Raises:
            LedgerError: The database cannot be reached, or refused a statement.
            psycopg.DataError: A value cannot be stored.
            psycopg.IntegrityError: A constraint is violated.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        delay = FIRST_RETRY_S
        failure: LedgerError | None = None
        while failure is None:
            try:
                connection = await self.connect()
                with self._guarded(connection, answer_within or self._within):
                    async with connection.transaction():
                        return await work(connection)
            except (psycopg.DataError, psycopg.IntegrityError):
                raise
            except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as trouble:
                # It is gone, or asks for another attempt: deadlock, shutdown, too many connections.
                if loop.time() + delay <= until:
                    log.info("the ledger %s is asked again: %s", self._address, self._address.redact(trouble))
                else:
                    failure = self.error("cannot be reached", trouble)
            except psycopg.Error as trouble:
                failure = self.error("refused", trouble)
            if failure is None:
                await self.aclose()
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_RETRY_S)
        # Raised outside of the except blocks: the driver's exceptions have the password in their attributes.
        raise failure

    def error(self, what: str, trouble: Exception) -> LedgerError:
        """Return the error for a failed statement or connection, without the password."""
        return LedgerError(
            f"the ledger {self._address} {what}: {self._address.redact(trouble)}",
            advice="look whether the database runs and takes this user; nothing is lost: run the same again",
        )

    @contextlib.contextmanager
    def _guarded(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Shut the socket when the server does not answer: a query cannot be cancelled over a dead connection."""
        timer = asyncio.get_running_loop().call_later(seconds, _shut, connection)
        try:
            yield
        finally:
            timer.cancel()

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def _connect(parameters: str) -> Connection | BaseException:
    """Return a connection, or the exception to raise in its place: its frames have the password.

    Args:
        parameters: Connection string for libpq, with the password.
    """
    try:
        return await psycopg.AsyncConnection.connect(parameters, autocommit=True)
    except BaseException as error:  # noqa: BLE001 -- raised by the caller
        return error


def _shut(connection: Connection) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.fromfd(connection.fileno(), 0, socket.SOCK_STREAM) as copy,
    ):
        copy.shutdown(socket.SHUT_RDWR)


async def fetch(
    connection: Connection, query: str, values: Sequence[Any] | Mapping[str, Any] = ()
) -> list[tuple[Any, ...]]:
    """Return the rows of a statement; none of one that returns none."""
    cursor = await connection.execute(query.encode(), values)
    return await cursor.fetchall() if cursor.description else []
