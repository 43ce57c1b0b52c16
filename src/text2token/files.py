"""Writing whole files and folders only, by one process at a time, and only over what was made here.

What is not finished has a hidden name that ends in `.unfinished` or `.scratch`; a killed process leaves it there, and
whoever next has the place for itself (`alone_in`) deletes it.

A folder that is made here holds a hidden file, `.text2token`, that lists the files made with it. Only those are ever deleted
or replaced: a folder without it is somebody else's and is refused, and what others put into a folder made here stays there.
"""

import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from text2token.errors import OutputError, Text2TokenError

OS_ERROR = re.compile(r"\(os error (\d+)\)")
FULL_BELOW_BYTES = 1 << 20  # a library may already have deleted the piece that did not fit
MADE = ".text2token"  # the names of the files that were made with a folder, a line each; EVERYTHING for all of it
EVERYTHING = "*"
LEFT_BY_KILLED = (".unfinished", ".scratch")


@contextmanager
def alone_in(folder: Path, *, beside: bool = False, wait: bool = False, record: str = "") -> Iterator[None]:
    """Be the only process that writes to `folder` while the block runs; `OutputError` where another one does.

    The lock is a hidden file in the folder, or `beside` it, for a folder that will appear whole; it vanishes at the end,
    and so does a folder that holds nothing else. With `wait` the other one is waited for. `record` is the file that marks
    work begun in the folder (`check_begun`).
    """
    if record:
        check_begun(folder, record)
    lock = _lock_beside(real(folder)) if beside else folder / ".lock"
    with writing(folder):
        created = [parent for parent in lock.absolute().parents if not parent.exists()]
    try:
        with writing(folder):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = filelock.FileLock(lock, timeout=-1 if wait else 0)
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


