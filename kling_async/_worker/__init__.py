"""Workers over a shared ledger, and enqueueing for them."""
