"""Text that lies elsewhere, by URL: `s3://`, `gs://`, `hf://`, `https://` and whatever else fsspec knows.

Credentials are the provider's own affair (its environment variables and files). Only reading: what is made is written
here, where "all or nothing" can be kept.
"""

import glob
from typing import IO, Any, cast

import fsspec

from text2token.errors import CorpusError, reason


def is_remote(source: str) -> bool:
    """Say whether `source` is a URL."""
    return "://" in source


def remote_files(source: str) -> list[str]:
    """Return the URLs that `source` stands for, itself or what its pattern matches, or raise `CorpusError`."""
    files, path = _filesystem(source)
    with_pattern = glob.has_magic(path) and not source.startswith(("http://", "https://"))  # there ? begins a query
    try:
        if with_pattern:
            found = [str(files.unstrip_protocol(match)) for match in sorted(files.glob(path))]
        else:
            found = [source] if files.isfile(path) else []
    except Exception as error:  # every provider raises its own kinds
        raise CorpusError(f"{source}: cannot be reached ({reason(error)})") from error
    if not found:
        raise CorpusError(f"{source}: no file matches this pattern" if with_pattern else f"{source}: no such file")
    return found


def open_remote(source: str) -> IO[bytes]:
    """Open a URL for reading, in pieces as they are needed, or raise `CorpusError`."""
    files, path = _filesystem(source)
    try:
        return cast(IO[bytes], files.open(path, "rb"))
    except Exception as error:
        raise CorpusError(f"{source}: cannot be opened ({reason(error)})") from error


def remote_state(source: str) -> tuple[str, int, int]:
    """Return what shows that the file has changed: its URL, its size (0 where none is told), and what else is told of it."""
    files, path = _filesystem(source)
    try:
        return source, int(files.info(path).get("size") or 0), int(files.checksum(path))
    except Exception as error:
        raise CorpusError(f"{source}: cannot be reached ({reason(error)})") from error


def _filesystem(source: str) -> tuple[Any, str]:
    try:
        files, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:  # the first names the package to install
        web = source.startswith(("http://", "https://")) and isinstance(error, ImportError)
        remedy = ". Install what reads from the web: pip install 'text2token[http]'" if web else ""
        raise CorpusError(f"{source}: {reason(error)}{remedy}") from error
    return files, str(path)
