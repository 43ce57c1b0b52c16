"""One query over one corpus: embed the documents once, keep the vectors, rank by cosine.

For a look at what an embedder finds. The vectors are kept in the user's cache directory under a hash of the model's
weights and the documents, so a second query answers at once and a changed model or corpus is never mistaken for another.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from text2token.corpus.documents import Document
from text2token.corpus.normalisation import normalise
from text2token.corpus.prepare import normalised_text
from text2token.errors import CorpusError, OutputError, UsageError
from text2token.files import atomic_file
from text2token.model.encoder import TextEncoder, open_encoder
from text2token.progress import Reporter, Silent


@dataclass(frozen=True)
class Match:
    """A found document and its cosine similarity to the query."""

    score: float
    place: str
    text: str


def search(
    model: str, documents: Sequence[Document], query: str, k: int = 5, reporter: Reporter | None = None
) -> list[Match]:
    """Return the `k` documents most similar to `query`, best first.

    `model` is the folder or hub id of an embedder. The first search embeds all documents, with progress; later ones
    only the query. Raises `CorpusError` when there are no documents, `UsageError` when the
    query is empty.
    """
    if not documents:
        raise CorpusError("no documents: the input holds no text")
    query = normalise(query)
    if not query:
        raise UsageError("the query is empty; say what to look for")
    reporter = reporter or Silent()
    encoder = open_encoder(model, "auto")
    texts = [normalised_text(document) for document in documents]
    stored = platformdirs.user_cache_path("text2token") / "vectors" / f"{_key(encoder, texts)}.safetensors"
    vectors = _kept(stored)
    if vectors is None:
        with reporter.progress("Embedding the documents (once)", len(documents), "texts") as progress:
            vectors = encoder(texts, progress, "document")
        try:
            with atomic_file(stored) as path:
                save_file({"vectors": vectors}, path)
        except OutputError as error:  # what was found is not withheld for that
            reporter.note(f"The next search embeds them again: {error}")
    asked = encoder([query], role="query")
    similarities = normalize(vectors) @ normalize(asked)[0]  # a model may leave its vectors as long as they are
    best = torch.topk(similarities, min(k, len(documents)))
    return [
        Match(round(score, 3), documents[row].place, documents[row].text)
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _kept(stored: Path) -> Tensor | None:
    """Return the vectors that an earlier search has kept, or None where there are none that can be read."""
    try:
        return load_file(stored)["vectors"]
    except (OSError, SafetensorError, KeyError):
        return None


def _key(encoder: TextEncoder, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:32]
