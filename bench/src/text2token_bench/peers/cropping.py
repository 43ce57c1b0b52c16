"""Independent cropping, as Contriever (Izacard et al. 2022) does it: two random spans of one text belong together.

Theirs are spans of tokens with a queue of negatives (MoCo); here spans of words with the negatives of the batch.
"""

import numpy as np
from datasets import Dataset

from text2token_bench.peers.contrastive import ContrastiveSettings, train_contrastive
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished

SHORTEST, LONGEST = 0.05, 0.5  # share of the text's words
DELETED = 0.1  # share of a span's words
NAME = "Independent cropping"
CANDIDATES = (
    ContrastiveSettings(learning_rate=5e-5, dropout=0.0, prompt="{text}", pooling="mean", tokens_per_batch=4096),
    ContrastiveSettings(learning_rate=3e-4, dropout=0.0),
    ContrastiveSettings(learning_rate=3e-4, dropout=0.0, cut_layers=1),
)


def cropped_pairs(passages: Dataset, seed: int) -> Dataset:
    """Return two spans of each text that has at least two words."""
    rng = np.random.default_rng(seed)

    def crop(words: list[str]) -> str:
        length = max(1, round(len(words) * rng.uniform(SHORTEST, LONGEST)))
        start = int(rng.integers(len(words) - length + 1))
        span = words[start : start + length]
        kept = [word for word in span if rng.random() >= DELETED]
        return " ".join(kept or span)

    split = [text.split() for text in passages["text"]]
    pairs = [(crop(words), crop(words)) for words in split if len(words) > 1]
    return Dataset.from_dict({"anchor": [one for one, _ in pairs], "positive": [two for _, two in pairs]})


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return the embedder for which two spans of a text are close."""
    pairs = cropped_pairs(workshop.passages, workshop.seed)
    embedder, result = train_contrastive(workshop, ContrastiveSettings(**settings), pairs)
    return finished(workshop, embedder, NAME, result.tokens)


PEERS = (Peer(NAME, "contrastive", build, tuple(c.as_settings() for c in CANDIDATES), seeded=True),)
