"""A search in files without an index: one is made for it, and kept in the user's cache folder.

Its place there is decided by the model's weights and the sources, so that another model never meets these vectors; each
search brings it up to date.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import filelock
import platformdirs

from text2token.corpus.documents import Document
from text2token.errors import OutputError
from text2token.model.encoder import TextEncoder, open_encoder
from text2token.progress import Reporter, Silent
from text2token.search.fill import first_texts
from text2token.search.index import Index, lasting, usual_dtype
from text2token.search.store import LOCK


@contextmanager
def kept_index(
    model: str, sources: Sequence[str], documents: Sequence[Document], reporter: Reporter | None = None
) -> Iterator[Index]:
    """Yield an index of exactly these documents, which were read from `sources`.

    Where it cannot be kept, or another process has it, one is made in a temporary folder. Raises `CorpusError` where no
    document has a text, and `ModelError` where there is no such embedder.
    """
    reporter = reporter or Silent()
    texts, _ = first_texts(documents)
    encoder = open_encoder(model, usual_dtype())

    def filled(folder: Path) -> Index:
        index = Index.create(folder, model, texts, encoder=encoder)
        try:
            index.add(documents, prune=True, total=len(documents), reporter=reporter)
        except BaseException:
            index.close()
            raise
        return index

    with ExitStack() as stack:
        try:
            index = filled(place := _place(encoder, sources))
        except OutputError as error:  # the search itself is still answered
            reporter.note(f"The next search embeds the documents again: {error}")
            _forget(place)
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="text2token-"))
            index = filled(Path(temporary) / "index")
        yield stack.enter_context(index)


def _place(encoder: TextEncoder, sources: Sequence[str]) -> Path:
    key = "\0".join([encoder.fingerprint, *map(lasting, sources)])
    digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]
    return platformdirs.user_cache_path("text2token") / "indexes" / digest


def _forget(folder: Path) -> None:
    """Delete what may be damaged, unless somebody uses it."""
    with suppress(OSError, filelock.Timeout), filelock.FileLock(folder / LOCK, timeout=0):
        shutil.rmtree(folder)
