"""Neighbouring-passage contrast: a passage and the next one of the same document belong together."""

from datasets import Dataset

from text2token import CorpusError
from text2token_bench.peers.contrastive import ContrastiveSettings, train_contrastive
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished

NAME = "Neighbouring passages (CCP)"
CANDIDATES = (
    ContrastiveSettings(learning_rate=3e-5, dropout=0.0, tokens_per_batch=4096),
    ContrastiveSettings(learning_rate=3e-4, dropout=0.0),
    ContrastiveSettings(learning_rate=3e-4, dropout=0.0, cut_layers=1),
)


def neighbouring_pairs(passages: Dataset) -> Dataset:
    """Return each passage with its successor in the same document; a passage occurs in one pair at most.

    Raises `CorpusError` when no document has two passages.
    """
    pairs: dict[str, list[str]] = {"anchor": [], "positive": []}
    waiting, document = None, None
    for row in passages:
        if waiting is not None and row["document"] == document:
            pairs["anchor"].append(waiting)
            pairs["positive"].append(row["text"])
            waiting = None
        else:
            waiting, document = row["text"], row["document"]
    if not pairs["anchor"]:
        raise CorpusError("no document has two passages, so there are no neighbours to learn from; lower passage_characters")
    return Dataset.from_dict(pairs)


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the embedder for which neighbouring passages are close."""
    embedder, result = train_contrastive(workshop, ContrastiveSettings(**settings), neighbouring_pairs(workshop.passages))
    return finished(workshop, embedder, NAME, result.tokens)


PEERS = (Peer(NAME, "contrastive", build, tuple(c.as_settings() for c in CANDIDATES), seeded=True),)