def _lock_beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def tidy(folder: Path) -> None:
    """Delete what killed processes left unfinished in or beside `folder`, which must be the caller's alone.

    One killed between the two renames that replace a folder leaves the old one aside; it gets its name back. What another
    process is writing further inside has its lock beside it and stays.
    """
    for replaced in folder.parent.glob(f".{glob.escape(folder.name)}.*.replaced"):
        if not folder.exists() and (replaced / folder.name).exists():
            os.rename(replaced / folder.name, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    for ending in LEFT_BY_KILLED:
        inside = (left for left in folder.rglob(f".*{ending}") if not _lock_beside(left.with_name(_made_as(left))).exists())
        for left in [*folder.parent.glob(f".{glob.escape(folder.name)}.*{ending}"), *inside]:
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _made_as(unfinished: Path) -> str:
    """Return the name that `.NAME.x.unfinished` was to have."""
    return unfinished.name[1:].rsplit(".", 2)[0] or unfinished.name


def check_ours(folder: Path, known: Collection[str] = ()) -> None:
    """Raise `OutputError` unless `folder` can be replaced: it is not there, is empty, or was made by text2token.

    `known` are names of files that mark one of an earlier version, when it holds no others.
    """
    with writing(folder):  # a name too long, a folder that may not be entered
        folder.exists()
    place = real(folder)
    if folder.is_dir() and (Path.cwd().resolve().is_relative_to(place) or os.path.ismount(place)):
        raise OutputError(f"{folder}: cannot be replaced while it is the current folder or a disk; name a folder inside it")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; name a folder")
    if not folder.is_dir() or (folder / MADE).is_file():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if others:
        raise OutputError(
            f"{folder}: was not made by text2token, or by an earlier version (it holds {others[0]} and no {MADE}). "
            "Choose another folder, or move it away yourself"
        )


def check_begun(folder: Path, record: str, known: Collection[str] = ()) -> None:
    """Raise `OutputError` where `folder` holds things, but not the file `record` that marks work begun there.

    Locks do not count, nor do folders made here, nor files of the names `known`.
    """
    with writing(folder):
        if not folder.is_dir() or (folder / record).is_file():
            return
    foreign = [
        path.name
        for path in sorted(folder.iterdir())
        if not (path.name in known or path.name in (".lock", ".locks") or path.suffix == ".lock" or is_ours(path))
    ]
    if foreign:
        raise OutputError(
            f"{folder}: is not empty and was not begun by this command (it holds {foreign[0]} and no {record}). "
            "Choose another folder"
        )


def check_file(path: Path, beginning: str) -> None:
    """Raise `OutputError` unless `path` can be written: it is not there, is empty, or begins as what is written there does.

    To be called before long work. A file has no room for a mark, but those written here begin in a known way.
    """
    with writing(path):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file")
        if not path.exists():
            return
        with path.open("rb") as file:
            found = file.read(len(beginning.encode()))
    if found and found != beginning.encode():
        raise OutputError(f"{path}: exists and was not made by this command. Choose another file, or move it away yourself")


def is_ours(folder: Path) -> bool:
    """Say whether `folder` was made here, by `atomic_folder` or `claim`."""
    return (folder / MADE).is_file()


def claim(folder: Path) -> None:
    """Make `folder`, all of which counts as made here from then on; `OutputError` where one exists that was not."""
    with writing(folder):
        if not is_ours(folder):
            check_ours(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MADE).write_text(EVERYTHING + "\n", encoding="utf-8")


def forget(folder: Path) -> None:
    """Delete what was made here of `folder`, and the folder where nothing else is in it."""
    if not is_ours(folder):
        return
    for name in sorted(_made_in(folder), reverse=True):
        path = folder / name
        with suppress(OSError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    _remove_empty([*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder])
    if folder.is_dir():  # the rest is somebody's, the place still made here
        (folder / MADE).touch()


def _made_in(folder: Path) -> set[str]:
    """Return the names, relative to `folder`, of what was made with it and its parts; none where it was not made here."""
    if not is_ours(folder):
        return set()
    listed = (folder / MADE).read_text(encoding="utf-8").splitlines()
    if EVERYTHING in listed:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    names = [
        name for name in listed if ".." not in Path(name).parts and not Path(name).is_absolute()
    ]  # it may be somebody else's
    inside = {f"{name}/{deeper}" for name in names if (folder / name).is_dir() for deeper in _made_in(folder / name)}
    return {MADE, *names, *inside}


@contextmanager
def atomic_folder(folder: Path, *, known: Collection[str] = (), parts: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its name when the block succeeds and vanishes when it fails.

    An existing `folder` is replaced by a rename, so that a reader sees the old one or the new one; files in it that were not
    made here move along. `parts` are folders in it that will be made later as parts of it. Raises `OutputError` with the
    reason (no space, read-only, not a folder, ...) for whatever the operating system refuses, and where the existing one is
    not made here (`check_ours`, `known` too).
    """
    check_ours(folder, known)
    created = [parent for parent in folder.absolute().parents if not parent.exists()]
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
    try:
        with writing(folder):
            yield unfinished
            made = sorted(path.relative_to(unfinished).as_posix() for path in unfinished.rglob("*") if not path.is_dir())
            (unfinished / MADE).write_text("".join(f"{name}\n" for name in [*made, *parts]), encoding="utf-8")
            _sync(unfinished)
            os.chmod(unfinished, 0o755)  # mkdtemp makes it private
            if folder.exists():
                check_ours(folder, known)
                _take_along(folder, unfinished, {*_made_in(folder), *known})
                for part in parts:
                    if (unfinished / part).is_dir() and is_ours(folder / part):
                        (unfinished / part / MADE).touch()
                _exchange(folder, unfinished)
            else:
                os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        _remove_empty(created)


def _take_along(old: Path, new: Path, made: Collection[str]) -> None:
    """Put the files of `old` that are not among those `made` here into `new` as well, under the same names."""
    for path in old.rglob("*"):
        name = path.relative_to(old).as_posix()
        if name in made or (path.is_dir() and not path.is_symlink()):
            continue
        target = new / name
        if os.path.lexists(target):
            raise OutputError(f"{path}: was not made by text2token and stands in the way. Move it, or choose another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(path, target, follow_symlinks=False)


def _exchange(old: Path, new: Path) -> None:
    """Let `new` take the name of `old`, which is deleted; when that fails, all is as it was."""
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.", suffix=".replaced", dir=old.parent))
    try:
        os.rename(old, aside / old.name)
        try:
            os.rename(new, old)
        except OSError:
            os.rename(aside / old.name, old)
            raise
    except OSError:
        aside.rmdir()
        raise
    shutil.rmtree(aside)


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
    """Yield a path beside `path`, nobody else's, that takes its name when the block succeeds; `OutputError` as elsewhere."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
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
        code = OS_ERROR.search(str(error))  # how libraries in Rust pass it on
        number = (
            getattr(error, "errno", None)
            or (int(code[1]) if code else None)
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
    existing = next(parent for parent in (path, *real(path).parents) if parent.exists())
    return shutil.disk_usage(existing).free


def real(path: Path) -> Path:
    """Return the absolute `path`, links followed; links in a circle stay, where `Path.resolve` may fail."""
    return Path(os.path.realpath(path))


def _sync(folder: Path) -> None:
    """Flush the folder's files to disk, so that the rename is not kept while their contents are lost."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:  # Windows flushes only what may be written
                os.fsync(file.fileno())
