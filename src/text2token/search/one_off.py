"""One query over one corpus: embed the documents once, keep the vectors, rank by cosine.

For a look at what an embedder finds. The vectors are kept in the user's cache directory under a hash of the model's
weights and the documents, so a second query answers at once and a changed model or corpus is never mistaken for another.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import platformdirs
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from text2token.corpus.documents import Document
from text2token.encoder import TextEncoder, open_encoder
from text2token.errors import CorpusError
from text2token.files import atomic_file
from text2token.reporter import Reporter, Silent


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
    only the query. Raises `CorpusError` when there are no documents.
    """
    if not documents:
        raise CorpusError("no documents: the input holds no text")
    reporter = reporter or Silent()
    encoder = open_encoder(model, "auto")
    stored = platformdirs.user_cache_path("text2token") / "vectors" / f"{_key(encoder, documents)}.safetensors"
    if stored.exists():
        vectors = load_file(stored)["vectors"]
    else:
        with reporter.progress("Embedding the documents (once)", len(documents), "texts") as progress:
            vectors = encoder([document.text for document in documents], progress)
        with atomic_file(stored) as path:
            save_file({"vectors": vectors}, path)
    similarities = normalize(vectors) @ normalize(encoder([query]))[0]  # a model may leave its vectors as long as they are
    best = torch.topk(similarities, min(k, len(documents)))
    return [
        Match(round(score, 3), documents[row].place, documents[row].text)
        for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _key(encoder: TextEncoder, documents: Sequence[Document]) -> str:
    digest = hashlib.sha256(encoder.fingerprint.encode())
    for document in documents:
        digest.update(document.text.encode("utf-8", "replace") + b"\0")
    return digest.hexdigest()[:32]
