"""The untrained backbone: mean, position-weighted mean and last token of the bare text, and a one-word prompt.

The prompt is PromptEOL (Jiang et al. 2023, "Scaling Sentence Embeddings with Large Language Models").
"""

from functools import partial

from text2token import BackboneSettings, load_embedder
from text2token_bench.inside import cut_last_layers
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop, finished

CUT_LAYERS = "cut_layers"
PROMPT_EOL = 'This sentence : "{text}" means in one word:"'


def _build(workshop: Workshop, settings: Settings, name: str) -> Built:
    reading = {key: value for key, value in settings.items() if key != CUT_LAYERS}
    embedder = load_embedder(workshop.backbone_with(**reading))
    cut_last_layers(embedder, settings.get(CUT_LAYERS, 0))
    return finished(workshop, embedder, name)


def _peer(name: str, *candidates: Settings) -> Peer:
    return Peer(name, "untrained", partial(_build, name=name), candidates)


PEERS = (
    _peer("mean", {"prompt": "{text}", "pooling": "mean"}),
    _peer("weighted mean", {"prompt": "{text}", "pooling": "weighted_mean"}),
    _peer("last token", {"prompt": "{text}", "pooling": "last"}),
    _peer(
        "PromptEOL",
        {"prompt": PROMPT_EOL, "pooling": "last"},
        {"prompt": BackboneSettings.prompt, "pooling": "last"},
        {"prompt": BackboneSettings.prompt, "pooling": "last", CUT_LAYERS: 1},
    ),
)
