"""A ledger written by the version before jobs without a key were called after their pictures, and its jobs.

The file lies in `tests/resume/data`; `make_hashed_keys.py` beside it made it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from kling_async import Job

from .first_release import DATA, PICTURE

HASHED_KEYS: Final = DATA / "hashed_keys.db"
"""Completed batches: `LIST`, whose rows have no keys, and `FOLDER`, whose keys are the names of its pictures."""
LIST: Final = "products"
FOLDER: Final = "photos"


def list_jobs(folder: Path) -> list[Job]:
    """Return the jobs of `LIST`: files, one of them twice with equal content, and a URL.

    Args:
        folder: Folder that the pictures are put into.
    """
    first, second = (picture(folder, name) for name in ("SKU-1.png", "SKU-2.png"))
    return [
        Job(prompt="She turns", image=first),
        Job(prompt="She turns", image=first),
        Job(prompt="She smiles", image=second),
        Job(prompt="Waves", image="https://pictures.example/lake.png?width=300"),
    ]


def folder_jobs(folder: Path) -> list[tuple[str, Job]]:
    """Return the jobs of `FOLDER` with their keys.

    Args:
        folder: Folder that the pictures are put into.
    """
    return [("anna", Job(prompt="Wind", image=picture(folder, "anna.png")))]


def picture(folder: Path, name: str) -> Path:
    """Put the picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(PICTURE, folder / name))
