"""Parts of the shared ledger, from the bottom to the top.

`connection`, `tables`, `statements`, `notifications`, `requests`, `queue`, `lease`; `reader` reads without them.
"""
