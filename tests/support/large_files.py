"""Print the files of more than 256 KiB among the arguments, and exit with 1 if there is one. A hook of pre-commit."""

from __future__ import annotations

import sys
from pathlib import Path

MAX_BYTES = 256 * 2**10


def main() -> int:
    large = [name for name in sys.argv[1:] if Path(name).stat().st_size > MAX_BYTES]
    for name in large:
        print(f"{name}: {Path(name).stat().st_size:,} bytes, expected at most {MAX_BYTES:,}")
    return int(bool(large))


if __name__ == "__main__":
    sys.exit(main())
