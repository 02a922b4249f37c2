"""The ledger a command works on: a file, or an account in a database. Its text form has no password."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import typer

from kling_async._core.frames import hides_arguments
from kling_async.errors import ConfigurationError
from kling_async.ledger import is_url, open_ledger

from .places import is_store

if TYPE_CHECKING:
    from kling_async.ledger import Ledger

LEDGER_VARIABLE: Final = "KLING_LEDGER"
"""Environment variable with the ledger of commands that are given none."""
REHEARSAL_FOLDER: Final = "rehearsal"
"""Folder in OUT for everything that `run --emulator` writes."""
REHEARSAL_FILE: Final = "rehearsal.db"
"""Ledger file of `run --emulator`. It cannot be resumed: its emulator ended with the run."""
DEFAULT_ACCOUNT: Final = "default"


def _use_selector_loop() -> None:
    """Let commands run in event loops that the database driver can use; the default one of Windows is none of them."""
    if sys.platform == "win32":
        import asyncio  # noqa: PLC0415 -- slow to load, and needed only there

        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())


@attrs.frozen
class LedgerName:
    """Name of a ledger; `str()` omits the password.

    Attributes:
        where: The file, or the URL of the database, which may hold a password.
        account: Name of the account in the database.
    """

    where: Path | str = attrs.field(repr=False)
    account: str = DEFAULT_ACCOUNT
    _shown: str = attrs.field(default="", alias="shown", kw_only=True)
    _secret: bool = attrs.field(default=False, alias="secret", kw_only=True)

    @classmethod
    @hides_arguments
    def parse(cls, given: str) -> LedgerName:
        """Parse a ledger from the command line.

        Raises:
            ConfigurationError: The URL is of an unknown database, or its driver is not installed.
        """
        if not is_url(given):
            return cls(Path(given))
        open_ledger(given)
        _use_selector_loop()
        # `open_ledger` has checked that the driver is installed.
        from kling_async.ledger._postgres.connection import Address  # noqa: PLC0415 -- see above

        address = Address(given)
        return cls(given, shown=str(address), secret=address.secret)

    def with_account(self, account: str) -> LedgerName:
        """Return the same ledger with another account."""
        return attrs.evolve(self, account=account)

    def __str__(self) -> str:
        return self._shown or str(self.where)

    @property
    def path(self) -> Path | None:
        """File of the ledger; None for a database."""
        return self.where if isinstance(self.where, Path) else None

    @property
    def folder(self) -> Path:
        """Folder of the file.

        Raises:
            ConfigurationError: The ledger is a database.
        """
        if self.path is None:
            raise ConfigurationError("--out is required when the ledger is a database", advice="name a folder")
        return self.path.parent

    @property
    def is_rehearsal(self) -> bool:
        """True if an emulator that has ended wrote the ledger."""
        return self.path is not None and self.path.name == REHEARSAL_FILE

    def require_real(self) -> None:
        """Check that the ledger is not of a rehearsal.

        Raises:
            ConfigurationError: It is: the service knows none of its predictions.
        """
        if self.is_rehearsal:
            raise ConfigurationError(
                f"expected the ledger of a real run, got that of a rehearsal: {self}. Its predictions ended with their "
                "emulator; nothing was spent",
                advice="rehearse again with kling-async run --emulator, or name the ledger of a real run",
            )

    @property
    def as_argument(self) -> list[str]:
        """Words that name the ledger in a command to copy; without it if the environment names the same one."""
        return self._account_option + ([] if os.environ.get(LEDGER_VARIABLE) == self.where else [self._word])

    @property
    def as_option(self) -> list[str]:
        """Words that name the ledger as `--ledger` in a command to copy."""
        return ["--ledger", self._word, *self._account_option]

    def option_for(self, out: str) -> list[str]:
        """Return the words that name the ledger in a `run` or `fetch` to copy; none where it is the default.

        Args:
            out: Destination of the videos in that command.
        """
        default = self.path == Path(out) / "run.db" and not is_store(out)
        return [] if default or self.is_rehearsal else self.as_option

    @property
    def _word(self) -> str:
        # The password is omitted; libpq reads it from PGPASSWORD or .pgpass.
        return str(self) if self._secret else str(self.where)

    @property
    def _account_option(self) -> list[str]:
        return ["--account", self.account] if self.account != DEFAULT_ACCOUNT else []

    def exists(self) -> bool:
        """Return whether the file, or the ledger's tables in the database, exist.

        Raises:
            LedgerError: The database cannot be reached.
        """
        if isinstance(self.where, Path):
            return self.where.exists()
        from kling_async.ledger._postgres import connection, reader  # noqa: PLC0415 -- needs an extra

        return reader.exists(connection.Address(self.where))

    def create(self) -> Ledger:
        """Return the ledger, not open yet.

        Raises:
            ConfigurationError: The URL cannot be parsed.
        """
        return open_ledger(self.where, account=self.account)


def parse_ledger(given: str) -> LedgerName:
    """Parse a ledger for typer. The error omits a URL, which may hold a password."""
    try:
        return LedgerName.parse(given)
    except ConfigurationError as error:
        raise typer.BadParameter(f"{error.message} ({error.advice})") from None


def parse_existing_ledger(given: str) -> LedgerName:
    """Parse a ledger for typer and check that its file exists. A database is not connected to."""
    ledger = parse_ledger(given)
    if ledger.path is not None and not ledger.path.is_file():
        raise typer.BadParameter(f"there is no file {given!r}")
    return ledger


def required_ledger(ledger: LedgerName | None, account: str) -> LedgerName:
    """Return a ledger with its account.

    Raises:
        ConfigurationError: The ledger is None.
    """
    if ledger is None:
        raise ConfigurationError("no ledger given", advice=f"name a ledger, or set {LEDGER_VARIABLE}")
    return ledger.with_account(account)
