"""Durability and names of parts: what reaches the disk before a rename, and which leftovers are removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kling_async.storage import _part
from kling_async.storage._part import Part
from support.videos import mp4

VIDEO = mp4(4000)


def written(target: Path) -> Part:
    part = Part(str(target), target)
    part.open()
    part.write(VIDEO)
    return part


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The calls of fsync, link and rename in their order, each with the inode of what it is called for.

    Renames elsewhere are not the test's: pytest compiles modules that are imported meanwhile, and renames the result.
    """
    made: list[tuple[str, int]] = []
    fsync, link, replace = os.fsync, os.link, os.replace

    def recording_fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        made.append(("fsync folder" if stat.S_ISDIR(found.st_mode) else "fsync file", found.st_ino))
        fsync(descriptor)

    def record_name(source: Path) -> None:
        if Path(source).is_relative_to(tmp_path):
            made.append(("name", Path(source).stat().st_ino))

    def recording_link(source: Path, target: Path) -> None:
        record_name(source)
        link(source, target)

    def recording_replace(source: Path, target: Path) -> None:
        record_name(source)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "link", recording_link)
    monkeypatch.setattr(os, "replace", recording_replace)
    return made


@pytest.mark.parametrize("replace", [False, True])
def test_part_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, calls: list[tuple[str, int]], *, replace: bool
) -> None:
    target = tmp_path / "out" / "v.mp4"
    saved = written(target).keep(replace=replace)
    file, folder = target.stat().st_ino, target.parent.stat().st_ino
    assert calls == [("fsync file", file), ("name", file), ("fsync folder", folder)]
    assert saved.path == target
    assert target.read_bytes() == VIDEO


def test_whole_part_has_left_the_buffer_when_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync does not write what is still in the buffer of the process."""
    sizes: list[int] = []
    fsync = os.fsync

    def measure(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", measure)
    written(tmp_path / "v.mp4").keep(replace=False)
    assert sizes == [len(VIDEO)]


def test_folder_that_cannot_be_synced_keeps_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "not supported")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    assert written(tmp_path / "v.mp4").keep(replace=False).bytes == len(VIDEO)


def test_part_that_cannot_be_synced_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fsync", refuse)
    part = written(tmp_path / "v.mp4")
    with pytest.raises(OSError, match="I/O error"):
        part.keep(replace=True)
    part.discard()
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[int]:
    """A part of another process: a new file at `path`, locked."""
    with path.open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(b"another's")
        file.flush()
        yield os.fstat(file.fileno()).st_ino


def before_the_lock(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], None]) -> None:
    """Do something right before the lock is tried for the `number`th time, from 1: the moment for a race."""
    lock, tried = _part._try_lock, 0

    def racing(file: object) -> bool:
        nonlocal tried
        tried += 1
        if tried == number:
            do()
        return lock(file)  # type: ignore[arg-type]  # a descriptor or a file, as the function takes them

    monkeypatch.setattr(_part, "_try_lock", racing)


def test_leftover_that_became_another_part_meanwhile_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the opening and the lock another process removes the leftover, and begins its own part under the name."""
    path = tmp_path / ".v.mp4.part"
    path.write_bytes(b"leftover")
    with contextlib.ExitStack() as stack:
        other: list[int] = []

        def race() -> None:
            path.unlink()
            other.append(stack.enter_context(in_use(path)))

        before_the_lock(monkeypatch, 1, race)
        part = written(tmp_path / "v.mp4")
        assert path.stat().st_ino == other[0], "the part of another process was removed"
        assert path.read_bytes() == b"another's"
        part.keep(replace=False)
        assert path.exists()
    assert (tmp_path / "v.mp4").read_bytes() == VIDEO


def test_new_part_that_was_removed_as_a_leftover_meanwhile_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the creation and the lock another process takes the unlocked part for a leftover."""
    path = tmp_path / ".v.mp4.part"
    with contextlib.ExitStack() as stack:

        def race() -> None:
            path.unlink()
            stack.enter_context(in_use(path))

        before_the_lock(monkeypatch, 1, race)
        part = written(tmp_path / "v.mp4")
        names = {each.name for each in tmp_path.iterdir()}
        assert path.name in names
        assert len(names) == 2
        assert path.read_bytes() == b"another's"
        part.keep(replace=False)
    assert (tmp_path / "v.mp4").read_bytes() == VIDEO
