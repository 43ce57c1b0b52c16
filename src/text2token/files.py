"""Writing so that a half-made result never stands under its final name."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from text2token.errors import OutputError, Text2TokenError

FULL_BELOW_BYTES = 1 << 20  # a library may already have deleted the piece that did not fit


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
        for parent in created:
            with suppress(OSError):  # not empty: the work succeeded
                parent.rmdir()


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
        number = getattr(error, "errno", None) or (errno.ENOSPC if _is_full(path) else None)
        if not number and not isinstance(error, OSError):
            raise
        raise OutputError(f"{path}: cannot be written ({os.strerror(number) if number else error})") from error


def _is_full(path: Path) -> bool:
    existing = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    return shutil.disk_usage(existing).free < FULL_BELOW_BYTES


def _sync(folder: Path) -> None:
    """Flush the folder's files to disk, so that the rename is not kept while their contents are lost."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
