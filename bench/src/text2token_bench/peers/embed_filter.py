"""EmbedFilter (arXiv 2606.07502): keep of an embedding the middle singular directions of the language-model head.

The largest ones carry what all texts say, the smallest what the head cannot say; what remains has fewer dimensions.
No training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from text2token import BackboneSettings, load_embedder
from text2token_bench.inside import Progress, TextEncoder, embed, load_head, model_fingerprint
from text2token_bench.peers.peer import Built, Peer, Settings, Workshop

PROMPT = 'Summarize the sentence: "{text}" in one word:"'


def middle_directions(weight: Tensor, ratio: int) -> Tensor:
    """Return the middle dimension // `ratio` right singular vectors of `weight`, shape (vocabulary, dimension), as columns.

    The small Gram matrix is decomposed, in float64, instead of the tall one.
    """
    gram = weight.double().T @ weight.double()
    directions: Tensor = torch.linalg.eigh(gram).eigenvectors.flip(1)  # by falling singular value
    kept = directions.shape[1] // ratio
    start = (directions.shape[1] - kept) // 2
    return directions[:, start : start + kept].float()


def build(workshop: Workshop, settings: Settings) -> Built:
    """Return one-word-prompt embeddings seen only in the head's middle directions."""
    embedder = load_embedder(workshop.backbone_with(prompt=settings["prompt"], pooling="last"))
    head = load_head(embedder, workshop.backbone.name)
    directions = middle_directions(head.weight.cpu(), settings["ratio"])

    def filtered(texts: Sequence[str], progress: Progress | None) -> Tensor:
        return embed(embedder, texts, progress) @ directions

    fingerprint = f"{model_fingerprint(embedder)}-{settings['ratio']}"
    return Built(TextEncoder("EmbedFilter", fingerprint, filtered))


def _settings(prompt: str, ratio: int) -> dict[str, Any]:
    return {"prompt": prompt, "ratio": ratio}


PEERS = (
    Peer(
        "EmbedFilter",
        "untrained",
        build,
        (_settings(PROMPT, 2), _settings(BackboneSettings.prompt, 2), _settings(BackboneSettings.prompt, 4)),
    ),
)
