"""`kling-async ledger LEDGER same-account`: say that jobs were sent by the account of the present key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from rich.text import Text

from kling_async._core.sender import UNRECORDED
from kling_async._core.states import OPEN
from kling_async._core.text import one_line
from kling_async._session.options import provider_of
from kling_async._submission.senders import Senders

from .asking import confirmed
from .exits import Exit
from .output import make_console, new_table, plural, print_text
from .reading import rows_of

if TYPE_CHECKING:
    from .choices import ProviderChoice
    from .options import DoubtOptions


def same_account(options: DoubtOptions, provider: ProviderChoice, *, yes: bool) -> Exit:
    """Record that all jobs of a ledger were sent by the account of the key in the environment.

    Args:
        options: The ledger.
        provider: Provider of the account.
        yes: Do not ask for confirmation.

    Raises:
        ConfigurationError: There is no key, or no terminal to ask for confirmation.
        LedgerError: The ledger cannot be written.
    """
    return anyio.run(_same_account, options, provider, yes)


async def _same_account(
    options: DoubtOptions,
    provider: ProviderChoice,
    yes: bool,  # noqa: FBT001 -- `anyio.run` gives no names
) -> Exit:
    console = make_console()
    ledger = options.ledger_name.create()
    senders = Senders(ledger, provider_of(provider.value, None, None))
    await ledger.open()
    try:
        await senders.open()
        sent = [row for row in rows_of(options.ledger_name) if row.intent_at is not None and not senders.include(row)]
        if not sent:
            print_text(console, "All jobs that were sent are of this key's account already. Nothing was changed.")
            return Exit.WELL
        table = new_table(console, "sent", ">jobs", ">running or in doubt")
        by_sender = {row.sender or UNRECORDED: row for row in sent}
        for id_, row in by_sender.items():
            jobs = [row for row in sent if (row.sender or UNRECORDED) == id_]
            table.add_row(one_line(senders.describe(row)), str(len(jobs)), str(sum(row.state in OPEN for row in jobs)))
        console.print(table)
        means = (
            f"They will count as sent by {one_line(senders.own.label)}: its history settles their doubts. If that is "
            "another account, its history shows nothing of them, and jobs in doubt may be paid for twice."
        )
        if not confirmed(
            console,
            means,
            yes=yes,
            purpose="ask for confirmation",
            undone="No job was changed.",
            advice="confirm with --yes",
        ):
            return Exit.NOTHING_DONE
        await senders.add(by_sender)
        print_text(console, Text(f"{plural(len(sent), 'job')} are of this account now.", "green"))
        return Exit.WELL
    finally:
        await ledger.aclose()
