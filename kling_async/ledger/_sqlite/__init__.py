"""Parts of the embedded ledger: `lock`, `connection`, `tables`, `statements`, `writer`, `reader`."""
