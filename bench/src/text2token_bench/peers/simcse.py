"""Unsupervised SimCSE (Gao et al. 2021): a text and itself, seen through two dropout masks."""

from datasets import Dataset

from text2token_bench.peers.contrastive import ContrastiveSettings, train_contrastive
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished

# The published rate is meant for many more steps than a small budget has; the tuned ones are for it.
CANDIDATES = (
    ContrastiveSettings(learning_rate=3e-5, tokens_per_batch=4096),
    ContrastiveSettings(learning_rate=3e-4),
    ContrastiveSettings(learning_rate=3e-4, cut_layers=1),
)


def same_text_twice(passages: Dataset) -> Dataset:
    """Return pairs of each text with itself."""
    texts = passages.select_columns(["text"])
    return texts.rename_column("text", "anchor").add_column("positive", texts["text"][:])


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the embedder trained with dropout as the only difference between a text and its positive."""
    embedder, result = train_contrastive(workshop, ContrastiveSettings(**settings), same_text_twice(workshop.passages))
    return finished(workshop, embedder, "SimCSE", result.tokens)


PEERS = (Peer("SimCSE", "contrastive", build, tuple(c.as_settings() for c in CANDIDATES), seeded=True),)
