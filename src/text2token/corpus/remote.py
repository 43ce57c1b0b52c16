"""Text that lies elsewhere, by URL: `s3://`, `gs://`, `hf://`, `https://` and whatever else fsspec knows.

Credentials are the provider's (its environment variables and files). Only reading: what is made is written
here, where "all or nothing" can be kept. A URL itself may hold a password or a signature: it is shown without.
"""

import glob
from typing import IO, Any, cast

import fsspec

from text2token.corpus.published import without_secrets
from text2token.errors import CorpusError, reason


def is_remote(source: str) -> bool:
    """Return whether `source` is a URL."""
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
    except Exception as error:  # every provider raises other kinds
        raise CorpusError(failure(source, "cannot be reached", error)) from None
    if not found:
        raise CorpusError(f"{without_secrets(source)}: no {'file matches this pattern' if with_pattern else 'such file'}")
    return found


def open_remote(source: str) -> IO[bytes]:
    """Open a URL for reading, in pieces as they are needed, or raise `CorpusError`."""
    files, path = _filesystem(source)
    try:
        return cast(IO[bytes], files.open(path, "rb"))
    except Exception as error:
        raise CorpusError(failure(source, "cannot be opened", error)) from None


def remote_state(source: str) -> tuple[str, int, int]:
    """Return what shows that the file has changed: its URL, its size (0 where it is not known), and what else is known."""
    files, path = _filesystem(source)
    try:
        return source, int(files.info(path).get("size") or 0), int(files.checksum(path))
    except Exception as error:
        raise CorpusError(failure(source, "cannot be reached", error)) from None


def failure(source: str, what: str, error: Exception) -> str:
    """Return the line of what happened to `source` and why, without credentials."""
    shown = without_secrets(source)
    return f"{shown}: {what} ({reason(error).replace(source, shown)})"


def _filesystem(source: str) -> tuple[Any, str]:
    try:
        files, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:  # the first names the package to install
        web = source.startswith(("http://", "https://")) and isinstance(error, ImportError)
        remedy = ". Install what reads from the web: pip install 'text2token[http]'" if web else ""
        raise CorpusError(f"{without_secrets(source)}: {reason(error)}{remedy}") from error
    return files, str(path)
