"""Writing so that a half-made result never stands under its final name, and by one process at a time.

What is not finished has a hidden name that ends in `.unfinished`; a killed process leaves it there, and whoever next has
the place for itself (`alone_in`) deletes it.
"""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from text2token.errors import OutputError, Text2TokenError

OS_ERROR = re.compile(r"\(os error (\d+)\)")
FULL_BELOW_BYTES = 1 << 20  # a library may already have deleted the piece that did not fit


@contextmanager
def alone_in(folder: Path, *, beside: bool = False) -> Iterator[None]:
    """Be the only process that writes to `folder` while the block runs; `OutputError` where another one does.

    The lock is a hidden file in the folder, or `beside` it, for a folder that will appear whole; it vanishes at the end,
    and so does a folder that holds nothing else.
    """
    lock = folder.resolve().parent / f".{folder.resolve().name}.lock" if beside else folder / ".lock"
    created = [parent for parent in lock.absolute().parents if not parent.exists()]
    try:
        with writing(folder):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(lock, timeout=0)
            try:
                held.acquire()
            except filelock.Timeout:
                raise OutputError(f"{folder}: another process is writing to it. Wait until it has finished") from None
        try:
            with writing(folder):
                tidy(folder)
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)  # before it is let go, so that nobody gets a lock that has no name
            held.release()
    finally:
        _remove_empty(created)


def tidy(folder: Path) -> None:
    """Delete what killed processes left unfinished in or beside `folder`, which must be the caller's alone.

    One killed between the two renames that replace a folder leaves the old one aside; it gets its name back.
    """
    for replaced in folder.parent.glob(f".{glob.escape(folder.name)}.*.replaced"):
        if not folder.exists() and (replaced / folder.name).exists():
            os.rename(replaced / folder.name, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    for left in [*folder.parent.glob(f".{glob.escape(folder.name)}.*.unfinished"), *folder.rglob(".*.unfinished")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name when the block succeeds and vanishes when it fails.

    An existing `folder` is replaced by a rename, so that a reader sees the old one or the new one. Raises `OutputError`
    with the reason (no space, read-only, not a folder, ...) for whatever the operating system refuses.
    """
    created = [parent for parent in folder.absolute().parents if not parent.exists()]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
    try:
        with writing(folder):
            yield unfinished
            _sync(unfinished)
            os.chmod(unfinished, 0o755)  # mkdtemp makes it private
            if folder.exists():
                replaced = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".replaced", dir=folder.parent))
                os.rename(folder, replaced / folder.name)
                os.rename(unfinished, folder)
                shutil.rmtree(replaced)
            else:
                os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _remove_empty(created)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder next to `beside`, where there is room for what is made from it, and delete it in the end.

    Not in the system's place for temporary files: that may be small, and other machines of a cluster do not see it.
    """
    with writing(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{beside.name}.", suffix=".scratch", dir=beside.parent)
    try:
        with writing(beside):
            yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` that takes its name when the block succeeds; `OutputError` as in `atomic_folder`."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into an `OutputError` that names `path`.

    Libraries wrap a full disk in a dozen kinds of exception (torch, safetensors, datasets), so the disk itself is asked.
    """
    try:
        yield
    except Text2TokenError:
        raise
    except Exception as error:
        told = OS_ERROR.search(str(error))  # how libraries in Rust pass it on
        number = (
            getattr(error, "errno", None)
            or (int(told[1]) if told else None)
            or (errno.ENOSPC if free_bytes(path) < FULL_BELOW_BYTES else None)
        )
        if not number and not isinstance(error, OSError):
            raise
        raise OutputError(f"{path}: cannot be written ({os.strerror(number) if number else error})") from error


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: the work succeeded
            folder.rmdir()


def free_bytes(path: Path) -> int:
    """Return how much room is left where `path` is, or will be."""
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _sync(folder: Path) -> None:
    """Flush the folder's files to disk, so that the rename is not kept while their contents are lost."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
