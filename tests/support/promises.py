"""Promises of the package, in short; `tests/meta/test_promises.py` finds the tests of each.

Tests are marked `@pytest.mark.promise(NUMBER)`, or with several numbers. `pytest -m promise` prints
the tests of each promise and runs them.
"""

from __future__ import annotations

PROMISES = {
    1: "A paid request is never sent twice on a guess.",
    2: "A paid id is never lost, whoever is cancelled, and every error carries it.",
    3: "Memory follows the window and max_in_flight, never the number of jobs.",
    4: "A stream is entered, then iterated; leaving early detaches, and closing says which ids still run.",
    5: "No deadlock by nesting: the body of a loop over a batch may generate and run batches.",
    6: "A failed job is a value; only what concerns the whole account stops admission, and then what runs drains.",
    7: "Waiting ends: every wait has a deadline, and timed out is not failed.",
    8: "The key goes only to the provider's own origin, never into a log, a repr, an error or a traceback.",
    9: "In a Job, strings are URLs and files are Paths; manifests resolve paths under a root and refuse escapes.",
    10: "The server's vocabulary stays open, and what is sent is strict.",
    11: "Time is virtual in core and virtual tests, and nothing is asserted on elapsed real time.",
}
