"""Which ledger a command is about: a file, or an account in a database. It is printed without its password."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kling_async.ledger import is_url, open_ledger

if TYPE_CHECKING:
    from kling_async.ledger import Ledger

VARIABLE: Final = "KLING_LEDGER"
"""The environment's ledger, for commands that need one and are given none."""
REHEARSAL: Final = "rehearsal.db"
"""What `run --emulator` calls its ledger. There is nothing to go on with: its emulator has ended."""
ACCOUNT: Final = "default"


@attrs.frozen
class LedgerName:
    """A ledger by its name. As text it has no password.

    Attributes:
        where: The file, or the URL of the database, which may hold a password.
        account: What the account on the service is called in the database.
    """

    where: Path | str = attrs.field(repr=False)
    account: str = ACCOUNT
    _shown: str = attrs.field(default="", alias="shown", kw_only=True)
    _secret: bool = attrs.field(default=False, alias="secret", kw_only=True)

    @classmethod
    def of(cls, given: str) -> LedgerName:
        """The ledger that was named on the command line.

        Raises:
            ConfigurationError: It is a URL, of no database that is known, or there is no driver for it.
        """
        if not is_url(given):
            return cls(Path(given))
        open_ledger(given)
        # Imported here: it needs an extra, and it is there.
        from kling_async.ledger._link import Address  # noqa: PLC0415 -- see above

        address = Address(given)
        return cls(given, shown=str(address), secret=address.secret)

    def of_account(self, account: str) -> LedgerName:
        """The same one, of an account in it."""
        return attrs.evolve(self, account=account)

    def __str__(self) -> str:
        return self._shown or str(self.where)

    @property
    def path(self) -> Path | None:
        """The file; None of a database."""
        return self.where if isinstance(self.where, Path) else None

    @property
    def rehearsal(self) -> bool:
        """Whether an emulator wrote it that has ended."""
        return self.path is not None and self.path.name == REHEARSAL

    @property
    def words(self) -> list[str]:
        """It as an argument of a command to copy: none when the environment names it."""
        return self._account + ([] if os.environ.get(VARIABLE) == self.where else [self._word])

    @property
    def option(self) -> list[str]:
        """It as an option of a command to copy."""
        return ["--ledger", self._word, *self._account]

    @property
    def _word(self) -> str:
        # A password is left out; libpq finds it elsewhere: PGPASSWORD, .pgpass.
        return str(self) if self._secret else str(self.where)

    @property
    def _account(self) -> list[str]:
        return ["--account", self.account] if self.account != ACCOUNT else []

    def exists(self) -> bool:
        """Whether there is such a ledger.

        Raises:
            LedgerError: The database cannot be reached.
        """
        if isinstance(self.where, Path):
            return self.where.exists()
        from kling_async.ledger import _reading  # noqa: PLC0415 -- it needs an extra

        return _reading.exists(self.where)

    def made(self) -> Ledger:
        """The ledger, not open.

        Raises:
            ConfigurationError: The URL cannot be read.
        """
        return open_ledger(self.where, account=self.account)
