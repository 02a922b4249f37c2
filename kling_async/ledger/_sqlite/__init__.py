"""Parts of the embedded ledger, a file or a thread each."""
