"""Parts of the embedded ledger."""
