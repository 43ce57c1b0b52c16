"""The backbone as it is: mean, position-weighted mean and last token of the bare text, and a one-word prompt.

The prompt is PromptEOL (Jiang et al. 2023, "Scaling Sentence Embeddings with Large Language Models").
"""

from functools import partial

from text2token.backbone import DEFAULT_PROMPT, load_embedder
from text2token.baselines.peer import Built, Peer, Settings, Workshop, finished

PROMPT_EOL = 'This sentence : "{text}" means in one word:"'


def _build(workshop: Workshop, settings: Settings, name: str) -> Built:
    return finished(workshop, load_embedder(workshop.backbone_with(**settings)), name)


def _peer(name: str, *candidates: Settings) -> Peer:
    return Peer(name, "untrained", partial(_build, name=name), candidates)


PEERS = (
    _peer("mean", {"prompt": "{text}", "pooling": "mean"}),
    _peer("weighted mean", {"prompt": "{text}", "pooling": "weighted_mean"}),
    _peer("last token", {"prompt": "{text}", "pooling": "last"}),
    _peer("PromptEOL", {"prompt": PROMPT_EOL, "pooling": "last"}, {"prompt": DEFAULT_PROMPT, "pooling": "last"}),
)
